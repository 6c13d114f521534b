"""Anthropic's dialect: messages, streamed and not, and their count of tokens.

Wire format: read from anthropic 2.12.0 (types and streaming), and pinned by tests against that client. Every
event has an `event:` line; the client skips those without. Unknown headers change nothing.

Does not: run tools, or read images and documents; requests for them are refused by name.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

from openhearth.chat import GrammarText, schema_grammar
from openhearth.errors import HearthError
from openhearth.server.asking import Answering, Asked, named
from openhearth.server.dialects.anthropic_blocks import BlockStream, answer_blocks, read_tools, read_turns
from openhearth.server.dialects.messages import read_content
from openhearth.server.dialects.tools import check_choice, function_name
from openhearth.server.errors import Refusal, sentence, status_and_code
from openhearth.server.exchange import Call, Dialect, Route, Stream, to_json
from openhearth.server.fields import (
    Field,
    flag,
    mapping,
    not_applicable,
    number,
    object_schema,
    one_of,
    read_fields,
    refused,
    require,
    shaped,
    stop_texts,
    text,
    whole,
    wrong,
)
from openhearth.server.generation import Generation

_KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
          404: "not_found_error", 405: "invalid_request_error", 408: "timeout_error",
          413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error"}

CHOICE_FIELDS = (
    Field("type", "`auto`, `any`, `tool` or `none`", one_of("auto", "any", "tool", "none")),
    Field("name", "with `tool`: which", function_name),
    Field("disable_parallel_tool_use", "one call at most, by a grammar", flag),
)

THINKING_FIELDS = (
    Field("type", "`enabled`, `adaptive` or `disabled`", one_of("enabled", "adaptive", "disabled")),
    Field("budget_tokens", "with `enabled`: after so many tokens the thought is closed", whole(1, 2**31)),
    refused("display", "thoughts are shown as they are, neither summarized nor left out"),
)

OUTPUT_FIELDS = (
    Field("format", "`json_schema` with a `schema`", mapping),
    Field("effort", "how much to think", one_of("low", "medium", "high", "xhigh", "max")),
    refused("task_budget", "tokens of a whole task are not counted here"),
)

FORMAT_FIELDS = (
    Field("type", "`json_schema`", one_of("json_schema")),
    Field("schema", "the JSON schema", mapping),
)


@shaped(object_schema(CHOICE_FIELDS, "type"))
def _read_choice(name: str, value: Any) -> dict[str, Any]:
    values = read_fields(CHOICE_FIELDS, mapping(name, value), name)
    if "type" not in values or (values["type"] == "tool") is not ("name" in values):
        raise wrong(name, value, "a type, and with `tool` a name")
    return values


@shaped(object_schema(THINKING_FIELDS))
def _read_thinking(name: str, value: Any) -> dict[str, Any]:
    values = read_fields(THINKING_FIELDS, mapping(name, value), name)
    if "type" not in values or (values["type"] == "enabled") is not ("budget_tokens" in values):
        raise wrong(name, value, "a type, and with `enabled` `budget_tokens`")
    return values


@shaped(object_schema(OUTPUT_FIELDS))
def _read_output(name: str, value: Any) -> dict[str, Any]:
    values = read_fields(OUTPUT_FIELDS, mapping(name, value), name)
    if "format" in values:
        inner = read_fields(FORMAT_FIELDS, values["format"], f"{name}.format")
        if len(inner) < 2:
            raise wrong(f"{name}.format", values["format"], "a type and a schema")
        where = f"{name}.format.schema"
        values["format"] = named(where, lambda: schema_grammar(inner["schema"]))
    return values


PROMPT_FIELDS = (
    Field("model", "a served model, or an adapter", text),
    Field("messages", "text, thoughts, tool calls and their results; a last `assistant` message is continued",
          read_turns),
    Field("system", "a text, or blocks of text", read_content),
    Field("tools", "functions that the model may call, up to 128", read_tools),
    Field("tool_choice", "`auto`, `none` (keeps the tools from the model), `any` or `tool`, for which the "
          "answer is calls that follow their schemas", _read_choice),
    Field("thinking", "`disabled`, `adaptive` (as the template does by itself) or `enabled`; a thought is "
          "closed after `budget_tokens`. Refused where the model has no such switch", _read_thinking),
    Field("output_config", "`format`: a JSON schema that the answer follows; `effort` goes to templates that "
          "have `reasoning_effort`", _read_output),
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


async def _prepare(call: Call, values: Mapping[str, Any]) -> Asked:
    """Return a request's prompt and what its answer has to be. Raises: as `Served.prepare`."""
    messages = values["messages"]
    prefill = ""
    if messages[-1]["role"] == "assistant":
        *messages, last = messages
        prefill = last["content"]
        if "tool_calls" in last or "reasoning_content" in last:
            raise Refusal("the last message has more than text", field="messages",
                          why="an answer continues text; what a tool gave back is still to come")
        if prefill != prefill.rstrip():
            raise Refusal("the last message ends in white space", field="messages",
                          why="an answer that continues it would begin with a token that models do not write")
    if "system" in values:
        messages = [{"role": "system", "content": values["system"]}, *messages]
    return await call.served.prepare(messages, _answering(values), prefill=prefill)


def _answering(values: Mapping[str, Any]) -> Answering:
    tools, choice = values.get("tools", ()), values.get("tool_choice", {"type": "auto"})
    kind = {"any": "required", "tool": "required"}.get(choice["type"], choice["type"])
    chosen = choice.get("name")
    check_choice(tools, kind, chosen)
    thinking, output = values.get("thinking", {}), values.get("output_config", {})
    effort, field = {"disabled": "none", "enabled": "on"}.get(thinking.get("type")), "thinking"
    if "effort" in output and effort != "none":
        effort, field = output["effort"], "output_config.effort"
    grammar: GrammarText | None = output.get("format")
    return Answering(tools=tools, choice=kind, named=chosen, grammar=grammar,
                     grammar_field="output_config.format.schema", effort=effort, effort_field=field,
                     is_parallel=not choice.get("disable_parallel_tool_use", False),
                     thought_tokens=thinking.get("budget_tokens"))


async def create(call: Call) -> Stream | dict[str, Any]:
    """`POST /v1/messages`."""
    values = read_fields(FIELDS, call.body)
    require(values, "model", "max_tokens", "messages")
    served = call.served
    adapter = served.adapter_of(values["model"])
    settings = {name: values[name] for name in ("temperature", "top_p", "top_k") if name in values}
    asked = await _prepare(call, values)
    generation = await call.open(served.job(
        asked.token_ids, adapter=adapter, reading=asked.reading, max_tokens=values["max_tokens"],
        settings={**settings, "token_mask": asked.token_mask}, stops=values.get("stop_sequences", ()),
        cache_salt=call.cache_salt))
    call.note(model=values["model"])
    message = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant",
               "model": values["model"], "content": [], "stop_reason": None, "stop_sequence": None}
    if values.get("stream", False):
        return Stream("text/event-stream", _events(call, generation, message, asked), _stream_error)
    choice = (await generation.collect())[0]
    call.note_generation(generation)
    return {**message, "content": answer_blocks(choice.answer, asked.tool_format),
            **_stop(generation, choice.finish_reason, choice.stop, has_calls=bool(choice.answer.calls)),
            "usage": _usage(generation)}


async def _events(call: Call, generation: Generation, message: dict[str, Any],
                  asked: Asked) -> AsyncIterator[bytes]:
    """Yield the events of a streamed message."""
    yield _event("message_start", message={**message, "usage": _usage(generation)})
    blocks = BlockStream(asked.tool_format)
    async for part in generation.parts():
        if part is None:
            yield _event("ping")
            continue
        for piece in part.pieces:
            for kind, fields in blocks.add(piece):
                yield _event(kind, **fields)
        if part.finish_reason is not None:
            for kind, fields in blocks.finish():
                yield _event(kind, **fields)
            stop = _stop(generation, part.finish_reason, part.stop, has_calls=blocks.has_calls)
            yield _event("message_delta", delta=stop, usage=_usage(generation))
    call.note_generation(generation)
    yield _event("message_stop")


async def count_tokens(call: Call) -> dict[str, int]:
    """`POST /v1/messages/count_tokens`."""
    values = read_fields(PROMPT_FIELDS, call.body)
    require(values, "model", "messages")
    call.served.adapter_of(values["model"])
    return {"input_tokens": len((await _prepare(call, values)).token_ids)}


def _stop(generation: Generation, reason: str, stop: str | None, *,
          has_calls: bool) -> dict[str, str | None]:
    if stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    if reason == "length":
        is_full = generation.completion_tokens < generation.job.request.sampling.max_tokens
        return {"stop_reason": "model_context_window_exceeded" if is_full else "max_tokens",
                "stop_sequence": None}
    return {"stop_reason": "tool_use" if has_calls else "end_turn", "stop_sequence": None}


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
