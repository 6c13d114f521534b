"""Mistral's path for filling in a middle, which editors speak that were made for Codestral.

A prompt and a suffix in, a chat's message out. Wire format: Mistral's API description
(`FIMCompletionRequest`). Clients read `choices[0].delta.content` of every event, so that each one has a text,
and the last one brings the usage too.

Does not: continue a text without marks; an empty suffix is a gap at the end of one.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from openhearth.chat import Infill, Reading
from openhearth.server.dialects.openai_fields import (
    error_document,
    max_tokens_of,
    sampling_settings,
    stream_error,
    to_event,
    usage_of,
)
from openhearth.server.exchange import Call, Dialect, Route, Stream
from openhearth.server.fields import (
    Field,
    flag,
    number,
    read_fields,
    refused,
    require,
    stop_texts,
    text,
    whole,
)
from openhearth.server.generation import Generation

FIELDS = (
    Field("model", "a served model that has marks for a gap, or an adapter", text),
    Field("prompt", "the text before the gap; control tokens in it stay text", text),
    Field("suffix", "the text after the gap; empty when left out", text),
    Field("stream", "answer in server-sent events", flag),
    Field("max_tokens", "longest answer; the rest of the context when left out", whole(1, 2**31)),
    Field("max_completion_tokens", "the newer name of `max_tokens`, which Continue sends", whole(1, 2**31)),
    Field("stop", "one text, or up to 64; the answer ends before it", stop_texts(64)),
    Field("random_seed", "same request, same seed, same weights: same tokens, under any load",
          whole(0, 2**63 - 1)),
    Field("temperature", "0 is greedy; the model's own recommendation when left out", number(0, 2)),
    Field("top_p", "the likeliest tokens up to this mass", number(0, 1)),
    Field("presence_penalty", "taken from tokens that the answer has (as in OpenAI)", number(-2, 2)),
    Field("frequency_penalty", "taken once per occurrence in the answer (as in OpenAI)", number(-2, 2)),
    refused("min_tokens", "an answer ends where the model ends it; `0` is taken", 0),
    refused("metadata", "completions are not stored", {}),
)


async def fill(call: Call) -> Stream | dict[str, Any]:
    """`POST /v1/fim/completions`."""
    values = read_fields(FIELDS, call.body)
    require(values, "model", "prompt")
    served, model = call.served, values["model"]
    adapter = served.adapter_of(model)
    token_ids = await served.encode_infill(Infill(values["prompt"], values.get("suffix", "")), model)
    generation = await call.open(served.job(
        token_ids, adapter=adapter, settings=sampling_settings(values), max_tokens=max_tokens_of(values),
        seed=values.get("random_seed"), stops=values.get("stop", ()), cache_salt=call.cache_salt,
        reading=Reading(is_middle=True)))
    call.note(model=model)
    head = {"id": secrets.token_hex(16), "created": int(time.time()), "model": model}
    if values.get("stream", False):
        return Stream("text/event-stream", _chunks(call, generation, head), stream_error)
    choice = (await generation.collect())[0]
    call.note_generation(generation)
    message = {"role": "assistant", "content": choice.answer.content, "tool_calls": None}
    return {**head, "object": "chat.completion", "usage": usage_of([generation]), "choices": [
        {"index": 0, "message": message, "finish_reason": choice.finish_reason}]}


async def _chunks(call: Call, generation: Generation, head: dict[str, Any]) -> AsyncIterator[bytes]:
    """Yield the events of a streamed answer."""
    head = {**head, "object": "chat.completion.chunk"}

    def event(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
        return to_event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more})

    yield event({"role": "assistant", "content": ""})
    async for part in generation.parts():
        if part is None:
            yield b": still here\n\n"
        elif part.text:
            yield event({"content": part.text})
        if part is not None and part.finish_reason is not None:
            yield event({"content": ""}, part.finish_reason, usage=usage_of([generation]))
    call.note_generation(generation)
    yield b"data: [DONE]\n\n"


FIM = Dialect("fim", (Route("POST", "/v1/fim/completions", fill, FIELDS),), error_document)
