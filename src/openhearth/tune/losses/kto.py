"""Kahneman-Tversky optimisation: answers that are liked or not, with no pair needed."""

from __future__ import annotations

import torch

from openhearth.tune.losses.preferred import PreferenceInput, PreferenceOutput


def kto_loss(given: PreferenceInput) -> PreferenceOutput:
    """Return weight * (1 - sigmoid(beta * (log-ratio - divergence))) per chosen answer, and with the sign
    of the difference turned per rejected one.

    Source: arXiv 2402.01306, equation 8.
    """
    chosen, rejected = given.beta * given.chosen.log_ratios, given.beta * given.rejected.log_ratios
    level = given.beta * given.divergence
    terms_U = torch.cat([given.chosen_weight * (1 - torch.sigmoid(chosen - level)),
                         given.rejected_weight * (1 - torch.sigmoid(level - rejected))])
    return PreferenceOutput(terms_U, chosen.detach(), rejected.detach(),
                            torch.cat([chosen > level, rejected < level]).detach())
