"""Rotary position embedding in plain torch, half-split layout, fp32 inside.

Number i of a head's first half and number i of its second half form a pair that is turned by
position * frequency[i]. Source: RoFormer, arXiv 2104.09864, section 3.4.2; the half-split layout is
that of Hugging Face checkpoints.
"""

# T packed tokens, H heads, E head size, F = E / 2 frequencies

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from openhearth.spec import RopeSpec


class Rotation(NamedTuple):
    """Angles of a pack, ready for `apply_rope`.

    cos_T1E, sin_T1E: float32. The first half of sin is negated, so that one product with the heads
    whose halves are swapped gives both members of every pair.
    """

    cos_T1E: Tensor
    sin_T1E: Tensor


def inverse_frequencies(rope: RopeSpec, head_dim: int, factors_F: Tensor | None = None) -> Tensor:
    """Return float32 [F] on the CPU: radians per position of each pair, scaling applied.

    factors_F: divisors stored with the weights, for type "factors". For "dynamic" these are the
    unscaled ones; `compute_rotation` scales them by position.
    Sources: linear, arXiv 2306.15595; llama3, the Llama 3.1 release (`apply_scaling` in
    meta-llama/llama-models), as in transformers 5.23; yarn, arXiv 2309.00071, section 3.2.
    """
    unscaled_F = 1.0 / rope.theta ** _exponents(head_dim, "cpu")
    if rope.type == "linear":
        return unscaled_F / rope.factor
    if rope.type == "llama3":
        return _llama3(rope, unscaled_F)
    if rope.type == "yarn":
        kept_F = _yarn_kept_share(rope, head_dim)
        return unscaled_F * kept_F + unscaled_F / rope.factor * (1 - kept_F)
    if rope.type == "factors":
        assert factors_F is not None, "type factors needs the factors stored with the weights"
        return unscaled_F / factors_F.to("cpu", torch.float32)
    return unscaled_F


def compute_rotation(rope: RopeSpec, inverse_frequencies_F: Tensor, positions_T: Tensor) -> Rotation:
    """Return the angles of a pack of positions.

    Dynamic scaling (NTK-aware, changing with length) depends on each token's own position: within
    the original context nothing changes, a token at position p beyond it gets the frequencies of a
    context of p + 1. That is what decoding token by token gives everywhere; taking the length of
    the pack instead would let an answer depend on how its prompt was cut into chunks.
    """
    frequencies_TF = inverse_frequencies_F
    if rope.type == "dynamic":
        frequencies_TF = _dynamic(rope, 2 * inverse_frequencies_F.shape[0], positions_T)
    angles_TF = positions_T[:, None].float() * frequencies_TF
    scale = _yarn_attention_factor(rope) if rope.type == "yarn" else 1.0
    cos_TF, sin_TF = angles_TF.cos() * scale, angles_TF.sin() * scale
    return Rotation(torch.cat((cos_TF, cos_TF), -1)[:, None], torch.cat((-sin_TF, sin_TF), -1)[:, None])


def apply_rope(heads_THE: Tensor, rotation: Rotation) -> Tensor:
    """Return the heads turned by their positions, in the heads' own dtype, computed in float32.

    Two products and a sum, each rounded, as in transformers: float32 logits are then theirs bit for bit.
    """
    heads_fp32_THE = heads_THE.float()
    swapped_THE = heads_fp32_THE.roll(heads_THE.shape[-1] // 2, -1)
    return (heads_fp32_THE * rotation.cos_T1E + swapped_THE * rotation.sin_T1E).to(heads_THE.dtype)


def _exponents(head_dim: int, device: torch.device | str) -> Tensor:
    return torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim


def _llama3(rope: RopeSpec, unscaled_F: Tensor) -> Tensor:
    """Long waves are stretched by factor, short ones kept, those between are blended."""
    turns_F = rope.original_max_position * unscaled_F / (2 * math.pi)
    kept_F = ((turns_F - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return unscaled_F * kept_F + unscaled_F / rope.factor * (1 - kept_F)


def _dynamic(rope: RopeSpec, head_dim: int, positions_T: Tensor) -> Tensor:
    """Frequencies [T, F] of each position. Source: transformers 5.23, `_compute_dynamic_ntk_parameters`.

    Powers are written with exp and log: torch's own power gives the last numbers of a tensor other bits
    than those before them, so that a frequency would depend on the size of the pack.
    """
    lengths_T1 = (positions_T + 1).clamp(min=rope.original_max_position)[:, None].double()
    growth_T1 = rope.factor * lengths_T1 / rope.original_max_position - (rope.factor - 1)
    log_theta_T1 = math.log(rope.theta) + growth_T1.log() * (head_dim / (head_dim - 2))
    return (-log_theta_T1 * _exponents(head_dim, positions_T.device).double()).exp().float()


def _yarn_kept_share(rope: RopeSpec, head_dim: int) -> Tensor:
    """Share [F] of each unscaled frequency that yarn keeps: 1 for fast pairs, 0 for slow ones."""
    def pair_with_turns(num_turns: float) -> float:
        return (head_dim * math.log(rope.original_max_position / (num_turns * 2 * math.pi))
                / (2 * math.log(rope.theta)))

    low, high = pair_with_turns(rope.beta_fast), pair_with_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp_F = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)
    return 1 - ramp_F.clamp(0, 1)


def _yarn_attention_factor(rope: RopeSpec) -> float:
    """Multiplier of cos and sin. Source: arXiv 2309.00071, equation 22; mscale as in DeepSeek-V2."""
    if rope.attention_factor is not None:
        return rope.attention_factor

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return magnitude(rope.mscale) / magnitude(rope.mscale_all_dim)
    return magnitude(1.0)
