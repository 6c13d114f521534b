"""Samples side by side in one forward, none of which sees another."""

# T packed tokens, N trained ones, D model

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from openhearth.kernels.attention.inputs import AttnInput
from openhearth.kernels.freed import make_room
from openhearth.kernels.logprob import KeptTokens, token_logprobs
from openhearth.kernels.lora import AdapterRows
from openhearth.spec import ModelSpec
from openhearth.tune.memory import training_flops


class Packable(Protocol):
    """A sequence of tokens, and which of them are trained; the first never is."""

    token_ids: tuple[int, ...]
    is_trained: tuple[bool, ...]


Packed = TypeVar("Packed", bound=Packable)
Item = TypeVar("Item")


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
    def lengths(self) -> list[int]:
        """Tokens of each sequence; a prompt that is shared is one."""
        return [stop - start for start, stop in itertools.pairwise(self.attn.query_starts)]

    @property
    def num_tokens(self) -> int:
        """Tokens of the pack."""
        return len(self.token_ids_T)

    def flops(self, spec: ModelSpec, num_adapter: int | None) -> int:
        """Return the operations of its forward and backward (`memory.training_flops`)."""
        num_pairs = sum(length * (context - length) + length * (length + 1) // 2 for length, context in zip(
            self.lengths, self.attn.context_lens, strict=True))
        return training_flops(spec, self.num_tokens, num_pairs, len(self.rows_N), num_adapter)


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


def pack_completions(samples: Sequence[Packable]) -> Pack:
    """Pack samples that end with their trained tokens; a prompt comes once, however many begin with it."""
    token_ids, positions, rows, targets, lengths, parents = [], [], [], [], [], []
    places: dict[tuple[int, ...], tuple[int, int]] = {}
    for sample in samples:
        num_prompt = prompt_length(sample)
        prompt = sample.token_ids[:num_prompt]
        if prompt not in places:
            token_ids += prompt
            positions += range(num_prompt)
            lengths.append(num_prompt)
            parents.append(None)
            places[prompt] = len(lengths) - 1, len(token_ids) - 1
        place, last_row = places[prompt]
        # The last token is a target only: nothing follows it.
        rows += [last_row, *range(len(token_ids), len(token_ids) + len(sample.token_ids) - num_prompt - 1)]
        targets += sample.token_ids[num_prompt:]
        token_ids += sample.token_ids[num_prompt:-1]
        positions += range(num_prompt, len(sample.token_ids) - 1)
        lengths.append(len(sample.token_ids) - num_prompt - 1)
        parents.append(place)
    return Pack(torch.tensor(token_ids), torch.tensor(positions),
                AttnInput.after_prompts(tuple(lengths), tuple(parents)), torch.tensor(rows),
                torch.tensor(targets))


def prompt_length(sample: Packable) -> int:
    """Return how many tokens come before the first trained one; the others are trained."""
    return sample.is_trained.index(True)


def split_completions(samples: Sequence[Packed], pack_tokens: int) -> list[list[Packed]]:
    """Cut a batch into packs of at most pack_tokens tokens for `pack_completions`, prompts kept together.

    The completions of one prompt are cut apart only where they do not fit into one pack.
    """
    groups: dict[tuple[int, ...], list[Packed]] = {}
    for sample in samples:
        groups.setdefault(sample.token_ids[:prompt_length(sample)], []).append(sample)
    units: list[tuple[list[Packed], int]] = []
    for prompt, group in groups.items():
        for part in _fill(group, [len(sample.token_ids) - len(prompt) for sample in group],
                          pack_tokens - len(prompt)):
            size = len(prompt) + sum(len(sample.token_ids) - len(prompt) for sample in part)
            units.append((part, size))
    return [[sample for part, _ in pack for sample in part]
            for pack in _fill(units, [size for _, size in units], pack_tokens)]


def split_batch(samples: Sequence[Packed], pack_tokens: int) -> list[list[Packed]]:
    """Cut a batch into packs of at most pack_tokens tokens, longest samples first.

    A longer sample gets a pack of its own.
    """
    return _fill(samples, [len(sample.token_ids) for sample in samples], pack_tokens)


def _fill(items: Sequence[Item], sizes: Sequence[int], most: int) -> list[list[Item]]:
    """First-fit decreasing: at most 11/9 of the fewest packs plus one (Johnson 1973)."""
    packs: list[list[Item]] = []
    room: list[int] = []
    for item, size in sorted(zip(items, sizes, strict=True), key=lambda pair: -pair[1]):
        place = next((index for index, left in enumerate(room) if left >= size), None)
        if place is None:
            packs.append([item])
            room.append(most - size)
        else:
            packs[place].append(item)
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
    if torch.is_grad_enabled():
        make_room()
    arguments = [pack.token_ids_T, pack.positions_T, pack.attn]
    if adapter_slot is not None:
        arguments.append(AdapterRows(((0, pack.num_tokens, adapter_slot),)))
    return model.forward(*arguments).index_select(0, pack.rows_N)


def sequence_sums(logprobs_N: Tensor, samples: Sequence[Packable]) -> Tensor:
    """Return the log-probability of each sample's trained tokens together, float64 [S], differentiable.

    logprobs_N: of the samples' trained tokens, in order. A sample's sum does not depend on its neighbours.
    """
    parts = logprobs_N.split([sum(sample.is_trained) for sample in samples])
    return torch.stack([part.double().sum() for part in parts])
