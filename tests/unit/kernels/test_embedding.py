"""Embedding rows: exact, in the table's type or widened, and differentiable."""

import pytest
import torch
from support.native import every_dtype, every_isa

from openhearth.errors import UsageError
from openhearth.kernels.embedding import native, reference


@every_isa
@every_dtype
@pytest.mark.parametrize("size", [1, 15, 16, 33, 576])
def test_rows_are_those_of_the_table(size, dtype, isa):
    table_VD = torch.randn(40, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    table_VD[3, 0] = float("nan")
    ids_T = torch.tensor([39, 0, 3, 3, 17])
    for out_dtype in (dtype, torch.float32):
        found_TD = native.embed(ids_T, table_VD, out_dtype, isa=isa)
        assert found_TD.dtype == out_dtype
        assert torch.equal(found_TD.nan_to_num(9), reference.embed(ids_T, table_VD, out_dtype).nan_to_num(9))
    assert native.embed(ids_T[:0], table_VD, dtype, isa=isa).shape == (0, size)


@every_isa
def test_ids_outside_the_table_are_refused(isa):
    for ids in ([0, 4], [-1]):
        with pytest.raises(UsageError, match="the table has 4 rows"):
            native.embed(torch.tensor(ids), torch.zeros(4, 8), torch.float32, isa=isa)


@every_isa
@every_dtype
def test_gradients_are_those_of_torch(dtype, isa):
    ours_VD = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    theirs_VD = ours_VD.detach().clone().requires_grad_()
    ids_T = torch.tensor([5, 2, 2, 0])
    native.embed(ids_T, ours_VD, torch.float32, isa=isa).square().sum().backward()
    torch.nn.functional.embedding(ids_T, theirs_VD).float().square().sum().backward()
    assert torch.equal(ours_VD.grad, theirs_VD.grad)
    ours_VD.grad, ours_VD.grad_total = None, torch.ones(6, 5)
    native.embed(ids_T, ours_VD, torch.float32, isa=isa).square().sum().backward()
    assert ours_VD.grad is None
    torch.testing.assert_close(ours_VD.grad_total - 1, theirs_VD.grad.float(), rtol=1e-5, atol=1e-5)
