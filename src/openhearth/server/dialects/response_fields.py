"""Fields of the Responses API.

Wire format: read from openai 3.54.0 and pinned by tests against that client.

Does not: know tools that run at OpenAI, summaries of thoughts, or stored prompts; they are refused by name.
"""

from __future__ import annotations

from typing import Any

from openhearth.server.dialects.openai_fields import COMMON_FIELDS, EFFORTS, MAX_LOGPROBS
from openhearth.server.dialects.response_items import read_input
from openhearth.server.dialects.response_tools import read_choice, read_format, read_tools
from openhearth.server.fields import (
    Field,
    array,
    flag,
    mapping,
    not_applicable,
    number,
    object_of,
    one_of,
    refused,
    shaped,
    text,
    whole,
    wrong,
)

LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = (LOGPROBS, "reasoning.encrypted_content")


@shaped({"type": "array", "items": {"enum": list(_INCLUDABLE)}})
def _include(name: str, value: Any) -> bool:
    """Return whether log-probabilities are among what is asked for."""
    for place, one in enumerate(array(name, value)):
        one_of(*_INCLUDABLE)(f"{name}[{place}]", one)
    return LOGPROBS in value


@shaped({"type": "object", "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 512}})
def _metadata(name: str, value: Any) -> dict[str, str]:
    pairs = mapping(name, value)
    if len(pairs) > 16 or not all(isinstance(one, str) and len(key) <= 64 and len(one) <= 512
                                  for key, one in pairs.items()):
        raise wrong(name, value, "up to 16 texts of 512 characters, under names of 64")
    return pairs


TEXT_FIELDS = (
    Field("format", "`text`, `json_object` or `json_schema`; the answer follows it, strict or not. With "
          "tools the answer is calls, or follows it", read_format),
    refused("verbosity", "the model was not taught it; `medium` is taken", "medium"),
)

STREAM_OPTIONS_FIELDS = (
    not_applicable("include_obfuscation", "pads events against eavesdroppers; use TLS"),
)

REASONING_FIELDS = (
    Field("effort", "`none` tells the template not to think; other values go to templates that have "
          "`reasoning_effort`, and are refused for others", one_of(*EFFORTS)),
    refused("summary", "thoughts come whole, in `content`; `auto` is taken", "auto"),
    refused("generate_summary", "as `summary`", "auto"),
    refused("context", "templates decide what of earlier reasoning is read", "auto"),
    refused("mode", "there is one; `standard` is taken", "standard"),
)

_COMMON = {field.name: field for field in COMMON_FIELDS}

PROMPT_FIELDS = (
    _COMMON["model"],
    Field("input", "a text, or items: messages, thoughts, function calls and their results; control tokens "
          "in them stay text", read_input),
    Field("instructions", "the system message, of this response alone", text),
    Field("previous_response_id", "the conversation goes on from a stored response of the same key", text),
    Field("reasoning", "`effort`; see below", object_of(REASONING_FIELDS)),
    Field("text", "`format`; see below", object_of(TEXT_FIELDS)),
    refused("conversation", "conversations are continued by `previous_response_id`"),
    Field("tools", "functions that the model may call, up to 128; of this response alone", read_tools),
    Field("tool_choice", "`auto`; `none` keeps the tools from the model; with `required` or a function by "
          "name the answer is calls that follow their schemas; or `allowed_tools`", read_choice),
    Field("parallel_tool_calls", "`false`: one call at most, by a grammar", flag),
    refused("truncation", "a conversation that is too long is refused, not cut; `disabled` is taken",
            "disabled"),
)

INPUT_TOKENS_FIELDS = (
    *PROMPT_FIELDS,
    refused("personality", "`instructions` say how to answer"),
)

CREATE_FIELDS = (
    *PROMPT_FIELDS,
    _COMMON["stream"],
    Field("stream_options", "with `stream`; see below", object_of(STREAM_OPTIONS_FIELDS)),
    Field("store", "keeps the response for the days that the server keeps them; on unless `false`", flag),
    Field("metadata", "up to 16 texts, kept with the response", _metadata),
    Field("max_output_tokens", "longest answer; the rest of the context when left out", whole(1, 2**31)),
    Field("include", f"`{LOGPROBS}`; `{_INCLUDABLE[1]}` is taken, thoughts come as text", _include),
    Field("top_logprobs", f"0 to {MAX_LOGPROBS} alternatives; needs `include`", whole(0, MAX_LOGPROBS)),
    Field("temperature", "0 is greedy; the model's own recommendation when left out", number(0, 2)),
    Field("top_p", "the likeliest tokens up to this mass", number(0, 1)),
    *(_COMMON[name] for name in ("seed", "stop", "top_k", "min_p", "presence_penalty", "frequency_penalty",
                                 "repetition_penalty", "logit_bias")),
    not_applicable("user", "names an end user to OpenAI; nobody is told here"),
    not_applicable("safety_identifier", "names an end user to OpenAI; nobody is told here"),
    not_applicable("prompt_cache_key", "the cache finds equal beginnings by itself and changes no answer"),
    not_applicable("prompt_cache_options", "as `prompt_cache_key`"),
    not_applicable("prompt_cache_retention", "as `prompt_cache_key`"),
    not_applicable("max_tool_calls", "there are no built-in tools"),
    refused("background", "a response is made while its client waits", False),
    refused("background_options", "a response is made while its client waits"),
    refused("context_management", "a conversation that is too long is refused, not cut", []),
    refused("prompt", "there are no stored prompts"),
    refused("image", "this version reads text only"),
    refused("moderation", "there is no second model that judges"),
    refused("access_programs", "there are none"),
    refused("service_tier", "there is one; `auto` and `default` are taken", "auto", "default"),
)


@shaped({"type": "string", "pattern": "^([1-9][0-9]?|100)$"})
def _count(name: str, value: Any) -> int:
    """Read a whole number from 1 to 100 of a query."""
    if not (value.isascii() and value.isdigit() and len(value) <= 3):
        raise wrong(name, value, "a whole number from 1 to 100")
    return whole(1, 100)(name, int(value))


RETRIEVE_QUERY = (
    refused("stream", "a stored response is returned whole; `false` is taken", "false"),
    refused("starting_after", "a stored response is returned whole"),
    not_applicable("include", "a stored response is returned as it was made"),
    not_applicable("include[]", "a stored response is returned as it was made"),
    not_applicable("include_obfuscation", "pads events against eavesdroppers; use TLS"),
)

ITEMS_QUERY = (
    Field("limit", "1 to 100 items, 20 when left out", _count),
    Field("order", "`desc`, the last item first, or `asc`", one_of("asc", "desc")),
    Field("after", "id of the item that the list goes on after", text),
    not_applicable("include", "items are returned as they were given"),
    not_applicable("include[]", "items are returned as they were given"),
)
