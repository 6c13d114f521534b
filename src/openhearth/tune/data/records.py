"""What data reading hands to training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence. is_trained: per token, whether it is learned (given those before it).

    file, line: where it came from, lines counted from 1. The first token is never trained: nothing is
    before it. Example: ``Sample((1, 42, 2), (False, True, True), "a.jsonl", 1)``.
    """

    token_ids: tuple[int, ...]
    is_trained: tuple[bool, ...]
    file: str
    line: int

    @property
    def num_trained(self) -> int:
        """Tokens that the loss is on."""
        return sum(self.is_trained)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that is left out, and why. Example: ``Refusal("a.jsonl", 7, "not JSON: ...")``."""

    file: str
    line: int
    reason: str
