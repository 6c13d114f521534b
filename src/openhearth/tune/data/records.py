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
class Preference:
    """Answers to one prompt of which one is liked better, or one answer that is liked or not.

    chosen, rejected: the prompt with either answer, whose tokens are the trained ones; one of them is None
    where a row judges a single answer. They share a pack, where their prompt comes once.
    Example: ``Preference(good, None)``.
    """

    chosen: Sample | None
    rejected: Sample | None

    @property
    def sequences(self) -> tuple[Sample, ...]:
        """The answers that are there, the chosen one first."""
        return tuple(sample for sample in (self.chosen, self.rejected) if sample is not None)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt's and each answer's, one after the other."""
        return self._joined([sample.token_ids for sample in self.sequences])

    @property
    def is_trained(self) -> tuple[bool, ...]:
        """Per token, as in its sequences."""
        return self._joined([sample.is_trained for sample in self.sequences])

    def _joined(self, parts: list[tuple]) -> tuple:
        num_prompt = self.sequences[0].is_trained.index(True)
        return parts[0] + tuple(item for part in parts[1:] for item in part[num_prompt:])

    @property
    def num_trained(self) -> int:
        """Tokens that the loss is on."""
        return sum(sample.num_trained for sample in self.sequences)

    @property
    def file(self) -> str:
        """Where it came from."""
        return self.sequences[0].file

    @property
    def line(self) -> int:
        """The line there, from 1."""
        return self.sequences[0].line


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that is left out, and why. Example: ``Refusal("a.jsonl", 7, "not JSON: ...")``."""

    file: str
    line: int
    reason: str
