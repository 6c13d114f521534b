"""Adapters on disk, in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

Names and meaning of the fields: peft 0.18 (`LoraConfig`, `save_pretrained`); a layer's tensors are
`base_model.model.<layer>.lora_A.weight` [R, I] and `lora_B.weight` [O, R], and what they add is scaled by
alpha / r, or alpha / sqrt(r) with `use_rslora` (arXiv 2312.03732, section 4). With `use_dora` every layer has
`lora_magnitude_vector` [O] besides. With `target_parameters` the experts of a layer share a pair of matrices
(`expert_adapters.py`).

Does not: read biases, adapted embeddings or ranks that differ between layers; they are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openhearth.errors import BadFile, ModelNotFound, Unsupported
from openhearth.formats.json_files import read_json_object
from openhearth.models.expert_adapters import WRAPPED
from openhearth.models.lora import AdapterWeights
from openhearth.models.tensor_files import read_tensors, write_tensors
from openhearth.runs import hash_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<which>[AB]\.weight|magnitude_vector)")
_REFUSED = {"bias": "none", "modules_to_save": None, "rank_pattern": {},
            "alpha_pattern": {}, "fan_in_fan_out": False, "lora_bias": False, "layer_replication": None}
_BASE_KEY = "openhearth.base_weights_sha256"


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as read. base_weights_sha256: of the weights it was trained on, "" when not recorded.

    sha256: of both files, by their hashes.

    Example: ``read_adapter(Path("runs/polite/output")).weights.scale == 2.0``.
    """

    weights: AdapterWeights
    base_model: str
    base_weights_sha256: str
    sha256: str


def lora_scale(rank: int, alpha: float, *, is_rank_stabilised: bool) -> float:
    """Return what B(A(x)) is multiplied with. Source: arXiv 2106.09685, 4.1; 2312.03732, section 4."""
    return alpha / (math.sqrt(rank) if is_rank_stabilised else rank)


def write_adapter(folder: Path, weights: AdapterWeights, *, rank: int, alpha: float, is_rank_stabilised: bool,
                  base_model: str, base_weights_sha256: str) -> None:
    """Write both files into an existing folder; equal adapters give equal bytes."""
    leaves = sorted({path.rpartition(".")[2] for path in weights.pairs})
    config = {
        "base_model_name_or_path": base_model, "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "lora_alpha": alpha, "lora_dropout": 0.0,
        "modules_to_save": None, "peft_type": "LORA", "r": rank, "target_modules": leaves,
        "task_type": "CAUSAL_LM", "use_dora": bool(weights.magnitudes), "use_rslora": is_rank_stabilised}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {}
    for path, (a_RI, b_OR) in weights.pairs.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = a_RI
        tensors[f"base_model.model.{path}.lora_B.weight"] = b_OR
    for path, magnitude_O in weights.magnitudes.items():
        tensors[f"base_model.model.{path}.lora_magnitude_vector"] = magnitude_O
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt", _BASE_KEY: base_weights_sha256})


def read_adapter(folder: Path) -> StoredAdapter:
    """Read an adapter. Raises: ModelNotFound, BadFile, Unsupported for what is not plain LoRA, by name."""
    if not (folder / CONFIG).exists():
        raise ModelNotFound(f"`{folder}` holds no adapter", why=f"expected {CONFIG} and {WEIGHTS} there",
                            hint="hearth runs list")
    config = read_json_object(folder / CONFIG)
    _check_config(config, folder)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise BadFile(f"`{folder / CONFIG}` has r `{rank}` and lora_alpha `{alpha}`", why="expected numbers")
    tensors, metadata = read_tensors(folder / WEIGHTS)
    halves: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        matched = _TENSOR.fullmatch(name)
        if matched is None:
            raise Unsupported(f"`{name}` in `{folder / WEIGHTS}` is no LoRA matrix of a linear layer")
        halves.setdefault(matched["layer"], {})[matched["which"].removesuffix(".weight")] = tensor
    expected = {"A", "B", "magnitude_vector"} if config.get("use_dora") else {"A", "B"}
    stacked = {layer for layer in halves
               if config.get("target_parameters") and layer.replace(WRAPPED, "").endswith(".experts")}
    for layer, pair in halves.items():
        if pair.keys() != expected or {pair["A"].dim(), pair["B"].dim()} != {2} or (
                pair["A"].shape[0] % rank if layer in stacked else pair["A"].shape[0] != rank):
            raise BadFile(f"the tensors of `{layer}` in `{folder / WEIGHTS}` are no pair of rank {rank}",
                          why=f"expected {', '.join(sorted(expected))}, found {', '.join(sorted(pair))}")
    scale = lora_scale(rank, alpha, is_rank_stabilised=bool(config.get("use_rslora")))
    pairs = {layer: (pair["A"], pair["B"]) for layer, pair in halves.items()}
    stacks = {layer: pairs.pop(layer) for layer in stacked}
    magnitudes = {layer: pair["magnitude_vector"] for layer, pair in halves.items()
                  if "magnitude_vector" in pair}
    return StoredAdapter(AdapterWeights(pairs, scale, magnitudes, stacks),
                         str(config.get("base_model_name_or_path") or ""), metadata.get(_BASE_KEY, ""),
                         _hash(folder))


def _hash(folder: Path) -> str:
    hashes = "\n".join(hash_file(folder / name) for name in (CONFIG, WEIGHTS))
    return hashlib.sha256(hashes.encode()).hexdigest()


def _check_config(config: dict[str, Any], folder: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise Unsupported(f"`{folder}` holds an adapter of type `{config.get('peft_type')}`",
                          why="this version reads LORA")
    for field, plain in _REFUSED.items():
        value = config.get(field, plain)
        if value != plain and value:
            raise Unsupported(f"the adapter `{folder}` has {field} `{value}`",
                              why="this version reads plain LoRA on linear layers")
