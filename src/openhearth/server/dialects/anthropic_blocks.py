"""Anthropic's blocks: what messages are made of on the way in, and answers on the way out.

A user turn with results of tools becomes `tool` messages before the user's words.

Does not: read images and documents, or sign thoughts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from openhearth.chat import AnswerPiece, WholeAnswer
from openhearth.chat.tools import ToolFormat
from openhearth.server.asking import Tool
from openhearth.server.dialects.messages import PART_FIELDS, read_content
from openhearth.server.dialects.tools import arguments_of, call_id, check_tools, function_name
from openhearth.server.errors import Refusal
from openhearth.server.fields import (
    Field,
    array,
    flag,
    mapping,
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

_CACHE = not_applicable("cache_control", "the cache finds equal beginnings by itself and changes no answer")

TOOL_FIELDS = (
    Field("type", "`custom`; tools that run at Anthropic are refused", one_of("custom")),
    Field("name", "letters, digits, `_`, `.`, `:` and `-`", function_name),
    Field("description", "what it does, for the model", text),
    Field("input_schema", "JSON schema of its input", mapping),
    Field("strict", "calls follow the schema also where `tool_choice` is `auto`", flag),
    refused("allowed_callers", "tools are called by the model alone", ["direct"]),
    refused("defer_loading", "all tools are in the prompt", False),
    refused("input_examples", "put them into the description", []),
    not_applicable("eager_input_streaming", "arguments always come as they are written"),
    _CACHE,
)

@shaped(text_or_list(object_schema(PART_FIELDS, "type")))
def _blocks(name: str, value: Any) -> str | list[Any]:
    return value if isinstance(value, str) else array(name, value)


MESSAGE_FIELDS = (
    Field("role", "`user` or `assistant`", one_of("user", "assistant")),
    Field("content", "text, or blocks: `text`, `thinking`, `tool_use`, `tool_result`", _blocks),
)

USE_FIELDS = (
    Field("type", "`tool_use`", text),
    Field("id", "what `tool_use_id` of its result refers to", text),
    Field("name", "the tool", function_name),
    Field("input", "its arguments", mapping),
    refused("toolset_name", "there are no sets of tools"),
    _CACHE,
    not_applicable("caller", "tools are called by the model alone"),
)

RESULT_FIELDS = (
    Field("type", "`tool_result`", text),
    Field("tool_use_id", "the call that it answers", text),
    Field("content", "text, or blocks of text", read_content),
    Field("is_error", "the model reads `Error: ` before the text", flag),
    refused("toolset_name", "there are no sets of tools"),
    _CACHE,
)

THINKING_FIELDS = (
    Field("type", "`thinking`", text),
    Field("thinking", "what the assistant thought; templates decide whether it is read again", text),
    not_applicable("signature", "thoughts are not signed here"),
)


@shaped({"type": "array", "items": object_schema(MESSAGE_FIELDS, "role", "content"), "minItems": 1})
def read_turns(name: str, value: Any) -> list[dict[str, Any]]:
    """Return messages as chat templates read them. Raises: Refusal."""
    messages: list[dict[str, Any]] = []
    tool_names: dict[str, str] = {}
    for place, entry in enumerate(array(name, value)):
        where = f"{name}[{place}]"
        values = read_fields(MESSAGE_FIELDS, mapping(where, entry), where)
        require(values, "role", "content")
        content = values["content"]
        if isinstance(content, str):
            messages.append({"role": values["role"], "content": content})
            continue
        read = _assistant if values["role"] == "assistant" else _user
        messages += read(f"{where}.content", content, tool_names)
    if not messages:
        raise Refusal(f"`{name}` is empty", field=name, code="invalid_value",
                      why="a conversation has at least one message")
    return messages


def _assistant(where: str, blocks: Sequence[Any], tool_names: dict[str, str]) -> list[dict[str, Any]]:
    message: dict[str, Any] = {"role": "assistant"}
    texts, calls = [], []
    for place, block in enumerate(blocks):
        kind, full = _kind(block), f"{where}[{place}]"
        if kind == "text":
            texts.append(read_fields(PART_FIELDS, block, full).get("text", ""))
        elif kind == "thinking":
            message["reasoning_content"] = read_fields(THINKING_FIELDS, block, full).get("thinking", "")
        elif kind == "tool_use":
            values = read_fields(USE_FIELDS, block, full)
            require(values, "id", "name")
            tool_names[values["id"]] = values["name"]
            calls.append({"id": values["id"], "type": "function",
                          "function": {"name": values["name"], "arguments": values.get("input", {})}})
        else:
            raise _unread(full, kind)
    return [{**message, "content": "\n".join(texts), **({"tool_calls": calls} if calls else {})}]


def _user(where: str, blocks: Sequence[Any], tool_names: dict[str, str]) -> list[dict[str, Any]]:
    results, texts = [], []
    for place, block in enumerate(blocks):
        kind, full = _kind(block), f"{where}[{place}]"
        if kind == "text":
            texts.append(read_fields(PART_FIELDS, block, full).get("text", ""))
        elif kind == "tool_result":
            values = read_fields(RESULT_FIELDS, block, full)
            require(values, "tool_use_id")
            called = values["tool_use_id"]
            if called not in tool_names:
                raise wrong(f"{full}.tool_use_id", called, "the id of a `tool_use` block before it")
            error = "Error: " if values.get("is_error", False) else ""
            results.append({"role": "tool", "content": error + values.get("content", ""),
                            "tool_call_id": called, "name": tool_names[called]})
        else:
            raise _unread(full, kind)
    return results + ([{"role": "user", "content": "\n".join(texts)}] if texts or not results else [])


def _kind(block: Any) -> str:
    return str(block.get("type") if isinstance(block, dict) else None)


def _unread(where: str, kind: str) -> Refusal:
    return Refusal(f"`{where}.type` is `{kind[:40]}`", field=where, code="unsupported_field",
                   why="this version reads text, thoughts, tool calls and their results")


@shaped({"type": "array", "items": object_schema(TOOL_FIELDS, "name", "input_schema")})
def read_tools(name: str, value: Any) -> tuple[Tool, ...]:
    """Read a list of tools. Raises: Refusal."""
    tools = []
    for place, entry in enumerate(array(name, value)):
        where = f"{name}[{place}]"
        values = read_fields(TOOL_FIELDS, mapping(where, entry), where)
        require(values, "name", "input_schema")
        tools.append(Tool(values["name"], values.get("description", ""), values["input_schema"],
                          values.get("strict", False)))
    return check_tools(name, tools)


def answer_blocks(answer: WholeAnswer, form: ToolFormat | None) -> list[dict[str, Any]]:
    """Return the blocks of a whole answer."""
    blocks: list[dict[str, Any]] = []
    if answer.reasoning:
        blocks.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
    if answer.content or not (answer.calls or blocks):
        blocks.append({"type": "text", "text": answer.content})
    return blocks + [{"type": "tool_use", "id": call_id(form), "name": call.name, "input": arguments_of(call)}
                     for call in answer.calls]


class BlockStream:
    """Turns pieces of an answer into the events of its blocks: (kind of event, fields)."""

    def __init__(self, form: ToolFormat | None) -> None:
        self._form = form
        self._index, self._open = -1, ""
        self.has_calls = False

    def add(self, piece: AnswerPiece) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the events of a piece; a block begins with its first."""
        if piece.kind == "call":
            self.has_calls = True
            yield from self._begin("arguments", {"type": "tool_use", "id": call_id(self._form),
                                                 "name": piece.text, "input": {}})
            return
        if piece.kind != self._open:
            first = ({"type": "thinking", "thinking": "", "signature": ""} if piece.kind == "reasoning"
                     else {"type": "text", "text": ""})
            yield from self._begin(piece.kind, first)
        delta = {"reasoning": ("thinking_delta", "thinking"), "content": ("text_delta", "text"),
                 "arguments": ("input_json_delta", "partial_json")}[piece.kind]
        yield "content_block_delta", {"index": self._index, "delta": {"type": delta[0], delta[1]: piece.text}}

    def finish(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the end of the last block; an answer of nothing is an empty text."""
        if self._index < 0:
            yield from self._begin("content", {"type": "text", "text": ""})
        yield "content_block_stop", {"index": self._index}

    def _begin(self, kind: str, block: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if self._index >= 0:
            yield "content_block_stop", {"index": self._index}
        self._index, self._open = self._index + 1, kind
        yield "content_block_start", {"index": self._index, "content_block": block}
