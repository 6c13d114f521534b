"""Which kernels this process computes with, decided once.

The native kernels come as one extension module with a path per instruction set; the reference kernels
are plain torch. `HEARTH_ISA` forces a path. Without native kernels, or on a CPU they do not know, the
reference kernels run and `Choice.message` says why.

Does not: promise equal bits between two paths. Each has its own fixed order of arithmetic.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from openhearth.config import Config
from openhearth.errors import UsageError

if TYPE_CHECKING:
    import torch

REFERENCE = "reference"
NATIVE_ISAS = {"amx": 3, "avx512": 2, "avx2": 1}
"""Best first, with the numbers of native/isa.h."""
_NATIVE_DTYPES = frozenset({"torch.bfloat16", "torch.float32"})


@dataclass(frozen=True)
class Choice:
    """The path in use. message: why it is not a native one, "" when it is or was asked for.

    Example: ``Choice(isa="amx", is_forced=False)``.
    """

    isa: str
    is_forced: bool
    message: str = ""

    @property
    def is_native(self) -> bool:
        """Whether this is one of the native paths."""
        return self.isa != REFERENCE


@functools.cache
def native() -> ModuleType | None:
    """The extension module, or None where this installation has none that loads."""
    try:
        return importlib.import_module("openhearth._native")
    except ImportError:
        return None


def missing(isa: str) -> str:
    """Why a path cannot run here, "" when it can. isa: a key of NATIVE_ISAS, or "reference"."""
    if isa == REFERENCE:
        return ""
    module = native()
    if module is None:
        return "openhearth is installed without its native kernels"
    return module.missing(NATIVE_ISAS[isa])


def choose(requested: str | None) -> Choice:
    """Return the path for a request: a name, or None for the best one that can run.

    Raises: UsageError when the name is unknown or its path cannot run here.
    """
    if requested is None:
        reasons = {isa: missing(isa) for isa in NATIVE_ISAS}
        usable = [isa for isa in NATIVE_ISAS if not reasons[isa]]
        if usable:
            return Choice(usable[0], is_forced=False)
        return Choice(REFERENCE, is_forced=False,
                      message=f"slower reference kernels are used: {reasons['avx2']}")
    if requested not in {*NATIVE_ISAS, REFERENCE}:
        raise UsageError(f"HEARTH_ISA is `{requested}`", why="expected amx, avx512, avx2 or reference",
                         hint="HEARTH_ISA=reference")
    if missing(requested):
        usable = [isa for isa in (*NATIVE_ISAS, REFERENCE) if not missing(isa)]
        raise UsageError(f"HEARTH_ISA is `{requested}`, which cannot run here", why=missing(requested),
                         hint=f"HEARTH_ISA={usable[0]}, or leave it unset")
    return Choice(requested, is_forced=True)


@functools.cache
def chosen() -> Choice:
    """The path of this process, from HEARTH_ISA or the CPU; a fall-back warns once.

    Raises: UsageError as `choose`.
    """
    choice = choose(Config.from_env().isa)
    if choice.message:
        warnings.warn(choice.message, RuntimeWarning, stacklevel=2)
    return choice


def covers(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the chosen kernels are native ones that take tensors of this type, there.

    Raises: UsageError as `choose`.
    """
    return device.type == "cpu" and str(dtype) in _NATIVE_DTYPES and chosen().is_native


@functools.cache
def isa_number(isa: str | None) -> int:
    """The number of a native path in native/isa.h; None is the process's choice.

    Raises: UsageError for a name that is no native path, or one that cannot run here.
    """
    isa = chosen().isa if isa is None else isa
    if isa not in NATIVE_ISAS:
        raise UsageError(f"`{isa}` is not a native path", why=f"expected {', '.join(NATIVE_ISAS)}")
    if missing(isa):
        raise UsageError(f"the kernels `{isa}` cannot run here", why=missing(isa),
                         hint="HEARTH_ISA=reference")
    return NATIVE_ISAS[isa]


def set_num_threads(count: int) -> None:
    """Set how many threads torch and the native kernels use, 1 to 1024.

    No result of the native kernels depends on it.
    """
    import torch

    torch.set_num_threads(count)
    module = native()
    if module is not None:
        module.set_num_threads(count)
