"""Log-probabilities of given tokens: scoring, training and sampling use one arithmetic."""

from openhearth.kernels.logprob.chunked import token_logprobs, token_logprobs_and_entropies

__all__ = ["token_logprobs", "token_logprobs_and_entropies"]
