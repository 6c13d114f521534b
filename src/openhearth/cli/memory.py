"""Memory of a run: predicted before weights are read, measured when it is over (guarantee G9)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from openhearth import hardware
from openhearth.spec import ModelSpec, WeightChoice
from openhearth.units import format_bytes

_NUMBER_BYTES = {"float32": 4, "bfloat16": 2}
_CACHE_NUMBER_BYTES = {**_NUMBER_BYTES, "int8": 1 + 2 / 32}
_RUNTIME_BYTES = 240 * 2**20
"""Python, torch and its thread pool: what a run holds besides the terms below."""
_TOKENIZER_BYTES = 500
"""For each token of a vocabulary: 24 MiB were measured with 49,152."""
_CACHED_AT_LEAST = 16384
"""Tokens that a cache has room for at least where there is memory (`engine/memory.py`)."""
_SMALL_PAGE_TOKENS = 2048
"""Tokens of every layer that take what they write; those behind them come in huge pages (the same file)."""
_ACTIVATION_TOKENS = 512
"""Tokens of one prefill step of the engine."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes a run will hold at its peak, and in which form the weights are.

    Example: ``MemoryPlan(98009856, 25344000, 450887680, 1100, "stored: Q4_1 as in the file")``.
    """

    weights_bytes: int
    cache_bytes: int
    workspace_bytes: int
    cached_tokens: int
    weights: str

    @property
    def total_bytes(self) -> int:
        """The peak: weights, cache and workspace together."""
        return self.weights_bytes + self.cache_bytes + self.workspace_bytes


def plan_memory(spec: ModelSpec, weights: WeightChoice, cached_tokens: int,
                cache_dtype: str = "auto", *, huge_page_bytes: int | None = None) -> MemoryPlan:
    """Predict the peak of one answer.

    weights: as packed. cache: keys and values of the tokens that will be written, in cache_dtype (auto:
    that of the activations), in whole huge pages (None: this system's, 0: none) where they are more than
    have small ones. workspace: the runtime, the tokenizer, one prefill step's activations (four rows of
    model width, two of the feed-forward width, per token) and one row of float32 logits with its sorted
    copy and ids.
    """
    cache_number_bytes = _CACHE_NUMBER_BYTES[weights.dtype if cache_dtype == "auto" else cache_dtype]
    cached_tokens = min(cached_tokens, spec.max_position)
    rows = min(_ACTIVATION_TOKENS, cached_tokens)
    activations = rows * (4 * spec.hidden_size + 2 * spec.active_inner_size) * 4
    logits = spec.vocab_size * (4 + 4 + 8)
    huge_page_bytes = hardware.huge_page_bytes() if huge_page_bytes is None else huge_page_bytes
    tokenizer = spec.vocab_size * _TOKENIZER_BYTES
    return MemoryPlan(weights_bytes=weights.held_bytes,
                      cache_bytes=_cache_bytes(spec, cached_tokens, cache_number_bytes, huge_page_bytes or 1),
                      workspace_bytes=_RUNTIME_BYTES + tokenizer + activations + logits,
                      cached_tokens=cached_tokens, weights=f"{weights.form}: {weights.reason}")


def _cache_bytes(spec: ModelSpec, cached_tokens: int, number_bytes: float, page_bytes: int) -> int:
    """Return what the cache takes once tokens are written: every layer has a place of its own for them."""
    written = spec.kv_bytes_per_token(number_bytes) * cached_tokens
    if cached_tokens <= _SMALL_PAGE_TOKENS:
        return written
    room = spec.kv_bytes_per_token(number_bytes) * max(2 * spec.max_position, _CACHED_AT_LEAST)
    num_places = spec.num_cached_layers * (1 if spec.are_values_in_keys else 2)
    return max(written, min(room, num_places * page_bytes * -(-written // (num_places * page_bytes))))


def with_draft(plan: MemoryPlan, draft: MemoryPlan) -> MemoryPlan:
    """Add what a draft model holds beside a model: all but the runtime, which they share."""
    return replace(plan, weights_bytes=plan.weights_bytes + draft.weights_bytes,
                   cache_bytes=plan.cache_bytes + draft.cache_bytes,
                   workspace_bytes=plan.workspace_bytes + draft.workspace_bytes - _RUNTIME_BYTES,
                   weights=f"{plan.weights}; draft {draft.weights}")


def describe_plan(plan: MemoryPlan, available_bytes: int) -> str:
    """Return the sentence that `hearth run --verbose` prints before loading."""
    return (f"needs about {format_bytes(plan.total_bytes)}: "
            f"weights {format_bytes(plan.weights_bytes)} ({plan.weights}), "
            f"cache for {plan.cached_tokens} tokens {format_bytes(plan.cache_bytes)}, "
            f"workspace {format_bytes(plan.workspace_bytes)}; {format_bytes(available_bytes)} available")
