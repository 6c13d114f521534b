"""Operations of chat templates that can make long values, checked before they run.

`sandbox.py` calls these for filters, methods of text and operators. Widths and numbers above
MAX_WIDTH are refused, the size of what is about to be made is charged to the budget.

Does not: run the operation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2.sandbox import SecurityError

from openhearth.chat.budget import current_budget, expanded_size, size_of

MAX_WIDTH = 10_000
_MAX_INT_BITS = 4096


def text_of(value: Any) -> str:
    """Return a value as a plain `str`, as Jinja writes it."""
    current_budget().charge_text(value)
    text = str(value)
    return text if type(text) is str else str.__str__(text)


def _check_filter_width(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    width = kwargs.get("width", args[0] if args else 0)
    width = len(width) if isinstance(width, str) else width
    _bound("width", width)
    current_budget().charge((text_of(value).count("\n") + 1) * width)
    return (value, *args)


def _check_filter_number(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    for given in (*args, *kwargs.values()):
        if isinstance(given, int):
            _bound("a number", given)
    return (value, *args)


def _check_filter_round(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    for given in (*args, *kwargs.values()):
        if isinstance(given, int) and abs(given) > 20:
            raise SecurityError(f"rounding to {given} digits")
    return (value, *args)


def _check_filter_replace(value: Any, old: Any, new: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    text, old, new = text_of(value), text_of(old), text_of(new)
    _charge_replace(text, old, new)
    return (text, old, new, *args)


def _check_filter_join(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    items = list(value)
    separator = text_of(kwargs.get("d", args[0] if args else ""))
    if "attribute" not in kwargs and len(args) < 2:
        items = [text_of(item) for item in items]
    else:
        current_budget().charge_text(items)
    current_budget().charge(sum(map(size_of, items)) + len(separator) * len(items))
    return (items, *args)


def _check_filter_sum(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    if not isinstance(kwargs.get("start", args[1] if len(args) > 1 else 0), int | float):
        raise SecurityError("sum starts from a number")
    return (value, *args)


def _check_filter_format(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    text = text_of(value)
    check_format(text, "%", (args, kwargs))
    return (text, *args)


FILTER_CHECKS: Mapping[str, Callable[..., tuple[Any, ...]]] = {
    "center": _check_filter_width,
    "indent": _check_filter_width,
    "batch": _check_filter_number,
    "slice": _check_filter_number,
    "truncate": _check_filter_number,
    "round": _check_filter_round,
    "replace": _check_filter_replace,
    "join": _check_filter_join,
    "sum": _check_filter_sum,
    "format": _check_filter_format,
}


def checked_method(
    owner: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Check a method call of a text before it runs; returns the arguments to use."""
    if name in ("center", "ljust", "rjust", "zfill"):
        _bound("width", *args[:1])
    elif name == "expandtabs":
        size = kwargs.get("tabsize", args[0] if args else 8)
        _bound("tab size", size)
        current_budget().charge(len(owner) + owner.count("\t") * size)
    elif name == "replace" and len(args) >= 2:
        _charge_replace(owner, *args[:2])
    elif name == "join" and args:
        items = list(args[0])
        current_budget().charge_value(items)
        current_budget().charge(sum(map(size_of, items)) + len(owner) * len(items))
        return (items,)
    return args


def _charge_replace(text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        current_budget().charge(len(text) + text.count(old) * len(new))


_PERCENT_WIDTH = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?")
_BRACE_SPEC = re.compile(r"\{[^{}]*:([^{}]*)(\{?)")


def check_format(text: str, sign: str, given: Any) -> None:
    """Refuse a format with a large or computed width; charge what it may write.

    sign: what begins a field, "%" or "{". given: all that the fields can write.
    """
    budget = current_budget()
    budget.charge(len(text) + text.count(sign) * expanded_size(given, budget.limits.total_chars))
    numbers = [number for match in _PERCENT_WIDTH.finditer(text) for number in match.groups() if number]
    for spec, nested in _BRACE_SPEC.findall(text):
        numbers += ["*"] if nested else re.findall(r"\d+", spec)
    for number in numbers:
        if number == "*" or len(number) > 5 or int(number) > MAX_WIDTH:
            raise SecurityError("a format with a large or computed width")


def check_product(left: Any, right: Any) -> None:
    """Refuse a long product; charge a repetition."""
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_INT_BITS:
            raise SecurityError(f"a product of more than {_MAX_INT_BITS} bits")
    elif isinstance(left, int) or isinstance(right, int):
        number, value = (left, right) if isinstance(left, int) else (right, left)
        budget = current_budget()
        budget.charge(max(0, number) * size_of(value))
        if not isinstance(value, str) and max(0, number) * expanded_size(value, budget.limits.total_chars) > (
            budget.limits.total_chars
        ):
            raise SecurityError("a repetition of a long list")


def check_power(left: Any, right: Any) -> None:
    """Refuse a long power."""
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * max(0, right) > _MAX_INT_BITS:
        raise SecurityError(f"a power of more than {_MAX_INT_BITS} bits")


def _bound(what: str, number: Any = 0) -> None:
    if not isinstance(number, int) or abs(number) > MAX_WIDTH:
        raise SecurityError(f"{what} of {number!r}, the limit is {MAX_WIDTH}"[:200])
