"""What is trained in `train.py`, for every worker alike. Imports nothing that only one of them has."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

RANK, ALPHA = 16, 32
RATE = 1e-6
"""So small that the model stays what it is, however many steps are measured."""
QUESTIONS = tuple(f"Write one line about {thing}." for thing in ("rain", "snow", "bread", "music"))


@dataclass(frozen=True)
class Work:
    """One row of the results. peer: what the other side is. rows: samples of a step.

    length: tokens of a sample; prompt_tokens: those before a completion, which has the others.
    Example: ``WORKS["sft_lora"].weights``.
    """

    name: str
    weights: str
    peer: str
    rows: int
    length: int
    prompt_tokens: int = 0

    @property
    def completion_tokens(self) -> int:
        """Tokens that are drawn per completion."""
        return self.length - self.prompt_tokens


WORKS = {work.name: work for work in (
    Work("grpo_step", "full", "TRL", 32, 164, 36),
    Work("grpo_step_lora", "lora", "TRL + PEFT", 32, 164, 36),
    Work("sft_lora", "lora", "TRL + PEFT", 8, 512),
    Work("sft_full", "full", "PyTorch loop", 8, 512),
)}


def reward(text: str) -> float:
    """Return a number from 0 to 1 that differs within every group, so that nothing is skipped."""
    return zlib.crc32(text.encode()) % 1009 / 1008
