"""How a task is written: ``name``, ``name:key=value:key=value``, with a path or data set after the name.

Examples: ``chain_sum``, ``reasoning-gym:gcd:max_value=50``, ``gsm8k:path=data/gsm8k``,
``mine.py:sums:seed=3``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from openhearth.errors import UsageError


@dataclass(frozen=True)
class TaskRef:
    """A parsed reference. head: what comes first; item: a name inside it, if any; options: by name.

    Example: ``parse_task("reasoning-gym:gcd:seed=3") == TaskRef("reasoning-gym", "gcd", {"seed": 3})``.
    """

    head: str
    item: str | None
    options: dict[str, Any]

    def __str__(self) -> str:
        options = [f"{name}={value if isinstance(value, str) else json.dumps(value)}"
                   for name, value in sorted(self.options.items())]
        return ":".join([self.head, *([self.item] if self.item is not None else []), *options])


def parse_task(text: str) -> TaskRef:
    """Take a reference apart; numbers, true and false are values of their own type.

    Raises: UsageError for an empty name, two items, or an option given twice.
    """
    head, *rest = text.strip().split(":")
    item: str | None = None
    options: dict[str, Any] = {}
    last: str | None = None
    for part in rest:
        name, equals, value = part.partition("=")
        if equals and name.isidentifier():
            if name in options:
                raise UsageError(f"task `{text}` gives `{name}` twice", hint="give it once")
            options[name], last = value, name
        elif last is not None:  # a value with a colon in it, such as a path of a drive
            options[last] += f":{part}"
        elif item is None and part:
            item = part
        else:
            raise UsageError(f"`{part}` in task `{text}` is no option", why="expected name=value",
                             hint=f"--task {head}:seed=1")
    if not head:
        raise UsageError(f"`{text}` names no task", hint="--task chain_sum")
    return TaskRef(head, item, {name: _value(value) for name, value in options.items()})


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float)) else text
