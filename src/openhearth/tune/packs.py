"""Samples side by side in one forward, none of which sees another."""

# T packed tokens, N trained ones, D model

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from openhearth.kernels.attention.inputs import AttnInput
from openhearth.kernels.logprob import KeptTokens, token_logprobs
from openhearth.kernels.lora import AdapterRows


class Packable(Protocol):
    """A sequence of tokens, and which of them are trained; the first never is."""

    token_ids: tuple[int, ...]
    is_trained: tuple[bool, ...]


Packed = TypeVar("Packed", bound=Packable)


@dataclass(frozen=True)
class Pack:
    """Whole samples one after the other.

    rows_N: rows whose next token is trained; targets_N: that token. Both in the order of the samples.
    Example: ``pack_samples([Sample((1, 42, 2), (False, True, True), "a", 1)]).targets_N`` is [42, 2].
    """

    token_ids_T: Tensor
    positions_T: Tensor
    attn: AttnInput
    rows_N: Tensor
    targets_N: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens of the pack."""
        return len(self.token_ids_T)


def pack_samples(samples: Sequence[Packable]) -> Pack:
    """Pack samples; at least one token is trained in each."""
    token_ids, positions, rows, targets = [], [], [], []
    for sample in samples:
        start = len(token_ids)
        token_ids += sample.token_ids
        positions += range(len(sample.token_ids))
        for place, is_trained in enumerate(sample.is_trained):
            if is_trained:
                rows.append(start + place - 1)
                targets.append(sample.token_ids[place])
    return Pack(torch.tensor(token_ids), torch.tensor(positions),
                AttnInput.without_cache(tuple(len(sample.token_ids) for sample in samples)),
                torch.tensor(rows), torch.tensor(targets))


def split_batch(samples: Sequence[Packed], pack_tokens: int) -> list[list[Packed]]:
    """Cut a batch into packs of at most pack_tokens tokens, longest samples first.

    A longer sample gets a pack of its own. First-fit decreasing: at most 11/9 of the fewest packs plus one
    (Johnson 1973).
    """
    packs: list[list[Packed]] = []
    room: list[int] = []
    for sample in sorted(samples, key=lambda sample: -len(sample.token_ids)):
        size = len(sample.token_ids)
        place = next((index for index, left in enumerate(room) if left >= size), None)
        if place is None:
            packs.append([sample])
            room.append(pack_tokens - size)
        else:
            packs[place].append(sample)
            room[place] -= size
    return packs


def trained_logprobs(model: nn.Module, pack: Pack, adapter_slot: int | None = None, temperature: float = 1.0,
                     kept: KeptTokens | None = None) -> Tensor:
    """Return the log-probability of every trained token, float32 [N], differentiable.

    kept: of the N rows. Logits exist for trained rows only, and for a chunk of them at a time.
    """
    hidden_ND = trained_hidden(model, pack, adapter_slot)
    return token_logprobs(hidden_ND, model.logits, pack.targets_N, temperature, kept)


def trained_hidden(model: nn.Module, pack: Pack, adapter_slot: int | None = None) -> Tensor:
    """Return the last hidden states [N, D] of the rows whose next token is trained."""
    arguments = [pack.token_ids_T, pack.positions_T, pack.attn]
    if adapter_slot is not None:
        arguments.append(AdapterRows(((0, pack.num_tokens, adapter_slot),)))
    return model.forward(*arguments).index_select(0, pack.rows_N)
