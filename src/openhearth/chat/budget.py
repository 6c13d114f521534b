"""What one rendering of a chat template may spend: steps, characters and wall time.

The sandbox (`sandbox.py`) charges a budget at every loop iteration, call, filter, operator,
comparison, lookup and output, so no thread or signal is needed and it works in any thread.

Does not: interrupt one single operation, or the compilation of a template. The sizes of the
operands and of the source bound them, and the same limits bound these.
"""

from __future__ import annotations

import time
from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from dataclasses import dataclass

from openhearth.errors import TemplateError


@dataclass(frozen=True)
class TemplateLimits:
    """Limits of one rendering; a real template uses a small fraction of each.

    source_chars: of the template. output_chars: of the result, and of any single value.
    total_chars: of all values made on the way (a list element counts as 8). steps: operations.
    seconds: wall time. range_length: items of one `range`. Example:
    ``TemplateLimits(output_chars=1000)``.
    """

    source_chars: int = 128 << 10
    output_chars: int = 16 << 20
    total_chars: int = 256 << 20
    steps: int = 1_000_000
    seconds: float = 10.0
    range_length: int = 100_000


CONTAINERS = (list, tuple, set, frozenset, Mapping, KeysView, ValuesView, ItemsView)
"""Types whose text and comparison cost what they hold."""


class Budget:
    """Counts what one rendering spends."""

    def __init__(self, limits: TemplateLimits) -> None:
        self.limits = limits
        self._steps = 0
        self._chars = 0
        self._deadline = time.monotonic() + limits.seconds

    def step(self) -> None:
        """Charge one operation. Raises: TemplateError over the limit of steps or time."""
        self._steps += 1
        if self._steps > self.limits.steps:
            raise _over(f"takes more than {self.limits.steps} steps")
        if time.monotonic() > self._deadline:
            raise _over(f"takes longer than {self.limits.seconds:g} s")

    def charge_value(self, value: object) -> None:
        """Charge a value that was made; a container holds at most total_chars. Raises: TemplateError."""
        self.charge(size_of(value))
        limit = self.limits.total_chars
        if isinstance(value, CONTAINERS) and expanded_size(value, limit) > limit:
            raise _over(f"makes a list of more than {limit} characters")

    def charge_text(self, *values: object) -> None:
        """Charge containers that are about to be written as text. Raises: TemplateError."""
        for value in values:
            if isinstance(value, CONTAINERS):
                self.charge(expanded_size(value, self.limits.total_chars))

    def charge(self, num_chars: int) -> None:
        """Charge one value of this size, before it is made where that is possible. Raises: TemplateError."""
        if num_chars > self.limits.output_chars:
            raise _over(f"makes a value of {num_chars} characters, the limit is {self.limits.output_chars}")
        self._chars += num_chars
        if self._chars > self.limits.total_chars:
            raise _over(f"makes more than {self.limits.total_chars} characters of values")


_current: ContextVar[Budget] = ContextVar("template_budget")


def current_budget() -> Budget:
    """Return the budget of the rendering or compilation that runs in this context."""
    return _current.get()


class spending:
    """Context manager: work inside is charged to this budget.

    Example: ``with spending(Budget(limits)): ...``
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __enter__(self) -> Budget:
        self._token = _current.set(self._budget)
        return self._budget

    def __exit__(self, *exc_info: object) -> None:
        _current.reset(self._token)


def size_of(value: object) -> int:
    """Return the characters that a value counts as, without what a container holds."""
    if isinstance(value, str):
        return len(value)
    return 8 * len(value) if isinstance(value, CONTAINERS) else 0


def expanded_size(value: object, limit: int) -> int:
    """Return the characters that a value would write, what containers hold counted every time.

    A list may hold one long text, or one list, many times over. Counting stops above limit.
    """
    total, open_values = 0, [value]
    while open_values and total <= limit:
        item = open_values.pop()
        total += 8 + (len(item) if isinstance(item, str) else 0)
        if isinstance(item, Mapping):
            open_values += item.keys()
            open_values += item.values()
        elif isinstance(item, CONTAINERS):
            open_values += item
    return total


def _over(what: str) -> TemplateError:
    return TemplateError(
        f"the chat template {what}",
        why="it was stopped; a chat template is short work",
        hint="hearth run --raw, or a template of your own",
    )
