"""The Responses API of OpenAI's dialect: answers that are kept, and conversations that go on from them.

A response is made while its client waits; it is kept when it is whole, under the key that asked for it. The
fields are in `response_fields.py` and `response_tools.py`, the items in `response_items.py`, how an answer
becomes items in `response_output.py`.

Does not: run in the background, so there is nothing to cancel; compact conversations.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from openhearth.errors import HearthError
from openhearth.server.asking import Asked
from openhearth.server.dialects.openai_fields import error_document, sampling_settings
from openhearth.server.dialects.response_fields import (
    CREATE_FIELDS,
    INPUT_TOKENS_FIELDS,
    ITEMS_QUERY,
    RETRIEVE_QUERY,
)
from openhearth.server.dialects.response_items import Item, messages_of
from openhearth.server.dialects.response_output import OutputStream, Step
from openhearth.server.dialects.response_tools import answering_of
from openhearth.server.errors import Refusal, sentence
from openhearth.server.exchange import Call, Dialect, Route, Stream, to_json
from openhearth.server.fields import read_fields, require
from openhearth.server.generation import Generation
from openhearth.server.response_store import ResponseStore, StoredResponse


@dataclass(frozen=True)
class _Draft:
    """A response on its way: the document without its output, what it was given, and whether it is kept."""

    document: dict[str, Any]
    input_items: list[Item]
    is_kept: bool
    has_logprobs: bool


class Responses:
    """The handlers of these paths over one store."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    async def create(self, call: Call) -> Stream | dict[str, Any]:
        """`POST /v1/responses`."""
        values = read_fields(CREATE_FIELDS, call.body)
        require(values, "model", "input")
        adapter = call.served.adapter_of(values["model"])
        draft = self._draft(call.body, values)
        if "stream_options" in values and not values.get("stream", False):
            raise Refusal("`stream_options` is given without `stream`", field="stream_options",
                          hint="stream: true")
        asked = await self._asked(call, values)
        generation = await call.open(call.served.job(
            asked.token_ids, adapter=adapter, reading=asked.reading,
            settings={**sampling_settings(values), "num_logprobs": values.get("top_logprobs", 0),
                      "token_mask": asked.token_mask},
            max_tokens=values.get("max_output_tokens"), seed=values.get("seed"),
            stops=values.get("stop", ()), cache_salt=call.cache_salt))
        call.note(model=values["model"])
        tokenizer = call.served.model.tokenizer if draft.has_logprobs else None
        writer = _Writer(self, call, generation, draft, OutputStream(asked.tool_format, tokenizer))
        if values.get("stream", False):
            return Stream("text/event-stream", writer.events(), writer.failure)
        return await writer.whole()

    async def count(self, call: Call) -> dict[str, Any]:
        """`POST /v1/responses/input_tokens`."""
        values = read_fields(INPUT_TOKENS_FIELDS, call.body)
        require(values, "model", "input")
        call.served.adapter_of(values["model"])
        asked = await self._asked(call, values)
        return {"object": "response.input_tokens", "input_tokens": len(asked.token_ids)}

    async def retrieve(self, call: Call) -> dict[str, Any]:
        """`GET /v1/responses/{id}`."""
        read_fields(RETRIEVE_QUERY, call.query)
        return (await self._find(call)).response

    async def delete(self, call: Call) -> dict[str, Any]:
        """`DELETE /v1/responses/{id}`."""
        await self._find(call)
        await asyncio.to_thread(self._store.delete, _owner(call), call.path["id"])
        return {"id": call.path["id"], "object": "response", "deleted": True}

    async def cancel(self, call: Call) -> dict[str, Any]:
        """`POST /v1/responses/{id}/cancel`."""
        await self._find(call)
        raise Refusal(f"response `{call.path['id']}` cannot be cancelled", code="not_cancellable",
                      why="it is complete: responses are made while their clients wait",
                      hint="a client that leaves ends its response")

    async def list_items(self, call: Call) -> dict[str, Any]:
        """`GET /v1/responses/{id}/input_items`."""
        values = read_fields(ITEMS_QUERY, call.query)
        items = (await self._find(call)).input_items
        if values.get("order", "desc") == "desc":
            items = items[::-1]
        if "after" in values:
            ids = [item["id"] for item in items]
            if values["after"] not in ids:
                raise Refusal(f"`after` is `{values['after'][:120]}`", field="after", code="invalid_value",
                              why="no item of this response has that id")
            items = items[ids.index(values["after"]) + 1:]
        limit = values.get("limit", 20)
        shown = items[:limit]
        return {"object": "list", "data": shown, "has_more": len(items) > limit,
                "first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}

    async def keep(self, call: Call, response: dict[str, Any], input_items: list[Item]) -> None:
        """Store a response under the key that asked for it."""
        await asyncio.to_thread(self._store.put, _owner(call), response, input_items)

    def _draft(self, body: Mapping[str, Any], values: Mapping[str, Any]) -> _Draft:
        """Return a response before its output, with what was asked as the body has it. Raises: Refusal."""
        has_logprobs = values.get("include", False)
        if values.get("top_logprobs") and not has_logprobs:
            raise Refusal(f"`top_logprobs` is `{values['top_logprobs']}` without `include`",
                          field="top_logprobs", hint='include: ["message.output_text.logprobs"]')
        if values.get("store", False) and not self._store.keep_days:
            raise Refusal("`store` is `true`", field="store", code="unsupported_field",
                          why="this server keeps no responses", hint="hearth serve --keep-responses DAYS")
        is_kept = values.get("store", True) and self._store.keep_days > 0
        return _Draft({
            "id": f"resp_{secrets.token_hex(24)}", "object": "response", "created_at": int(time.time()),
            "status": "in_progress", "completed_at": None, "error": None, "incomplete_details": None,
            "instructions": values.get("instructions"), "max_output_tokens": values.get("max_output_tokens"),
            "metadata": values.get("metadata", {}), "model": values["model"], "output": [],
            "parallel_tool_calls": values.get("parallel_tool_calls", True),
            "previous_response_id": values.get("previous_response_id"),
            "reasoning": {"effort": values.get("reasoning", {}).get("effort"), "summary": None},
            "store": is_kept, "temperature": values.get("temperature"), "top_p": values.get("top_p"),
            "text": {"format": (body.get("text") or {}).get("format") or {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto", "tools": body.get("tools") or [],
            "top_logprobs": values.get("top_logprobs", 0), "truncation": "disabled", "background": False,
            "service_tier": "default", "usage": None}, values["input"], is_kept, has_logprobs)

    async def _asked(self, call: Call, values: Mapping[str, Any]) -> Asked:
        """Return the prompt of a conversation with all that went before. Raises: as `Served.prepare`."""
        answering = answering_of(values)
        items = list(values["input"])
        before = values.get("previous_response_id")
        while before is not None:
            stored = await asyncio.to_thread(self._store.get, _owner(call), before)
            if stored is None:
                raise Refusal(f"there is no response `{before[:120]}`", field="previous_response_id",
                              code="previous_response_not_found",
                              why="it was not stored, was deleted, or is older than this server keeps them")
            items = [*stored.input_items, *stored.response["output"], *items]
            before = stored.response["previous_response_id"]
        messages = messages_of(items)
        if "instructions" in values:
            messages.insert(0, {"role": "system", "content": values["instructions"]})
        return await call.served.prepare(messages, answering)

    async def _find(self, call: Call) -> StoredResponse:
        stored = await asyncio.to_thread(self._store.get, _owner(call), call.path["id"])
        if stored is None:
            raise Refusal(f"there is no response `{call.path['id'][:120]}`", status=404, field="id",
                          code="response_not_found")
        return stored


class _Writer:
    """One response while it is written, as a document or as events numbered from 0."""

    def __init__(self, responses: Responses, call: Call, generation: Generation, draft: _Draft,
                 output: OutputStream) -> None:
        self._responses, self._call, self._generation = responses, call, generation
        self._draft, self._output, self._num_events = draft, output, 0

    async def whole(self) -> dict[str, Any]:
        """Return the response, kept if it is to be."""
        async for step in self._steps():
            last = step
        return last[1]["response"]

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events of a streamed response."""
        yield self._event("created", response=self._draft.document)
        yield self._event("in_progress", response=self._draft.document)
        async for step in self._steps():
            yield b": still here\n\n" if step is None else self._event(step[0], **step[1])

    def failure(self, error: HearthError) -> bytes:
        """Return the last event of a response that failed on the way."""
        return self._event("failed", response={
            **self._draft.document, "status": "failed",
            "error": {"code": "server_error", "message": sentence(error)}})

    async def _steps(self) -> AsyncIterator[Step | None]:
        """Yield the events from the first item on, the whole response last; None when nothing came."""
        async for part in self._generation.parts():
            if part is None:
                yield None
                continue
            for step in self._output.add(part):
                yield step
        is_cut = self._generation.finish_reasons[0] == "length"
        status = "incomplete" if is_cut else "completed"
        for step in self._output.finish(status):
            yield step
        response = {**self._draft.document, "status": status, "completed_at": int(time.time()),
                    "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
                    "output": self._output.items, "usage": _usage(self._generation)}
        self._call.note_generation(self._generation)
        if self._draft.is_kept:
            await self._responses.keep(self._call, response, self._draft.input_items)
        yield status, {"response": response}

    def _event(self, kind: str, **fields: Any) -> bytes:
        kind = f"response.{kind}"
        body = to_json({"type": kind, "sequence_number": self._num_events, **fields})
        self._num_events += 1
        return b"event: " + kind.encode() + b"\ndata: " + body + b"\n\n"


def _owner(call: Call) -> str:
    """Return whose responses a caller sees; without keys everyone on this machine is one."""
    return call.record.key_name or ""


def _usage(generation: Generation) -> dict[str, Any]:
    return {"input_tokens": generation.prompt_tokens,
            "input_tokens_details": {"cached_tokens": generation.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": generation.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": generation.reasoning_tokens},
            "total_tokens": generation.prompt_tokens + generation.completion_tokens}


def responses_dialect(store: ResponseStore) -> Dialect:
    """Return the paths of the Responses API over a store."""
    responses = Responses(store)
    one = "/v1/responses/{id}"
    return Dialect("openai", (
        Route("POST", "/v1/responses", responses.create, CREATE_FIELDS),
        Route("POST", "/v1/responses/input_tokens", responses.count, INPUT_TOKENS_FIELDS),
        Route("GET", one, responses.retrieve, query=RETRIEVE_QUERY),
        Route("DELETE", one, responses.delete),
        Route("POST", f"{one}/cancel", responses.cancel),
        Route("GET", f"{one}/input_items", responses.list_items, query=ITEMS_QUERY),
    ), error_document)
