"""Embeddings of OpenAI's dialect, from the decoder that is served.

A vector is the mean of the text's last hidden states, of all its tokens, scaled to length 1.

Does not: know models that were trained for embeddings; those of a chat model tell topics apart, not more.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any

from openhearth.server.errors import Refusal
from openhearth.server.exchange import Call
from openhearth.server.fields import (
    Field,
    not_applicable,
    one_of,
    read_fields,
    require,
    text,
    texts_or_ids,
    whole,
)
from openhearth.server.reading import embed

MAX_INPUTS = 2048
"""OpenAI's own limit."""

FIELDS = (
    Field("model", "the served model, or one of its adapters", text),
    Field("input", f"a text, token ids, or a list of up to {MAX_INPUTS} of either", texts_or_ids(MAX_INPUTS)),
    Field("dimensions", "the vector's first numbers, scaled to length 1 again; up to the model's width",
          whole(1, 2**31)),
    Field("encoding_format", "`float`, or `base64` (little-endian float32), which OpenAI's client asks for",
          one_of("float", "base64")),
    not_applicable("user", "names an end user to OpenAI; nobody is told here"),
)


async def create(call: Call) -> dict[str, Any]:
    """`POST /v1/embeddings`."""
    values = read_fields(FIELDS, call.body)
    require(values, "model", "input")
    served = call.served
    adapter = served.adapter_of(values["model"])
    dimensions = check_dimensions(call, values.get("dimensions"))
    call.note(model=values["model"])
    inputs = [await served.encode(one) if isinstance(one, str) else one for one in values["input"]]
    vectors = await embed(call, inputs, adapter, dimensions)
    is_packed = values.get("encoding_format") == "base64"
    num_tokens = sum(map(len, inputs))
    return {"object": "list", "model": values["model"],
            "data": [{"object": "embedding", "index": index,
                      "embedding": _packed(vector) if is_packed else vector}
                     for index, vector in enumerate(vectors)],
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens}}


def check_dimensions(call: Call, dimensions: int | None) -> int | None:
    """Return the dimensions that were asked for. Raises: Refusal for more than the model has."""
    width = call.served.model.spec.hidden_size
    if dimensions is not None and dimensions > width:
        raise Refusal(f"`dimensions` is `{dimensions}`", field="dimensions", code="invalid_value",
                      why=f"vectors of this model have {width} numbers")
    return dimensions


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
