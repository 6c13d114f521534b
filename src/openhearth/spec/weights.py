"""In which form a model's weights are held, and how much memory that takes.

Forms: "float32" and "bfloat16" hold every matrix so; "stored" keeps the blocks of a GGUF file that the
kernels read as they are (Q8_0, Q4_0, Q4_1, Q4_K) and MXFP4 as Q8_0, which has all its numbers, and holds the
rest in bfloat16; "int8" and "int4" quantise in groups of 32 inputs (the layouts of Q8_0 and Q4_1), int4 with
embedding and output matrix in int8, whose errors every token sees. Activations are float32 with float32
weights and bfloat16 with all others.

Does not: quantise, or know how much memory a cache takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from openhearth import hardware
from openhearth.errors import Unsupported, UsageError
from openhearth.formats.records import Checkpoint
from openhearth.spec.dtypes import choose_dtype
from openhearth.spec.fp8 import SCALE_SUFFIX
from openhearth.spec.records import ModelSpec
from openhearth.spec.text_part import text_part
from openhearth.units import format_bytes

SETTINGS = ("auto", "float32", "bfloat16", "int8", "int4")
_BLOCK_TYPES = {"Q8_0": 32, "Q4_0": 32, "Q4_1": 32, "Q4_K": 256}
"""Kept as they are; the numbers of one block."""
_STORED_AS_Q8_0 = {"MXFP4": "MXFP4", "U8": "MXFP4"}
"""Types whose numbers Q8_0 has as well, in GGUF and safetensors files, with the name of both."""
_BITS = {"F32": 32, "BF16": 16, "Q8_0": 8.5, "Q4_0": 4.5, "Q4_1": 5, "Q4_K": 4.625}
"""Of one number, when packed."""
_ROUTERS = (".gate.weight", ".mlp.router.weight", ".ffn_gate_inp.weight", ".shared_expert_gate.weight",
            ".ffn_gate_inp_shexp.weight")
"""Never quantised: they are small, and a wrong choice of experts is no small error."""
_TABLES = ("token_embd.weight", "output.weight", "model.embed_tokens.weight", "lm_head.weight")
_LATENT_HEADS = (".kv_b_proj.weight", ".attn_kv_b.weight", ".attn_k_b.weight", ".attn_v_b.weight")
"""Never quantised: half of such a matrix is multiplied transposed, across the groups that share a scale."""
_MTP_COPIES = ("embed_tokens.weight", "shared_head.head.weight", "nextn.embed_tokens.weight",
               "nextn.shared_head_head.weight")
"""Tables that a multi-token-prediction layer shares with the model, and that files repeat in it."""
_PANEL = 32
_USABLE_SHARE = 0.8
_OF_THE_FILE = "of the file and the memory"


@dataclass(frozen=True)
class WeightChoice:
    """The form chosen, the activations' dtype, and why.

    num_bytes: of all weights; resident_bytes: of those that stay in memory, the others being read from the
    file at every step; None: all stay. is_reduced: the file's own form does not fit into memory, the
    weights are quantised while they load.

    Example: ``WeightChoice("stored", "bfloat16", "Q4_1 as in the file", 98000000)``.
    """

    form: str
    dtype: str
    reason: str
    num_bytes: int
    resident_bytes: int | None = None
    is_reduced: bool = False

    @property
    def held_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return self.num_bytes if self.resident_bytes is None else self.resident_bytes


def choose_weights(setting: str, dtype: str, checkpoint: Checkpoint, spec: ModelSpec, *,
                   has_native: bool, available_bytes: int | None = None) -> WeightChoice:
    """Return the form for a setting that may be "auto" and a dtype setting that may be "auto".

    auto: what the file holds, as far as the kernels read it; of the smaller forms the largest that four
    fifths of the free memory hold (available_bytes; None asks the machine). Where none fits, it is what the
    file holds, and what does not fit stays there. Without native kernels weights are float32 or bfloat16.
    Raises: UsageError when the settings contradict each other; Unsupported when quantised weights are
    asked for and there are no native kernels.
    """
    if setting not in SETTINGS:
        raise UsageError(f"weights `{setting}` are unknown", why="expected " + ", ".join(SETTINGS),
                         hint="--weights auto")
    computed = {"auto": dtype, "float32": "float32"}.get(setting, "bfloat16")
    if dtype not in ("auto", computed):
        raise UsageError(f"weights `{setting}` and dtype `{dtype}` exclude each other",
                         why="float32 weights are computed in float32, all others in bfloat16",
                         hint=f"--weights {setting}")
    if setting in ("int8", "int4") and not has_native:
        raise Unsupported(f"{setting} weights need the native kernels",
                          why="this process runs the reference kernels",
                          hint="unset HEARTH_ISA, or --weights bfloat16")
    if available_bytes is None:
        available_bytes = hardware.read_memory().available_bytes
    if setting != "auto":
        choice = WeightChoice(setting, computed, "as asked for", weight_bytes(checkpoint, spec, setting))
        return _holding(choice, available_bytes, has_native)
    if not has_native or dtype == "float32":
        chosen = choose_dtype(dtype, spec)
        reason = "as asked for" if dtype != "auto" else _OF_THE_FILE
        choice = WeightChoice(chosen, chosen, reason, weight_bytes(checkpoint, spec, chosen))
        return _holding(choice, available_bytes, has_native)
    return _fitting(dtype, checkpoint, spec, available_bytes)


def _fitting(dtype: str, checkpoint: Checkpoint, spec: ModelSpec, available: int) -> WeightChoice:
    types = {_STORED_AS_Q8_0.get(entry.type, entry.type) for entry in checkpoint.tensors.values()}
    blocks = sorted(types & {*_BLOCK_TYPES, *_STORED_AS_Q8_0.values()})
    if blocks:
        first, reason = "stored", f"{', '.join(blocks)} as in the file"
    else:
        first, reason = choose_dtype(dtype, spec), _OF_THE_FILE
    forms = [first, *(form for form in ("int8", "int4") if first != form)]
    sizes = {form: weight_bytes(checkpoint, spec, form) for form in forms}
    fitting = [form for form in forms if sizes[form] <= _USABLE_SHARE * available]
    chosen = fitting[0] if fitting else first
    if chosen != first:
        reason = f"{first} needs {format_bytes(sizes[first])} of {format_bytes(available)} that are free"
    computed = "float32" if chosen == "float32" else "bfloat16"
    choice = WeightChoice(chosen, computed, reason, sizes[chosen], is_reduced=chosen != first)
    return _holding(choice, available, has_native=True)


def _holding(choice: WeightChoice, available: int, has_native: bool) -> WeightChoice:
    """Keep as much in memory as there is room for. Plain torch has no weights that are read when used."""
    room = int(_USABLE_SHARE * available)
    return choice if choice.num_bytes <= room or not has_native else replace(choice, resident_bytes=room)


def packed_format(type: str, name: str, shape: Sequence[int], form: str) -> str:
    """Return how a matrix of a checkpoint is packed: "F32", "BF16", or a block type of GGUF.

    type, name, shape: of the tensor. Routers and the heads of latent attention stay bfloat16, and matrices
    whose rows are no whole groups.
    """
    if form == "float32":
        return "F32"
    num_inputs = shape[-1]
    if name.endswith(_ROUTERS + _LATENT_HEADS):
        return "BF16"
    if type in _STORED_AS_Q8_0 and form in ("stored", "int8") and num_inputs % 32 == 0:
        return "Q8_0"
    if form == "stored":
        return type if type in _BLOCK_TYPES and num_inputs % _BLOCK_TYPES[type] == 0 else "BF16"
    if form == "bfloat16" or num_inputs % 32:
        return "BF16"
    if form == "int8" or name in _TABLES:
        return "Q8_0"
    return type if type in ("Q4_0", "Q4_1", "Q4_K") else "Q4_1"


def layer_prefixes(layer: int) -> tuple[str, str]:
    """Return how the names of a layer's tensors begin, in safetensors and in GGUF files."""
    return f"model.layers.{layer}.", f"blk.{layer}."


def is_extra(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor is not read as it belongs to a layer that only predicts further tokens.

    Of the one that is read where the spec has it, those are the copies of the model's own two tables: what
    that layer says is never taken unchecked, so that other numbers there could change no answer.
    """
    first = spec.num_layers
    if spec.has_mtp:
        if any(name.removeprefix(prefix) in _MTP_COPIES for prefix in layer_prefixes(first)):
            return True
        first += 1
    layers = range(first, spec.num_layers + spec.num_extra_layers)
    return any(name.startswith(layer_prefixes(layer)) for layer in layers)


def weight_bytes(checkpoint: Checkpoint, spec: ModelSpec, form: str) -> int:
    """Return the bytes that a loaded model's weights take, packed with the padding that belongs to it."""
    number_bytes = 4 if form == "float32" else 2
    total = 0
    for name, entry in text_part(checkpoint).tensors.items():
        if spec.is_tied and name in ("lm_head.weight", "output.weight"):
            continue
        if name.endswith(SCALE_SUFFIX) or is_extra(name, spec):
            continue
        if name.endswith("_blocks"):
            entry = replace(entry, shape=(*entry.shape[:-2], entry.shape[-2] * 32))
        elif name.endswith("_scales"):
            continue
        shape = (1, *entry.shape) if name.endswith(_ROUTERS) and len(entry.shape) == 1 else entry.shape
        if len(shape) not in (2, 3) or name.endswith("bias"):  # stacked experts have stacked biases
            total += math.prod(shape) * number_bytes
            continue
        *stack, rows, inputs = shape  # of experts, each packed for itself
        format = packed_format(entry.type, name, shape, form)
        inputs = -(-inputs // 32) * 32 if format == "BF16" else inputs
        total += round(math.prod(stack) * -(-rows // _PANEL) * _PANEL * inputs * _BITS[format] / 8)
    return total
