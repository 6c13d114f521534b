"""OpenAI's dialect: models and chat completions; text completions are in `completions.py`.

Wire format: read from openai 3.54.0 (types and streaming), and pinned by tests against that client.
Thoughts go out under both names that clients read, `reasoning_content` and `reasoning`.

Does not: call tools itself, or store completions.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from openhearth.chat import AnswerPiece, WholeAnswer
from openhearth.server.asking import Answering, Asked
from openhearth.server.dialects import completions, embeddings
from openhearth.server.dialects.messages import read_messages
from openhearth.server.dialects.openai_fields import (
    COMMON_FIELDS,
    EFFORTS,
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
from openhearth.server.dialects.tools import (
    call_id,
    check_choice,
    read_choice,
    read_response_format,
    read_tools,
)
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
from openhearth.server.served import plain_name

CHAT_FIELDS = (
    Field("messages", "text of `system`, `developer`, `user` and `assistant`, tool calls and their results",
          read_messages),
    *COMMON_FIELDS,
    Field("max_completion_tokens", "longest answer; the rest of the context when left out", whole(1, 2**31)),
    Field("max_tokens", "the older name of `max_completion_tokens`", whole(1, 2**31)),
    Field("logprobs", "log-probabilities of the tokens, of the distribution that was drawn from", flag),
    Field("top_logprobs", f"and of 0 to {MAX_LOGPROBS} alternatives; needs `logprobs`",
          whole(0, MAX_LOGPROBS)),
    Field("reasoning_effort", "`none` tells the template not to think; other values go to templates that "
          "have `reasoning_effort`, and are refused for others",
          one_of(*EFFORTS)),
    Field("chat_template_kwargs", "further variables for the chat template (as in vLLM)", mapping),
    Field("tools", "functions that the model may call, up to 128", read_tools),
    Field("tool_choice", "`auto`; `none` keeps the tools from the model; with `required` or a function by "
          "name the answer is calls that follow their schemas", read_choice),
    Field("parallel_tool_calls", "`false`: one call at most, by a grammar", flag),
    refused("functions", "the older way; `tools` is taken", []),
    refused("function_call", "the older way; `tool_choice` is taken", "none", "auto"),
    Field("response_format", "`text`, `json_object` or `json_schema`; the answer follows it, strict or not. "
          "With tools the answer is calls, or follows it", read_response_format),
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
    does_stream, with_usage = values.get("stream", False), include_usage(values)
    answering = answering_of(values)
    asked = await served.prepare(values["messages"], answering, values.get("chat_template_kwargs"))
    generation = await call.open(served.job(
        asked.token_ids, adapter=adapter, reading=asked.reading,
        settings={**sampling_settings(values), "num_logprobs": num_logprobs, "token_mask": asked.token_mask},
        max_tokens=max_tokens_of(values), n=values.get("n", 1), seed=values.get("seed"),
        stops=values.get("stop", ()), cache_salt=call.cache_salt))
    call.note(model=values["model"])
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": "chat.completion",
            "created": int(time.time()), "model": values["model"],
            "system_fingerprint": f"fp_{served.engine.weights_version[:12]}"}
    chat = _Chat(call, generation, head, asked, is_named=answering.named is not None,
                 has_logprobs=has_logprobs)
    if does_stream:
        return Stream("text/event-stream", chat.chunks(with_usage=with_usage), stream_error)
    return await chat.whole()


def answering_of(values: dict[str, Any]) -> Answering:
    """Return what a request says about its answer. Raises: Refusal for fields that do not go together."""
    tools = values.get("tools", ())
    choice, named = values.get("tool_choice", ("auto", None))
    check_choice(tools, choice, named)
    grammar, field = values.get("response_format"), "response_format"
    if "structured_outputs" in values:
        if grammar is not None:
            raise Refusal("`structured_outputs` and `response_format` are both given",
                          field="structured_outputs", hint="one of them")
        grammar, field = values["structured_outputs"], "structured_outputs"
    return Answering(tools=tools, choice=choice, named=named, grammar=grammar, grammar_field=field,
                     is_parallel=values.get("parallel_tool_calls", True),
                     effort=values.get("reasoning_effort"))


class _Chat:
    """The answer to one chat request, whole or as events, from the same pieces."""

    def __init__(self, call: Call, generation: Generation, head: dict[str, Any], asked: Asked, *,
                 is_named: bool, has_logprobs: bool) -> None:
        self._call, self._generation, self._head, self._asked = call, generation, head, asked
        self._is_named, self._has_logprobs = is_named, has_logprobs

    async def whole(self) -> dict[str, Any]:
        """Return the answer as one document."""
        choices = await self._generation.collect()
        self._call.note_generation(self._generation)
        return {**self._head, "usage": usage_of([self._generation]), "choices": [
            {"index": choice.index, "message": self._message(choice.answer),
             "finish_reason": self._reason(choice.finish_reason, bool(choice.answer.calls)),
             "logprobs": self._logprobs(choice.events)} for choice in choices]}

    async def chunks(self, *, with_usage: bool) -> AsyncIterator[bytes]:
        """Yield the events of a streamed answer."""
        head = {**self._head, "object": "chat.completion.chunk"}
        usage = {"usage": None} if with_usage else {}
        callers: set[int] = set()

        def event(index: int, delta: dict[str, Any], reason: str | None, events: tuple = ()) -> bytes:
            return to_event({**head, **usage, "choices": [
                {"index": index, "delta": delta, "logprobs": self._logprobs(events) if events else None,
                 "finish_reason": reason}]})

        for index in range(self._generation.job.request.n):
            yield event(index, {"role": "assistant", "content": ""}, None)
        async for part in self._generation.parts():
            if part is None:
                yield b": still here\n\n"
                continue
            events = part.events if self._has_logprobs else ()
            for piece in part.pieces:
                if piece.kind == "call":
                    callers.add(part.index)
                yield event(part.index, self._delta(piece), None, events)
                events = ()
            if events:
                yield event(part.index, {"content": ""}, None, events)
            if part.finish_reason is not None:
                yield event(part.index, {}, self._reason(part.finish_reason, part.index in callers))
        self._call.note_generation(self._generation)
        if with_usage:
            yield to_event({**head, "choices": [], "usage": usage_of([self._generation])})
        yield b"data: [DONE]\n\n"

    def _delta(self, piece: AnswerPiece) -> dict[str, Any]:
        if piece.kind == "content":
            return {"content": piece.text}
        if piece.kind == "reasoning":
            return {"reasoning_content": piece.text, "reasoning": piece.text}
        if piece.kind == "arguments":
            return {"tool_calls": [{"index": piece.call, "function": {"arguments": piece.text}}]}
        return {"tool_calls": [{"index": piece.call, "id": call_id(self._asked.tool_format),
                                "type": "function", "function": {"name": piece.text, "arguments": ""}}]}

    def _message(self, answer: WholeAnswer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "refusal": None,
                                   "content": answer.content or (None if answer.calls else "")}
        if answer.reasoning:
            message |= {"reasoning_content": answer.reasoning, "reasoning": answer.reasoning}
        if answer.calls:
            message["tool_calls"] = [
                {"id": call_id(self._asked.tool_format), "type": "function",
                 "function": {"name": one.name, "arguments": one.arguments}} for one in answer.calls]
        return message

    def _reason(self, reason: str, has_calls: bool) -> str:
        """Return why an answer ended; OpenAI says `stop` where the function was chosen by name."""
        return "tool_calls" if has_calls and reason == "stop" and not self._is_named else reason

    def _logprobs(self, events: tuple) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        return {"content": token_records(self._call.served.model.tokenizer, events), "refusal": None}


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
            "owned_by": "openhearth", "parent": None if plain_name(name) == offer.name
            else offer.name, "max_model_len": offer.plan.context_length, "state": offer.state}


OPENAI = Dialect("openai", (
    Route("GET", "/v1/models", list_models),
    Route("GET", "/v1/models/{id:path}", show_model),
    Route("POST", "/v1/chat/completions", chat, CHAT_FIELDS),
    Route("POST", "/v1/completions", completions.complete, completions.FIELDS),
    Route("POST", "/v1/embeddings", embeddings.create, embeddings.FIELDS),
), error_document)
