"""One row and many rows are the same product."""

import pytest
import torch

from openhearth.kernels.linear import linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_rows_equal_the_product_in_float64(dtype, has_bias):
    torch.manual_seed(0)
    x, weight = torch.randn(5, 96).to(dtype), torch.randn(48, 96).to(dtype)
    bias = torch.randn(48).to(dtype) if has_bias else None
    want = x.double() @ weight.double().T + (bias.double() if has_bias else 0)
    tolerance = 1e-5 if dtype == torch.float32 else 0.13
    for rows in (slice(0, 1), slice(0, 5)):
        out = linear(x[rows], weight, bias)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), want[rows], rtol=0, atol=tolerance)
