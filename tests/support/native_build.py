"""The kernels and their check programs, built apart from the package: tests/native/ runs them."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHECK = ROOT / "native" / "check"
NO_SANITIZERS = "none"
RUNTIME_HINT = ("hint: sanitizer runtimes are `apt install gcc`, `dnf install libasan libubsan libtsan`, or "
                "HEARTH_TEST_SANITIZERS=none")


def tool(name):
    """Return where a build tool is: beside this Python, else on the path."""
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    assert found, f"`{name}` is not installed\nhint: pip install cmake, apt install binutils"
    return found


def build(sanitizers, *targets):
    """Build native/check and return the folder with the programs; a second call builds what changed.

    sanitizers: for -fsanitize, or NO_SANITIZERS. targets: what to build, everything when none is named.
    """
    folder = ROOT / "build" / "check" / sanitizers
    flags = "" if sanitizers == NO_SANITIZERS else sanitizers
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        run([tool("cmake"), "-S", str(CHECK), "-B", str(folder), f"-DSANITIZERS={flags}"])
        run([tool("cmake"), "--build", str(folder), "--parallel", "2",
             *(word for target in targets for word in ("--target", target))],
            hint=RUNTIME_HINT if flags else "")
    return folder


def run(command, *, hint=""):
    """Return what a command prints; the test fails with all of it when the command does."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}\n{hint}"
    return done.stdout
