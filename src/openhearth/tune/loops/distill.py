"""One step of on-policy distillation: the student answers, the teacher says what it would have done.

Every token of the student's own answers is trained to lower the divergence KL(student, teacher) of the
distribution it was drawn from, over the whole vocabulary. Source: arXiv 2306.13649, section 3 (GKD with
student data and reverse KL).
"""

# N tokens of a pack's answers, D the student's width, E the teacher's

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from openhearth.engine import Engine, Sampling
from openhearth.kernels.logprob import reverse_divergences
from openhearth.tasks import Grading
from openhearth.tune.data.records import Sample
from openhearth.tune.methods.records import Learner
from openhearth.tune.mixture import Mixture
from openhearth.tune.packs import pack_completions, split_completions, trained_hidden
from openhearth.tune.rollout import Rolled, ask, roll
from openhearth.tune.settings import DistillSettings
from openhearth.tune.teacher import Teacher
from openhearth.tune.training import StepWork
from openhearth.tune.weights import ADAPTER


@dataclass(frozen=True)
class DistillParts:
    """What the loop works with. renderer: tokenizer and template. Example: see `methods/distill.py`."""

    learner: Learner
    teacher: Teacher
    engine: Engine
    mixture: Mixture
    grading: Grading
    renderer: tuple[Any, Any]


class DistillLoop:
    """On-policy distillation. Answers are graded to be watched; grades do not move the weights."""

    def __init__(self, parts: DistillParts, settings: DistillSettings) -> None:
        self.parts, self.settings, self.optimizer = parts, settings, parts.learner.optimizer
        self.guess_loss = math.log(parts.learner.model.spec.vocab_size)
        self._report: dict[str, float] = {}

    def updates(self, step: int) -> Iterator[StepWork]:
        """Do a step; it has one update."""
        started = time.perf_counter()
        rolled = self._roll(step)
        self._report = _describe(rolled, time.perf_counter() - started)
        yield self._backward(rolled)

    def report(self) -> dict[str, float]:
        """Return what the student's answers of the last step were like."""
        return self._report

    def state(self) -> dict[str, Any]:
        """Return where the mixture of tasks stands."""
        return self.parts.mixture.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.parts.mixture.load_state(state)

    def _roll(self, step: int) -> list[Rolled]:
        parts, settings = self.parts, self.settings
        tokenizer, template = parts.renderer
        asked = [ask(problem, task, tokenizer, template, seed=f"{settings.seed}/{step}/{place}")
                 for place, (task, problem) in enumerate(parts.mixture.take(step, settings.prompts))]
        parts.engine.renew(f"step {step}")
        sampling = Sampling(temperature=settings.temperature, max_tokens=settings.max_tokens,
                            stop_token_ids=tokenizer.stop_token_ids)
        groups = roll(parts.engine, tokenizer, parts.grading, asked, sampling, group_size=settings.group_size,
                      adapter=None if parts.learner.slot is None else ADAPTER)
        return [one for group in groups for one in group]

    def _backward(self, rolled: list[Rolled]) -> StepWork:
        learner, teacher, loss, flops = self.parts.learner, self.parts.teacher, 0.0, 0
        num_adapter = None if learner.slot is None else learner.optimizer.num_trainable
        samples = [Sample((*one.prompt, *one.token_ids),
                          (*[False] * len(one.prompt), *[True] * len(one.token_ids)), one.problem, place)
                   for place, one in enumerate(rolled)]
        num_trained = sum(sample.num_trained for sample in samples)
        num_tokens = 0
        for part in split_completions(samples, self.settings.pack_tokens):
            pack = pack_completions(part)
            num_tokens += pack.num_tokens
            flops += pack.flops(learner.model.spec, num_adapter)
            with torch.no_grad():
                teacher_NE = trained_hidden(teacher.model, pack, teacher.slot)
            hidden_ND = trained_hidden(learner.model, pack, learner.slot)
            divergences_N = reverse_divergences(hidden_ND, learner.model.logits, teacher_NE,
                                                teacher.model.logits)
            share = divergences_N.sum() / num_trained
            loss += float(share.detach())
            share.backward()
        return StepWork(loss, num_tokens, num_trained, flops,
                        tuple(dict.fromkeys(one.problem for one in rolled)), samples)


def _describe(rolled: list[Rolled], seconds: float) -> dict[str, float]:
    graded = [one for one in rolled if one.reward is not None]
    num_tokens = sum(len(one.token_ids) for one in rolled)
    return {"pass_rate": sum(one.verdict == "correct" for one in graded) / max(1, len(graded)),
            "completion_tokens": num_tokens / len(rolled),
            "overlong": sum(one.finish_reason == "length" for one in rolled) / len(rolled),
            "failed_graders": len(rolled) - len(graded),
            "rollout_tokens_per_s": num_tokens / seconds, "rollout_seconds": seconds}
