"""What Ollama's clients are told about a served model.

Does not: read anything but what is loaded.
"""

from __future__ import annotations

import hashlib
from typing import Any

from openhearth.server.served import Served
from openhearth.units import format_count


def describe(served: Served, name: str) -> dict[str, Any]:
    """Return a model's line in a list. The digest is that of its weights and its adapter."""
    stored = served.model.stored
    digest = stored.weights_sha256
    if name != served.name:
        version = served.engine.model.adapters[name].version
        digest = hashlib.sha256(f"{digest}+{version}".encode()).hexdigest()
    return {"name": name, "model": name, "modified_at": served.loaded_at, "size": stored.num_bytes,
            "digest": digest, "details": details(served)}


def details(served: Served) -> dict[str, Any]:
    """Return a model's shape in a few words."""
    spec = served.model.spec
    return {"parent_model": "", "format": "gguf" if served.model.stored.path.is_file() else "safetensors",
            "family": spec.model_type, "families": [spec.model_type],
            "parameter_size": format_count(spec.num_parameters), "quantization_level": spec.dtype.upper()}


def model_facts(served: Served, name: str) -> dict[str, Any]:
    """Return what `/api/show` answers."""
    model, spec = served.model, served.model.spec
    template = model.template.sources.get("default", "") if model.template else ""
    settings = "\n".join(f"{setting} {value:g}" for setting, value in sorted(model.default_sampling.items()))
    family = spec.model_type
    return {"modelfile": "", "parameters": settings, "template": template,
            "license": model.stored.licence or "", "modified_at": served.loaded_at,
            "details": details(served), "capabilities": ["completion"],
            "model_info": {"general.architecture": family, "general.basename": name,
                           "general.parameter_count": spec.num_parameters,
                           f"{family}.context_length": served.engine.context_length,
                           f"{family}.embedding_length": spec.hidden_size,
                           f"{family}.block_count": spec.num_layers,
                           f"{family}.attention.head_count": spec.num_heads,
                           f"{family}.attention.head_count_kv": spec.num_kv_heads}}
