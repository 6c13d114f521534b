"""Native linear layers against torch in float64, and against themselves bit for bit."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from torch.nn import functional

from openhearth.errors import Unsupported, UsageError
from openhearth.kernels.linear.native import PackedWeight, add_weight_grad, linear, linear_trained
from openhearth.kernels.linear.reference import linear as reference_linear
from openhearth.kernels.select import NATIVE_ISAS, missing, native, set_num_threads

assert native() is not None, "the native kernels are not built; install with: pip install -e ."
ISAS = [isa for isa in NATIVE_ISAS if not missing(isa)]
DTYPES = [torch.bfloat16, torch.float32]
SHAPES = [(1, 576, 576), (1, 1, 1), (3, 31, 2), (5, 33, 7), (16, 32, 32), (17, 64, 33), (33, 100, 65),
          (7, 129, 1536), (64, 576, 161), (300, 200, 96), (2, 1000, 31), (1029, 40, 48)]  # T, N, K

every_isa = pytest.mark.parametrize("isa", ISAS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def two_threads():
    before = native().num_threads()
    set_num_threads(2)
    yield
    set_num_threads(before)


def draw(num_rows, num_outputs, num_inputs, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_TK = torch.randn(num_rows, num_inputs, generator=generator).to(dtype)
    weight_NK = torch.randn(num_outputs, num_inputs, generator=generator).to(dtype)
    return x_TK, weight_NK, torch.randn(num_outputs, generator=generator).to(dtype)


def error_bound(x_TK, weight_NK, exact_TN):
    """The bound stated in kernels/linear/native.py, bias included."""
    num_inputs = x_TK.shape[1]
    sizes_TN = x_TK.double().abs() @ weight_NK.double().abs().T
    return 2 * (num_inputs + 2) * 2**-24 * sizes_TN + 2**-24 * exact_TN.abs() + num_inputs * 2**-126


def bits(tensor):
    return tensor.view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32)


def test_paths_found_are_those_that_linux_reports():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = next((set(line.split()) for line in file if line.startswith("flags")), set())
    assert ("avx2" in ISAS) == {"avx2", "fma"}.issubset(flags)
    avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}
    assert ("avx512" in ISAS) == avx512.issubset(flags)
    if "amx" in ISAS:
        assert {"amx_tile", "amx_bf16"}.issubset(flags)


@every_isa
@every_dtype
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_stays_under_the_stated_bound(shape, has_bias, dtype, isa):
    x_TK, weight_NK, bias_N = draw(*shape, dtype)
    packed = PackedWeight(weight_NK, bias_N if has_bias else None)
    y_TN = linear(x_TK, packed, out_dtype=torch.float32, isa=isa)
    exact_TN = x_TK.double() @ weight_NK.double().T + (bias_N.double() if has_bias else 0.0)
    bound_TN = error_bound(x_TK, weight_NK, exact_TN)
    assert ((y_TN - exact_TN).abs() <= bound_TN).all()
    assert torch.equal(linear(x_TK, packed, out_dtype=torch.bfloat16, isa=isa), y_TN.bfloat16())
    reference_TN = reference_linear(x_TK.float(), weight_NK.float(), bias_N.float() if has_bias else None)
    assert ((y_TN - reference_TN).abs() <= 2 * bound_TN).all()


@every_isa
@every_dtype
def test_a_row_has_the_same_bits_in_every_batch(isa, dtype):
    x_TK, weight_NK, bias_N = draw(300, 70, 97, dtype)
    packed = PackedWeight(weight_NK, bias_N)
    all_TN = linear(x_TK, packed, isa=isa)
    for num_rows in range(1, 301):
        start = (num_rows * 37) % (301 - num_rows)
        part_TN = linear(x_TK[start:start + num_rows], packed, isa=isa)
        assert torch.equal(part_TN, all_TN[start:start + num_rows]), (start, num_rows)
    order_T = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(linear(x_TK[order_T], packed, isa=isa), all_TN[order_T])


@every_isa
@every_dtype
@pytest.mark.parametrize("shape", [(1, 1536, 576), (9, 300, 1536), (700, 96, 576), (2000, 33, 64)], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(shape, isa, dtype):
    x_TK, weight_NK, bias_N = draw(*shape, dtype)
    packed = PackedWeight(weight_NK, bias_N)
    results = []
    for count in (1, 2, 3, 4):
        set_num_threads(count)
        results += [linear(x_TK, packed, isa=isa) for _ in range(3)]
    assert all(torch.equal(result, results[0]) for result in results)


@every_isa
@every_dtype
def test_an_output_does_not_depend_on_the_outputs_beside_it(isa, dtype):
    x_TK, weight_NK, bias_N = draw(20, 150, 65, dtype)
    all_TN = linear(x_TK, PackedWeight(weight_NK, bias_N), isa=isa)
    for start, end in [(0, 1), (1, 34), (31, 95), (32, 64), (149, 150)]:
        part = PackedWeight(weight_NK[start:end], bias_N[start:end])
        assert torch.equal(linear(x_TK, part, isa=isa), all_TN[:, start:end])


@every_isa
@every_dtype
def test_neighbours_that_are_nan_or_infinite_change_nothing(isa, dtype):
    x_TK, weight_NK, _ = draw(40, 48, 33, dtype)
    packed = PackedWeight(weight_NK)
    clean_TN = linear(x_TK, packed, isa=isa)
    x_TK[5, 32], x_TK[18], x_TK[39, 0] = float("nan"), float("inf"), float("-inf")
    dirty_TN = linear(x_TK, packed, isa=isa)
    untouched = [row for row in range(40) if row not in (5, 18, 39)]
    assert torch.equal(dirty_TN[untouched], clean_TN[untouched])
    reference_TN = functional.linear(x_TK.float(), weight_NK.float())
    assert torch.equal(dirty_TN.isnan(), reference_TN.isnan())
    assert torch.equal(dirty_TN[39].float(), reference_TN[39].sign() * float("inf"))


@every_isa
@every_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_in_the_weight_or_bias_reach_their_output_only(isa, dtype, value):
    x_TK, weight_NK, bias_N = draw(18, 40, 35, dtype)
    weight_NK[7, 34], bias_N[33] = value, value
    y_TN = linear(x_TK.abs(), PackedWeight(weight_NK, bias_N), isa=isa)
    expected_TN = torch.zeros(18, 40)
    expected_TN[:, [7, 33]] = value
    finite_TN = torch.where(y_TN.isfinite(), 0.0, y_TN.float())
    assert torch.equal(finite_TN.nan_to_num(5.0, 6.0, 7.0), expected_TN.nan_to_num(5.0, 6.0, 7.0))


@every_isa
def test_sums_beyond_bfloat16_round_to_infinity(isa):
    x_TK = torch.full((1, 4), 3e38, dtype=torch.bfloat16)
    weight_NK = torch.tensor([[1.0, 0, 0, 0], [1.0, 1.0, 0, 0]], dtype=torch.bfloat16)
    assert linear(x_TK, PackedWeight(weight_NK), isa=isa).tolist() == [[x_TK[0, 0].item(), float("inf")]]


@every_dtype
@pytest.mark.parametrize("shape", [(1, 1), (31, 33), (32, 32), (65, 576), (100, 7)], ids=str)
def test_unpacking_gives_the_weight_back(shape, dtype):
    weight_NK = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    weight_NK.view(-1)[0] = float("nan")
    assert torch.equal(bits(PackedWeight(weight_NK).unpack()), bits(weight_NK))
    assert torch.equal(bits(PackedWeight(weight_NK.t()).unpack()), bits(weight_NK.t().contiguous()))
    wide = torch.cat([weight_NK, weight_NK], dim=1)
    assert torch.equal(bits(PackedWeight(wide[:, shape[1]:]).unpack()), bits(weight_NK))


@every_isa
@every_dtype
def test_views_and_empty_packs_are_taken(isa, dtype):
    x_TK, weight_NK, _ = draw(21, 33, 45, dtype)
    packed = PackedWeight(weight_NK)
    y_TN = linear(x_TK, packed, isa=isa)
    assert torch.equal(linear(torch.cat([x_TK, x_TK], dim=1)[:, 45:], packed, isa=isa), y_TN)
    assert torch.equal(linear(x_TK.t().contiguous().t(), packed, isa=isa), y_TN)
    assert torch.equal(linear(x_TK[4:5].expand(9, 45), packed, isa=isa), y_TN[4:5].expand(9, 33))
    assert linear(x_TK[:0], packed, isa=isa).shape == (0, 33)
    no_inputs = PackedWeight(weight_NK[:, :0], torch.ones(33))
    assert torch.equal(linear(x_TK[:, :0], no_inputs, isa=isa), torch.ones(21, 33, dtype=dtype))


@every_isa
def test_denormals_do_not_depend_on_the_calling_thread(isa):
    x_TK = torch.full((300, 64), 1e-20)
    packed = PackedWeight(torch.full((200, 64), 1e-20))
    expected_TN = linear(x_TK, packed, isa=isa)
    torch.set_flush_denormal(True)
    try:
        set_num_threads(3)
        found_TN = linear(x_TK, packed, isa=isa)
    finally:
        torch.set_flush_denormal(False)
    assert (expected_TN > 0).all()
    assert torch.equal(found_TN, expected_TN)


@every_isa
@every_dtype
def test_gradients_are_those_of_torch(isa, dtype):
    x_TK, weight_NK, bias_N = draw(19, 35, 33, dtype)
    grad_TN = torch.randn(19, 35, generator=torch.Generator().manual_seed(3)).to(dtype)
    ours = [tensor.clone().requires_grad_() for tensor in (x_TK, weight_NK, bias_N)]
    theirs = [tensor.clone().requires_grad_() for tensor in (x_TK, weight_NK, bias_N)]
    packed = PackedWeight(*ours[1:])
    y_TN = linear_trained(ours[0], packed, *ours[1:], isa=isa)
    y_TN.backward(grad_TN)
    functional.linear(*theirs).backward(grad_TN)
    for our, their in zip(ours, theirs, strict=True):
        assert our.grad.dtype == dtype
        torch.testing.assert_close(our.grad, their.grad)
    assert torch.equal(y_TN, linear(x_TK, packed, isa=isa))
    frozen = x_TK.clone().requires_grad_()
    linear(frozen, packed, isa=isa).backward(grad_TN)
    assert torch.equal(frozen.grad, ours[0].grad)


@every_isa
@every_dtype
@pytest.mark.parametrize("num_rows", [0, 1, 19, 70])
def test_a_total_takes_the_gradient_unrounded(isa, dtype, num_rows):
    x_TK, weight_NK, _ = draw(num_rows, 35, 33, dtype)
    grad_TN = torch.randn(num_rows, 35, generator=torch.Generator().manual_seed(3)).to(dtype)
    weight_NK.requires_grad_()
    weight_NK.grad_total = torch.full((35, 33), 0.5)
    for _ in range(2):
        linear_trained(x_TK, PackedWeight(weight_NK), weight_NK, isa=isa).backward(grad_TN)
    wanted_NK = 0.5 + 2 * (grad_TN.double().t() @ x_TK.double())
    assert weight_NK.grad is None
    torch.testing.assert_close(weight_NK.grad_total.double(), wanted_NK, rtol=1e-5, atol=1e-5)


@every_isa
def test_a_total_does_not_depend_on_threads(isa):
    x_TK, _, _ = draw(200, 1, 100, torch.bfloat16)
    grad_TN = torch.randn(200, 130, generator=torch.Generator().manual_seed(3)).bfloat16()
    found = []
    for num_threads in (1, 3):
        set_num_threads(num_threads)
        found.append(torch.zeros(130, 100))
        add_weight_grad(found[-1], grad_TN, x_TK, isa=isa)
    assert torch.equal(*found)


def test_a_total_that_does_not_fit_is_refused():
    grad_TN, x_TK, total_NK = torch.zeros(4, 3), torch.zeros(4, 5), torch.zeros(3, 5)
    for total, grad, x in ((total_NK.t().contiguous(), grad_TN, x_TK), (total_NK.bfloat16(), grad_TN, x_TK),
                           (torch.zeros(5, 3).t(), grad_TN, x_TK), (total_NK, grad_TN[:3], x_TK),
                           (total_NK, grad_TN.bfloat16(), x_TK), (total_NK, grad_TN.half(), x_TK.half())):
        with pytest.raises(UsageError):
            add_weight_grad(total, grad, x)


@every_isa
def test_training_sees_the_weight_after_an_optimizer_step(isa):
    layer = torch.nn.Linear(20, 40)
    packed = PackedWeight(layer.weight, layer.bias)
    x_TK = torch.randn(6, 20, generator=torch.Generator().manual_seed(4))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    before_TN = linear_trained(x_TK, packed, layer.weight, layer.bias, isa=isa)
    before_TN.square().sum().backward()
    optimizer.step()
    after_TN = linear_trained(x_TK, packed, layer.weight, layer.bias, isa=isa)
    assert torch.equal(after_TN, linear(x_TK, PackedWeight(layer.weight, layer.bias), isa=isa))
    assert not torch.equal(after_TN, before_TN)


@every_isa
def test_torch_in_the_same_threads_is_not_disturbed(isa):
    x_TK, weight_NK, _ = draw(64, 256, 256, torch.bfloat16)
    packed = PackedWeight(weight_NK)
    ours_TN, theirs_TN = linear(x_TK, packed, isa=isa), functional.linear(x_TK, weight_NK)
    for _ in range(50):
        assert torch.equal(linear(x_TK[:17], packed, isa=isa), ours_TN[:17])
        assert torch.equal(functional.linear(x_TK, weight_NK), theirs_TN)


@every_isa
def test_several_threads_may_call_at_once(isa):
    x_TK, weight_NK, _ = draw(50, 600, 64, torch.bfloat16)
    packed = PackedWeight(weight_NK)
    expected_TN = linear(x_TK, packed, isa=isa)
    outcomes = []

    def call():
        outcomes.extend(torch.equal(linear(x_TK, packed, isa=isa), expected_TN) for _ in range(40))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for count in (1, 3, 2):
        set_num_threads(count)
    for caller in callers:
        caller.join()
    assert outcomes == [True] * 160


def test_a_forked_child_computes_the_same():
    x_TK, weight_NK, _ = draw(50, 600, 64, torch.bfloat16)
    packed = PackedWeight(weight_NK)
    expected_TN = linear(x_TK, packed)
    is_done = threading.Event()

    def keep_the_workers_busy():
        while not is_done.is_set():
            linear(x_TK, packed)

    other = threading.Thread(target=keep_the_workers_busy)
    other.start()
    for _ in range(5):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            results = [linear(x_TK, packed) for _ in range(20)]
            set_num_threads(3)
            results += [linear(x_TK, packed) for _ in range(20)]
            os._exit(0 if all(torch.equal(result, expected_TN) for result in results) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    is_done.set()
    other.join()
    assert torch.equal(linear(x_TK, packed), expected_TN)


@pytest.mark.parametrize("call,text", [
    (lambda packed: linear(torch.ones(2, 5), packed), "float32"),
    (lambda packed: linear(torch.ones(2, 6, dtype=torch.bfloat16), packed), r"\[2, 6\]"),
    (lambda packed: linear(torch.ones(5, dtype=torch.bfloat16), packed), r"\[5\]"),
    (lambda packed: linear(torch.ones(2, 5).bfloat16(), packed, out_dtype=torch.float16), "float16"),
    (lambda packed: linear(torch.ones(2, 5, dtype=torch.bfloat16), packed, isa="neon"), "neon"),
    (lambda packed: linear(torch.ones(2, 5, dtype=torch.bfloat16), packed, isa="reference"), "reference"),
    (lambda packed: packed.repack(torch.ones(3, 6, dtype=torch.bfloat16)), r"\[3, 6\]"),
    (lambda packed: packed.repack(torch.ones(3, 5, dtype=torch.bfloat16), torch.ones(2)), r"\[2\]"),
    (lambda packed: PackedWeight(torch.ones(3, dtype=torch.bfloat16)), r"\[3\]"),
])
def test_what_does_not_fit_is_refused(call, text):
    with pytest.raises(UsageError, match=text):
        call(PackedWeight(torch.ones(3, 5, dtype=torch.bfloat16)))


def test_other_weight_types_are_refused():
    with pytest.raises(Unsupported, match="float16"):
        PackedWeight(torch.ones(3, 5, dtype=torch.float16))


SHOW_BITS = """
import sys, torch
from openhearth.kernels.linear.native import PackedWeight, linear
x_TK, weight_NK = torch.load(sys.argv[1], weights_only=True)
print(linear(x_TK, PackedWeight(weight_NK), out_dtype=torch.float32).view(torch.int32).tolist())
"""


@every_isa
def test_hearth_isa_forces_a_path(isa, tmp_path):
    x_TK, weight_NK, _ = draw(3, 40, 600, torch.bfloat16)
    torch.save((x_TK, weight_NK), tmp_path / "numbers.pt")
    env = {**os.environ, "HEARTH_ISA": isa, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", SHOW_BITS, str(tmp_path / "numbers.pt")], env=env,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    given_TN = linear(x_TK, PackedWeight(weight_NK), out_dtype=torch.float32, isa=isa)
    assert done.stdout.strip() == str(bits(given_TN).tolist())
    others = [bits(linear(x_TK, PackedWeight(weight_NK), out_dtype=torch.float32, isa=other)).tolist()
              for other in ISAS if other != isa]
    assert bits(given_TN).tolist() not in others
