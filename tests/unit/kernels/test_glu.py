"""Gated linear units: native rows against torch in float64 and against the reference."""

import math

import pytest
import torch
from support.native import every_dtype, every_isa

from openhearth.errors import UsageError
from openhearth.kernels.glu import native, reference


def draw(num_rows, size, dtype):
    generator = torch.Generator().manual_seed(size)
    return (torch.randn(2, num_rows, size, generator=generator) * 20).to(dtype).unbind(0)


@every_isa
@pytest.mark.parametrize("size", [1, 7, 8, 15, 16, 17, 100, 1536])
def test_error_in_float32_stays_under_the_stated_bound(size, isa):
    gate_TF, up_TF = draw(9, size, torch.float32)
    silu_TF = gate_TF.double() * gate_TF.double().sigmoid()
    want_TF = silu_TF * up_TF.double()
    bound_TF = 2**-19.9 * want_TF.abs() + 1.1e-36 * up_TF.double().abs()
    assert ((native.glu(gate_TF, up_TF, isa=isa).double() - want_TF).abs() <= bound_TF).all()


@every_isa
@pytest.mark.parametrize("size", [1, 8, 17, 1536])
def test_error_of_gelu_in_float32_stays_under_the_stated_bound(size, isa):
    gate_TF, up_TF = draw(9, size, torch.float32)
    gate_TF[0] = 0.01
    wide_TF = gate_TF.double()
    inner_TF = 2 * (2 / math.pi) ** 0.5 * (wide_TF + 0.044715 * wide_TF**3)
    want_TF = wide_TF * inner_TF.sigmoid() * up_TF.double()
    bound_TF = 2**-14.9 * want_TF.abs() + 1.1e-36 * up_TF.double().abs()
    found_TF = native.glu(gate_TF, up_TF, "gelu_tanh", isa=isa)
    assert ((found_TF.double() - want_TF).abs() <= bound_TF).all()
    torch.testing.assert_close(found_TF, reference.glu(gate_TF, up_TF, "gelu_tanh"), rtol=1e-5, atol=2e-5)


@every_isa
@pytest.mark.parametrize("size", [1, 17, 1536])
def test_in_bfloat16_silu_is_rounded_before_the_product(size, isa):
    gate_TF, up_TF = draw(9, size, torch.bfloat16)
    found_TF = native.glu(gate_TF, up_TF, isa=isa)
    ones_TF = native.glu(gate_TF, torch.ones_like(up_TF), isa=isa)
    assert torch.equal(found_TF, ones_TF * up_TF)
    theirs_TF = reference.glu(gate_TF, up_TF)
    torch.testing.assert_close(found_TF, theirs_TF, rtol=2**-6, atol=1e-30)
    assert (found_TF == theirs_TF).float().mean() > 0.99


@every_isa
@every_dtype
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_nan_infinity_and_far_numbers_are_those_of_the_reference(activation, dtype, isa):
    inf = float("inf")
    gate_TF = torch.tensor([[float("nan"), inf, -inf, 0.0, -0.0, 3e38, -3e38, 90.0, -90.0, 1e-30]])
    up_TF = torch.full_like(gate_TF, 2.0).to(dtype)
    found_TF = native.glu(gate_TF.to(dtype), up_TF, activation, isa=isa)
    torch.testing.assert_close(found_TF, reference.glu(gate_TF.to(dtype), up_TF, activation), rtol=1e-5,
                               atol=1e-35, equal_nan=True)


@every_isa
@every_dtype
def test_a_row_has_the_same_bits_in_views_of_one_storage(dtype, isa):
    gate_TF, up_TF = draw(50, 333, dtype)
    found_TF = native.glu(gate_TF, up_TF, isa=isa)
    both = torch.cat((gate_TF, up_TF), 1)
    assert torch.equal(native.glu(*both.split(333, 1), isa=isa), found_TF)
    assert torch.equal(native.glu(gate_TF[7:8], up_TF[7:8], isa=isa), found_TF[7:8])


@every_isa
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gradients_are_those_of_torch(activation, isa):
    ours = [tensor.requires_grad_() for tensor in draw(5, 19, torch.float32)]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    native.glu(*ours, activation, isa=isa).square().sum().backward()
    reference.glu(*theirs, activation).square().sum().backward()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad, rtol=4e-6, atol=1e-5)


def test_what_does_not_fit_is_refused():
    gate_TF, up_TF = draw(3, 8, torch.float32)
    for bad in (up_TF.bfloat16(), up_TF[:, :7], up_TF[:2]):
        with pytest.raises(UsageError):
            native.glu(gate_TF, bad)
