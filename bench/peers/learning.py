"""The same fine-tuning here and in TRL, curve beside curve: `python bench/peers/learning.py TRAIN TEST`.

TRAIN and TEST are rows as `hearth tune` takes them. Both sides start from the same weights and see the same
token ids in the same order, with the same settings; what differs is how the adapter's A is drawn. TRL runs
twice, with two seeds: as far as its two curves are apart, curves differ by chance.

Before it: `install.py trl` and `convert.py` with the same folder; `../report.py` makes the plot.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from install import DEFAULT_HOME, python_of, read_installed
from processes import preloaded
from results import write_results
from training_work import ALPHA, RANK

from openhearth import hardware, tune
from openhearth.config import Config
from openhearth.kernels.select import chosen
from openhearth.runs import RunFolder
from openhearth.tune.data.order import Order

RATE, MAX_TOKENS, SEEDS = 2e-4, 512, (0, 1)


def train_ours(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the job; return its curve with held-out losses, and what TRL is asked to do."""
    held_out = folder / "held_out.jsonl"
    with open(options.test, encoding="utf-8") as file:
        held_out.write_text("".join(islice(file, options.held_out)), encoding="utf-8")
    settings = tune.build_settings("sft", {
        "model": str(options.home / "models" / "BF16.gguf"), "data": [str(options.train)],
        "eval_data": [str(held_out)], "out": "learning", "lora_rank": RANK, "lora_alpha": float(ALPHA),
        "learning_rate": RATE, "schedule": "constant", "warmup": 0.0, "steps": options.steps,
        "batch_size": options.batch_size, "max_tokens": MAX_TOKENS, "threads": options.threads,
        "checkpoint_every": options.steps, "dtype": options.dtype})
    config = replace(Config.from_env(), home=folder)
    job = tune.prepare(settings, config)
    run = RunFolder(folder, "learning")
    with run.working():
        receipt = tune.run_job(job, run, versions={}, on_step=lambda step: print(
            f"openhearth: step {step.step}/{options.steps}  loss {step.loss:.4f}", flush=True))
    losses = receipt["result"]["held_out_loss"]
    samples, plan = job.work.training.samples, job.plan.settings
    order = Order(len(samples), seed=plan.seed).take(0, options.steps * plan.batch_size)
    asked = {"steps": options.steps, "batch_size": plan.batch_size, "learning_rate": RATE,
             "max_tokens": MAX_TOKENS, "threads": options.threads, "rank": RANK, "alpha": ALPHA,
             "dtype": options.dtype,
             "rows": [_row(samples[place]) for place in order],
             "held_out": [_row(sample) for sample in job.work.held_out.samples]}
    return {"losses": [row["loss"] for row in run.metrics()], "before": losses["before"],
            "after": losses["after"]}, asked


def _row(sample: Any) -> dict[str, list[int]]:
    return {"input_ids": list(sample.token_ids), "completion_mask": [int(one) for one in sample.is_trained]}


def train_theirs(options: argparse.Namespace, folder: Path, asked: dict[str, Any],
                 seed: int) -> dict[str, Any]:
    """Run TRL in its own environment. Raises: CalledProcessError."""
    question, answer = folder / "asked.json", folder / "answer.json"
    question.write_text(json.dumps(asked | {"seed": seed}), encoding="utf-8")
    subprocess.run([python_of(options.home, "trl"), Path(__file__).with_name("trl_learning.py"),
                    options.home / "models" / "hf-bf16", question, answer], check=True,
                   env=os.environ | {"HF_HUB_OFFLINE": "1"} | preloaded())
    return json.loads(answer.read_text(encoding="utf-8"))


def apart(one: list[float], other: list[float]) -> float:
    """Return the mean distance of two curves, step by step."""
    return statistics.fmean(abs(a - b) for a, b in zip(one, other, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=200, help="rows of TEST")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=hardware.usable_cores())
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    from run import read_commit

    with tempfile.TemporaryDirectory() as name:
        ours, asked = train_ours(options, Path(name))
        theirs = [train_theirs(options, Path(name), asked, seed) for seed in SEEDS]
    installed = read_installed(options.home, "trl")
    record = {
        "commit": read_commit(), "curves": {"openhearth": ours} | {
            f"TRL, seed {seed}": one for seed, one in zip(SEEDS, theirs, strict=True)},
        "apart": {"openhearth and TRL": statistics.fmean(apart(ours["losses"], one["losses"])
                                                         for one in theirs),
                  "TRL and TRL": apart(*(one["losses"] for one in theirs))},
        "settings": {name: asked[name] for name in asked if name not in ("rows", "held_out")} | {
            "isa": chosen().isa, "held_out": len(asked["held_out"]), "data": options.train.name,
            "tokens": sum(len(row["input_ids"]) for row in asked["rows"])},
        "versions": {"trl": installed["version"], "torch": installed["packages"]["torch"]}}
    write_results(options.out, record)
    print(json.dumps({name: record[name] for name in ("apart", "settings")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
