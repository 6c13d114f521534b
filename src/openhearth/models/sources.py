"""Which tensors of a checkpoint each parameter comes from, and how their bytes become its numbers.

Names and shapes are matched from the headers alone, before any weight is read; every difference is named.

Does not: pack, or choose a form of the weights (`loading.py` does).
"""

# N rows, K inputs of a matrix

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from openhearth.errors import BadFile, Unsupported
from openhearth.formats import map_tensor
from openhearth.formats.records import Checkpoint, TensorEntry
from openhearth.kernels.dequant.fp8 import dequantize_fp8_into
from openhearth.kernels.dequant.mxfp4 import mxfp4_as_q8_0
from openhearth.kernels.dequant.reference import bytes_tensor, dequantize, dequantize_into
from openhearth.kernels.linear.packed import BLOCK_FORMATS, FORMATS, Rows, block_rows, number_rows
from openhearth.models.architecture import Architecture
from openhearth.models.fused_experts import FusedSource, find_fused
from openhearth.spec import SCALE_SUFFIX, ModelSpec, fp8_block_of, is_extra

_PLAIN_TYPES = ("F32", "F16", "BF16")
_FP8 = "F8_E4M3"
_NUMBERS = {"F32": torch.float32, "BF16": torch.bfloat16}
_LATENT_HEADS = "self_attn.kv_b_proj.weight"
_SHOWN = 6


@dataclass(frozen=True)
class Source:
    """Where one parameter comes from.

    rotary_heads: heads whose rows go back to half-split order. scales, block: of 8-bit floats, one number per
    block of so many rows and columns. values: where the heads of latent attention are two tensors, entry the
    part of the keys, transposed, and this that of the values. added: what the file's numbers have more than
    the parameter's.
    Example: ``Source(checkpoint.tensors["blk.0.attn_q.weight"], rotary_heads=9)``.
    """

    entry: TensorEntry
    rotary_heads: int | None = None
    scales: TensorEntry | None = None
    block: tuple[int, int] = (0, 0)
    values: TensorEntry | None = None
    added: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        if self.values is None:
            return self.entry.shape
        heads, rank, nope_dim = self.entry.shape
        return heads * (nope_dim + self.values.shape[1]), rank

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return sum(entry.num_bytes for entry in (self.entry, self.scales, self.values) if entry is not None)

    @property
    def row_order(self) -> Tensor | None:
        """The file's row of every row of a rotary matrix in half-split order."""
        if self.rotary_heads is None:
            return None
        num_rows = self.entry.shape[0]
        return torch.arange(num_rows).view(self.rotary_heads, -1, 2).transpose(1, 2).reshape(num_rows)

    def fill(self, out: Tensor) -> Tensor:
        """Fill out, of the parameter's shape, and return it."""
        if self.values is not None:
            parts = (_numbers(self.entry).transpose(1, 2), _numbers(self.values))
            return out.copy_(torch.cat(parts, 1).flatten(0, 1))
        if self.scales is not None:
            return self.fill_rows(out, 0)
        dequantize_into(bytes_tensor(map_tensor(self.entry)), self.entry.type, out)
        order = self.row_order
        return out if order is None else out.copy_(out[order])

    def fill_rows(self, out_NK: Tensor, start: int) -> Tensor:
        """Fill out with rows of a matrix from one on and return it."""
        raw = self._raw_rows(start, len(out_NK)).flatten()
        if self.scales is None:
            return dequantize_into(raw, self.entry.type, out_NK)
        return dequantize_fp8_into(raw, _numbers(self.scales), self.block, out_NK, start)

    def stored_rows(self, start: int, count: int) -> Rows | None:
        """Return rows as the file has them, not copied; None where they are nothing that can be packed."""
        entry = self.entry
        if entry.type not in FORMATS:
            return None
        order = self.row_order
        whole = entry.rows(start, count) if order is None else entry
        raw = bytes_tensor(map_tensor(whole))
        if entry.type in BLOCK_FORMATS:
            rows = block_rows(raw, entry.type, whole.shape)
        elif raw.data_ptr() % _NUMBERS[entry.type].itemsize:
            return None
        else:
            rows = number_rows(raw.view(_NUMBERS[entry.type]).view(whole.shape))
        return rows if order is None else replace(rows, source_rows=order[start:start + count])

    def as_q8_0(self, start: int, count: int) -> Tensor | None:
        """Return rows of Q8_0 blocks that have these very numbers, None where the file has no MXFP4."""
        if self.entry.type != "MXFP4":
            return None
        blocks = self._raw_rows(start, count).unflatten(1, (-1, 17))
        return mxfp4_as_q8_0(blocks[..., 1:], blocks[..., 0], is_paired=False)

    def _raw_rows(self, start: int, count: int) -> Tensor:
        """The bytes of so many rows of the parameter, uint8; copied where the file has another order."""
        if self.rotary_heads is None:
            return bytes_tensor(map_tensor(self.entry.rows(start, count))).view(count, -1)
        raw = bytes_tensor(map_tensor(self.entry)).view(self.entry.shape[0], -1)
        return raw[self.row_order[start:start + count]]


AnySource = Source | FusedSource


def match_tensors(checkpoint: Checkpoint, spec: ModelSpec, architecture: Architecture,
                  wanted: Mapping[str, Tensor]) -> dict[str, AnySource]:
    """Pair every parameter with the tensors of the file. Raises: BadFile, Unsupported, as `load_model`."""
    is_gguf = checkpoint.format == "gguf"
    problems: list[str] = []
    sources, used = {}, set()
    for name, parameter in wanted.items():
        file_name, expert = architecture.gguf_place(name) if is_gguf else (name, None)
        shape = tuple(parameter.shape) if expert is None else (spec.moe.num_experts, *parameter.shape)
        if not is_gguf and (place := architecture.fused_place(name)) is not None:
            fused = find_fused(checkpoint, place)
            if fused is None or fused.shape != shape:
                problems.append(f"`{place.name}` is missing or does not hold {list(shape)} for an expert")
                continue
            sources[name] = fused
            used |= {place.name, place.name + "_blocks", place.name + "_scales"}
            continue
        found = _latent_heads(checkpoint, spec, name, file_name) if is_gguf else None
        used |= {file_name} if found is None else {found.entry.name, found.values.name}
        entry = checkpoint.tensors.get(file_name)
        if entry is None and is_gguf and (rows := _fused_rows(checkpoint, spec, file_name)) is not None:
            entry, used = rows, used | {rows.name}
        if found is not None:
            problems += _shape_problems(found, spec)
            sources[name] = found
        elif entry is None:
            problems.append(f"`{file_name}` is missing")
        elif entry.shape != shape and not (is_gguf and shape == (1, *entry.shape)):  # a row without its axis
            problems.append(f"`{entry.name}` has shape {list(entry.shape)}, expected {list(shape)}")
        else:
            entry = replace(entry, shape=shape) if expert is None else entry.part(expert)
            sources[name] = Source(entry) if not is_gguf else Source(
                entry, architecture.gguf_rotary_heads(name, spec), added=architecture.gguf_added(name, spec))
    if not is_gguf:
        sources = _with_scales(checkpoint, sources, problems)
        used |= {source.scales.name for source in sources.values() if source.scales is not None}
    problems += _unexpected(checkpoint, spec, architecture, used)
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise BadFile(f"the tensors of `{checkpoint.path.name}` do not fit its configuration",
                      why="\n".join(problems[:_SHOWN] + more),
                      hint="fetch the model again with `hearth pull`")
    if not is_gguf:
        _check_plain(sources)
    return sources


def _unexpected(checkpoint: Checkpoint, spec: ModelSpec, architecture: Architecture,
                used: set[str]) -> list[str]:
    """Say which tensors nothing is read from, and may not be left out."""
    names = {name for name in checkpoint.tensors if not is_extra(name, spec)} - used
    problems = []
    if spec.is_tied and checkpoint.format != "gguf" and "lm_head.weight" in names:
        names.discard("lm_head.weight")
        problems = _tied_problems(checkpoint)
    return problems + [f"`{name}` is not part of the model" for name in sorted(names)
                       if not any(re.fullmatch(pattern, name) for pattern in architecture.ignored)]


def _latent_heads(checkpoint: Checkpoint, spec: ModelSpec, name: str, file_name: str) -> Source | None:
    """Newer GGUF files split the heads of latent attention: [heads, rank, nope], [heads, value, rank]."""
    if not name.endswith(_LATENT_HEADS) or file_name in checkpoint.tensors:
        return None
    keys, values = (checkpoint.tensors.get(file_name.replace("attn_kv_b", part))
                    for part in ("attn_k_b", "attn_v_b"))
    return None if keys is None or values is None else Source(keys, values=values)


def _fused_rows(checkpoint: Checkpoint, spec: ModelSpec, file_name: str) -> TensorEntry | None:
    """Queries, keys and values may be rows of one tensor, in this order, where none has its own.

    So files of ChatGLM have them, and those of llama.cpp's `--fuse-qkv`.
    """
    found = re.fullmatch(r"(blk\.\d+\.attn_)([qkv])(\.weight|\.bias)", file_name)
    if found is None or any(found[1] + one + found[3] in checkpoint.tensors for one in "qkv"):
        return None
    fused = checkpoint.tensors.get(f"{found[1]}qkv{found[3]}")
    query, value = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    if fused is None or fused.shape[0] != query + 2 * value:
        return None
    start, count = {"q": (0, query), "k": (query, value), "v": (query + value, value)}[found[2]]
    return fused.rows(start, count)


def _shape_problems(source: Source, spec: ModelSpec) -> list[str]:
    mla, heads = spec.mla, spec.num_heads
    wanted = ((source.entry, (heads, mla.kv_rank, mla.nope_dim)),
              (source.values, (heads, mla.value_dim, mla.kv_rank)))
    return [f"`{entry.name}` has shape {list(entry.shape)}, expected {list(shape)}"
            for entry, shape in wanted if entry.shape != shape]


def _with_scales(checkpoint: Checkpoint, sources: Mapping[str, AnySource],
                 problems: list[str]) -> dict[str, AnySource]:
    """Give matrices of 8-bit floats the scales of their blocks, where the configuration has any."""
    block = fp8_block_of(checkpoint)
    if block is None:
        return dict(sources)
    found = {}
    for name, source in sources.items():
        entry = source.entry
        scales = checkpoint.tensors.get(entry.name + SCALE_SUFFIX)
        if entry.type != _FP8 or len(entry.shape) != 2:
            scales = None
        elif scales is None:
            problems.append(f"`{entry.name}{SCALE_SUFFIX}` is missing")
        else:
            grid = tuple(-(-size // step) for size, step in zip(entry.shape, block, strict=True))
            if scales.shape != grid:
                problems.append(f"`{scales.name}` has shape {list(scales.shape)}, expected {list(grid)}")
            elif scales.type not in _PLAIN_TYPES:
                problems.append(f"`{scales.name}` is stored as {scales.type}, expected F32")
        found[name] = replace(source, scales=scales, block=block)
    return found


def _check_plain(sources: Mapping[str, AnySource]) -> None:
    for source in sources.values():
        if source.entry.type not in _PLAIN_TYPES and source.scales is None:
            raise Unsupported(f"tensor `{source.entry.name}` is stored as {source.entry.type}",
                              why=f"safetensors weights are read as {', '.join(_PLAIN_TYPES)}, or as {_FP8} "
                                  "with a scale per block",
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


def _numbers(entry: TensorEntry) -> Tensor:
    """Return a whole tensor in float32."""
    return dequantize(bytes_tensor(map_tensor(entry)), entry.type, entry.shape)
