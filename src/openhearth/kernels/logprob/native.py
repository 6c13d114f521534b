"""Log-probabilities of given tokens on the CPU: native/vocab.h.

The same order of arithmetic as a draw's (`kernels/sampling/native.py`), so that a sampled token and the same
token scored later have the same bits, for any number of rows and threads. With u = 2^-24, a logprob is
within (15 + 3.1 ln V) u of the exact one, then rounded to float32.
"""

# R rows, V vocabulary

from __future__ import annotations

import torch
from torch import Tensor

from openhearth.errors import UsageError
from openhearth.kernels import select
from openhearth.kernels.rows import as_rows, as_vector


def row_logprobs(logits_RV: Tensor, targets_R: Tensor, temperature: float, *,
                 isa: str | None = None) -> Tensor:
    """As the reference; logits float32 on the CPU. Raises: UsageError."""
    return _logprobs(logits_RV, targets_R, temperature, None, isa)


def row_logprobs_and_entropies(logits_RV: Tensor, targets_R: Tensor, temperature: float, *,
                               isa: str | None = None) -> tuple[Tensor, Tensor]:
    """Return `row_logprobs` and, from the same pass, the rows' entropies. Raises: UsageError."""
    entropies_R = torch.empty(logits_RV.shape[0])
    return _logprobs(logits_RV, targets_R, temperature, entropies_R, isa), entropies_R


def grad_logits(logits_RV: Tensor, targets_R: Tensor, grads_R: Tensor, temperature: float, *,
                isa: str | None = None) -> Tensor:
    """As the reference, written over the logits where their rows allow it. Raises: UsageError."""
    num_rows, num_tokens = logits_RV.shape
    logits_RV = as_rows(logits_RV, torch.float32, num_rows, num_tokens)
    targets_R = _as_targets(targets_R, num_rows, num_tokens)
    grads_R = as_vector(grads_R.float(), num_rows)
    select.native().token_logprobs_grad(select.isa_number(isa), logits_RV.data_ptr(), logits_RV.stride(0),
                                        num_rows, num_tokens, targets_R.data_ptr(), grads_R.data_ptr(),
                                        temperature)
    return logits_RV


def _logprobs(logits_RV: Tensor, targets_R: Tensor, temperature: float, entropies_R: Tensor | None,
              isa: str | None) -> Tensor:
    num_rows, num_tokens = logits_RV.shape
    logits_RV = as_rows(logits_RV, torch.float32, num_rows, num_tokens)
    targets_R = _as_targets(targets_R, num_rows, num_tokens)
    logprobs_R = torch.empty(num_rows)
    select.native().token_logprobs(select.isa_number(isa), logits_RV.data_ptr(), logits_RV.stride(0),
                                   num_rows, num_tokens, targets_R.data_ptr(), temperature,
                                   logprobs_R.data_ptr(),
                                   0 if entropies_R is None else entropies_R.data_ptr())
    return logprobs_R


def _as_targets(targets_R: Tensor, num_rows: int, num_tokens: int) -> Tensor:
    if targets_R.dtype != torch.int64:
        raise UsageError(f"targets of type {targets_R.dtype}", why="expected torch.int64")
    targets_R = as_vector(targets_R, num_rows)
    if num_rows > 0 and not 0 <= targets_R.min() <= targets_R.max() < num_tokens:
        raise UsageError(f"a target is not a token: {targets_R.min()} to {targets_R.max()}",
                         why=f"the vocabulary has ids 0 to {num_tokens - 1}")
    return targets_R
