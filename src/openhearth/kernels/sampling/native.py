"""From logits to tokens on the CPU: native/vocab.h, one call for all rows of a pack.

A row is drawn with the same bits alone, in any pack, with any number of threads. Its noise has the
addresses and the values of `noise.py`, so that a seed draws what it draws with the reference, but where two
candidates of the race are closer than the rounding of their weights. Log-probabilities are those of
`kernels/logprob` for the same logits, bit for bit; a row that is truncated has those of a row with -inf in
the place of what was left out. With u = 2^-24 they are within (15 + 3.1 ln V) u of the exact ones, plus one
rounding to float32. Truncation compares logits before temperature: two that only its rounding would make
equal stay apart.

Does not: run on other devices.
"""

# R rows, V vocabulary

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from openhearth.errors import UsageError
from openhearth.kernels import select
from openhearth.kernels.rows import as_rows
from openhearth.kernels.sampling.inputs import Draw, Row, Settings, needs_counts

_RECORD = struct.Struct("=6dQ12q")
"""DrawRow of native/vocab.h."""


def draw(logits_RV: Tensor, rows: Sequence[Row], *, isa: str | None = None) -> list[Draw]:
    """As the reference.

    Raises: UsageError for logits that are not float32 [R, V] on the CPU, or a mask that does not fit them;
    IndexError for counts or biases of tokens that they do not have.
    """
    return _draw(logits_RV, rows, isa, None)


def least_kept(logits_RV: Tensor, sampling: Settings) -> Tensor:
    """Return the least logit that truncation leaves in each row, float32 [R]; no penalties are applied.

    Raises: as `draw`.
    """
    least_R = torch.empty(len(logits_RV))
    _draw(logits_RV, [Row(sampling)] * len(logits_RV), None, least_R)
    return least_R


def _draw(logits_RV: Tensor, rows: Sequence[Row], isa: str | None, least_R: Tensor | None) -> list[Draw]:
    num_rows, num_tokens = logits_RV.shape
    if num_rows != len(rows):
        raise UsageError(f"{len(rows)} rows to draw from {num_rows} rows of logits")
    logits_RV = as_rows(logits_RV, torch.float32, num_rows, num_tokens)
    kept: list[array | Tensor] = []  # what the records point to lives until the call is over
    records, num_tops = [], 0
    for row in rows:
        records.append(_record(row, num_tokens, num_tops, kept))
        num_tops += row.sampling.num_logprobs
    # Arrays, because making four tensors would take as long as the draw of a small row.
    token_ids, logprobs = array("q", bytes(8 * num_rows)), array("f", bytes(4 * num_rows))
    top_ids, top_logprobs = array("q", bytes(8 * num_tops)), array("f", bytes(4 * num_tops))
    select.native().draw_tokens(
        select.isa_number(isa), logits_RV.data_ptr(), logits_RV.stride(0), num_rows, num_tokens,
        b"".join(records), token_ids.buffer_info()[0], logprobs.buffer_info()[0], top_ids.buffer_info()[0],
        top_logprobs.buffer_info()[0], 0 if least_R is None else least_R.data_ptr())
    if num_tops == 0:
        return [Draw(token_id, logprob, ()) for token_id, logprob in zip(token_ids, logprobs, strict=True)]
    tops = list(zip(top_ids, top_logprobs, strict=True))
    draws, start = [], 0
    for row, token_id, logprob in zip(rows, token_ids, logprobs, strict=True):
        end = start + row.sampling.num_logprobs
        draws.append(Draw(token_id, logprob, tuple(top for top in tops[start:end] if top[0] >= 0)))
        start = end
    return draws


def _record(row: Row, num_tokens: int, first_top: int, kept: list[array | Tensor]) -> bytes:
    sampling, completion, draw_index, counts, mask = row
    num_counted = counted = counted_counts = num_biased = biased = biases = mask_address = 0
    if counts is not None and needs_counts(sampling):
        num_counted = len(counts.token_ids)
        counted, counted_counts = counts.token_ids.buffer_info()[0], counts.counts.buffer_info()[0]
    if sampling.logit_bias:
        token_ids, values = array("q", sampling.logit_bias), array("f", sampling.logit_bias.values())
        kept += token_ids, values
        num_biased, biased, biases = len(token_ids), token_ids.buffer_info()[0], values.buffer_info()[0]
    if mask is not None:
        if mask.shape != (num_tokens,) or mask.dtype != torch.bool or mask.device.type != "cpu":
            raise UsageError(f"mask of shape {list(mask.shape)} and type {mask.dtype} on {mask.device}",
                             why=f"expected {[num_tokens]} of torch.bool on the CPU")
        mask = mask.contiguous()
        kept.append(mask)
        mask_address = mask.data_ptr()
    return _RECORD.pack(
        sampling.temperature, sampling.top_p, sampling.min_p, sampling.repetition_penalty,
        sampling.presence_penalty, sampling.frequency_penalty, sampling.seed, completion, draw_index,
        sampling.top_k, num_counted, counted, counted_counts, num_biased, biased, biases, mask_address,
        sampling.num_logprobs, first_top)
