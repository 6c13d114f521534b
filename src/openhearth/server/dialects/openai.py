"""OpenAI's dialect: models and chat completions; text completions are in `completions.py`.

Wire format: read from openai 3.54.0 (types and streaming), and pinned by tests against that client.

Does not: split reasoning, call tools, or follow a schema; requests for them are refused by name.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from openhearth.server.dialects import completions, embeddings
from openhearth.server.dialects.messages import read_messages
from openhearth.server.dialects.openai_fields import (
    COMMON_FIELDS,
    LATER,
    MAX_LOGPROBS,
    error_document,
    include_usage,
    max_tokens_of,
    sampling_settings,
    stream_error,
    to_event,
    usage_of,
)
from openhearth.server.dialects.tokens import token_records
from openhearth.server.errors import Refusal
from openhearth.server.exchange import Call, Dialect, Route, Stream
from openhearth.server.fields import (
    Field,
    flag,
    mapping,
    not_applicable,
    one_of,
    read_fields,
    refused,
    require,
    whole,
)
from openhearth.server.generation import Generation

CHAT_FIELDS = (
    Field("messages", "text of `system`, `developer`, `user` and `assistant`", read_messages),
    *COMMON_FIELDS,
    Field("max_completion_tokens", "longest answer; the rest of the context when left out", whole(1, 2**31)),
    Field("max_tokens", "the older name of `max_completion_tokens`", whole(1, 2**31)),
    Field("logprobs", "log-probabilities of the tokens, of the distribution that was drawn from", flag),
    Field("top_logprobs", f"and of 0 to {MAX_LOGPROBS} alternatives; needs `logprobs`",
          whole(0, MAX_LOGPROBS)),
    Field("reasoning_effort", "`none` tells the template not to think; other values are refused: reasoning "
          "is not split from the answer in this version", one_of("none")),
    Field("chat_template_kwargs", "further variables for the chat template (as in vLLM)", mapping),
    refused("tools", LATER, []),
    refused("tool_choice", LATER, "none", "auto"),
    refused("parallel_tool_calls", LATER, True, False),
    refused("functions", LATER, []),
    refused("function_call", LATER, "none", "auto"),
    refused("response_format", "schemas are not in this version; `{\"type\": \"text\"}` is taken",
            {"type": "text"}),
    refused("modalities", "this version writes text only; `[\"text\"]` is taken", ["text"]),
    refused("audio", "this version writes text only"),
    refused("prediction", "predicted outputs are not in this version"),
    refused("web_search_options", "the server reaches no network"),
    refused("moderation", "there is no second model that judges"),
    refused("metadata", "completions are not stored", {}),
    refused("store", "completions are not stored", False),
    refused("service_tier", "there is one; `auto` and `default` are taken", "auto", "default"),
    refused("verbosity", "the model was not taught it; `medium` is taken", "medium"),
    not_applicable("safety_identifier", "names an end user to OpenAI; nobody is told here"),
    not_applicable("prompt_cache_key", "the cache finds equal beginnings by itself and changes no answer"),
    not_applicable("prompt_cache_options", "as `prompt_cache_key`"),
    not_applicable("prompt_cache_retention", "as `prompt_cache_key`"),
)


async def chat(call: Call) -> Stream | dict[str, Any]:
    """`POST /v1/chat/completions`."""
    values = read_fields(CHAT_FIELDS, call.body)
    require(values, "model", "messages")
    served = call.served
    adapter = served.adapter_of(values["model"])
    has_logprobs, num_logprobs = values.get("logprobs", False), values.get("top_logprobs", 0)
    if num_logprobs and not has_logprobs:
        raise Refusal(f"`top_logprobs` is `{num_logprobs}` without `logprobs`", field="top_logprobs",
                      hint="logprobs: true")
    variables = dict(values.get("chat_template_kwargs", {}))
    if "reasoning_effort" in values:
        variables = {"enable_thinking": False, "thinking": False, **variables}
    does_stream, with_usage = values.get("stream", False), include_usage(values)
    prompt = await served.render(values["messages"], variables)
    generation = await call.open(served.job(
        prompt, adapter=adapter, settings={**sampling_settings(values), "num_logprobs": num_logprobs},
        max_tokens=max_tokens_of(values), n=values.get("n", 1), seed=values.get("seed"),
        stops=values.get("stop", ()), cache_salt=call.cache_salt))
    call.note(model=values["model"])
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": "chat.completion",
            "created": int(time.time()), "model": values["model"],
            "system_fingerprint": f"fp_{served.engine.weights_version[:12]}"}
    if does_stream:
        chunks = _chunks(call, generation, head, has_logprobs=has_logprobs, with_usage=with_usage)
        return Stream("text/event-stream", chunks, stream_error)
    choices = await generation.collect()
    call.note_generation(generation)
    return {**head, "usage": usage_of([generation]), "choices": [
        {"index": choice.index, "finish_reason": choice.finish_reason,
         "message": {"role": "assistant", "content": choice.text, "refusal": None},
         "logprobs": _logprobs(call, choice.events, has_logprobs=has_logprobs)} for choice in choices]}


async def _chunks(call: Call, generation: Generation, head: dict[str, Any], *, has_logprobs: bool,
                  with_usage: bool) -> AsyncIterator[bytes]:
    """Yield the events of a streamed chat completion."""
    head = {**head, "object": "chat.completion.chunk"}
    usage = {"usage": None} if with_usage else {}

    def event(index: int, delta: dict[str, str], reason: str | None, events: tuple = ()) -> bytes:
        logprobs = _logprobs(call, events, has_logprobs=has_logprobs and bool(events))
        return to_event({**head, **usage, "choices": [
            {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}]})

    for index in range(generation.job.request.n):
        yield event(index, {"role": "assistant", "content": ""}, None)
    async for part in generation.parts():
        if part is None:
            yield b": still here\n\n"
            continue
        if part.text or part.events:
            yield event(part.index, {"content": part.text}, None, part.events)
        if part.finish_reason is not None:
            yield event(part.index, {}, part.finish_reason)
    call.note_generation(generation)
    if with_usage:
        yield to_event({**head, "choices": [], "usage": usage_of([generation])})
    yield b"data: [DONE]\n\n"


def _logprobs(call: Call, events: tuple, *, has_logprobs: bool) -> dict[str, Any] | None:
    if not has_logprobs:
        return None
    return {"content": token_records(call.served.model.tokenizer, events), "refusal": None}


async def list_models(call: Call) -> dict[str, Any]:
    """`GET /v1/models`."""
    return {"object": "list", "data": [_model(call, name) for name in call.models.names]}


async def show_model(call: Call) -> dict[str, Any]:
    """`GET /v1/models/{id}`."""
    return _model(call, call.path["id"])


def _model(call: Call, name: str) -> dict[str, Any]:
    """Return a model's entry; `parent` (as in vLLM) is the model that an adapter belongs to."""
    offer = call.models.find(name)
    return {"id": name, "object": "model", "created": int(offer.offered_at.timestamp()),
            "owned_by": "openhearth", "parent": None if name.removesuffix(":latest") == offer.name
            else offer.name, "max_model_len": offer.plan.context_length, "state": offer.state}


OPENAI = Dialect("openai", (
    Route("GET", "/v1/models", list_models),
    Route("GET", "/v1/models/{id:path}", show_model),
    Route("POST", "/v1/chat/completions", chat, CHAT_FIELDS),
    Route("POST", "/v1/completions", completions.complete, completions.FIELDS),
    Route("POST", "/v1/embeddings", embeddings.create, embeddings.FIELDS),
), error_document)
