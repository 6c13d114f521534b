"""Sampler beside trainer: `python bench/peers/on_policy.py --home FOLDER --out bench/results/on_policy.json`.

Reinforcement learning takes the log-probabilities that the sampler reports for those of the model that
learns. How far they are apart is measured here before any update: tokens are drawn at temperature 1 from the
same prompts, and what the sampler said of each (with its cache, a token at a time) is compared with what the
forward of training says. transformers is asked in bfloat16, `generate` on one side and the model in training
mode on the other, as TRL does without vLLM; openhearth's side is the engine and the policy of `hearth tune`.

Before it: `install.py transformers` and `convert.py` with the same folder; `../report.py` makes the plot.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hearth_tune_worker import build_settings
from install import DEFAULT_HOME, python_of, read_installed
from processes import Worker
from results import write_results
from training_work import WORKS

from openhearth import hardware, tune
from openhearth.config import Config
from openhearth.engine import Engine, EngineSettings, Request, Sampling, complete
from openhearth.kernels.select import chosen, set_num_threads
from openhearth.tune.groups import Trained
from openhearth.tune.policy import Policy

EDGES = (0.0, 0.001, 0.01, 0.05, 0.2, math.inf)
"""Of |ratio - 1|: what the plot counts."""


def sample_ours(job: tune.Job, new_tokens: int) -> tuple[list[list[int]], list[float], list[float]]:
    """Return the prompts, and the log-probabilities of drawn tokens by the engine and by the policy."""
    learner, settings = tune.load_learner(job), job.plan.settings
    sampling = Sampling(temperature=1.0, max_tokens=new_tokens)
    engine = Engine(learner.model, weights_version="step 0", settings=EngineSettings())
    prompts = [one.prompt for one in job.work.shown for _ in range(settings.group_size)]
    adapter = next(iter(learner.model.adapters))
    requests = ((place, Request(prompt, replace(sampling, seed=place), adapter=adapter))
                for place, prompt in enumerate(prompts))
    trained = [Trained(prompts[place] + one.token_ids,
                       (False,) * len(prompts[place]) + (True,) * len(one.token_ids),
                       torch.tensor(one.logprobs), 0.0)
               for place, (one,) in filter(None, complete(engine, requests))]
    policy = Policy(learner.model, learner.slot, sampling, settings.pack_tokens)
    sampled, scored = [], []
    for part, pack in policy.packs(trained):
        sampled += torch.cat([one.sampled for one in part]).tolist()
        scored += policy.logprobs(part, pack).tolist()
    return [list(prompt) for prompt in prompts], sampled, scored


def compare(sampled: list[float], trained: list[float]) -> dict[str, Any]:
    """Return how far the two are apart. shares: of tokens with |ratio - 1| 0, then between two EDGES."""
    differences = [ours - theirs for ours, theirs in zip(trained, sampled, strict=True)]
    ratios = [math.exp(difference) for difference in differences]
    far = [abs(ratio - 1) for ratio in ratios]
    counts = [sum(one == 0 for one in far)] + [sum(low < one <= high for one in far)
                                               for low, high in itertools.pairwise(EDGES)]
    return {"num_tokens": len(ratios), "mean_difference": statistics.fmean(map(abs, differences)),
            "max_difference": max(map(abs, differences)), "least_ratio": min(ratios),
            "largest_ratio": max(ratios), "equal_share": sum(one == 0 for one in differences) / len(ratios),
            "shares": [count / len(ratios) for count in counts]}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the record. Raises: WorkerFailed."""
    from run import read_commit

    set_num_threads(options.threads)
    model = options.home / "models" / "BF16.gguf"
    with tempfile.TemporaryDirectory() as home:
        settings = build_settings(str(model), WORKS["grpo_step_lora"], "", options.threads)
        job = tune.prepare(settings, replace(Config.from_env(), home=Path(home)))
        prompts, *ours = sample_ours(job, options.tokens)
    installed = read_installed(options.home, "transformers")
    how = {"threads": options.threads, "dtype": "bfloat16", "attention": "sdpa"}
    with Worker("transformers", python_of(options.home, "transformers"), options.home / "models" / "hf-bf16",
                how, options.home) as worker:
        answer = worker.ask({"sample": prompts, "new_tokens": options.tokens})
    theirs = [[one for row in answer[name] for one in row] for name in ("sampled", "trained")]
    return {"commit": read_commit(), "edges": [edge for edge in EDGES if edge < math.inf],
            "settings": {"dtype": "bfloat16", "isa": chosen().isa,
                         "num_prompts": len(set(map(tuple, prompts))), "completions": len(prompts),
                         "tokens": options.tokens, "threads": options.threads},
            "versions": {"transformers": installed["version"], "torch": installed["packages"]["torch"]},
            "rows": {"openhearth": compare(*ours), "transformers": compare(*theirs)}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME)
    parser.add_argument("--tokens", type=int, default=128, help="drawn per completion")
    parser.add_argument("--threads", type=int, default=hardware.usable_cores())
    parser.add_argument("--out", type=Path, help="also write the record here")
    options = parser.parse_args()
    record = measure(options)
    print(json.dumps(record, indent=1))
    if options.out:
        write_results(options.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
