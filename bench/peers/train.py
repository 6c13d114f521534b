"""Training steps beside TRL and a plain loop: `python bench/peers/train.py --home FOLDER --out RESULTS.json`.

Before it: `install.py trl` and `convert.py` with the same folder. Both sides have the same weights, the
same tokens, bfloat16 and the same number of threads, in a process of its own each. The first step of each
warms up; then they alternate, a step each, and a row's ratio is the median of the paired ratios. Peak memory
is that of a worker's whole life, the processes it started included. A row is merged into RESULTS.json as soon
as its work is done; `../report.py` makes the page.

Does not: compare what is learned; the learning rate is next to nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from install import DEFAULT_HOME, read_installed
from processes import WorkerFailed
from results import merge_rows, write_results
from rounds import Pairs, Runner, alternate
from training_work import WORKS, Work

from openhearth import bench, chat, hardware
from openhearth.formats import open_checkpoint
from openhearth.kernels.select import set_num_threads

PEER = "trl"
MICRO_BATCHES = {"sft_lora": (8, 2), "sft_full": (8, 2), "grpo_step": (32, 8), "grpo_step_lora": (32, 8)}
"""Sequences in one forward of the peer, all of them tried."""


def write_samples(folder: Path, model: Path, work: Work) -> tuple[Path, Path]:
    """Write the samples of a step as text rows and as token ids, the same for both sides.

    Random words of one token each, so that a text has as many tokens as words, and its end.
    """
    tokenizer = chat.load_tokenizer(open_checkpoint(model))
    words = [token_id for token_id in range(tokenizer.vocab_size) if _is_word(tokenizer, token_id)]
    numbers = random.Random(0)
    rows = [[*numbers.choices(words, k=work.length - 1), tokenizer.eos_token_id] for _ in range(work.rows)]
    texts = [tokenizer.decode(row[:-1]) for row in rows]
    assert [tokenizer.encode(text, add_special_tokens=True) for text in texts] == [row[:-1] for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    as_text, as_ids = folder / f"{work.name}.jsonl", folder / f"{work.name}.json"
    as_text.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    as_ids.write_text(json.dumps(rows), encoding="utf-8")
    return as_text, as_ids


def _is_word(tokenizer: chat.Tokenizer, token_id: int) -> bool:
    text = tokenizer.decode([token_id])
    return (text[:1] == " " and text[1:].isascii() and text[1:].isalpha() and text[1:].islower()
            and tokenizer.encode(text) == [token_id])


class Stepped:
    """Steps of runners, with everything that each answer said."""

    def __init__(self) -> None:
        self.answers: dict[str, list[dict[str, Any]]] = {}

    def __call__(self, runner: Runner) -> tuple[float, float]:
        """Do a step; return tokens per second and processor seconds. Raises: WorkerFailed."""
        if runner.worker is None:
            runner.worker = runner.start()
        answer = runner.worker.ask({})
        self.answers.setdefault(runner.name, []).append(answer)
        return answer["num_tokens"] / answer["total_s"], answer["cpu_s"]

    def part(self, runner: Runner, *path: str) -> float:
        """Return the median of one number of a runner's answers."""
        found = []
        for answer in self.answers[runner.name]:
            for name in path:
                answer = answer[name]
            found.append(answer)
        return statistics.median(found)

    def parts(self, runner: Runner) -> dict[str, float]:
        """Return the median seconds of each part of a step."""
        return {name: round(self.part(runner, "parts", name), 3)
                for name in self.answers[runner.name][-1]["parts"]}


def choose_peer(home: Path, work: Work, settings: dict[str, Any]) -> Runner:
    """Try one step of the peer with each number of sequences at once; return the fastest, started.

    Raises: WorkerFailed when none runs.
    """
    best, rates, failed = None, {}, None
    for micro_batch in MICRO_BATCHES[work.name]:
        runner = Runner(PEER, f"{work.weights}/{micro_batch}", home / "models" / "hf-bf16",
                        settings | {"micro_batch": micro_batch}, home)
        try:
            rates[micro_batch], _ = Stepped()(runner)
        except WorkerFailed as error:
            failed = error
            continue
        say(f"{work.name}: {work.peer}, {micro_batch} sequences at once: {rates[micro_batch]:.0f} tokens/s")
        if best is None or rates[micro_batch] > best[0]:
            if best is not None:
                best[1].close()
            best = rates[micro_batch], runner
        else:
            runner.close()
    if best is None:
        raise failed
    return best[1]


def measure(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """Return one row of the results. Raises: WorkerFailed."""
    home, model = options.home, options.home / "models" / "BF16.gguf"
    as_text, as_ids = write_samples(home / "training", model, work)
    common = {"work": work.name, "threads": options.threads}
    ours = Runner("openhearth-tune", work.weights, model, common | {"rows": str(as_text)}, home)
    rate = bench.measure_matmul(torch.bfloat16).high
    peer = choose_peer(home, work, common | {"rows": str(as_ids)})
    stepped = Stepped()
    try:
        ours.worker = ours.start()
        pairs = alternate(ours, peer, work.name, lambda: stepped, num_rounds=options.rounds, on_round=say)
    finally:
        ours.close()
        peer.close()
    rate = max(rate, bench.measure_matmul(torch.bfloat16).high)
    return row_record(work, ours, peer, pairs, stepped, rate, options)


def row_record(work: Work, ours: Runner, peer: Runner, pairs: Pairs, stepped: Stepped, rate: float,
               options: argparse.Namespace) -> dict[str, Any]:
    """Return what is written of one work. rate: bfloat16 operations per second of this machine.

    mfu, peer_mfu: the same operations (`memory.training_flops`) over each side's own seconds of updating.
    """
    from run import read_commit

    installed = read_installed(options.home, PEER)
    flops, memory = stepped.part(ours, "flops"), stepped.part(ours, "peak_memory_bytes")
    seconds, peer_seconds = (stepped.part(runner, "total_s") for runner in (ours, peer))
    parts, peer_parts = stepped.parts(ours), stepped.parts(peer)
    peer_memory = stepped.part(peer, "peak_memory_bytes")
    mfu, peer_mfu = (flops / (total - its.get("generation", 0.0)) / rate
                     for total, its in ((seconds, parts), (peer_seconds, peer_parts)))
    versions = [f"{name} {installed['packages'][name]}" for name in ("torch", "transformers", "peft")]
    ours_flags, peer_flags = (stepped.answers[runner.name][-1]["flags"] for runner in (ours, peer))
    return {
        "work": work.name, "weights": work.weights,
        "tokens_per_s": round(statistics.median(pairs.ours), 2), "peer": work.peer,
        "peer_version": installed["version"], "peer_flags": ", ".join([peer_flags, *versions]),
        "flags": ours_flags, "peer_tokens_per_s": round(statistics.median(pairs.theirs), 2),
        "ratio": round(pairs.ratio, 4), "ratios": [round(ratio, 4) for ratio in pairs.ratios],
        "share_of_limit": round(mfu, 4), "mfu": round(mfu, 4), "peer_mfu": round(peer_mfu, 4),
        "seconds": round(seconds, 3), "peer_seconds": round(peer_seconds, 3),
        "parts": parts, "peer_parts": peer_parts, "peak_memory_bytes": int(memory),
        "peer_peak_memory_bytes": int(peer_memory), "memory_ratio": round(memory / peer_memory, 4),
        "bf16_matmul_flops_per_s": round(rate),
        "foreign_load": round(max(pairs.foreign), 4), "threads": options.threads, "commit": read_commit()}


def say(text: str) -> None:
    """Tell what goes on."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME)
    parser.add_argument("--threads", type=int, default=hardware.usable_cores())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--out", type=Path, help="results file that rows are merged into")
    options = parser.parse_args()
    if (reason := read_installed(options.home, PEER).get("missing")) is not None:
        parser.error(reason)
    set_num_threads(options.threads)
    failed = 0
    for name in options.works:
        try:
            row = measure(WORKS[name], options)
        except WorkerFailed as error:
            say(f"{name}: {error}")
            failed = 1
            continue
        print(json.dumps(row, indent=1), flush=True)
        if options.out:
            record = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
            write_results(options.out, record | {"rows": merge_rows(options.out, [row], [name])})
    return failed


if __name__ == "__main__":
    sys.exit(main())
