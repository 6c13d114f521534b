"""What tests of native kernels run over: every path of this machine and both types."""

import pytest
import torch

from openhearth.kernels.select import NATIVE_ISAS, missing, native

assert native() is not None, "the native kernels are not built; install with: pip install -e ."
ISAS = [isa for isa in NATIVE_ISAS if not missing(isa)]
DTYPES = [torch.bfloat16, torch.float32]

every_isa = pytest.mark.parametrize("isa", ISAS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
