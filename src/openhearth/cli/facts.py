"""What a model's headers say, gathered for `hearth show`: no weights are read, torch is not imported.

Does not: print, or judge whether the facts are good news.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhearth.errors import HearthError, Unsupported

if TYPE_CHECKING:
    from openhearth.formats import Checkpoint
    from openhearth.hub import StoredModel

_MAX_README_BYTES = 1 << 20
# tokenizer.ggml.model values: the GGUF specification, "Tokenizer".
_GGUF_TOKENIZERS = {"gpt2": "byte-level BPE", "llama": "SentencePiece BPE", "t5": "SentencePiece unigram",
                    "bert": "WordPiece", "rwkv": "RWKV"}


def gather(stored: StoredModel) -> dict[str, Any]:
    """Return facts about a model on disk, as JSON has them.

    "unsupported" is the reason why this version cannot run it, None when it can. Raises: BadFile,
    UnsafeFile.
    """
    from openhearth.formats import open_checkpoint
    from openhearth.hub import is_dataset

    if is_dataset(stored.name.removeprefix("hub:")):
        return {"unsupported": f"it is a data set, for hearth tune --data {stored.name}"}
    try:
        checkpoint = open_checkpoint(stored.path)
    except Unsupported as error:
        return {"unsupported": error.what}
    return {**_spec_facts(checkpoint), "format": checkpoint.format, "quantisation": _type_mix(checkpoint),
            "tokenizer": _tokenizer(checkpoint), "has_template": bool(templates(checkpoint)),
            "licence": stored.licence or _licence(checkpoint)}


def templates(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the chat templates by name. Raises: BadFile."""
    from openhearth.chat.files import find_templates

    return find_templates(checkpoint)


def _spec_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    from openhearth.spec import holds_mtp, read_spec

    try:
        spec = read_spec(checkpoint)
    except Unsupported as error:
        named = checkpoint.metadata.get("general.architecture") or checkpoint.config.get("model_type")
        return {"unsupported": error.what, "architecture": named, "num_parameters": _num_elements(checkpoint)}
    return {"unsupported": None, "architecture": spec.model_type, "num_parameters": spec.num_parameters,
            "num_active_parameters": spec.num_active_parameters,
            "num_mtp_parameters": spec.num_mtp_parameters if holds_mtp(spec, checkpoint) else 0,
            "context_length": spec.max_position, "longest_context": spec.longest_context,
            "num_layers": spec.num_layers, "hidden_size": spec.hidden_size, "vocab_size": spec.vocab_size,
            "rope": spec.rope.type, "kv_bytes_per_token": spec.kv_bytes_per_token()}


def _num_elements(checkpoint: Checkpoint) -> int:
    return sum(math.prod(entry.shape) for entry in checkpoint.tensors.values())


def _type_mix(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    """Return tensors and bytes by tensor type, the largest share first."""
    mix: dict[str, dict[str, int]] = {}
    for entry in checkpoint.tensors.values():
        share = mix.setdefault(entry.type, {"num_tensors": 0, "num_bytes": 0})
        share["num_tensors"] += 1
        share["num_bytes"] += entry.num_bytes
    return dict(sorted(mix.items(), key=lambda item: -item[1]["num_bytes"]))


def _tokenizer(checkpoint: Checkpoint) -> str | None:
    if checkpoint.format == "gguf":
        kind = checkpoint.metadata.get("tokenizer.ggml.model")
        return f"{_GGUF_TOKENIZERS.get(kind, kind)} (in the GGUF file)" if isinstance(kind, str) else None
    from openhearth.chat.files import TOKENIZER_MODELS
    from openhearth.formats.json_files import read_json_object

    path = checkpoint.path / "tokenizer.json"
    if path.is_file():
        model = read_json_object(path, 256 << 20).get("model")
        kind = model.get("type") if isinstance(model, dict) else None
        return f"{kind or 'unknown kind'} (tokenizer.json)"
    if (checkpoint.path / "tekken.json").is_file():
        return "BPE (tekken.json)"
    found = next((name for name in TOKENIZER_MODELS if (checkpoint.path / name).is_file()), None)
    return f"SentencePiece ({found})" if found else None


def _licence(checkpoint: Checkpoint) -> str | None:
    """Return the licence that the files themselves name: GGUF metadata, or the model card's header."""
    named = checkpoint.metadata.get("general.license")
    if isinstance(named, str):
        return named
    card = checkpoint.path / "README.md" if checkpoint.format == "safetensors" else None
    return _card_licence(card) if card and card.is_file() else None


def _card_licence(card: Path) -> str | None:
    with open(card, encoding="utf-8", errors="replace") as file:
        text = file.read(_MAX_README_BYTES)
    header = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^licen[sc]e:[ \t]*['\"]?([\w.+-]+)", header[1], re.MULTILINE) if header else None
    return found[1] if found else None


def sources_of(name: str, config: Any) -> tuple[str, ...]:
    """Return where a short name can be had; nothing for other names."""
    from openhearth.hub import load_catalogue

    try:
        entry = load_catalogue(config).get(name)
    except HearthError:
        return ()
    return entry.sources if entry else ()
