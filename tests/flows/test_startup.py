"""How the command starts and ends, whatever interrupts it: no traceback, nothing heavy."""

import os
import signal
import subprocess
import sys

import pytest
from support.command import ROOT, environment

HEAVY = ("torch", "numpy", "rich", "urllib3", "tokenizers", "jinja2", "starlette", "uvicorn", "asyncio",
         "openhearth.formats", "openhearth.hub.pull")

CUT_IMPORTS = {
    "plain": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n",
    "turned into another error": ("import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"
                                  "    for _ in range(1000): pass\n"
                                  "except KeyboardInterrupt as error:\n"
                                  "    raise ImportError('half') from error\n"),
}


@pytest.mark.parametrize("how", CUT_IMPORTS)
def test_ctrl_c_while_libraries_load_leaves_no_traceback(tmp_path, how):
    (tmp_path / "typer.py").write_text(CUT_IMPORTS[how])
    env = environment(tmp_path / "home")
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    done = subprocess.run([sys.executable, "-m", "openhearth", "list"], env=env, capture_output=True,
                          text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_after_the_last_word_leaves_no_traceback(tmp_path):
    code = ("import atexit, os, signal, sys\nfrom openhearth.cli import main\n"
            "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\nsys.argv[1:] = ['list']\nmain()\n")
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path / "home"),
                          capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert "no models" in done.stderr and "KeyboardInterrupt" not in done.stderr


def test_help_loads_nothing_that_only_a_verb_needs(tmp_path):
    code = ("import sys\nfrom openhearth.cli import main\n"
            "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
            f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path / "home"), cwd=ROOT,
                          capture_output=True, text=True)
    assert "Usage: hearth" in done.stdout and done.stderr == "[]\n"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc reads its settings on Linux")
@pytest.mark.parametrize("tunables", [None, "glibc.malloc.check=0"])
def test_tuning_sets_malloc_unless_the_user_did(tmp_path, tunables):
    (tmp_path / "typer.py").write_text("import os, sys\nprint(os.environ['GLIBC_TUNABLES'], *sys.argv[1:])\n"
                                       "sys.exit(3)\n")
    env = environment(tmp_path / "home")
    env.pop("GLIBC_TUNABLES", None)
    if tunables is not None:
        env["GLIBC_TUNABLES"] = tunables
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    done = subprocess.run([sys.executable, "-m", "openhearth", "tune", "sft", "a b"], env=env,
                          capture_output=True, text=True)
    ours = ("glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=134217728:"
            "glibc.malloc.trim_threshold=2147483648")
    assert (done.returncode, done.stdout) == (3, f"{tunables or ours} tune sft a b\n")
