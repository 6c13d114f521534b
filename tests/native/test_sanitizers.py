"""The kernels under AddressSanitizer with leak check, UBSan and ThreadSanitizer: native/check/*.cpp.

HEARTH_TEST_SANITIZERS lists the builds, by default `address,undefined thread`. On a machine whose compiler
has no sanitizer runtime, `none` runs the same programs with their guard pages alone.
"""

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from support.native_build import CHECK, NO_SANITIZERS, build

BUILDS = os.environ.get("HEARTH_TEST_SANITIZERS", "address,undefined thread").split()
PROGRAMS = sorted(path.stem for path in CHECK.glob("check_*.cpp"))
FAULTS = {
    ("address,undefined", "bounds"): "AddressSanitizer: heap-buffer-overflow",
    ("address,undefined", "leak"): "LeakSanitizer: detected memory leaks",
    ("address,undefined", "overflow"): "signed integer overflow",
    ("thread", "race"): "ThreadSanitizer: data race",
}


@pytest.fixture(scope="module", params=BUILDS)
def built(request):
    return SimpleNamespace(sanitizers=request.param, folder=build(request.param))


def run(built, program, *arguments):
    """Run a check program; ThreadSanitizer of older compilers needs addresses that are not random."""
    command = [str(built.folder / program), *arguments]
    fixed = [shutil.which("setarch") or "setarch", "-R"]
    if built.sanitizers == "thread" and subprocess.run([*fixed, "true"], capture_output=True).returncode == 0:
        command = [*fixed, *command]
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1", "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=env, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_kernel_stays_in_bounds_and_free_of_races(built, program):
    code, output = run(built, program, *(["no-fork"] if built.sanitizers == "thread" else []))
    assert code == 0, output
    assert "all good" in output


def test_a_planted_fault_is_found(built):
    wanted = {fault: text for (sanitizers, fault), text in FAULTS.items() if sanitizers == built.sanitizers}
    assert wanted or built.sanitizers == NO_SANITIZERS
    for fault, text in wanted.items():
        code, output = run(built, "planted", fault)
        assert code != 0
        assert text in output
