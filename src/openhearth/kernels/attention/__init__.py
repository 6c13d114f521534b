"""Causal attention of packed tokens over a paged cache."""

from openhearth.kernels.attention.inputs import AttnInput, KvCache
from openhearth.kernels.attention.reference import AttentionPlan, attend, plan_attention

__all__ = ["AttentionPlan", "AttnInput", "KvCache", "attend", "plan_attention"]
