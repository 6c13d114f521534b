"""Direct preference optimisation."""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from openhearth.tune.losses.preferred import PreferenceInput, PreferenceOutput, paired_output


def dpo_loss(given: PreferenceInput) -> PreferenceOutput:
    """Return -ln sigmoid(beta * (log-ratio of the chosen - log-ratio of the rejected)) per pair.

    Source: arXiv 2305.18290, equation 7; rewards, section 4 (beta * log-ratio).
    """
    chosen, rejected = given.beta * given.chosen.log_ratios, given.beta * given.rejected.log_ratios
    return paired_output(-logsigmoid(chosen - rejected), chosen, rejected)
