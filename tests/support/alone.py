"""What a request must answer: each completion computed alone, without cache, batch or scheduler."""

import torch

from openhearth.kernels.attention.inputs import AttnInput
from openhearth.kernels.sampling import Row, TokenCounts, draw


@torch.inference_mode()
def answer_alone(model, request, index=0, context_length=None):
    """Return (token ids, logprobs, finish reason), running the whole sequence again for every token."""
    sampling, prompt = request.sampling, list(request.prompt_token_ids)
    limit = context_length or model.spec.max_position
    counts, completion, logprobs = TokenCounts(prompt), [], []
    token_mask = sampling.token_mask() if sampling.token_mask else None
    while True:
        tokens = torch.tensor(prompt + completion)
        attn = AttnInput.without_cache((len(tokens),))
        logits_RV = model.logits(model.forward(tokens, torch.arange(len(tokens)), attn)[-1:])
        mask = token_mask(tuple(completion)) if token_mask else None
        drawn = draw(logits_RV.clone(), [Row(sampling, index, len(completion), counts, mask)])[0]
        completion.append(drawn.token_id)
        counts.add(drawn.token_id)
        logprobs.append(drawn.logprob)
        if drawn.token_id in sampling.stop_token_ids:
            return tuple(completion), logprobs, "stop"
        if len(completion) >= sampling.max_tokens or len(prompt) + len(completion) >= limit:
            return tuple(completion), logprobs, "length"


def assert_answers(model, request, completions, context_length=None, tolerance=2e-5):
    """Compare an engine's completions of a request with those computed alone."""
    assert [one.index for one in completions] == list(range(request.n))
    for one in completions:
        token_ids, logprobs, reason = answer_alone(model, request, one.index, context_length)
        assert (one.token_ids, one.finish_reason) == (token_ids, reason)
        differences = [abs(a - b) for a, b in zip(one.logprobs, logprobs, strict=True)]
        assert max(differences) <= tolerance, max(differences)
