"""Log-probabilities of given tokens: scoring, training and sampling use one arithmetic."""

from openhearth.kernels.logprob.chunked import token_logprobs, token_logprobs_and_entropies
from openhearth.kernels.logprob.divergence import reverse_divergences
from openhearth.kernels.logprob.kept import KeptTokens

__all__ = ["KeptTokens", "reverse_divergences", "token_logprobs", "token_logprobs_and_entropies"]
