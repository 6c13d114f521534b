"""openhearth: get, run, adapt, check and release open-weight models on hardware you own.

`openhearth.load(ref)` returns a `LocalModel`; importing this package imports nothing heavy.
"""

from __future__ import annotations

from typing import Any

__all__ = ["load"]


def load(ref: str | None = None, **settings: Any):
    """Load a model for generation; see `openhearth.local.load` for settings, returns and errors."""
    from openhearth.local import load as load_local

    return load_local(ref, **settings)
