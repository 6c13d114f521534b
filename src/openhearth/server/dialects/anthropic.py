"""Anthropic's dialect: messages, streamed and not, and their count of tokens.

Wire format: read from anthropic 2.12.0 (types and streaming), and pinned by tests against that client. Every
event has an `event:` line; the client skips those without. Unknown headers change nothing.

Does not: think, call tools, or read images and documents; requests for them are refused by name.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

from openhearth.errors import HearthError
from openhearth.server.dialects.messages import read_content, read_messages
from openhearth.server.errors import Refusal, sentence, status_and_code
from openhearth.server.exchange import Call, Dialect, Route, Stream, to_json
from openhearth.server.fields import (
    Field,
    flag,
    not_applicable,
    number,
    one_of,
    read_fields,
    refused,
    require,
    stop_texts,
    text,
    whole,
)
from openhearth.server.generation import Generation

_LATER = "tool calls are not in this version"
_KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
          404: "not_found_error", 405: "invalid_request_error", 408: "timeout_error",
          413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error"}

PROMPT_FIELDS = (
    Field("model", "a served model, or an adapter", text),
    Field("messages", "text of `user` and `assistant`; a last `assistant` one is continued", read_messages),
    Field("system", "a text, or blocks of text", read_content),
    refused("tools", _LATER, []),
    refused("tool_choice", _LATER, {"type": "auto"}, {"type": "none"}),
    Field("thinking", "`{\"type\": \"disabled\"}` tells the template not to think; others are refused: "
          "thinking is not split from the answer in this version", one_of({"type": "disabled"})),
    refused("output_config", "schemas and efforts are not in this version", {}),
    refused("speed", "there is one; `standard` is taken", "standard"),
    not_applicable("cache_control", "the cache finds equal beginnings by itself and changes no answer"),
    not_applicable("user_profile_id", "names an end user to Anthropic; nobody is told here"),
    not_applicable("workspace_id", "names an account at Anthropic"),
)

FIELDS = (
    *PROMPT_FIELDS,
    Field("max_tokens", "longest answer; required", whole(1, 2**31)),
    Field("stream", "answer in server-sent events", flag),
    Field("stop_sequences", "up to 64 texts; the answer ends before one", stop_texts(64)),
    Field("temperature", "0 is greedy; the model's own recommendation when left out", number(0, 1)),
    Field("top_p", "the likeliest tokens up to this mass", number(0, 1)),
    Field("top_k", "the K likeliest tokens", whole(0, 2**31)),
    not_applicable("metadata", "names an end user to Anthropic; nobody is told here"),
    refused("container", "code is not run here"),
    refused("diagnostics", "there are none"),
    refused("inference_geo", "inference is on this machine"),
    refused("service_tier", "there is one; `auto` and `standard_only` are taken", "auto", "standard_only"),
)


async def _prompt(call: Call, values: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the token ids of a request's conversation. Raises: Refusal, TemplateError."""
    messages = values["messages"]
    prefill = ""
    if messages[-1]["role"] == "assistant":
        *messages, last = messages
        prefill = last["content"]
        if prefill != prefill.rstrip():
            raise Refusal("the last message ends in white space", field="messages",
                          why="an answer that continues it would begin with a token that models do not write")
    if "system" in values:
        messages = [{"role": "system", "content": values["system"]}, *messages]
    variables = {"enable_thinking": False, "thinking": False} if "thinking" in values else {}
    return await call.served.render(messages, variables, prefill=prefill)


async def create(call: Call) -> Stream | dict[str, Any]:
    """`POST /v1/messages`."""
    values = read_fields(FIELDS, call.body)
    require(values, "model", "max_tokens", "messages")
    served = call.served
    adapter = served.adapter_of(values["model"])
    settings = {name: values[name] for name in ("temperature", "top_p", "top_k") if name in values}
    generation = await call.open(served.job(
        await _prompt(call, values), adapter=adapter, settings=settings, max_tokens=values["max_tokens"],
        stops=values.get("stop_sequences", ()), cache_salt=call.cache_salt))
    call.note(model=values["model"])
    message = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant",
               "model": values["model"], "content": [], "stop_reason": None, "stop_sequence": None}
    if values.get("stream", False):
        return Stream("text/event-stream", _events(call, generation, message), _stream_error)
    choice = (await generation.collect())[0]
    call.note_generation(generation)
    return {**message, "content": [{"type": "text", "text": choice.text}],
            **_stop(generation, choice.finish_reason, choice.stop), "usage": _usage(generation)}


async def _events(call: Call, generation: Generation, message: dict[str, Any]) -> AsyncIterator[bytes]:
    """Yield the events of a streamed message."""
    yield _event("message_start", message={**message, "usage": _usage(generation)})
    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    async for part in generation.parts():
        if part is None:
            yield _event("ping")
            continue
        if part.text:
            yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": part.text})
        if part.finish_reason is not None:
            yield _event("content_block_stop", index=0)
            yield _event("message_delta", delta=_stop(generation, part.finish_reason, part.stop),
                         usage=_usage(generation))
    call.note_generation(generation)
    yield _event("message_stop")


async def count_tokens(call: Call) -> dict[str, int]:
    """`POST /v1/messages/count_tokens`."""
    values = read_fields(PROMPT_FIELDS, call.body)
    require(values, "model", "messages")
    call.served.adapter_of(values["model"])
    return {"input_tokens": len(await _prompt(call, values))}


def _stop(generation: Generation, reason: str, stop: str | None) -> dict[str, str | None]:
    if stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    if reason == "length":
        is_full = generation.completion_tokens < generation.job.request.sampling.max_tokens
        return {"stop_reason": "model_context_window_exceeded" if is_full else "max_tokens",
                "stop_sequence": None}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def _usage(generation: Generation) -> dict[str, int]:
    """Return the counts; input_tokens are all of the prompt's, those that the cache had included."""
    return {"input_tokens": generation.prompt_tokens, "output_tokens": generation.completion_tokens}


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + to_json({"type": kind, **fields}) + b"\n\n"


def _error_of(error: HearthError, status: int) -> dict[str, str]:
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": kind, "message": sentence(error)}


def _stream_error(error: HearthError) -> bytes:
    return _event("error", error=_error_of(error, status_and_code(error)[0]))


def _error(error: HearthError, status: int, code: str | None, request_id: str) -> dict[str, Any]:
    return {"type": "error", "error": _error_of(error, status), "request_id": request_id}


ANTHROPIC = Dialect("anthropic", (
    Route("POST", "/v1/messages", create, FIELDS),
    Route("POST", "/v1/messages/count_tokens", count_tokens, PROMPT_FIELDS),
), _error)
