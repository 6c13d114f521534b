"""Memory of a run: predicted before weights are read, measured when it is over (guarantee G9)."""

from __future__ import annotations

from dataclasses import dataclass

from openhearth.spec import ModelSpec
from openhearth.units import format_bytes

_NUMBER_BYTES = {"float32": 4, "bfloat16": 2}
_CACHE_NUMBER_BYTES = {**_NUMBER_BYTES, "int8": 1 + 2 / 32}
_RUNTIME_BYTES = 330 * 2**20
"""Python, torch and its thread pool, tokenizer: what a run holds besides the three terms below."""
_ACTIVATION_TOKENS = 512
"""Tokens of one prefill step of the engine."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes a run will hold at its peak. Example: ``MemoryPlan(269030016, 25344000, 450887680, 1100)``."""

    weights_bytes: int
    cache_bytes: int
    workspace_bytes: int
    cached_tokens: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.workspace_bytes


def plan_memory(spec: ModelSpec, dtype: str, cached_tokens: int, cache_dtype: str = "auto") -> MemoryPlan:
    """Predict the peak of one answer.

    weights: parameters times bytes per number. cache: keys and values of the tokens that will be
    written, in cache_dtype (auto: dtype). workspace: the runtime, one prefill step's activations (four rows
    of model width, two of the feed-forward width, per token) and one row of float32 logits with its sorted
    copy and ids.
    """
    number_bytes = _NUMBER_BYTES[dtype]
    cache_number_bytes = _CACHE_NUMBER_BYTES[dtype if cache_dtype == "auto" else cache_dtype]
    cached_tokens = min(cached_tokens, spec.max_position)
    rows = min(_ACTIVATION_TOKENS, cached_tokens)
    activations = rows * (4 * spec.hidden_size + 2 * spec.intermediate_size) * 4
    logits = spec.vocab_size * (4 + 4 + 8)
    return MemoryPlan(weights_bytes=spec.num_parameters * number_bytes,
                      cache_bytes=spec.kv_bytes_per_token(cache_number_bytes) * cached_tokens,
                      workspace_bytes=_RUNTIME_BYTES + activations + logits, cached_tokens=cached_tokens)


def describe_plan(plan: MemoryPlan, available_bytes: int) -> str:
    """Return the sentence that `hearth run --verbose` prints before loading."""
    return (f"needs about {format_bytes(plan.total_bytes)}: weights {format_bytes(plan.weights_bytes)}, "
            f"cache for {plan.cached_tokens} tokens {format_bytes(plan.cache_bytes)}, "
            f"workspace {format_bytes(plan.workspace_bytes)}; {format_bytes(available_bytes)} available")
