"""Policy losses by name, and what goes with each where nobody says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from openhearth.tune.losses.cispo import cispo_loss
from openhearth.tune.losses.dapo import dapo_loss
from openhearth.tune.losses.dr_grpo import dr_grpo_loss
from openhearth.tune.losses.grpo import grpo_loss
from openhearth.tune.losses.gspo import gspo_loss
from openhearth.tune.losses.records import PolicyLoss


@dataclass(frozen=True)
class PolicyMethod:
    """A loss with its paper's settings. is_scaled: advantages are divided by the group's deviation.

    overlong: what becomes of completions that reach max_tokens (`tune/advantages.py`).
    Example: ``POLICY_LOSSES["dapo"].clip_high == 0.28``.
    """

    loss: PolicyLoss
    clip_low: float
    clip_high: float
    is_scaled: bool = True
    overlong: str = "keep"


POLICY_LOSSES: Mapping[str, PolicyMethod] = {
    "grpo": PolicyMethod(grpo_loss, 0.2, 0.2),
    "dr_grpo": PolicyMethod(dr_grpo_loss, 0.2, 0.2, is_scaled=False),
    "dapo": PolicyMethod(dapo_loss, 0.2, 0.28, overlong="penalty"),
    "gspo": PolicyMethod(gspo_loss, 3e-4, 4e-4),
    "cispo": PolicyMethod(cispo_loss, 1.0, 4.0),
}
"""gspo: bounds of arXiv 2507.18071, section 5.1. cispo: weights of up to 5, arXiv 2510.13786, section 3.2."""
