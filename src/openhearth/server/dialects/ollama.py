"""Ollama's dialect: chat and generate, and what its clients ask about models.

Wire format: read from ollama 0.6.3 (the Python client) and pinned by tests against it. Streams are lines of
JSON; `stream` is on unless it is turned off.

Does not: change models (`hearth pull` does), call tools itself, or read images; these are refused by name.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from openhearth.chat import AnswerPiece, Infill, Reading, ToolCall, whole_answer
from openhearth.errors import HearthError
from openhearth.server.asking import Answering, Asked
from openhearth.server.dialects.messages import MESSAGE_SCHEMA, read_messages
from openhearth.server.dialects.ollama_models import describe, describe_loaded, model_facts
from openhearth.server.dialects.tokens import token_records
from openhearth.server.dialects.tools import arguments_of, read_format, read_tools
from openhearth.server.errors import Refusal, sentence
from openhearth.server.exchange import Call, Dialect, Route, Stream, to_json
from openhearth.server.fields import (
    Field,
    flag,
    number,
    object_of,
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

OLLAMA_VERSION = "0.12.11"
"""The release of Ollama whose API is spoken here: the first one with `logprobs`."""
MAX_LOGPROBS = 20
_DURATION = re.compile(r"-?(?:\d{1,12}(?:\.\d{1,12})?(?:ns|us|ms|s|m|h)?){1,6}")
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
FOREVER_S = -1.0
_LONGEST_S = 1e9
"""Thirty years are for ever."""


@shaped({"type": ["string", "integer", "number"]})
def _keep_alive(name: str, value: Any) -> float:
    """Read seconds, or a duration as Go writes it; FOREVER_S for a negative one."""
    is_time = isinstance(value, int | float | str) and not isinstance(value, bool)
    if not is_time or not _DURATION.fullmatch(str(value)):
        raise wrong(name, value, "seconds, or a duration such as `5m`")
    if str(value).startswith("-"):
        return FOREVER_S
    parts = re.findall(r"([\d.]+)(ns|us|ms|s|m|h|)", str(value))
    seconds = sum(float(count) * _UNITS_S[unit] for count, unit in parts)
    return FOREVER_S if seconds > _LONGEST_S else seconds


@shaped({"type": "array", "items": MESSAGE_SCHEMA})
def _messages(name: str, value: Any) -> list[dict[str, Any]]:
    """Read messages; none ask to load the model, which it is."""
    return read_messages(name, value) if value != [] else []


_LOADED = "is chosen when the server loads the model"

OPTIONS_FIELDS = (
    Field("num_predict", "longest answer; -1 and -2 are the rest of the context", whole(-2, 2**31)),
    Field("num_ctx", "the context is the server's, whatever is asked for: a prompt that is too long for it "
          "is refused, not cut, and an answer ends with it; texts of `/api/embed` are cut to the smaller of "
          "both",
          whole(1, 2**31)),
    Field("seed", "same request, same seed, same weights: same answer", whole(-2**63, 2**63 - 1)),
    Field("stop", "texts; the answer ends before one", stop_texts(64)),
    Field("temperature", "0 is greedy; the model's own recommendation when left out", number(0, 100)),
    Field("top_k", "the K likeliest tokens, 0 is off", whole(0, 2**31)),
    Field("top_p", "the likeliest tokens up to this mass", number(0, 1)),
    Field("min_p", "drop tokens below this share of the likeliest", number(0, 1)),
    Field("repeat_penalty", "above 1: tokens of prompt and answer are less likely", number(0.01, 100)),
    Field("presence_penalty", "taken from tokens that the answer has", number(-2, 2)),
    Field("frequency_penalty", "taken once per occurrence in the answer", number(-2, 2)),
    refused("repeat_last_n", "penalties look at the whole text; `-1`, which says so, is taken", -1),
    refused("typical_p", "not in this version; `1`, which is off, is taken", 1),
    refused("tfs_z", "not in this version; `1`, which is off, is taken", 1),
    refused("mirostat", "not in this version; `0`, which is off, is taken", 0),
    refused("mirostat_tau", "not in this version"),
    refused("mirostat_eta", "not in this version"),
    refused("penalize_newline", "not in this version"),
    refused("num_keep", "a conversation that is too long is refused, not cut"),
    *(refused(name, _LOADED) for name in (
        "numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only",
        "use_mmap", "use_mlock", "embedding_only", "num_thread")),
)

COMMON_FIELDS = (
    Field("model", "a served model, or an adapter; `:latest` may follow", text),
    Field("stream", "lines of JSON as the answer grows; on unless `false`", flag),
    Field("options", "how to draw; see below", object_of(OPTIONS_FIELDS)),
    Field("logprobs", "log-probabilities of the tokens", flag),
    Field("top_logprobs", f"and of 0 to {MAX_LOGPROBS} alternatives; needs `logprobs`",
          whole(0, MAX_LOGPROBS)),
    Field("keep_alive", "unused for so long the model is unloaded; negative, or left out: it stays until "
          "another one needs the memory; `0` unloads it after this answer", _keep_alive),
    Field("think", "`false` tells the template not to think, `true` to think; `low`, `medium` and `high` go "
          "to templates that have `reasoning_effort`. Refused where the template has no switch",
          one_of(False, True, "low", "medium", "high")),
    Field("format", "`json`, or a JSON schema that the answer follows", read_format),
)

CHAT_FIELDS = (
    Field("messages", "text of `system`, `user` and `assistant`, tool calls and their results; an empty list "
          "does nothing", _messages),
    *COMMON_FIELDS,
    Field("tools", "functions that the model may call, up to 128", read_tools),
)

GENERATE_FIELDS = (
    Field("prompt", "the user's words; an empty text is answered at once", text),
    Field("system", "the system message", text),
    Field("raw", "the prompt as it is, without the chat template; control tokens in it stay text", flag),
    *COMMON_FIELDS,
    Field("suffix", "a text: the answer is what stands between the prompt and it, by models that have marks "
          "for it (`insert` in `/api/show`). Not with `raw`, `system` or `think`; without effect when empty",
          text),
    refused("template", "the model's own template is used", ""),
    refused("context", "the older way to continue; send messages to `/api/chat`", []),
    refused("images", "this version reads text only", []),
    refused("width", "this version writes text only"),
    refused("height", "this version writes text only"),
    refused("steps", "this version writes text only"),
)

SHOW_FIELDS = (
    Field("model", "a served model, or an adapter", text),
    Field("name", "the older name of `model`", text),
    refused("verbose", "the tokens of a vocabulary are not sent", False),
)

_OURS = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
         "repeat_penalty": "repetition_penalty", "presence_penalty": "presence_penalty",
         "frequency_penalty": "frequency_penalty"}


async def chat(call: Call) -> Stream | dict[str, Any]:
    """`POST /api/chat`."""
    values = read_fields(CHAT_FIELDS, call.body)
    require(values, "model")
    messages = values.get("messages", [])

    def shown(content: str, thinking: str = "", calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = [{"function": {"name": one.name, "arguments": arguments_of(one)}}
                                     for one in calls]
        return {"message": message}

    return await _answer(call, values, messages, shown)


async def generate(call: Call) -> Stream | dict[str, Any]:
    """`POST /api/generate`."""
    values = read_fields(GENERATE_FIELDS, call.body)
    require(values, "model")
    prompt, system = values.get("prompt", ""), values.get("system")
    is_raw = values.get("raw", False)
    if is_raw and system is not None:
        raise Refusal("`system` is given with `raw`", field="system", why="a raw prompt has no roles")
    suffix = values.get("suffix")
    for name in ("raw", "system"):
        if suffix and values.get(name):
            raise Refusal(f"`{name}` is given with `suffix`", field=name, code="unsupported_field",
                          why="the prompt is two texts between marks", hint=f"leave `{name}` out")
    messages: list[dict[str, str]] | str | Infill = Infill(prompt, suffix) if suffix else prompt
    if prompt and not is_raw and not suffix:
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})

    def shown(content: str, thinking: str = "", calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        return {"response": content, **({"thinking": thinking} if thinking else {})}

    return await _answer(call, values, messages, shown)


async def _answer(call: Call, values: Mapping[str, Any], prompt: list[dict[str, Any]] | str | Infill,
                  shown: Callable[..., dict[str, Any]]) -> Stream | dict[str, Any]:
    """Answer a conversation or a raw text, or fill a gap.

    shown: (content, thinking, calls) -> what holds them.
    """
    served, started = call.served, time.perf_counter() - call.load_s
    adapter = served.adapter_of(values["model"])
    options = values.get("options", {})
    has_logprobs, num_logprobs = values.get("logprobs", False), values.get("top_logprobs", 0)
    if num_logprobs and not has_logprobs:
        raise Refusal(f"`top_logprobs` is `{num_logprobs}` without `logprobs`", field="top_logprobs")
    if options.get("num_predict") == 0:
        raise wrong("options.num_predict", 0, "1 or more tokens, or -1")
    call.note(model=values["model"])
    keep_alive_s = values.get("keep_alive", FOREVER_S)
    if keep_alive_s != FOREVER_S:
        call.offer.keep_alive_s = keep_alive_s
    if not prompt:
        reason = "unload" if keep_alive_s == 0 else "load"
        return {**_head(values["model"]), **shown(""), "done": True, "done_reason": reason}
    asked = await _ask(call, values, prompt)
    settings = {ours: options[theirs] for theirs, ours in _OURS.items() if theirs in options}
    num_predict = options.get("num_predict", -1)
    generation = await call.open(served.job(
        asked.token_ids, adapter=adapter, reading=asked.reading,
        settings={**settings, "num_logprobs": num_logprobs, "token_mask": asked.token_mask},
        max_tokens=num_predict if num_predict > 0 else None, seed=options.get("seed"),
        stops=options.get("stop", ()), cache_salt=call.cache_salt))

    def logprobs(events: tuple) -> dict[str, Any]:
        return {"logprobs": token_records(served.model.tokenizer, events)} if has_logprobs else {}

    async def lines() -> AsyncIterator[bytes]:
        calls = _WholeCalls()
        async for part in generation.parts():
            if part is None:
                continue
            head = _head(values["model"])
            answer = calls.add(part.pieces, is_last=part.finish_reason is not None)
            if any(answer) or (has_logprobs and part.events):
                yield _line({**head, **shown(*answer), **logprobs(part.events), "done": False})
            if part.finish_reason is not None:
                yield _line({**head, **shown(""), **_end(call, generation, part.finish_reason, started)})
        call.note_generation(generation)

    if values.get("stream", True):
        return Stream("application/x-ndjson", lines(), _stream_error)
    choice = (await generation.collect())[0]
    call.note_generation(generation)
    answer = (choice.answer.content, choice.answer.reasoning, choice.answer.calls)
    return {**_head(values["model"]), **shown(*answer), **logprobs(choice.events),
            **_end(call, generation, choice.finish_reason, started)}


async def _ask(call: Call, values: Mapping[str, Any], prompt: list[dict[str, Any]] | str | Infill) -> Asked:
    """Return the prompt of a request and how its answer is read. Raises: as `Served.prepare`."""
    grammar, think = values.get("format"), values.get("think")
    if isinstance(prompt, str | Infill):
        if think is not None:
            given = "suffix" if isinstance(prompt, Infill) else "raw"
            raise Refusal(f"`think` is given with `{given}`", field="think",
                          why="such a prompt has no template")
        mask = None if grammar is None else await call.served.follow(grammar, "format")
        if isinstance(prompt, Infill):
            token_ids = await call.served.encode_infill(prompt, values["model"])
            return Asked(token_ids, Reading(is_middle=True), mask, None)
        return Asked(await call.served.encode(prompt), Reading(), mask, None)
    effort = {None: None, False: "none", True: "on"}.get(think, think)
    return await call.served.prepare(prompt, Answering(
        tools=values.get("tools", ()), grammar=grammar, grammar_field="format", effort=effort,
        effort_field="think"))


class _WholeCalls:
    """Holds tool calls back until they are whole; clients of this dialect read no part of one."""

    def __init__(self) -> None:
        self._open: list[AnswerPiece] = []

    def add(self, pieces: Sequence[AnswerPiece], *, is_last: bool) -> tuple[str, str, tuple[ToolCall, ...]]:
        """Return content, thinking and the calls that are whole now: another piece follows, or none does."""
        ready: list[AnswerPiece] = []
        for piece in pieces:
            if piece.kind != "arguments":
                ready += self._open
                self._open = []
            (self._open if piece.kind in ("call", "arguments") else ready).append(piece)
        if is_last:
            ready, self._open = ready + self._open, []
        first = min((piece.call for piece in ready if piece.kind == "call"), default=0)
        found = whole_answer(replace(piece, call=max(piece.call - first, 0)) for piece in ready)
        return found.content, found.reasoning, found.calls


def _head(model: str) -> dict[str, Any]:
    return {"model": model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _end(call: Call, generation: Generation, reason: str, started: float) -> dict[str, Any]:
    """Return what the last record says: why it ended, counts, and nanoseconds."""
    now, first = time.perf_counter(), generation.first_s
    return {"done": True, "done_reason": reason, "total_duration": _ns(now - started),
            "load_duration": _ns(call.load_s),
            "prompt_eval_count": generation.prompt_tokens,
            "prompt_eval_duration": _ns(first - generation.submitted_s),
            "eval_count": generation.completion_tokens, "eval_duration": _ns(now - first)}


def _line(record: dict[str, Any]) -> bytes:
    return to_json(record) + b"\n"


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


async def list_tags(call: Call) -> dict[str, Any]:
    """`GET /api/tags`."""
    return {"models": [describe(offer, name) for offer in call.models.offers for name in offer.names]}


async def list_running(call: Call) -> dict[str, Any]:
    """`GET /api/ps`: what is loaded."""
    return {"models": [describe_loaded(offer, name) for offer in call.models.offers
                       if offer.state == "loaded" for name in offer.names]}


async def show(call: Call) -> dict[str, Any]:
    """`POST /api/show`."""
    values = read_fields(SHOW_FIELDS, call.body)
    name = values.get("model", values.get("name"))
    if name is None:
        raise Refusal("`model` is missing", field="model", code="missing_field")
    return await asyncio.to_thread(model_facts, call.models.find(name), name)


async def show_version(call: Call) -> dict[str, str]:
    """`GET /api/version`: whose API this speaks; clients ask in order to know what they may send."""
    return {"version": OLLAMA_VERSION}


def _error(error: HearthError, status: int, code: str | None, request_id: str) -> dict[str, Any]:
    return {"error": sentence(error)}


def _stream_error(error: HearthError) -> bytes:
    return _line({"error": sentence(error)})


OLLAMA = Dialect("ollama", (
    Route("POST", "/api/chat", chat, CHAT_FIELDS),
    Route("POST", "/api/generate", generate, GENERATE_FIELDS),
    Route("GET", "/api/tags", list_tags),
    Route("GET", "/api/ps", list_running),
    Route("POST", "/api/show", show, SHOW_FIELDS, needs_model=False),
    Route("GET", "/api/version", show_version),
), _error)
