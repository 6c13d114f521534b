"""Memory and arithmetic of a training step, predicted before anything is loaded (guarantee G9).

Does not: measure; `hardware.peak_memory_bytes` does, and a run's receipt holds both.
"""

# T tokens of a pack, D model, F feed-forward, L layers, V vocabulary

from __future__ import annotations

from dataclasses import dataclass

from openhearth.kernels.logprob.chunked import CHUNK_BYTES
from openhearth.spec import ModelSpec

_NUMBER_BYTES = {"float32": 4, "bfloat16": 2}
_RUNTIME_BYTES = 400 * 2**20


@dataclass(frozen=True)
class MemoryTerms:
    """Bytes at the peak of a step. Example: ``training_memory(...).total_bytes``."""

    weights_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    workspace_bytes: int

    @property
    def total_bytes(self) -> int:
        """All terms together."""
        return (self.weights_bytes + self.optimizer_bytes + self.activations_bytes + self.workspace_bytes)


def training_memory(spec: ModelSpec, num_trainable: int, dtype: str, pack_tokens: int, *, is_full: bool,
                    is_recomputing: bool, base_bytes: int | None = None) -> MemoryTerms:
    """Predict the peak of a step.

    base_bytes: of frozen weights that are not held as plain numbers. weights: one copy, and a packed one
    where they learn. optimizer: master, gradient and two moments in float32. activations: per token and
    layer, what the backward pass needs: the norms' two sums in float32, the inputs of the linear layers and
    of attention in dtype; with recomputation one residual stream and a single layer's.
    """
    number = _NUMBER_BYTES[dtype]
    weights = base_bytes or spec.num_parameters * number * (2 if is_full else 1)
    heads, cache = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    residual = 2 * 4 * spec.hidden_size
    low = number * (2 * spec.hidden_size + 2 * heads + 2 * cache + 3 * spec.intermediate_size)
    adapted = 0 if is_full else 4 * (heads + 2 * cache + 2 * spec.hidden_size + 2 * spec.intermediate_size)
    layer = residual + low + adapted
    layers = (spec.num_layers * 8 * spec.hidden_size + layer) if is_recomputing else spec.num_layers * layer
    masters = 12 if number == 4 else 16
    return MemoryTerms(weights, num_trainable * masters, pack_tokens * layers,
                       _RUNTIME_BYTES + 3 * CHUNK_BYTES)


def training_flops(spec: ModelSpec, num_tokens: int, num_pairs: int, num_trained: int,
                   num_adapter: int | None) -> int:
    """Return the operations that forward and backward of a pack need, what MFU is counted with.

    num_pairs: of a query and a key that it sees. num_trained: rows that have logits. num_adapter: numbers
    of LoRA's halves beside frozen weights, None where all weights learn. A pass is 2 operations per weight
    and row, and 4 per pair, head and number of a head (`ModelSpec.flops_per_token`). All weights: three
    passes, one forward and two for the gradients of inputs and weights. LoRA: frozen weights have no
    gradient, two passes; its halves and attention still have three. Norms, rotation, activations, softmax
    and the optimizer are not counted, nor what is computed again to save memory.
    Sources: arXiv 2001.08361, section 2.1; 2204.02311, appendix B (MFU); 2106.09685, section 4.1.
    """
    head = 2 * spec.vocab_size * spec.hidden_size
    layers = spec.flops_per_token(0) - head
    attention = (spec.flops_per_token(1) - spec.flops_per_token(0)) * num_pairs
    passes = 3 if num_adapter is None else 2
    adapter = 6 * num_tokens * (num_adapter or 0)
    return passes * (layers * num_tokens + head * num_trained) + 3 * attention + adapter
