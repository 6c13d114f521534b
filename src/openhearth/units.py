"""Numbers as people read and write them."""

from __future__ import annotations

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def format_bytes(num_bytes: float) -> str:
    """Return a size with a binary unit: ``format_bytes(98362432) == "93.8 MiB"``."""
    value = float(num_bytes)
    for unit in _BINARY:
        if abs(value) < 1024 or unit == _BINARY[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def format_count(count: float) -> str:
    """Return a count with a decimal suffix: ``format_count(134515008) == "134.5M"``."""
    value = float(count)
    for suffix in ("", "K", "M", "B"):
        if abs(value) < 1000:
            return f"{value:.0f}" if suffix == "" else f"{value:.1f}{suffix}"
        value /= 1000
    return f"{value:.1f}T"


def format_seconds(seconds: float) -> str:
    """Return a duration: ``0.42 s``, ``1:05``, ``2:03:09``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"
