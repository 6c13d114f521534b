"""The GRPO family as a job: tasks found, prompts looked at, engine and graders beside the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from openhearth import hardware
from openhearth.engine import Engine, Sampling
from openhearth.models import load_model
from openhearth.runs import RunFolder, load_parquet
from openhearth.tasks import Grading, Task, find
from openhearth.tune.derive import Plan, base_bytes
from openhearth.tune.derive_grpo import derive_grpo_plan, engine_settings
from openhearth.tune.loops.grpo import GrpoLoop, GrpoParts
from openhearth.tune.methods.records import Learner, Opened
from openhearth.tune.mixture import Mixture
from openhearth.tune.policy import Policy
from openhearth.tune.rollout import Asked, ask
from openhearth.tune.settings import GrpoSettings
from openhearth.tune.training import Loop

_LOOKED_AT = 32
_SHARE = 10
"""Of the steps whose rewards are compared: the first and the last tenth."""


@dataclass(frozen=True)
class GrpoWork:
    """The tasks of a run. shown: prompts of the first problems.

    Example: ``prepare_grpo(settings, opened, 2**33)[1].shown[0].problem``.
    """

    tasks: tuple[Task, ...]
    shown: tuple[Asked, ...]
    name: str = "grpo"

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that was looked at."""
        return max(len(one.prompt) for one in self.shown)

    def data(self) -> dict[str, Any]:
        """Return each task's name and where its problems and grader come from."""
        return {str(task.name): task.source for task in self.tasks}

    def begin(self, run: RunFolder) -> None:
        """Write nothing: rollouts come with the steps."""

    @contextlib.contextmanager
    def looping(self, run: RunFolder, opened: Opened, plan: Plan, learner: Learner) -> Iterator[Loop]:
        """Give the loop, with an engine on the learning weights and grading processes."""
        settings, reference = plan.settings, None
        if settings.kl and learner.slot is None:
            reference = load_model(opened.checkpoint, opened.spec, dtype=getattr(torch, settings.dtype))
        longest = self.longest_prompt + settings.max_tokens
        engine = Engine(learner.model, weights_version="step 0", settings=engine_settings(
            settings, opened.spec, longest, hardware.read_memory().available_bytes))
        policy = Policy(learner.model, learner.slot, _sampling(settings, opened), settings.pack_tokens,
                        reference, learner.reference_slot)
        mixture = Mixture(self.tasks, seed=settings.seed, weights=settings.task_weights,
                          curriculum=settings.curriculum)
        with Grading(self.tasks, num_workers=settings.threads or hardware.usable_cores()) as grading:
            yield GrpoLoop(GrpoParts(policy, learner.optimizer, engine, mixture, grading,
                                     opened.tokenizer, opened.template, run), settings)

    def result(self, run: RunFolder, plan: Plan, learner: Learner) -> Mapping[str, Any]:
        """Return the tasks, and the mean reward of the first and the last tenth of the steps."""
        metrics = run.metrics()
        count = max(1, len(metrics) // _SHARE)
        first, last = (sum(row["reward"] for row in rows) / count
                       for rows in (metrics[:count], metrics[-count:]))
        return {"data": {"tasks": self.data()}, "result": {
            "first_reward": first, "last_reward": last,
            "ratio_max_difference": max(row["ratio_max_difference"] for row in metrics),
            "completions": len(metrics) * plan.settings.prompts * plan.settings.group_size}}


def prepare_grpo(settings: GrpoSettings, opened: Opened, available_bytes: int) -> tuple[Plan, GrpoWork]:
    """Find the tasks, look at prompts and decide what nobody said.

    Raises: UsageError, Unsupported without pyarrow, and as `find`.
    """
    load_parquet()
    _sampling(settings, opened)
    tasks = tuple(find(name) for name in settings.task)
    shown = []
    for place, task in enumerate(tasks):
        count = task.num_problems("train")
        for index in range(_LOOKED_AT if count is None else min(count, _LOOKED_AT)):
            shown.append(ask(task.problem("train", index), place, opened.tokenizer, opened.template, seed=""))
    plan = derive_grpo_plan(settings, opened.spec, [len(one.prompt) for one in shown],
                            max(task.max_tokens for task in tasks), available_bytes=available_bytes,
                            base_bytes=base_bytes(settings, opened.checkpoint, opened.spec))
    return plan, GrpoWork(tasks, tuple(shown))


def _sampling(settings: GrpoSettings, opened: Opened) -> Sampling:
    return Sampling(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p,
                    min_p=settings.min_p, max_tokens=settings.max_tokens or 1,
                    stop_token_ids=opened.tokenizer.stop_token_ids)
