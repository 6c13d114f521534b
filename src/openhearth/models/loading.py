"""Weights from a checkpoint into a model, one tensor at a time.

The module is built without storage, every tensor is checked by name and shape from the headers, and
only then is the first weight read. Files are mapped, not copied: peak memory stays near that of the
finished weights.

Does not: choose a dtype, quantise, or share memory with the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openhearth.errors import BadFile, Unsupported
from openhearth.formats import map_tensor
from openhearth.formats.records import Checkpoint, TensorEntry
from openhearth.kernels.dequant.reference import bytes_tensor, dequantize_into
from openhearth.models.linear import Linear, can_pack
from openhearth.models.registry import Architecture, find_architecture
from openhearth.spec import ModelSpec

OnLoad = Callable[[int, int], None]
"""Called with bytes read and bytes in all."""

_PLAIN_TYPES = ("F32", "F16", "BF16")
_SHOWN = 6


@dataclass(frozen=True)
class _Source:
    """Where one parameter comes from. rotary_heads: heads whose rows go back to half-split order."""

    entry: TensorEntry
    rotary_heads: int | None


def load_model(checkpoint: Checkpoint, spec: ModelSpec, *, dtype: torch.dtype,
               device: torch.device | str = "cpu", is_trainable: bool = False,
               on_progress: OnLoad | None = None) -> nn.Module:
    """Return the model with its weights in dtype on device, in eval mode.

    is_trainable: keep every weight as a parameter; otherwise the native kernels' packed copy replaces
    those of linear layers.

    Raises: Unsupported for an architecture or tensor type that we do not have; BadFile when a tensor
    is missing, unexpected or of another shape than the spec says (each by name, before any weight is
    read), or when tied matrices differ.
    """
    architecture = find_architecture(spec.model_type)
    with torch.device("meta"):
        model = architecture.build(spec)
    wanted = model.state_dict()
    sources = _match(checkpoint, spec, architecture, wanted)
    total_bytes = sum(source.entry.num_bytes for source in sources.values())
    done_bytes = 0
    is_packed = can_pack(dtype, torch.device(device))
    scratch = torch.empty(0, dtype=dtype)
    for module_name, members in _by_module(sources).items():
        module, tensors = model.get_submodule(module_name), {}
        is_passing = is_packed and not is_trainable and isinstance(module, Linear)
        for member, source in members.items():
            kept_dtype = torch.float32 if member == "rope_factors" else dtype
            out = torch.empty(source.entry.shape, dtype=kept_dtype)
            if is_passing and member == "weight":
                # One buffer for all weights that are only passing through: freed one by one, blocks of
                # different sizes would leave the heap in pieces that never go back to the system.
                scratch = scratch if scratch.numel() >= out.numel() else torch.empty(out.numel(), dtype=dtype)
                out = scratch[:out.numel()].view(out.shape)
            tensors[member] = _read(source, out).to(device)
            done_bytes += source.entry.num_bytes
            if on_progress is not None:
                on_progress(done_bytes, total_bytes)
        module.load_state_dict(tensors, strict=False, assign=True)  # the names were matched above
        if is_packed and isinstance(module, Linear):
            module.pack(is_trainable=is_trainable)
    if is_packed and spec.is_tied:
        model.pack_tied_head(is_trainable=is_trainable)
    return model.eval()


def _by_module(sources: Mapping[str, _Source]) -> dict[str, dict[str, _Source]]:
    """Group parameters by the module that owns them, so that each can be packed as soon as it is read."""
    groups: dict[str, dict[str, _Source]] = {}
    for name, source in sources.items():
        module_name, _, member = name.rpartition(".")
        groups.setdefault(module_name, {})[member] = source
    return groups


def _match(checkpoint: Checkpoint, spec: ModelSpec, architecture: Architecture,
           wanted: Mapping[str, Tensor]) -> dict[str, _Source]:
    """Pair every parameter with a tensor of the file, from headers alone."""
    is_gguf = checkpoint.format == "gguf"
    file_names = {name: architecture.gguf_name(name) if is_gguf else name for name in wanted}
    problems = []
    sources = {}
    for name, parameter in wanted.items():
        entry = checkpoint.tensors.get(file_names[name])
        if entry is None:
            problems.append(f"`{file_names[name]}` is missing")
        elif entry.shape != tuple(parameter.shape):
            problems.append(f"`{entry.name}` has shape {list(entry.shape)}, expected {list(parameter.shape)}")
        else:
            heads = architecture.gguf_rotary_heads(name, spec) if is_gguf else None
            sources[name] = _Source(entry, heads)
    unexpected = set(checkpoint.tensors) - set(file_names.values())
    if spec.is_tied and not is_gguf and "lm_head.weight" in unexpected:
        unexpected.discard("lm_head.weight")
        problems += _tied_problems(checkpoint)
    problems += [f"`{name}` is not part of the model" for name in sorted(unexpected)
                 if not any(re.fullmatch(pattern, name) for pattern in architecture.ignored)]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise BadFile(f"the tensors of `{checkpoint.path.name}` do not fit its configuration",
                      why="\n".join(problems[:_SHOWN] + more),
                      hint="fetch the model again with `hearth pull`")
    if not is_gguf:
        _check_plain(sources)
    return sources


def _check_plain(sources: Mapping[str, _Source]) -> None:
    for source in sources.values():
        if source.entry.type not in _PLAIN_TYPES:
            raise Unsupported(f"tensor `{source.entry.name}` is stored as {source.entry.type}",
                              why=f"safetensors weights are read as {', '.join(_PLAIN_TYPES)}",
                              hint="take an unquantised version of the model, or a GGUF one")


def _tied_problems(checkpoint: Checkpoint) -> list[str]:
    """A file may repeat the tied matrix; were it another one, the answer would depend on which is used."""
    head = checkpoint.tensors["lm_head.weight"]
    embedding = checkpoint.tensors.get("model.embed_tokens.weight")
    if embedding is None:
        return []
    is_same_kind = (embedding.type, embedding.shape) == (head.type, head.shape)
    if is_same_kind and map_tensor(embedding) == map_tensor(head):
        return []
    return ["`lm_head.weight` differs from `model.embed_tokens.weight`, but the configuration ties them"]


def _read(source: _Source, out: Tensor) -> Tensor:
    """Fill out with one tensor and return it, rotary rows in half-split order."""
    entry, heads = source.entry, source.rotary_heads
    dequantize_into(bytes_tensor(map_tensor(entry)), entry.type, out)
    if heads is not None:
        pairs = out.unflatten(0, (heads, entry.shape[0] // heads // 2, 2))
        out.copy_(pairs.transpose(1, 2).reshape(entry.shape))
    return out
