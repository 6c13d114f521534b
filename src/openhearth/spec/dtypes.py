"""Which number format a model is computed in, when nobody says.

Does not: know which kernels are fastest; both formats run everywhere.
"""

from __future__ import annotations

from openhearth import hardware
from openhearth.errors import UsageError
from openhearth.spec.records import ModelSpec

_NUMBER_BYTES = {"float32": 4, "bfloat16": 2}


def choose_dtype(setting: str, spec: ModelSpec) -> str:
    """Return "float32" or "bfloat16" for a setting that may be "auto".

    auto keeps what the file says: bfloat16 for weights stored so, where the CPU multiplies it
    natively; else float32, because rounding other weights to 8 bits of mantissa changes answers, as
    long as they take at most half of the free memory; else bfloat16. Raises: UsageError.
    """
    if setting in _NUMBER_BYTES:
        return setting
    if setting != "auto":
        raise UsageError(f"dtype `{setting}` is unknown", why="expected auto, float32 or bfloat16",
                         hint="--dtype auto")
    if spec.dtype == "bfloat16" and hardware.has_fast_bfloat16():
        return "bfloat16"
    fits = spec.num_parameters * _NUMBER_BYTES["float32"] <= hardware.read_memory().available_bytes // 2
    return "float32" if fits else "bfloat16"
