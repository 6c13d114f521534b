"""One step of the GRPO family: roll out, grade, compare within groups, move the weights.

Rollouts run through the engine on the very weights that learn. A rollout is on disk before the first update
that it feeds, and a resumed run takes it from there when its weights are those of the checkpoint.
"""

# N trained tokens of a pack

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from openhearth import chat
from openhearth.engine import Engine
from openhearth.errors import OffPolicy
from openhearth.kernels import select
from openhearth.runs import RunFolder, SampledRollout, write_rollouts
from openhearth.tasks import Grading
from openhearth.tune.groups import Group, Trained, learn
from openhearth.tune.losses.records import Clipping, LossInput
from openhearth.tune.losses.table import POLICY_LOSSES
from openhearth.tune.mixture import Mixture
from openhearth.tune.optimizer import Optimizer
from openhearth.tune.policy import Policy
from openhearth.tune.rollout import Asked, Rolled, ask, roll
from openhearth.tune.settings import GrpoSettings
from openhearth.tune.training import StepWork
from openhearth.tune.weights import ADAPTER

_ROLLOUT = "rollout.json"


@dataclass
class _Counts:
    """What the updates of a step add up."""

    ratio_difference: float = 0.0
    num_trained: int = 0
    num_tokens: int = 0
    num_clipped: int = 0
    kl: float = 0.0


@dataclass(frozen=True)
class GrpoParts:
    """What the loop works with. Example: `methods/grpo.py: GrpoWork.looping` makes one."""

    policy: Policy
    optimizer: Optimizer
    engine: Engine
    mixture: Mixture
    grading: Grading
    tokenizer: chat.Tokenizer
    template: chat.ChatTemplate | None
    run: RunFolder


class GrpoLoop:
    """Reinforcement learning with verifiable rewards; which loss is a setting."""

    guess_loss = math.inf

    def __init__(self, parts: GrpoParts, settings: GrpoSettings) -> None:
        self.parts, self.settings, self.optimizer = parts, settings, parts.optimizer
        self.method = POLICY_LOSSES[settings.loss]
        self.clipping = Clipping(settings.clip_low, settings.clip_high, settings.kl)
        self.adapter = None if parts.policy.slot is None else ADAPTER
        self._is_started = False
        self._report: dict[str, float] = {}

    def updates(self, step: int) -> Iterator[StepWork]:
        """Roll out, then yield whenever the optimizer holds the gradients of one update."""
        settings, policy, started = self.settings, self.parts.policy, time.perf_counter()
        rolled = self._rolled(step)
        groups = learn(rolled, is_scaled=self.method.is_scaled, overlong=settings.overlong,
                       max_tokens=settings.max_tokens)
        rolled_out = time.perf_counter()
        self._counts, self._rolled_out = _Counts(), rolled_out
        self._report = _describe(rolled, groups, rolled_out - started) | {"level": self.parts.mixture.level}
        completions = [one for group in groups for one in group.trained]
        if completions:
            policy.fill_kept(completions)
            if settings.kl:
                policy.fill_reference(completions)
        is_first = True
        for _ in range(settings.passes):
            for number in range(settings.updates):
                dealt = groups[number::settings.updates]
                if any(group.trained for group in dealt):
                    yield self._backward(step, dealt, is_on_policy=is_first)
                    is_first = False
        self.parts.mixture.note(_pass_rates(rolled, len(self.parts.mixture.tasks)))

    def report(self) -> dict[str, float]:
        """Return what the last step measured."""
        counts, seconds = self._counts, time.perf_counter() - self._rolled_out
        return self._report | {
            "ratio_max_difference": counts.ratio_difference,
            "clipped": counts.num_clipped / max(1, counts.num_trained),
            "kl": counts.kl / max(1, counts.num_trained),
            "update_tokens_per_s": counts.num_tokens / seconds, "update_seconds": seconds}

    def state(self) -> dict[str, Any]:
        """Return where the mixture of tasks stands."""
        return self.parts.mixture.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.parts.mixture.load_state(state)

    def _rolled(self, step: int) -> list[list[Rolled]]:
        """Return the step's graded completions, from the disk where a killed run left those of this step."""
        parts, settings = self.parts, self.settings
        problems = parts.mixture.take(step, settings.prompts)
        is_first, self._is_started = not self._is_started, True
        if is_first and (kept := _read(parts.run, step)) is not None:
            return kept
        asked = [ask(problem, task, parts.tokenizer, parts.template, seed=f"{settings.seed}/{step}/{place}")
                 for place, (task, problem) in enumerate(problems)]
        parts.engine.renew(f"step {step}")
        rolled = roll(parts.engine, parts.tokenizer, parts.grading, asked, parts.policy.sampling,
                      group_size=settings.group_size, adapter=self.adapter)
        write_rollouts(parts.run, step + 1, [
            _sampled(step + 1, sample, one, group) for one, group
            in zip(asked[:settings.kept_groups], rolled, strict=False) for sample in range(len(group))])
        parts.run.write(_ROLLOUT, {"step": step,
                                   "groups": [[asdict(one) for one in group] for group in rolled]})
        return rolled

    def _backward(self, step: int, dealt: Sequence[Group], *, is_on_policy: bool) -> StepWork:
        completions = [one for group in dealt for one in group.trained]
        num_completions = sum(group.num_completions for group in dealt)
        num_tokens = sum(group.num_tokens for group in dealt)
        num_adapter = None if self.adapter is None else self.optimizer.num_trainable
        loss, packed_tokens, flops = 0.0, 0, 0
        for part, pack in self.parts.policy.packs(completions):
            logprobs_N = self.parts.policy.logprobs(part, pack)
            sampled_N = torch.cat([one.sampled for one in part])
            if is_on_policy:
                self._check(step, logprobs_N.detach(), sampled_N)
            packed_tokens += pack.num_tokens
            flops += pack.flops(self.parts.policy.model.spec, num_adapter)
            counts_C = torch.tensor([len(one.sampled) for one in part])
            advantages_N = torch.tensor([one.advantage for one in part]).repeat_interleave(counts_C)
            output = self.method.loss(LossInput(
                logprobs_N, sampled_N, advantages_N, torch.arange(len(part)).repeat_interleave(counts_C),
                num_completions, num_tokens, self.settings.max_tokens, _reference(part)), self.clipping)
            output.loss.backward()
            loss += float(output.loss.detach())
            self._counts.num_clipped += output.num_clipped
            self._counts.kl += output.kl
        num_trained = sum(len(one.sampled) for one in completions)
        self._counts.num_trained += num_trained
        self._counts.num_tokens += packed_tokens
        return StepWork(loss, packed_tokens, num_trained, flops,
                        tuple(group.problem for group in dealt if group.trained))

    def _check(self, step: int, logprobs_N: Tensor, sampled_N: Tensor) -> None:
        """Measure the ratios of the first update; with native kernels all of them are 1, bit for bit."""
        differences_N = (torch.exp((logprobs_N - sampled_N).double()) - 1).abs()
        largest = float(differences_N.max())
        self._counts.ratio_difference = max(self._counts.ratio_difference, largest)
        if largest != 0 and select.covers(self.parts.policy.model.dtype, self.parts.policy.model.device):
            raise OffPolicy(
                f"{int((differences_N != 0).sum())} of {len(sampled_N)} importance ratios of step {step + 1} "
                f"are not 1, by up to {largest:.3g}",
                why="sampler and trainer disagree about completions that no update has followed yet",
                hint="this is a fault of the kernels: HEARTH_ISA=avx2 may avoid it, please report it")


def _reference(part: Sequence[Trained]) -> Tensor | None:
    return None if part[0].reference is None else torch.cat([one.reference for one in part])


def _read(run: RunFolder, step: int) -> list[list[Rolled]] | None:
    """Return the rollout on disk if it is that of the first step of a resumed run."""
    if not (run.path / _ROLLOUT).exists():
        return None
    record = json.loads((run.path / _ROLLOUT).read_bytes())
    newest = run.checkpoints.newest()
    if record["step"] != step or step != (newest.step if newest else 0):
        return None
    return [[Rolled(**{name: tuple(value) if isinstance(value, list) else value
                       for name, value in one.items()}) for one in group] for group in record["groups"]]


def _sampled(step: int, sample: int, asked: Asked, group: Sequence[Rolled]) -> SampledRollout:
    one = group[sample]
    return SampledRollout(step, one.problem, sample, asked.problem.messages[-1]["content"], one.text,
                          one.verdict, one.reward, one.reason, len(one.token_ids), one.finish_reason)


def _describe(rolled: Sequence[Sequence[Rolled]], groups: Sequence[Group],
              seconds: float) -> dict[str, float]:
    every = [one for group in rolled for one in group]
    graded = [one for one in every if one.reward is not None]
    num_tokens = sum(len(one.token_ids) for one in every)
    return {
        "reward": sum(one.reward for one in graded) / max(1, len(graded)),
        "pass_rate": sum(one.verdict == "correct" for one in graded) / max(1, len(graded)),
        "completion_tokens": num_tokens / len(every),
        "overlong": sum(one.finish_reason == "length" for one in every) / len(every),
        "entropy": -math.fsum(logprob for one in every for logprob in one.logprobs) / num_tokens,
        "skipped_groups": sum(not group.trained for group in groups),
        "failed_graders": len(every) - len(graded),
        "rollout_tokens_per_s": num_tokens / seconds, "rollout_seconds": seconds}


def _pass_rates(rolled: Sequence[Sequence[Rolled]], num_tasks: int) -> list[float | None]:
    rates: list[float | None] = []
    for task in range(num_tasks):
        known = [one.verdict == "correct" for group in rolled for one in group
                 if one.task == task and one.reward is not None]
        rates.append(sum(known) / len(known) if known else None)
    return rates
