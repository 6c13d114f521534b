"""One step of learning from preferences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from openhearth.tune.data.order import Order
from openhearth.tune.data.preferences import mismatched
from openhearth.tune.data.records import Preference, Sample
from openhearth.tune.losses.dpo import dpo_loss
from openhearth.tune.losses.ipo import ipo_loss
from openhearth.tune.losses.kto import kto_loss
from openhearth.tune.losses.orpo import orpo_loss
from openhearth.tune.losses.preferred import Answers, PreferenceInput, PreferenceLoss, PreferenceOutput
from openhearth.tune.optimizer import Optimizer
from openhearth.tune.packs import (
    Pack,
    pack_completions,
    pack_samples,
    prompt_length,
    sequence_sums,
    split_batch,
    trained_logprobs,
)
from openhearth.tune.references import sample_key
from openhearth.tune.training import StepWork

_AT_ONCE = 256


@dataclass(frozen=True)
class PreferenceMethod:
    """A loss and what it needs. is_paired: both answers of every row; has_reference, has_divergence: the
    reference's log-probabilities, and the estimate over answers to other prompts.

    guess_loss: for a beta, that of a model that cannot tell the answers apart; None: as for any
    log-probability.
    Example: ``PREFERENCE_LOSSES["dpo"].loss``.
    """

    loss: PreferenceLoss
    is_paired: bool = True
    has_reference: bool = True
    has_divergence: bool = False
    guess_loss: Callable[[float], float] | None = None


PREFERENCE_LOSSES: Mapping[str, PreferenceMethod] = {
    "dpo": PreferenceMethod(dpo_loss),
    "ipo": PreferenceMethod(ipo_loss, guess_loss=lambda beta: (1 + 1 / (2 * beta)) ** 2),
    "kto": PreferenceMethod(kto_loss, is_paired=False, has_divergence=True),
    "orpo": PreferenceMethod(orpo_loss, has_reference=False),
}


@dataclass(frozen=True)
class PreferenceData:
    """What a loop learns from. partners: per row, the place of one with another prompt or -1, empty where the
    loss needs none. references: log-probability of every sequence before tuning by `sample_key`, empty
    likewise.

    Example: ``PreferenceData(rows, (), {sample_key(rows[0].chosen): -12.5, ...})``.
    """

    rows: Sequence[Preference]
    partners: Sequence[int]
    references: Mapping[bytes, float]

    def others(self, places: Iterable[int]) -> list[Sample]:
        """Return the prompts of some rows with answers to other prompts, where there are any."""
        if not self.partners:
            return []
        return [mismatched(self.rows[place], self.rows[self.partners[place]]) for place in places
                if self.partners[place] >= 0]


@dataclass
class _Totals:
    """What the packs of a batch add up to."""

    loss: float = 0.0
    num_terms: int = 0
    num_right: int = 0
    num_chosen: int = 0
    num_rejected: int = 0
    chosen_rewards: float = 0.0
    rejected_rewards: float = 0.0
    num_tokens: int = 0
    flops: int = 0

    def add(self, found: PreferenceOutput) -> None:
        self.loss += float(found.terms_U.detach().sum())
        self.num_terms += len(found.terms_U)
        self.num_right += int(found.is_right_U.sum())
        self.num_chosen += len(found.chosen_rewards_C)
        self.num_rejected += len(found.rejected_rewards_R)
        self.chosen_rewards += float(found.chosen_rewards_C.sum())
        self.rejected_rewards += float(found.rejected_rewards_R.sum())

    def measures(self) -> dict[str, float]:
        """Means over the batch; a batch without one kind of answer has no margin."""
        found = {"accuracy": self.num_right / self.num_terms}
        if self.num_chosen:
            found["chosen_reward"] = self.chosen_rewards / self.num_chosen
        if self.num_rejected:
            found["rejected_reward"] = self.rejected_rewards / self.num_rejected
        if self.num_chosen and self.num_rejected:
            found["margin"] = found["chosen_reward"] - found["rejected_reward"]
        return found


class PreferenceLoop:
    """Learning from a fixed set of preferences.

    weights: of chosen and rejected answers. adapter_slot: of the adapter that learns, None where all weights
    do. What a step does depends on its number, the seed and the weights, and on nothing else.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, data: PreferenceData, method: PreferenceMethod,
                 *, beta: float, weights: tuple[float, float], seed: int, batch_size: int, pack_tokens: int,
                 adapter_slot: int | None) -> None:
        self.model, self.optimizer, self.data, self.method = model, optimizer, data, method
        self.beta, self.weights = beta, weights
        self.order = Order(len(data.rows), seed=seed)
        self.batch_size, self.pack_tokens, self.adapter_slot = batch_size, pack_tokens, adapter_slot
        self.guess_loss = (math.log(model.spec.vocab_size) if method.guess_loss is None
                           else method.guess_loss(beta))
        self._report: dict[str, float] = {}

    def updates(self, step: int) -> Iterator[StepWork]:
        """Do a step; it has one update."""
        yield self.backward(step)

    def report(self) -> dict[str, float]:
        """Return rewards, margin and accuracy of the last step."""
        return self._report

    def state(self) -> dict[str, Any]:
        """Return nothing: a step depends on its number alone."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take nothing."""

    def backward(self, step: int) -> StepWork:
        """Add up the gradients of a step in the optimizer."""
        places = self.order.take(step * self.batch_size, self.batch_size)
        batch = [self.data.rows[place] for place in places]
        divergence = self._divergence(self.data, places)
        totals = self._run(self.data, batch, divergence, is_learning=True)
        self._report = totals.measures()
        if self.method.has_divergence:
            self._report["divergence"] = divergence
        return StepWork(totals.loss / totals.num_terms, totals.num_tokens,
                        sum(row.num_trained for row in batch), totals.flops,
                        tuple(f"{row.file}:{row.line}" for row in batch), batch)

    def evaluate(self, data: PreferenceData) -> dict[str, float]:
        """Return the mean loss and the measures over other rows; divergence is estimated over all of them."""
        with torch.no_grad():
            divergence, totals = self._divergence(data, range(len(data.rows))), _Totals()
            for start in range(0, len(data.rows), _AT_ONCE):
                self._run(data, data.rows[start:start + _AT_ONCE], divergence, is_learning=False,
                          totals=totals)
        return {"loss": totals.loss / totals.num_terms, **totals.measures()}

    def _run(self, data: PreferenceData, batch: Sequence[Preference], divergence: float, *,
             is_learning: bool, totals: _Totals | None = None) -> _Totals:
        totals = totals or _Totals()
        num_adapter = None if self.adapter_slot is None else self.optimizer.num_trainable
        num_terms = sum(1 if self.method.is_paired else len(row.sequences) for row in batch)
        for rows in split_batch(batch, self.pack_tokens):
            samples = [sample for row in rows for sample in row.sequences]
            pack = _pack(samples)
            totals.num_tokens += pack.num_tokens
            totals.flops += pack.flops(self.model.spec, num_adapter)
            logprobs_N = trained_logprobs(self.model, pack, self.adapter_slot)
            sums_S = sequence_sums(logprobs_N, samples)
            is_chosen_S = torch.tensor([sample is row.chosen for row in rows for sample in row.sequences])
            references_S = torch.zeros(len(samples), dtype=torch.float64)
            if self.method.has_reference:
                references_S += torch.tensor([data.references[sample_key(sample)] for sample in samples],
                                             dtype=torch.float64)
            lengths_S = torch.tensor([float(sample.num_trained) for sample in samples], dtype=torch.float64)
            chosen, rejected = (Answers(sums_S[kind_S], references_S[kind_S], lengths_S[kind_S])
                                for kind_S in (is_chosen_S, ~is_chosen_S))
            found = self.method.loss(PreferenceInput(chosen, rejected, self.beta, divergence, *self.weights))
            if is_learning:
                (found.terms_U.sum() / num_terms).backward()
            totals.add(found)
        return totals

    def _divergence(self, data: PreferenceData, places: Sequence[int]) -> float:
        """Return the mean log-ratio of answers to other prompts, at least 0."""
        total, count = 0.0, 0
        with torch.no_grad():
            for start in range(0, len(places), _AT_ONCE):
                samples = data.others(places[start:start + _AT_ONCE])
                for pack in split_batch(samples, self.pack_tokens):
                    logprobs_N = trained_logprobs(self.model, pack_samples(pack), self.adapter_slot)
                    total += float(sequence_sums(logprobs_N, pack).sum())
                total -= sum(data.references[sample_key(sample)] for sample in samples)
                count += len(samples)
        return max(0.0, total / max(1, count))


def _pack(samples: Sequence[Sample]) -> Pack:
    """Pack answers, a prompt once where all of each answer is trained (of several turns, only some is)."""
    is_whole = all(all(sample.is_trained[prompt_length(sample):]) for sample in samples)
    return pack_completions(samples) if is_whole else pack_samples(samples)
