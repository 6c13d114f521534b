"""Memory that products of changing shapes leave behind, and giving it back. Results have the same bits.

oneDNN keeps what it compiled for the last 1024 shapes, half a megabyte each. Packs have other numbers of rows
every time, so nearly none is asked for again: they only add up, and lie between the blocks that the
next pack could have reused. A pack itself repeats about forty in its layers.

Does not: change what is in use.
"""

from __future__ import annotations

import ctypes
import os

from openhearth import hardware

_KEPT_PRODUCTS = 128


def limit_kept_products() -> None:
    """Have oneDNN keep less, unless the user says how much; to be called before the first product."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KEPT_PRODUCTS))


_limit_bytes = 0


def keep_resident_below(limit_bytes: int) -> None:
    """Set from how much resident memory on `make_room` gives free pages back, for the process; 0: never."""
    global _limit_bytes
    _limit_bytes = limit_bytes


def make_room() -> None:
    """Give free pages back if more is resident than was set; to be called before a pack."""
    if 0 < _limit_bytes < hardware.resident_bytes():
        give_back()


def give_back() -> None:
    """Return pages that hold nothing to the system, where the C library can (glibc's malloc_trim)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
