"""Embeddings of Ollama's dialect; what a vector is, `embeddings.py` says.

Does not: leave vectors of the older path at the length they had; both paths give length 1.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from openhearth.server.dialects.embeddings import MAX_INPUTS, check_dimensions
from openhearth.server.dialects.ollama import COMMON_FIELDS, OLLAMA
from openhearth.server.errors import Refusal
from openhearth.server.exchange import Call, Dialect, Route
from openhearth.server.fields import (
    Field,
    array,
    flag,
    read_fields,
    require,
    shaped,
    text,
    text_or_list,
    whole,
    wrong,
)
from openhearth.server.reading import embed


@shaped(text_or_list({"type": "string"}, maxItems=MAX_INPUTS))
def _texts(name: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else array(name, value)
    if not all(isinstance(one, str) for one in texts) or len(texts) > MAX_INPUTS:
        raise wrong(name, value, f"a text, or up to {MAX_INPUTS} of them")
    return texts


_SHARED = {field.name: field for field in COMMON_FIELDS}
_OPTIONS = Field("options", "as of `/api/chat`; how to draw changes nothing here", _SHARED["options"].read)

EMBED_FIELDS = (
    _SHARED["model"],
    Field("input", f"a text, or a list of up to {MAX_INPUTS}", _texts),
    Field("truncate", "texts longer than the context lose their end; `false` refuses them", flag),
    Field("dimensions", "the vector's first numbers, scaled to length 1 again; up to the model's width",
          whole(1, 2**31)),
    _OPTIONS,
    _SHARED["keep_alive"],
)

EMBEDDINGS_FIELDS = (
    _SHARED["model"],
    Field("prompt", "a text; `/api/embed` takes several", text),
    _OPTIONS,
    _SHARED["keep_alive"],
)


async def create(call: Call) -> dict[str, Any]:
    """`POST /api/embed`."""
    started = time.perf_counter()
    values = read_fields(EMBED_FIELDS, call.body)
    require(values, "model", "input")
    vectors, num_tokens = await _embed(call, values, values["input"])
    return {"model": values["model"], "embeddings": vectors, "load_duration": 0,
            "total_duration": round((time.perf_counter() - started) * 1e9), "prompt_eval_count": num_tokens}


async def create_one(call: Call) -> dict[str, Any]:
    """`POST /api/embeddings`, the older path."""
    values = read_fields(EMBEDDINGS_FIELDS, call.body)
    require(values, "model", "prompt")
    vectors, _ = await _embed(call, values, [values["prompt"]])
    return {"embedding": vectors[0]}


async def _embed(call: Call, values: Mapping[str, Any], texts: list[str]) -> tuple[list[list[float]], int]:
    """Return vectors, and how many tokens they are of."""
    served = call.served
    adapter = served.adapter_of(values["model"])
    context = served.engine.context_length
    context = min(context, values.get("options", {}).get("num_ctx", context))
    dimensions = check_dimensions(call, values.get("dimensions"))
    call.note(model=values["model"])
    inputs = [await served.encode(one) for one in texts]
    longest = max(map(len, inputs), default=0)
    if values.get("truncate", True):
        inputs = [one[:context - 1] for one in inputs]
    elif longest >= context:
        raise Refusal(f"a text has {longest} tokens, the context {context}", field="input",
                      code="context_length_exceeded", hint="truncate: true")
    return await embed(call, inputs, adapter, dimensions), sum(map(len, inputs))


OLLAMA_EMBED = Dialect("ollama", (
    Route("POST", "/api/embed", create, EMBED_FIELDS),
    Route("POST", "/api/embeddings", create_one, EMBEDDINGS_FIELDS),
), OLLAMA.error)
