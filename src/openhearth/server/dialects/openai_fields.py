"""What chat and text completions of OpenAI's dialect have in common: fields, usage, events, errors.

Does not: serve a path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openhearth.errors import HearthError
from openhearth.server.dialects.tools import read_structured
from openhearth.server.errors import Refusal, sentence, status_and_code
from openhearth.server.exchange import to_json
from openhearth.server.fields import (
    Field,
    flag,
    logit_bias,
    not_applicable,
    number,
    object_of,
    refused,
    stop_texts,
    text,
    whole,
)
from openhearth.server.generation import Generation
from openhearth.server.served import Limits

MAX_LOGPROBS = 20
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
             "repetition_penalty", "logit_bias")

STREAM_OPTIONS_FIELDS = (
    Field("include_usage", "one more chunk with `usage` and no choices, before `[DONE]`", flag),
    not_applicable("include_obfuscation", "pads chunks against eavesdroppers; use TLS"),
)

COMMON_FIELDS = (
    Field("model", "a served model, or an adapter", text),
    Field("stream", "answer in server-sent events", flag),
    Field("stream_options", "with `stream`; see below", object_of(STREAM_OPTIONS_FIELDS)),
    Field("n", f"1 to {Limits.max_n} answers, which share the prompt's computation", whole(1, Limits.max_n)),
    Field("seed", "same request, same seed, same weights: same tokens and log-probabilities, under any load",
          whole(-2**63, 2**63 - 1)),
    Field("stop", "one text, or up to 4; the answer ends before it", stop_texts(4)),
    Field("temperature", "0 is greedy; the model's own recommendation when left out", number(0, 2)),
    Field("top_p", "the likeliest tokens up to this mass", number(0, 1)),
    Field("top_k", "the K likeliest tokens, 0 is off (as in vLLM)", whole(0, 2**31)),
    Field("min_p", "drop tokens below this share of the likeliest (as in vLLM)", number(0, 1)),
    Field("presence_penalty", "taken from tokens that the answer has", number(-2, 2)),
    Field("frequency_penalty", "taken once per occurrence in the answer", number(-2, 2)),
    Field("repetition_penalty", "above 1: tokens of prompt and answer are less likely (as in vLLM)",
          number(0.01, 100)),
    Field("logit_bias", "token id -> -100 to 100, added to its logit", logit_bias),
    Field("structured_outputs", "`json`, `regex`, `choice`, `grammar` or `json_object`: what the answer "
          "follows (as in vLLM)", read_structured),
    *(refused(f"guided_{kind}", f"the older way; `structured_outputs.{kind}` is taken")
      for kind in ("json", "regex", "choice", "grammar")),
    not_applicable("user", "names an end user to OpenAI; nobody is told here"),
)

def sampling_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `engine.Sampling` that a request gave."""
    return {name: values[name] for name in _SAMPLING if name in values}


def include_usage(values: Mapping[str, Any]) -> bool:
    """Return whether a stream is to end with its usage. Raises: Refusal."""
    if "stream_options" not in values:
        return False
    if not values.get("stream", False):
        raise Refusal("`stream_options` is given without `stream`", field="stream_options",
                      hint="stream: true")
    return values["stream_options"].get("include_usage", False)


def max_tokens_of(values: Mapping[str, Any]) -> int | None:
    """Return the longest answer, by either of its names. Raises: Refusal when they disagree."""
    given = {values[name] for name in ("max_completion_tokens", "max_tokens") if name in values}
    if len(given) > 1:
        raise Refusal("`max_tokens` and `max_completion_tokens` disagree", field="max_tokens",
                      hint="max_completion_tokens alone")
    return given.pop() if given else None


def usage_of(generations: Sequence[Generation], prompt_tokens: int = 0) -> dict[str, Any]:
    """Return the usage record of one response. prompt_tokens: of prompts that were read for no generation."""
    prompt_tokens += sum(generation.prompt_tokens for generation in generations)
    completion_tokens = sum(generation.completion_tokens for generation in generations)
    cached_tokens = sum(generation.cached_tokens for generation in generations)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
            "completion_tokens_details": {
                "reasoning_tokens": sum(generation.reasoning_tokens for generation in generations)}}


def to_event(value: Any) -> bytes:
    """Return one server-sent event without a name."""
    return b"data: " + to_json(value) + b"\n\n"


def error_body(error: HearthError, status: int, code: str | None) -> dict[str, Any]:
    """Return the body of an error."""
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": sentence(error), "type": kind, "param": getattr(error, "field", None),
                      "code": code}}


def error_document(error: HearthError, status: int, code: str | None, request_id: str) -> dict[str, Any]:
    """Return the body of an error; the request's id is in the headers."""
    return error_body(error, status, code)


def stream_error(error: HearthError) -> bytes:
    """Return the event of an error in a stream that has begun."""
    return to_event(error_body(error, *status_and_code(error)))
