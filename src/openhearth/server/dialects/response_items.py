"""Items of the Responses API: what a client gives, and the messages that a chat template reads.

Does not: read tool calls and their results, images, files or reasoning; they are refused by name.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from openhearth.server.dialects.messages import ROLES
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

Item = dict[str, Any]

_TEXT_KINDS = ("input_text", "output_text", "text")


ITEM_PART_FIELDS = (
    Field("type", "`input_text` or `output_text`; everything else is refused", one_of(*_TEXT_KINDS)),
    Field("text", "the text; parts are joined by line breaks", text),
    refused("annotations", "there are none", []),
    refused("prompt_cache_breakpoint", "the cache finds equal beginnings by itself"),
    not_applicable("logprobs", "of an earlier answer; its text is what is read"),
)

@shaped(text_or_list(object_schema(ITEM_PART_FIELDS)))
def _parts(name: str, value: Any) -> str:
    """Return the text of a content that is a text or a list of text parts. Raises: Refusal."""
    if isinstance(value, str):
        return value
    texts = []
    for place, part in enumerate(array(name, value)):
        where = f"{name}[{place}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXT_KINDS:
            raise Refusal(f"`{where}.type` is `{str(kind)[:40]}`", field=where, code="unsupported_field",
                          why="this version reads text only")
        texts.append(read_fields(ITEM_PART_FIELDS, part, where).get("text", ""))
    return "\n".join(texts)


ITEM_FIELDS = (
    Field("type", "`message`, or left out; everything else is refused", one_of("message")),
    Field("role", "`system`, `developer` (the same), `user`, `assistant`",
          one_of(*(role for role in ROLES if role != "tool"))),
    Field("content", "text, or parts of text", _parts),
    refused("phase", "chat templates have no place for it; `final_answer` is taken", "final_answer"),
    not_applicable("id", "items get ids of their own"),
    not_applicable("status", "of an earlier answer; its text is what is read"),
)


@shaped(text_or_list(object_schema(ITEM_FIELDS), minItems=1))
def read_input(name: str, value: Any) -> list[Item]:
    """Return a text or a list of items as message items with ids. Raises: Refusal."""
    if isinstance(value, str):
        return [_item("user", value)]
    items = []
    for place, one in enumerate(array(name, value)):
        where = f"{name}[{place}]"
        if not isinstance(one, dict):
            raise wrong(where, one, "an object")
        kind = one.get("type")
        if kind not in (None, "message"):
            raise Refusal(f"`{where}.type` is `{str(kind)[:40]}`", field=f"{where}.type",
                          code="unsupported_field", why="this version reads messages only")
        values = read_fields(ITEM_FIELDS, one, where)
        for required in ("role", "content"):
            if required not in values:
                raise Refusal(f"`{where}.{required}` is missing", field=f"{where}.{required}",
                              code="missing_field")
        items.append(_item(values["role"], values["content"]))
    if not items:
        raise Refusal(f"`{name}` is empty", field=name, code="invalid_value",
                      why="there is nothing to answer")
    return items


def output_message(item_id: str, written: str, status: str, logprobs: list[Any]) -> Item:
    """Return an answer as an item of a response's output."""
    return {"type": "message", "id": item_id, "status": status, "role": "assistant",
            "content": [output_text(written, logprobs)]}


def output_text(written: str, logprobs: list[Any]) -> Item:
    """Return the one part that an answer's content has."""
    return {"type": "output_text", "text": written, "annotations": [], "logprobs": logprobs}


def messages_of(items: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return what a chat template reads of message items."""
    return [{"role": ROLES[item["role"]], "content": item["content"][0]["text"]} for item in items]


def _item(role: str, written: str) -> Item:
    content = output_text(written, []) if role == "assistant" else {"type": "input_text", "text": written}
    return {"type": "message", "id": f"msg_{secrets.token_hex(16)}", "status": "completed", "role": role,
            "content": [content]}
