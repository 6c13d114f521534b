"""What an evaluation is asked for and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from openhearth.errors import UsageError
from openhearth.tasks import SPLITS, Split


@dataclass(frozen=True)
class EvalSettings:
    """What to ask a model. Raises UsageError when built with a value out of range.

    num_problems: per task, from the split's first on; None: all of a task that has an end, 200 of one
    that has none. num_samples: completions per problem. sampling: settings of `engine.Sampling`; empty:
    greedy for one sample, the model's own for several. max_tokens: None takes the task's. seed: of the
    random streams. Example: ``EvalSettings(num_problems=200)``.
    """

    num_problems: int | None = None
    num_samples: int = 1
    split: Split = "test"
    seed: int = 0
    max_tokens: int | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UsageError(f"split is `{self.split}`", why=f"expected one of {', '.join(SPLITS)}",
                             hint="--split test")
        for name, value, highest in (("num_problems", self.num_problems, 10**7),
                                     ("num_samples", self.num_samples, 4096),
                                     ("max_tokens", self.max_tokens, 2**20)):
            if value is not None and not 1 <= value <= highest:
                raise UsageError(f"{name} is {value}", why=f"expected 1 to {highest}",
                                 hint="leave it out for the default")
        if not 0 <= self.seed < 2**53:
            raise UsageError(f"seed is {self.seed}", why="expected 0 to 2**53 - 1", hint="--seed 0")


@dataclass(frozen=True)
class Sample:
    """One completion and its verdict, as one line of samples.jsonl.

    task: the task's name. problem: the problem's id. seed, sample: the random stream, which with the
    weights and settings gives the same tokens again. logprobs belong to token_ids. reward: None when the
    grader failed. Example: ``Sample.from_line(line).verdict == "correct"``.
    """

    task: str
    problem: str
    sample: int
    seed: int
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    text: str
    finish_reason: str
    verdict: str
    reward: float | None
    reason: str

    def to_line(self) -> str:
        """Return the sample as one line of JSON, the same text for the same sample."""
        values = {**self.__dict__, "logprobs": [_finite(value) for value in self.logprobs]}
        return json.dumps(values, ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_line(cls, line: str) -> Sample:
        """Read a line back. Raises: ValueError, TypeError when it is none."""
        values = json.loads(line)
        for name in ("prompt_token_ids", "token_ids", "logprobs"):
            values[name] = tuple(values[name])
        return cls(**values)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def request_seed(seed: int, task: str, problem: str) -> int:
    """Return the seed of one problem's requests: its own, whatever else is asked in the same run."""
    digest = hashlib.sha256(f"{seed}/{task}/{problem}".encode()).digest()
    return int.from_bytes(digest[:8], "little")
