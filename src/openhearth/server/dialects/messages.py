"""Conversations as wire formats bring them, to the plain messages that a chat template reads.

Does not: read tool calls, tool results, images or audio; they are refused by name.
"""

from __future__ import annotations

from typing import Any

from openhearth.server.errors import Refusal
from openhearth.server.fields import (
    Field,
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

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_LATER = "tool calls are not in this version"


@shaped({"enum": list(ROLES)})
def _role(name: str, value: Any) -> str:
    if value in ("tool", "function"):
        raise Refusal(f"`{name}` is `{value}`", field=name, code="unsupported_field", why=_LATER)
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

@shaped(text_or_list(object_schema(PART_FIELDS)))
def read_content(name: str, value: Any) -> str:
    """Return the text of a content that is a text or a list of text parts. Raises: Refusal."""
    if isinstance(value, str):
        return value
    texts = []
    for place, part in enumerate(array(name, value)):
        where = f"{name}[{place}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise Refusal(f"`{where}.type` is `{str(kind)[:40]}`", field=where, code="unsupported_field",
                          why="this version reads text only")
        texts.append(read_fields(PART_FIELDS, part, where).get("text", ""))
    return "\n".join(texts)


MESSAGE_FIELDS = (
    Field("role", "`system`, `developer` (the same), `user`, `assistant`", _role),
    Field("content", "text, or parts of text", read_content),
    Field("reasoning_content", "what the assistant thought; templates decide whether it is read again", text),
    Field("reasoning", "the same", text),
    Field("thinking", "the same", text),
    refused("name", "chat templates have no place for it"),
    refused("tool_calls", _LATER, []),
    refused("tool_call_id", _LATER),
    refused("tool_name", _LATER),
    refused("function_call", _LATER),
    refused("refusal", "models here refuse in words"),
    refused("annotations", "there are none", []),
    refused("audio", "this version reads text only"),
    refused("images", "this version reads text only", []),
)


@shaped({"type": "array", "items": object_schema(MESSAGE_FIELDS), "minItems": 1})
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
        messages.append({"content": "", **values})
    if not messages:
        raise Refusal(f"`{name}` is empty", field=name, code="invalid_value",
                      why="a conversation has at least one message")
    return messages
