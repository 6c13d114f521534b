"""Items of the Responses API: what a client gives, and the messages that a chat template reads.

Does not: read images or files, or find items by reference; they are refused by name.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from openhearth.server.dialects.messages import ROLES, parts_of_text
from openhearth.server.dialects.tools import function_name
from openhearth.server.errors import Refusal
from openhearth.server.fields import (
    Field,
    array,
    not_applicable,
    object_schema,
    one_of,
    read_fields,
    refused,
    require,
    shaped,
    text,
    text_or_list,
    wrong,
)

Item = dict[str, Any]

_TEXT_KINDS = ("input_text", "output_text", "text")
_ROLES = tuple(role for role in ROLES if role != "tool")
_ID = not_applicable("id", "items get ids of their own")
_STATUS = not_applicable("status", "of an earlier answer; what it says is what is read")
_DIRECT = refused("caller", "tools are called by the model alone", {"type": "direct"})
_MADE_BY = not_applicable("created_by", "names who made it")
_NAMESPACE = refused("namespace", "tools have no namespaces")

ITEM_PART_FIELDS = (
    Field("type", "`input_text` or `output_text`; everything else is refused", one_of(*_TEXT_KINDS)),
    Field("text", "the text; parts are joined by line breaks", text),
    refused("annotations", "there are none", []),
    refused("prompt_cache_breakpoint", "the cache finds equal beginnings by itself"),
    not_applicable("logprobs", "of an earlier answer; its text is what is read"),
    not_applicable("parsed", "what a client read in `text`"),
)

THOUGHT_PART_FIELDS = (
    Field("type", "`reasoning_text`; everything else is refused", one_of("reasoning_text")),
    Field("text", "the text; parts are joined by line breaks", text),
)


_parts = parts_of_text(ITEM_PART_FIELDS, *_TEXT_KINDS)

ITEM_FIELDS = (
    Field("type", "`message`, or left out", one_of("message")),
    Field("role", "`system`, `developer` (the same), `user`, `assistant`", one_of(*_ROLES)),
    Field("content", "text, or parts of text", _parts),
    refused("phase", "chat templates have no place for it; `final_answer` is taken", "final_answer"),
    _ID,
    _STATUS,
)

CALL_ITEM_FIELDS = (
    Field("type", "`function_call`", one_of("function_call")),
    Field("call_id", "what `call_id` of its result refers to", text),
    Field("name", "the function", function_name),
    Field("arguments", "JSON text", text),
    refused("async", "calls are answered in the next request", False),
    _DIRECT,
    _NAMESPACE,
    not_applicable("parsed_arguments", "what a client read in `arguments`"),
    _ID,
    _STATUS,
    _MADE_BY,
)

RESULT_ITEM_FIELDS = (
    Field("type", "`function_call_output`", one_of("function_call_output")),
    Field("call_id", "the call that it answers, one before it", text),
    Field("output", "what the function gave back: text, or parts of text", _parts),
    not_applicable("name", "the call has it"),
    _DIRECT,
    _NAMESPACE,
    _ID,
    _STATUS,
    _MADE_BY,
)

THOUGHT_ITEM_FIELDS = (
    Field("type", "`reasoning`", one_of("reasoning")),
    Field("content", "what the assistant thought; templates decide whether it is read again",
          parts_of_text(THOUGHT_PART_FIELDS, "reasoning_text")),
    refused("summary", "thoughts are read whole, from `content`", []),
    refused("encrypted_content", "thoughts are not encrypted here"),
    _ID,
    _STATUS,
)

_KINDS = {"message": (ITEM_FIELDS, ("role", "content")),
          "function_call": (CALL_ITEM_FIELDS, ("call_id", "name", "arguments")),
          "function_call_output": (RESULT_ITEM_FIELDS, ("call_id", "output")),
          "reasoning": (THOUGHT_ITEM_FIELDS, ())}


@shaped(text_or_list({"anyOf": [object_schema(fields) for fields, _ in _KINDS.values()]}, minItems=1))
def read_input(name: str, value: Any) -> list[Item]:
    """Return a text or a list of items as items with ids. Raises: Refusal."""
    if isinstance(value, str):
        return [_message("user", value)]
    items = []
    for place, one in enumerate(array(name, value)):
        where = f"{name}[{place}]"
        if not isinstance(one, dict):
            raise wrong(where, one, "an object")
        kind = one.get("type")
        kind = "message" if kind is None else kind
        if not isinstance(kind, str) or kind not in _KINDS:
            raise Refusal(f"`{where}.type` is `{str(kind)[:40]}`", field=f"{where}.type",
                          code="unsupported_field",
                          why="this version reads messages, thoughts, function calls and their results")
        fields, required = _KINDS[kind]
        values = read_fields(fields, one, where)
        require(values, *required, where=where)
        items.append(_item(kind, values))
    if not items:
        raise Refusal(f"`{name}` is empty", field=name, code="invalid_value",
                      why="there is nothing to answer")
    return items


def new_id(kind: str) -> str:
    """Return an id for an item of a kind."""
    begins = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}
    return f"{begins[kind]}_{secrets.token_hex(16)}"


def output_text(written: str, logprobs: list[Any]) -> Item:
    """Return the one part that an answer's content has."""
    return {"type": "output_text", "text": written, "annotations": [], "logprobs": logprobs}


def reasoning_text(written: str) -> Item:
    """Return the one part that a thought's content has."""
    return {"type": "reasoning_text", "text": written}


def messages_of(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what a chat template reads of items: a thought, what is said and called then are one turn.

    Raises: Refusal for a result of a call that is not there.
    """
    messages: list[dict[str, Any]] = []
    tool_names: dict[str, str] = {}
    for item in items:
        kind = item["type"]
        if kind == "function_call_output":
            if item["call_id"] not in tool_names:
                raise Refusal(f"no `function_call` has the call_id `{item['call_id'][:120]}`", field="input",
                              code="invalid_value", why="a result comes after its call",
                              hint="previous_response_id, or the call in `input`")
            messages.append({"role": "tool", "content": item["output"], "tool_call_id": item["call_id"],
                             "name": tool_names[item["call_id"]]})
        elif kind == "message" and ROLES[item["role"]] != "assistant":
            messages.append({"role": ROLES[item["role"]], "content": item["content"][0]["text"]})
        elif kind == "function_call":
            tool_names[item["call_id"]] = item["name"]
            function = {"name": item["name"], "arguments": item["arguments"]}
            _turn(messages, does_go_on=True).setdefault("tool_calls", []).append(
                {"id": item["call_id"], "type": "function", "function": function})
        elif kind == "reasoning":
            _turn(messages, does_go_on=False)["reasoning_content"] = item["content"][0]["text"]
        else:
            is_unsaid = bool(messages) and not messages[-1]["content"] and "tool_calls" not in messages[-1]
            _turn(messages, does_go_on=is_unsaid)["content"] = item["content"][0]["text"]
    return messages


def _turn(messages: list[dict[str, Any]], *, does_go_on: bool) -> dict[str, Any]:
    """Return the assistant's turn that an item belongs to: the last one where it goes on, or a new one."""
    if not does_go_on or not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _message(role: str, written: str) -> Item:
    content = output_text(written, []) if role == "assistant" else {"type": "input_text", "text": written}
    return {"type": "message", "id": new_id("message"), "status": "completed", "role": role,
            "content": [content]}


def _item(kind: str, values: Mapping[str, Any]) -> Item:
    """Return an item as it is kept, with an id."""
    if kind == "message":
        return _message(values["role"], values["content"])
    head = {"type": kind, "id": new_id(kind), "status": "completed"}
    if kind == "reasoning":
        return {**head, "summary": [], "content": [reasoning_text(values.get("content", ""))]}
    return {**head, **{name: values[name] for name in _KINDS[kind][1]}}
