"""Conversations as wire formats bring them, to the plain messages that a chat template reads.

Does not: read images or audio; they are refused by name.
"""

from __future__ import annotations

from typing import Any

from openhearth.server.dialects.tools import read_calls
from openhearth.server.errors import Refusal
from openhearth.server.fields import (
    Field,
    Reader,
    array,
    not_applicable,
    object_schema,
    one_of,
    read_fields,
    refused,
    shaped,
    text,
    text_or_list,
    wrong,
)

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant",
         "tool": "tool"}


@shaped({"enum": list(ROLES)})
def _role(name: str, value: Any) -> str:
    if value == "function":
        raise Refusal(f"`{name}` is `function`", field=name, code="unsupported_field",
                      why="it is the older way to send what a tool gave back", hint="role `tool`")
    if not isinstance(value, str) or value not in ROLES:
        raise wrong(name, value, " or ".join(f"`{role}`" for role in ROLES))
    return ROLES[value]


PART_FIELDS = (
    Field("type", "`text`; everything else is refused", one_of("text")),
    Field("text", "the text; parts are joined by line breaks", text),
    refused("citations", "there are no documents to cite", []),
    refused("annotations", "there are none", []),
    refused("prompt_cache_breakpoint", "the cache finds equal beginnings by itself"),
    not_applicable("cache_control", "the cache finds equal beginnings by itself and changes no answer"),
)


def parts_of_text(fields: tuple[Field, ...], *kinds: str) -> Reader:
    """Return a reader of a text, or of a list of parts of text of these kinds."""
    @shaped(text_or_list(object_schema(fields)))
    def read(name: str, value: Any) -> str:
        if isinstance(value, str):
            return value
        texts = []
        for place, part in enumerate(array(name, value)):
            where = f"{name}[{place}]"
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in kinds:
                raise Refusal(f"`{where}.type` is `{str(kind)[:40]}`", field=where, code="unsupported_field",
                              why="this version reads text only")
            texts.append(read_fields(fields, part, where).get("text", ""))
        return "\n".join(texts)
    return read


read_content = parts_of_text(PART_FIELDS, "text")

MESSAGE_FIELDS = (
    Field("role", "`system`, `developer` (the same), `user`, `assistant`, `tool`", _role),
    Field("content", "text, or parts of text", read_content),
    Field("reasoning_content", "what the assistant thought; templates decide whether it is read again", text),
    Field("reasoning", "the same", text),
    Field("thinking", "the same", text),
    Field("tool_calls", "what the assistant called", read_calls),
    Field("tool_call_id", "the call that a `tool` message answers", text),
    Field("tool_name", "the tool that a `tool` message comes from (Ollama)", text),
    Field("name", "the same; refused for other roles, chat templates have no place for it", text),
    refused("function_call", "the older form of `tool_calls`"),
    refused("refusal", "models here refuse in words"),
    not_applicable("parsed", "what a client read in `content`"),
    refused("annotations", "there are none", []),
    refused("audio", "this version reads text only"),
    refused("images", "this version reads text only", []),
)


_ROLE_OF = {"tool_calls": "assistant", "tool_call_id": "tool", "tool_name": "tool", "name": "tool"}
"""Fields that messages of one role have."""


def _message_schema(*roles: str) -> dict[str, Any]:
    required = ("role",) if roles == ("assistant",) else ("role", "content")
    schema = object_schema((field for field in MESSAGE_FIELDS if _ROLE_OF.get(field.name, roles[0]) in roles),
                           *required)
    schema["properties"]["role"] = {"enum": list(roles)}
    return schema


MESSAGE_SCHEMA = {"anyOf": [_message_schema("system", "developer", "user"), _message_schema("assistant"),
                            _message_schema("tool")]}


@shaped({"type": "array", "items": MESSAGE_SCHEMA, "minItems": 1})
def read_messages(name: str, value: Any) -> list[dict[str, Any]]:
    """Return messages of role and content. Raises: Refusal for what this version cannot read."""
    messages = []
    for place, message in enumerate(array(name, value)):
        where = f"{name}[{place}]"
        if not isinstance(message, dict):
            raise wrong(where, message, "an object")
        values = read_fields(MESSAGE_FIELDS, message, where)
        if "role" not in values:
            raise Refusal(f"`{where}.role` is missing", field=f"{where}.role", code="missing_field")
        if "content" not in values and values["role"] != "assistant":
            raise Refusal(f"`{where}.content` is missing", field=f"{where}.content", code="missing_field")
        messages.append(_placed({"content": "", **values}, where))
    if not messages:
        raise Refusal(f"`{name}` is empty", field=name, code="invalid_value",
                      why="a conversation has at least one message")
    return messages


def _placed(message: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a message whose fields fit its role. Raises: Refusal."""
    for name, role in _ROLE_OF.items():
        if name in message and message["role"] != role:
            raise Refusal(f"`{where}.{name}` is given for role `{message['role']}`", field=f"{where}.{name}",
                          code="unsupported_field", why=f"only messages of role `{role}` have it")
    if "tool_name" in message:
        message["name"] = message.pop("tool_name")
    return message
