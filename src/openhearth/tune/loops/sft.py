"""One step of supervised fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from openhearth.tune.data.order import Order
from openhearth.tune.data.records import Sample
from openhearth.tune.losses.sft import sft_loss
from openhearth.tune.optimizer import Optimizer
from openhearth.tune.packs import pack_samples, split_batch, trained_logprobs
from openhearth.tune.training import StepWork

_AT_ONCE = 256


class SftLoop:
    """Supervised fine-tuning over a fixed set of samples.

    adapter_slot: of the adapter that learns, None where all weights do. What a step does depends on its
    number, the seed and the weights, and on nothing else.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, samples: Sequence[Sample], *, seed: int,
                 batch_size: int, pack_tokens: int, adapter_slot: int | None) -> None:
        self.model, self.optimizer, self.samples = model, optimizer, samples
        self.order = Order(len(samples), seed=seed)
        self.batch_size, self.pack_tokens, self.adapter_slot = batch_size, pack_tokens, adapter_slot
        self.guess_loss = math.log(model.spec.vocab_size)

    def batch(self, step: int) -> list[Sample]:
        """Return the samples of a step, counted from 0."""
        return [self.samples[place] for place in self.order.take(step * self.batch_size, self.batch_size)]

    def updates(self, step: int) -> Iterator[StepWork]:
        """Do a step; it has one update."""
        yield self.backward(step)

    def report(self) -> dict[str, float]:
        """Return nothing: the loss says it all."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return nothing: a step depends on its number alone."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take nothing."""

    def backward(self, step: int) -> StepWork:
        """Add up the gradients of a step in the optimizer."""
        batch = self.batch(step)
        num_trained = sum(sample.num_trained for sample in batch)
        num_adapter = None if self.adapter_slot is None else self.optimizer.num_trainable
        loss, flops = 0.0, 0
        for samples in split_batch(batch, self.pack_tokens):
            pack = pack_samples(samples)
            flops += pack.flops(self.model.spec, num_adapter)
            logprobs_N = trained_logprobs(self.model, pack, self.adapter_slot)
            share = sft_loss(logprobs_N, num_trained)
            loss += float(share.detach())
            share.backward()
        return StepWork(loss, sum(len(sample.token_ids) for sample in batch), num_trained, flops,
                        tuple(f"{sample.file}:{sample.line}" for sample in batch), batch)


def mean_loss(model: nn.Module, samples: Sequence[Sample], pack_tokens: int,
              adapter_slot: int | None) -> float:
    """Return the mean negative log-probability of all trained tokens of samples."""
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(samples), _AT_ONCE):
            for part in split_batch(samples[start:start + _AT_ONCE], pack_tokens):
                logprobs_N = trained_logprobs(model, pack_samples(part), adapter_slot)
                total -= float(logprobs_N.double().sum())
                count += len(logprobs_N)
    return total / count
