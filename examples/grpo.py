"""GRPO in one file: a readable reinforcement learning loop on openhearth's public parts.

    python examples/grpo.py --task chain_sum --steps 20

The model that samples is the model that learns: one copy of the weights, one forward. So the ratio of new to
old probability is exactly 1 for every token of the first update, and the loop asserts it. `hearth tune grpo`
is the same with checkpoints, several losses, truncation, packing by memory and metrics on disk.
"""

# N trained tokens of a pack, G completions of a group

from __future__ import annotations

import argparse
import statistics
import time

import torch

from openhearth import chat, formats, hardware, hub
from openhearth.config import Config
from openhearth.engine import Engine, EngineSettings, Request, Sampling
from openhearth.kernels.select import chosen, set_num_threads
from openhearth.models import load_model
from openhearth.spec import read_spec
from openhearth.tasks import NOW, Grading, find
from openhearth.tune import Sample
from openhearth.tune.mixture import Mixture
from openhearth.tune.optimizer import AdamSettings, Optimizer
from openhearth.tune.packs import pack_samples, split_batch, trained_logprobs
from openhearth.tune.weights import ADAPTER, adapter_parameters, attach_fresh


class Trainer:
    """A model with an adapter that learns, and an engine that samples from both."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        checkpoint = formats.open_checkpoint(hub.pull(options.model, Config.from_env()).path)
        dtype = torch.bfloat16 if hardware.has_fast_bfloat16() else torch.float32
        self.model = load_model(checkpoint, read_spec(checkpoint), dtype=dtype)
        self.tokenizer = chat.load_tokenizer(checkpoint)
        self.template = chat.load_template(checkpoint, self.tokenizer)
        layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        adapter = attach_fresh(self.model, rank=16, scale=2.0, layers=layers, seed=options.seed)
        self.slot = adapter.slot
        self.optimizer = Optimizer(adapter_parameters(adapter), AdamSettings())
        self.engine = Engine(self.model, weights_version="step 0",
                             settings=EngineSettings(max_num_sequences=options.prompts * options.group))
        task = find(options.task)
        self.mixture, self.grading = Mixture([task], seed=options.seed), Grading([task])

    def rollout(self, step: int) -> list[tuple[Sample, tuple[float, ...], float | None, int]]:
        """Return (sample, logprobs when drawn, reward or None, group) of every completion of a step."""
        options = self.options
        self.engine.renew(f"step {step}")  # the weights changed: pack them again, forget cached pages
        problems = [problem for _, problem in self.mixture.take(step, options.prompts)]
        requests = [Request(self.prompt(problem), Sampling(
            temperature=1.0, max_tokens=options.max_tokens, seed=options.seed + 1_000_003 * step + place,
            stop_token_ids=self.tokenizer.stop_token_ids), n=options.group, adapter=ADAPTER)
            for place, problem in enumerate(problems)]
        rolled = []
        for group, completions in enumerate(self.engine.generate(requests)):
            prompt = requests[group].prompt_token_ids
            for completion in completions:
                text = self.tokenizer.decode(completion.token_ids)
                verdict = self.grading.grade(0, problems[group], text)
                is_trained = (False,) * len(prompt) + (True,) * len(completion.token_ids)
                sample = Sample(prompt + completion.token_ids, is_trained, f"group {group}", completion.index)
                rolled.append((sample, completion.logprobs, verdict.reward, group))
        return rolled

    def prompt(self, problem) -> tuple[int, ...]:
        """Return the problem as evaluation asks it."""
        return tuple(chat.render(self.template, self.tokenizer, problem.messages, now=NOW).token_ids)

    def advantages(self, rolled) -> dict[Sample, tuple[float, tuple[float, ...]]]:
        """Return sample -> (reward less the group's mean, logprobs), without groups that are all the same."""
        found = {}
        for group in range(self.options.prompts):
            known = [(sample, logprobs, reward) for sample, logprobs, reward, number in rolled
                     if number == group and reward is not None]  # a grader that failed says nothing
            rewards_G = [reward for _, _, reward in known]
            if len(set(rewards_G)) > 1:
                mean = statistics.fmean(rewards_G)
                found |= {sample: (reward - mean, logprobs) for sample, logprobs, reward in known}
        return found

    def update(self, learned: dict[Sample, tuple[float, tuple[float, ...]]], num_completions: int) -> float:
        """Take one step of Dr. GRPO (arXiv 2503.20783); return the largest distance of a ratio from 1."""
        largest = 0.0
        for part in split_batch(list(learned), self.options.pack_tokens):
            pack = pack_samples(part)
            logprobs_N = trained_logprobs(self.model, pack, self.slot)
            sampled_N = torch.cat([torch.tensor(learned[sample][1]) for sample in part])
            advantages_N = torch.cat([torch.full((sample.num_trained,), learned[sample][0])
                                      for sample in part])
            ratios_N = torch.exp(logprobs_N - sampled_N)
            largest = max(largest, float((ratios_N.detach() - 1).abs().max()))
            bounded_N = ratios_N.clamp(0.8, 1.2)
            terms_N = -torch.minimum(ratios_N * advantages_N, bounded_N * advantages_N)
            (terms_N.sum() / (num_completions * self.options.max_tokens)).backward()
        assert largest == 0.0 or not chosen().is_native, "what was sampled is not what is differentiated"
        self.optimizer.step(self.options.learning_rate, self.optimizer.gradient_norm())
        return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="chain_sum")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--pack-tokens", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=hardware.usable_cores())
    options = parser.parse_args()
    set_num_threads(options.threads)
    trainer = Trainer(options)
    with trainer.grading:
        for step in range(options.steps):
            started = time.perf_counter()
            rolled = trainer.rollout(step)
            rolled_out = time.perf_counter()
            learned = trainer.advantages(rolled)
            difference = trainer.update(learned, len(rolled)) if learned else 0.0
            rewards = [reward for _, _, reward, _ in rolled if reward is not None]
            print(f"step {step + 1}: reward {statistics.fmean(rewards):.3f}, {len(learned)} of {len(rolled)} "
                  f"learn, ratios differ from 1 by {difference:g}, rollout {rolled_out - started:.1f} s, "
                  f"update {time.perf_counter() - rolled_out:.1f} s", flush=True)


if __name__ == "__main__":
    main()
