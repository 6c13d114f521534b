"""Log-probabilities of a pack's tokens without ever holding the pack's logits.

A few rows of logits are made at a time, by the model's own output layer, and dropped. Where that layer is
frozen, each row's gradient with respect to its hidden state is taken at once, as if its log-probability
were the loss, and the backward pass only scales it. Where it learns, the backward pass makes the logits
again and turns them into their gradient in place. Fusing the last layer with its loss is the idea of arXiv
2411.09009 (Cut Your Losses), section 4; here in chunks of rows, with the row kernels of
`kernels/sampling`, so that what was sampled and what is differentiated have the same bits.

Memory beside inputs, outputs and gradients of the head: CHUNK_BYTES of logits at a time; with gradients also
their copy in the type of the hidden states, where that is not float32.

Does not: give gradients of gradients or of entropies.
"""

# T rows, D model, V vocabulary, C rows of a chunk

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from openhearth.errors import UsageError
from openhearth.kernels import select
from openhearth.kernels.linear import native as packed_linear
from openhearth.kernels.linear.native import PackedWeight
from openhearth.kernels.linear.reference import linear
from openhearth.kernels.logprob import native, reference
from openhearth.kernels.logprob.kept import KeptTokens

CHUNK_BYTES = 64 << 20
"""Logits held at once: 341 rows of 49,152 tokens. With half as many, going backward took half as long again:
every chunk adds a gradient of the whole head."""

FIRST_ROWS = 32

Head = Callable[[Tensor], Tensor] | PackedWeight | Tensor
"""hidden [R, D] -> float32 logits [R, V], such as a model's `logits`; or its weight [V, D]."""


def token_logprobs(hidden_TD: Tensor, head: Head, targets_T: Tensor, temperature: float = 1.0,
                   kept: KeptTokens | None = None) -> Tensor:
    """Return ln softmax(head(hidden) / temperature)[target] per row, float32 [T].

    targets_T: int64, below V. kept: the tokens that the softmax is over, None for all. Differentiable in
    hidden and in the parameters that head uses. Bits do not depend on T or the chunks where those of head's
    rows do not (the native kernels' do not; a plain tensor as head goes through torch's product).
    Raises: UsageError for a temperature that is not positive, or targets that do not fit.
    """
    return _apply(hidden_TD, head, targets_T, temperature, kept, has_entropies=False)[0]


def token_logprobs_and_entropies(hidden_TD: Tensor, head: Head, targets_T: Tensor,
                                 temperature: float = 1.0,
                                 kept: KeptTokens | None = None) -> tuple[Tensor, Tensor]:
    """Return `token_logprobs` and the entropy of each row's distribution in nats, which has no gradient.

    Raises: as `token_logprobs`.
    """
    return _apply(hidden_TD, head, targets_T, temperature, kept, has_entropies=True)


def _apply(hidden_TD: Tensor, head: Head, targets_T: Tensor, temperature: float,
           kept: KeptTokens | None, *, has_entropies: bool) -> tuple[Tensor, Tensor]:
    if not temperature > 0:
        raise UsageError(f"temperature is `{temperature}`", why="expected a positive number")
    if targets_T.shape != hidden_TD.shape[:1]:
        raise UsageError(f"targets of shape {list(targets_T.shape)} for {len(hidden_TD)} rows")
    if kept is not None and len(kept.starts) != len(hidden_TD) + 1:
        raise UsageError(f"kept tokens of {len(kept.starts) - 1} rows for {len(hidden_TD)} rows")
    return _TokenLogprobs.apply(head, targets_T, temperature, kept, has_entropies, hidden_TD,
                                *trained_leaves(head, hidden_TD))


def trained_leaves(head: Head, hidden_TD: Tensor) -> list[Tensor]:
    """Return what inside head wants a gradient: the leaves of the graph behind one row of logits."""
    if isinstance(head, Tensor):
        return [head]
    if isinstance(head, PackedWeight) or not torch.is_grad_enabled():
        return []
    found: dict[int, Tensor] = {}
    nodes, seen = [head(hidden_TD[:1].detach()).grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [behind for behind, _ in node.next_functions]
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
    return list(found.values())


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, head, targets_T, temperature, kept, has_entropies, hidden_TD, *trained):
        ctx.save_for_backward(hidden_TD, targets_T, *trained)
        # A weight is saved above; kept here as well, it would escape autograd's check for changes.
        ctx.head = None if isinstance(head, Tensor) else head
        ctx.temperature, ctx.kept = temperature, kept
        # Made before any chunk: a small block that outlives a chunk would lie where the next could have.
        logprobs_T = hidden_TD.new_empty(len(hidden_TD), dtype=torch.float32)
        entropies_T = torch.empty_like(logprobs_T) if has_entropies else logprobs_T.new_empty(0)
        ctx.chunk_rows = FIRST_ROWS
        needs_hidden, *needs_trained = ctx.needs_input_grad[5:]
        is_frozen = needs_hidden and not any(needs_trained)
        ctx.grad_hidden_TD = torch.empty_like(hidden_TD) if is_frozen else None
        for rows, hidden_CD, logits_CV in logit_chunks(head, hidden_TD, FIRST_ROWS,
                                                       needs_grad=is_frozen or None):
            ctx.chunk_rows = chunk_rows(logits_CV)
            numbers_CV = logits_CV.detach()
            _mask_(numbers_CV, kept, rows)
            logprobs_C, entropies_C = _row_logprobs(numbers_CV, targets_T[rows], temperature, has_entropies)
            logprobs_T[rows] = logprobs_C
            if has_entropies:
                entropies_T[rows] = entropies_C
            if is_frozen:
                grad_CV = _grad_logits(numbers_CV, targets_T[rows], torch.ones_like(logprobs_C), temperature)
                ctx.grad_hidden_TD[rows] = _grad_hidden(hidden_CD, logits_CV, grad_CV)
            del logits_CV, numbers_CV
        ctx.mark_non_differentiable(entropies_T)
        return logprobs_T, entropies_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grads_T, _):
        hidden_TD, targets_T, *trained = ctx.saved_tensors
        if ctx.grad_hidden_TD is not None:
            grad_hidden_TD = (ctx.grad_hidden_TD * grads_T[:, None]).to(hidden_TD.dtype)
            return None, None, None, None, None, grad_hidden_TD, *(None for _ in trained)
        head = trained[0] if ctx.head is None else ctx.head

        def grad_logits(rows: slice, logits_CV: Tensor) -> Tensor:
            _mask_(logits_CV, ctx.kept, rows)
            return _grad_logits(logits_CV, targets_T[rows], grads_T[rows], ctx.temperature)

        return None, None, None, None, None, *chunked_backward(
            head, hidden_TD, trained, ctx.needs_input_grad[5:], ctx.chunk_rows, grad_logits)


def chunked_backward(head: Head, hidden_TD: Tensor, trained: list[Tensor], needs: tuple[bool, ...], size: int,
                     grad_logits: Callable[[slice, Tensor], Tensor]) -> list[Tensor | None]:
    """Return the gradients of the hidden states and of what the head trains, made a chunk at a time.

    needs: which of them are wanted. size: rows of the first chunk. grad_logits: rows and their logits, which
    it may write over, to the logits' gradient.
    """
    needs_hidden, *needs_trained = needs
    wanted = [tensor for tensor, is_needed in zip(trained, needs_trained, strict=True) if is_needed]
    # Added up in float32: in bfloat16 a chunk's share would vanish beside those before it. None of what the
    # head's own layer has added up already (`grad_total`).
    sums: list[Tensor | None] = [None for _ in wanted]
    grad_hidden_TD = torch.empty_like(hidden_TD) if needs_hidden else None
    for rows, hidden_CD, logits_CV in logit_chunks(head, hidden_TD, size, needs_grad=needs_hidden):
        grad_CV = grad_logits(rows, logits_CV.detach())
        _mark_written(logits_CV)
        found = torch.autograd.grad(logits_CV, [hidden_CD] * needs_hidden + wanted, grad_CV,
                                    allow_unused=True)
        if needs_hidden:
            grad_hidden_TD[rows], *found = found
        for place, part in enumerate(found):
            if part is not None and sums[place] is None:
                sums[place] = torch.zeros_like(part, dtype=torch.float32)
            if part is not None:
                _add(sums[place], part)
    grads = iter([None if total is None else total.to(tensor.dtype)
                  for total, tensor in zip(sums, wanted, strict=True)])
    return [grad_hidden_TD, *(next(grads) if is_needed else None for is_needed in needs_trained)]


def _grad_hidden(hidden_CD: Tensor, logits_CV: Tensor, grad_CV: Tensor) -> Tensor:
    """Return the hidden states' gradient from the logits', which was written over them."""
    _mark_written(logits_CV)
    return torch.autograd.grad(logits_CV, hidden_CD, grad_CV)[0]


def _mark_written(logits_CV: Tensor) -> None:
    """Should the head's own gradient need its logits, torch is to refuse: they are something else now."""
    torch.autograd.graph.increment_version(logits_CV)


def logit_chunks(head: Head, hidden_TD: Tensor, size: int,
            needs_grad: bool | None = None) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Give the rows of each chunk, their hidden states and their logits.

    size: rows of the first chunk, whose logits tell how many a row has. needs_grad: None without autograd,
    else whether the hidden states want a gradient.
    """
    start = 0
    with packed_linear.shared_transposes():
        while start < len(hidden_TD):
            rows = slice(start, min(start + size, len(hidden_TD)))
            with torch.set_grad_enabled(needs_grad is not None):
                hidden_CD = hidden_TD[rows].detach().requires_grad_(bool(needs_grad))
                logits_CV = logits_of(head, hidden_CD)
            start, size = rows.stop, chunk_rows(logits_CV)
            yield rows, hidden_CD, logits_CV
            del logits_CV, hidden_CD


def _mask_(logits_CV: Tensor, kept: KeptTokens | None, rows: slice) -> None:
    if kept is not None:
        kept.rows(rows.start, rows.stop).mask_(logits_CV)


def chunk_rows(logits_CV: Tensor) -> int:
    """Return how many rows like these make a chunk."""
    return max(1, CHUNK_BYTES // (4 * logits_CV.shape[1]))


def _add(total: Tensor, part: Tensor) -> None:
    """Add in place, some rows at a time: torch's sum of two types is several times slower than a cast."""
    for total_rows, rows in zip(total.split(4096), part.split(4096), strict=True):
        total_rows += rows.to(total.dtype)


def logits_of(head: Head, hidden_CD: Tensor) -> Tensor:
    """Return float32 logits [C, V]."""
    if isinstance(head, PackedWeight):
        return packed_linear.linear(hidden_CD, head, out_dtype=torch.float32)
    return linear(hidden_CD, head).float() if isinstance(head, Tensor) else head(hidden_CD)


def _row_logprobs(logits_CV: Tensor, targets_C: Tensor, temperature: float,
                  has_entropies: bool) -> tuple[Tensor, Tensor]:
    is_native = select.covers(logits_CV.dtype, logits_CV.device)
    if is_native and has_entropies:
        return native.row_logprobs_and_entropies(logits_CV, targets_C, temperature)
    if is_native:
        return native.row_logprobs(logits_CV, targets_C, temperature), logits_CV.new_empty(0)
    entropies_C = reference.row_entropies(logits_CV, temperature) if has_entropies else logits_CV.new_empty(0)
    return reference.row_logprobs(logits_CV, targets_C, temperature), entropies_C


def _grad_logits(logits_CV: Tensor, targets_C: Tensor, grads_C: Tensor, temperature: float) -> Tensor:
    kernels = native if select.covers(logits_CV.dtype, logits_CV.device) else reference
    return kernels.grad_logits(logits_CV, targets_C, grads_C, temperature)
