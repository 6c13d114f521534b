"""Transfers for tests: settings that see one local server only, and fetches in processes of their own."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from openhearth.config import Config
from openhearth.hub.records import RemoteFile

SRC = Path(__file__).parents[2] / "src"

_FETCH = """
import json, sys
from pathlib import Path
from openhearth.config import Config
from openhearth.errors import HearthError
from openhearth.hub.records import RemoteFile
from openhearth.hub.transfer import fetch

def show(progress):
    line = [progress.phase, progress.done_bytes, progress.total_bytes, progress.resumed_bytes]
    print(json.dumps(line), flush=True)

try:
    digest = fetch(RemoteFile(**json.loads(sys.argv[1])), Path(sys.argv[2]), config=Config.from_env(),
                   on_progress=show, num_connections=int(sys.argv[3]))
    print(json.dumps(["done", digest]), flush=True)
except HearthError as error:
    print(json.dumps(["error", type(error).__name__, str(error)]), flush=True)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""


def random_bytes(num_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(num_bytes)


def config_for(server, folder: Path, **env: str) -> Config:
    """Settings whose hub endpoint is this server and whose home is this folder."""
    return Config.from_env({"HF_ENDPOINT": server.url, "HOME": str(folder), **env})


def clean_env(**env: str) -> dict[str, str]:
    """The environment of a child process: no proxies, no pip or hub settings but these."""
    kept = {key: value for key, value in os.environ.items()
            if not key.startswith(("PIP_", "HF_", "HEARTH_")) and not key.lower().endswith("_proxy")}
    return {**kept, "PYTHONPATH": str(SRC), "PIP_CONFIG_FILE": os.devnull, **env}


def isolate_pip(monkeypatch, home: Path, **env: str) -> None:
    """Make this process see no pip settings, netrc or proxies but those given (and files below home)."""
    wanted = clean_env(HOME=str(home), NETRC=str(home / "netrc"), **env)
    for name in set(os.environ) - set(wanted):
        monkeypatch.delenv(name)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)


def start_fetch(remote: RemoteFile, partial: Path, num_connections: int = 4, *,
                preexec_fn=None) -> subprocess.Popen:
    """Start a process that fetches remote; it prints a JSON list per report, then ["done", sha256]."""
    fields = {key: getattr(remote, key) for key in RemoteFile.__dataclass_fields__}
    command = [sys.executable, "-c", _FETCH, json.dumps(fields), str(partial), str(num_connections)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=clean_env(HOME=str(partial.parent)), preexec_fn=preexec_fn)


def reports(process: subprocess.Popen) -> list[list]:
    """Wait for a process of start_fetch and return what it printed."""
    out, err = process.communicate(timeout=240)
    assert "Traceback" not in err, err
    return [json.loads(line) for line in out.splitlines() if line.startswith("[") and line.endswith("]")]
