"""How far a student's next-token distributions are from a teacher's, over the whole vocabulary.

Exact, and in chunks as the log-probabilities are (`chunked.py`): neither model's logits are ever held for
more than a few rows. With p the student's probabilities, q the teacher's and k = KL(p, q), the gradient of k
with respect to the student's logits is p * (ln p - ln q - k).

Does not: give the teacher a gradient, or take a temperature.
"""

# T rows, D the student's width, E the teacher's, V vocabulary, C rows of a chunk

from __future__ import annotations

import torch
from torch import Tensor

from openhearth.errors import UsageError
from openhearth.kernels.logprob.chunked import (
    FIRST_ROWS,
    Head,
    chunk_rows,
    chunked_backward,
    logit_chunks,
    logits_of,
    trained_leaves,
)


def reverse_divergences(hidden_TD: Tensor, head: Head, teacher_TE: Tensor, teacher_head: Head) -> Tensor:
    """Return KL(student, teacher) of each row in nats, float32 [T].

    Differentiable in the student's hidden states and in the parameters that its head uses. Raises: UsageError
    for teacher and student of different lengths or vocabularies.
    """
    if len(teacher_TE) != len(hidden_TD):
        raise UsageError(f"{len(teacher_TE)} rows of the teacher for {len(hidden_TD)} of the student")
    return _ReverseDivergences.apply(head, teacher_TE.detach(), teacher_head, hidden_TD,
                                     *trained_leaves(head, hidden_TD))


class _ReverseDivergences(torch.autograd.Function):
    @staticmethod
    def forward(ctx, head, teacher_TE, teacher_head, hidden_TD, *trained):
        ctx.save_for_backward(hidden_TD, teacher_TE, *trained)
        ctx.head = None if isinstance(head, Tensor) else head
        ctx.teacher_head, ctx.chunk_rows = teacher_head, FIRST_ROWS
        divergences_T = hidden_TD.new_empty(len(hidden_TD), dtype=torch.float32)
        for rows, _, logits_CV in logit_chunks(head, hidden_TD, FIRST_ROWS):
            ctx.chunk_rows = chunk_rows(logits_CV)
            difference_CV, probabilities_CV = _compare(logits_CV, teacher_TE[rows], teacher_head)
            divergences_T[rows] = difference_CV.mul_(probabilities_CV).sum(dim=1)
            del logits_CV, difference_CV, probabilities_CV
        return divergences_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grads_T):
        hidden_TD, teacher_TE, *trained = ctx.saved_tensors
        head = trained[0] if ctx.head is None else ctx.head

        def grad_logits(rows: slice, logits_CV: Tensor) -> Tensor:
            difference_CV, probabilities_CV = _compare(logits_CV, teacher_TE[rows], ctx.teacher_head)
            difference_CV -= (difference_CV * probabilities_CV).sum(dim=1, keepdim=True)
            return difference_CV.mul_(probabilities_CV).mul_(grads_T[rows, None])

        return None, None, None, *chunked_backward(
            head, hidden_TD, trained, ctx.needs_input_grad[3:], ctx.chunk_rows, grad_logits)


def _compare(logits_CV: Tensor, teacher_CE: Tensor, teacher_head: Head) -> tuple[Tensor, Tensor]:
    """Return ln p - ln q and p."""
    with torch.no_grad():
        teacher_CV = logits_of(teacher_head, teacher_CE)
        if teacher_CV.shape != logits_CV.shape:
            raise UsageError(f"a teacher of {teacher_CV.shape[1]} tokens for a student of "
                             f"{logits_CV.shape[1]}",
                             hint="choose a teacher with the student's tokenizer")
        logprobs_CV = torch.log_softmax(logits_CV.detach(), dim=1)
        difference_CV = logprobs_CV - torch.log_softmax(teacher_CV, dim=1)
        return difference_CV, logprobs_CV.exp_()
