"""Causal attention of packed tokens over a paged cache, rotary embedding included; its choice of kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from openhearth.kernels import select
from openhearth.kernels.attention import native, reference
from openhearth.kernels.attention.inputs import AttnInput, KvCache
from openhearth.kernels.rope.reference import Rotation
from openhearth.kernels.traced import TracedPack

__all__ = ["AttnInput", "KvCache", "Plan", "attend", "plan_attention"]

Plan = native.NativePlan | reference.AttentionPlan | TracedPack


def plan_attention(attn: AttnInput, *, dtype: torch.dtype, device: torch.device) -> Plan:
    """Return what every layer of one forward shares. dtype, device: those of queries and keys."""
    if isinstance(attn, TracedPack):
        return attn
    if select.covers(dtype, device):
        return native.plan_attention(attn)
    return reference.plan_attention(attn, dtype=dtype, device=device)


def attend(plan: Plan, layer: int, q_TD: Tensor, k_TC: Tensor, v_TC: Tensor, rotation: Rotation) -> Tensor:
    """Return attention outputs [T, D], by the kernels that the plan was made for.

    q: [T, heads * head size]; k, v: [T, kv heads * head size]. q and k are turned by the rotation, and the
    pack's keys and values are written to the cache first.
    """
    if isinstance(plan, TracedPack):
        return plan.recorder.attend(layer, q_TD, k_TC, v_TC, rotation)
    if isinstance(plan, native.NativePlan):
        return native.attend(plan, layer, q_TD, k_TC, v_TC, rotation)
    return reference.attend_turned(plan, layer, q_TD, k_TC, v_TC, rotation)
