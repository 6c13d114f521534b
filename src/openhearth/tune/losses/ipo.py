"""Identity preference optimisation: a margin to reach, not one to push on forever."""

from __future__ import annotations

from openhearth.tune.losses.preferred import PreferenceInput, PreferenceOutput, paired_output


def ipo_loss(given: PreferenceInput) -> PreferenceOutput:
    """Return (margin - 1 / (2 * beta))^2 per pair; the margin is between log-ratios per token.

    Source: arXiv 2310.12036, equation 17, with beta for tau. Log-probabilities are means over an answer's
    tokens, as the paper's authors had TRL do it (`DPOTrainer`, loss_type "ipo").
    """
    chosen = given.chosen.log_ratios / given.chosen.lengths
    rejected = given.rejected.log_ratios / given.rejected.lengths
    terms_U = (chosen - rejected - 1 / (2 * given.beta)).square()
    return paired_output(terms_U, given.beta * chosen, given.beta * rejected)
