"""The choice of kernels: best first, forced by name, refused with a reason, never a crash."""

import os
import subprocess
import sys

import pytest

from openhearth.config import Config
from openhearth.errors import UsageError
from openhearth.kernels.select import NATIVE_ISAS, choose, missing

WITHOUT_NATIVE = "import sys; sys.modules['openhearth._native'] = None\n"


def run_python(code, **settings):
    env = {key: value for key, value in os.environ.items() if key != "HEARTH_ISA"}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run([sys.executable, "-c", code], env={**env, **settings}, capture_output=True,
                          text=True, timeout=120)


def test_the_best_path_of_this_cpu_is_chosen():
    choice = choose(None)
    usable = [isa for isa in ("amx", "avx512", "avx2") if not missing(isa)]
    assert choice.isa == (usable[0] if usable else "reference")
    assert bool(choice.message) == (not usable)
    assert choice.is_native == bool(usable)


@pytest.mark.parametrize("isa", [*NATIVE_ISAS, "reference"])
def test_a_path_that_can_run_can_be_forced_and_another_is_refused(isa):
    if missing(isa):
        with pytest.raises(UsageError, match="cannot run here"):
            choose(isa)
    else:
        assert (choose(isa).isa, choose(isa).is_forced, choose(isa).message) == (isa, True, "")


def test_an_unknown_path_is_refused_by_name():
    with pytest.raises(UsageError, match="`sse9`"):
        choose("sse9")


def test_the_setting_is_read_from_the_environment():
    assert Config.from_env({"HEARTH_ISA": "avx2"}).isa == "avx2"
    assert Config.from_env({}).isa is None


def test_without_the_extension_the_reference_is_used_and_says_why():
    done = run_python(WITHOUT_NATIVE + "from openhearth.kernels.select import chosen, set_num_threads\n"
                      "set_num_threads(2)\nprint(chosen().isa, '|', chosen().message)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reference |") and "without its native kernels" in done.stdout
    assert done.stderr.count("without its native kernels") == 1


def test_forcing_a_native_path_without_the_extension_is_refused():
    done = run_python(WITHOUT_NATIVE + "from openhearth.kernels.select import chosen\nchosen()",
                      HEARTH_ISA="avx2")
    assert "UsageError: HEARTH_ISA is `avx2`, which cannot run here" in done.stderr
    assert "hint: HEARTH_ISA=reference" in done.stderr


def test_packing_without_the_extension_is_refused():
    done = run_python(WITHOUT_NATIVE + "import torch\n"
                      "from openhearth.kernels.linear.native import PackedWeight\n"
                      "PackedWeight(torch.ones(2, 2))")
    assert "Unsupported: this installation has no native kernels" in done.stderr
