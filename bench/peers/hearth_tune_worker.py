"""`hearth tune` as one more worker: the same job that the command runs, held after every step.

Settings: work (a name of `training_work.py`), rows (a JSONL file), threads. Completions have their full
length because the model's stop tokens are hidden from the sampler.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from training_work import ALPHA, QUESTIONS, RANK, RATE, WORKS, Work
from worker import Steps, serve_steps

from openhearth import tune
from openhearth.config import Config
from openhearth.kernels.select import chosen
from openhearth.runs import RunFolder
from openhearth.tune.loops import sft
from openhearth.tune.optimizer import Optimizer
from openhearth.tune.policy import Policy

MANY = 10**6


def build_settings(model: str, work: Work, rows: str, threads: int) -> tune.TuneSettings:
    """Return what the command's flags would give."""
    given = {"model": model, "out": work.name, "weights": work.weights, "threads": threads, "steps": MANY,
             "checkpoint_every": MANY, "learning_rate": RATE, "schedule": "constant", "warmup": 0.0}
    if work.weights == "lora":
        given |= {"lora_rank": RANK, "lora_alpha": float(ALPHA)}
    if work.completion_tokens == work.length:
        return tune.build_settings("sft", given | {"data": [rows], "batch_size": work.rows, "chat": False,
                                                   "max_tokens": work.length})
    prompts = len(QUESTIONS)
    task = f"{Path(__file__).with_name('grpo_task.py')}:lines"
    return tune.build_settings("grpo", given | {
        "task": [task], "prompts": prompts, "group_size": work.rows // prompts,
        "max_tokens": work.completion_tokens})


def train(model: str, settings: dict, steps: Steps) -> None:
    """Run the job until nobody asks any more."""
    work = WORKS[settings["work"]]
    with tempfile.TemporaryDirectory() as home:
        config = replace(Config.from_env(), home=Path(home))
        job = tune.prepare(build_settings(model, work, settings["rows"], settings["threads"]), config)
        if work.prompt_tokens:
            assert {len(one.prompt) for one in job.work.shown} == {work.prompt_tokens}
            job.opened.tokenizer.stop_token_ids = frozenset()
        plan = job.plan.settings
        flags = (f"{plan.dtype}, {chosen().isa}, packs of {plan.pack_tokens} tokens, "
                 f"{'recomputing, ' if plan.recompute else ''}{settings['threads']} threads")
        steps.time(sft, "trained_logprobs", "forward")
        steps.time(Policy, "logprobs", "forward")
        steps.time(torch.Tensor, "backward", "backward")
        steps.time(Optimizer, "step", "optimizer")

        def on_step(metrics: tune.StepMetrics) -> None:
            if work.prompt_tokens:
                assert metrics.report["completion_tokens"] == work.completion_tokens
                assert metrics.report["skipped_groups"] == 0
                steps.note("generation", metrics.report["rollout_seconds"])
            # A matrix rate of 1 was given below: mfu is operations per second.
            steps.done(work.rows * work.length, flags, flops=metrics.mfu * metrics.update_seconds)

        run = RunFolder(config.home, work.name)
        with run.working():
            tune.run_job(job, run, versions={}, matmul_flops_per_s=1.0, on_step=on_step)


if __name__ == "__main__":
    serve_steps(train)
