"""How keys and values lie in a cache: as they are, in another float type, or as bytes with scales.

In an int8 cache a head's part of a row is its numbers as signed bytes, then a bfloat16 scale for every 32
of them. A scale is the group's largest size / 127, rounded up: a number is off by at most half a scale,
which is under 0.4 % of the group's largest size. A group with a NaN or an infinity becomes NaN. The native
kernels write the same bytes (native/cache.h).
"""

# T rows, K kv heads, E head size, P numbers or bytes of a head's part, G groups

from __future__ import annotations

import torch
from torch import Tensor

SCALE_GROUP = 32
CACHE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def part_size(head_dim: int, dtype: torch.dtype) -> int:
    """Return how many elements of the cache's type one head's key or value takes."""
    return head_dim + 2 * -(-head_dim // SCALE_GROUP) if dtype == torch.int8 else head_dim


def encode(numbers_TKE: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers [T, K, E] as parts [T, K, P] of a cache of a type."""
    if dtype != torch.int8:
        return numbers_TKE.to(dtype)
    head_dim = numbers_TKE.shape[-1]
    padding = -head_dim % SCALE_GROUP
    padded = torch.nn.functional.pad(numbers_TKE.float(), (0, padding))
    groups = padded.unflatten(-1, (-1, SCALE_GROUP))
    largest = groups.abs().amax(-1, keepdim=True)
    bits = (largest / 127).view(torch.int32)
    scales = ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32)
    scales = scales.masked_fill(~largest.isfinite(), float("nan"))
    whole = (groups / scales).round().masked_fill(~(scales > 0), 0).to(torch.int8)
    scale_bytes = scales.squeeze(-1).to(torch.bfloat16).contiguous().view(torch.int8)
    return torch.cat((whole.flatten(-2)[..., :head_dim], scale_bytes), -1)


def decode(parts_TKP: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
    """Return parts of a cache as numbers [T, K, E] of a type."""
    if parts_TKP.dtype != torch.int8:
        return parts_TKP.to(dtype)
    scales = parts_TKP[..., head_dim:].contiguous().view(torch.bfloat16).float()
    repeated = scales.repeat_interleave(SCALE_GROUP, -1)[..., :head_dim]
    return (parts_TKP[..., :head_dim].float() * repeated).to(dtype)
