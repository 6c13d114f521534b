"""What Ollama's clients are told about a model, loaded or not.

Does not: load one; what is not loaded is read from its headers.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from openhearth import chat, formats
from openhearth.chat.harmony import speaks_harmony
from openhearth.chat.thinking import knows_thinking
from openhearth.config import Config
from openhearth.local import default_sampling
from openhearth.server.models import Offer
from openhearth.server.served import plain_name
from openhearth.units import format_count


def describe(offer: Offer, name: str) -> dict[str, Any]:
    """Return a model's line in a list. The digest is that of its weights and its adapter."""
    stored, short = offer.plan.stored, plain_name(name)
    digest = stored.weights_sha256
    if short != offer.name:
        digest = hashlib.sha256(f"{digest}+{offer.adapters[short].sha256}".encode()).hexdigest()
    return {"name": name, "model": name, "modified_at": _time(offer.offered_at), "size": stored.num_bytes,
            "digest": digest, "details": _details(offer, name)}


def describe_loaded(offer: Offer, name: str) -> dict[str, Any]:
    """Return a loaded model's line: with what it holds, and when it goes if nobody asks."""
    expires_at = offer.expires_at
    return {**describe(offer, name), "size": offer.plan.num_bytes, "size_vram": 0,
            "expires_at": "9999-12-31T23:59:59Z" if expires_at is None else _time(expires_at),
            "context_length": offer.plan.context_length}


def model_facts(offer: Offer, name: str) -> dict[str, Any]:
    """Return what `/api/show` answers; reads the tokenizer's files of a model that is not loaded."""
    stored, spec, served = offer.plan.stored, offer.plan.spec, offer.served
    if served is not None:
        tokenizer, template = served.model.tokenizer, served.model.template
        sampling = served.model.default_sampling
    else:
        checkpoint = formats.open_checkpoint(stored.path)
        tokenizer = chat.load_tokenizer(checkpoint)
        template = chat.load_template(checkpoint, tokenizer)
        sampling = default_sampling(stored, checkpoint, Config.from_env())
    settings = "\n".join(f"{setting} {value:g}" for setting, value in sorted(sampling.items()))
    family = spec.model_type
    capabilities = ["completion"]
    if template is not None:
        capabilities.append("tools")
        if speaks_harmony(template, tokenizer) or knows_thinking(template, tokenizer):
            capabilities.append("thinking")
    if tokenizer.infill is not None:
        capabilities.append("insert")
    return {"modelfile": "", "parameters": settings,
            "template": _infill_note(tokenizer) + (template.sources.get("default", "") if template else ""),
            "license": stored.licence or "", "modified_at": _time(offer.offered_at),
            "details": _details(offer, name), "capabilities": capabilities,
            "model_info": {"general.architecture": family, "general.basename": name,
                           "general.parameter_count": spec.num_parameters,
                           f"{family}.context_length": offer.plan.context_length,
                           f"{family}.embedding_length": spec.hidden_size,
                           f"{family}.block_count": spec.num_layers,
                           f"{family}.attention.head_count": spec.num_heads,
                           f"{family}.attention.head_count_kv": spec.num_kv_heads}}


def _infill_note(tokenizer: chat.Tokenizer) -> str:
    """Return a comment of Jinja's that says how a prompt with a suffix is put together; "" where none can be.

    Ollama's own templates say it in Go's language, and clients look there for `.Suffix`.
    """
    if tokenizer.infill is None:
        return ""
    spelling = {token_id: text for text, token_id in tokenizer.control_tokens.items()}
    parts = tokenizer.infill.around(["{{ .Prompt }}"], ["{{ .Suffix }}"])
    written = "".join(spelling.get(part, part) for part in parts)
    return f"{{# {{{{ if .Suffix }}}}{written}{{{{ end }}}} #}}"


def _details(offer: Offer, name: str) -> dict[str, Any]:
    """Return a model's shape in a few words."""
    spec = offer.plan.spec
    return {"parent_model": "" if plain_name(name) == offer.name else offer.name,
            "format": "gguf" if offer.plan.stored.path.is_file() else "safetensors",
            "family": spec.model_type, "families": [spec.model_type],
            "parameter_size": format_count(spec.num_parameters), "quantization_level": spec.dtype.upper()}


def _time(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
