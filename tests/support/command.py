"""Run the command line as a user would: a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUARD = Path(__file__).parent / "socket_guard"


def environment(home, *, socket_log=None, **extra):
    """Environment of a user whose store is `home`; nothing of ours leaks in."""
    env = {key: value for key, value in os.environ.items()
           if not key.startswith(("HEARTH_", "HF_", "PIP_", "COV")) and key != "PYTHONPATH"}
    paths = [str(ROOT / "src")]
    if socket_log is not None:
        paths.append(str(GUARD))
        env["SOCKET_LOG"] = str(socket_log)
    env.update(HEARTH_HOME=str(home), HF_HOME=str(Path(home) / "hf"), PYTHONPATH=os.pathsep.join(paths),
               NO_COLOR="1", HEARTH_DEBUG="1", **extra)
    return env


def hearth(*args, home, stdin=None, timeout=120, check=True, socket_log=None, **extra):
    """Run `hearth args...`; returns the finished process with text output.

    check: a non-zero exit fails the test with what was printed.
    """
    done = subprocess.run([sys.executable, "-m", "openhearth", *map(str, args)], input=stdin, text=True,
                          capture_output=True, timeout=timeout,
                          env=environment(home, socket_log=socket_log, **extra),
                          stdin=subprocess.DEVNULL if stdin is None else None)
    assert "Traceback" not in done.stderr, done.stderr
    if check:
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
