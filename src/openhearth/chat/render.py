"""Chats to token ids, with text from messages unable to forge control tokens.

Every string that comes from the caller gets a mark, one private-use character that occurs nowhere
else, after each character a control token can begin with. What the template does with the text
(trim, split, join, replace) leaves the mark inside any spelling of a control token that is not
wholly the template's own. Marks are taken out of the result; spellings that held one are encoded
as data, the others become control tokens. Without such a spelling the ids are exactly those of the
rendered text.

Strings that the template itself compares with or looks for, and that are not control tokens, get no
mark inside: `'</think>' in content` works as in a plain rendering.

Does not: hide the mark from a template that measures text (`content | length`) or compares it with
text it puts together itself; protect a template that writes text backwards. Added tokens that are
not control tokens are not protected, see `tokenizer.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from openhearth.chat.template import ChatTemplate
from openhearth.chat.tokenizer import Tokenizer, well_formed
from openhearth.errors import UsageError

_REASONING = ("reasoning_content", "thinking", "reasoning")
_ROLE = re.compile(r"[A-Za-z0-9_. -]{1,64}")
_MAX_DEPTH = 64


@dataclass(frozen=True)
class RenderedChat:
    """A chat as the model reads it.

    generation_mask: per token, True inside `{% generation %}` (what the assistant wrote).
    Example: ``RenderedChat((1, 42, 2), "<|im_start|>hi<|im_end|>", (False, True, True))``.
    """

    token_ids: tuple[int, ...]
    text: str
    generation_mask: tuple[bool, ...]


def render(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    now: datetime | None = None,
    template_name: str | None = None,
    **variables: Any,
) -> RenderedChat:
    """Return the token ids of a chat.

    messages: `role`, `content` (text, a list of parts, or None) and what else the template reads;
    `tool_calls[].function.arguments` given as JSON text is parsed, `reasoning_content`, `thinking`
    and `reasoning` stand for each other. tools: JSON schemas. now: for templates that write the
    date. template_name: one of several templates. variables: for the template, `enable_thinking`...
    No BOS is added: the template writes it.
    Raises: TemplateError, UsageError for messages that are no messages.
    """
    values = {
        "messages": [_message(message) for message in _plain_list("messages", messages)],
        "tools": None if tools is None else _plain_list("tools", tools),
        "documents": None,
        **{name: _plain(value) for name, value in variables.items()},
    }
    name = template.choose(template_name, has_tools=tools is not None)
    taken = {
        char for text in _strings([values, template.sources[name], template.special_tokens]) for char in text
    }
    mark, start, end = _unused(taken, 3)
    marked = _Marker(tokenizer, template.constants(name), mark).mark(values)
    text = template.render_text(
        {**marked, "add_generation_prompt": add_generation_prompt},
        name=name,
        now=now,
        generation_marks=(start, end),
        cut_mark=mark,
    )
    return _encode(tokenizer, well_formed(text), mark, start, end)


def _encode(tokenizer: Tokenizer, marked: str, mark: str, start: str, end: str) -> RenderedChat:
    pieces, cuts, spans, length = [], set(), [], 0
    for piece in re.split(f"([{mark}{start}{end}])", marked):
        if piece == mark:
            cuts.add(length)
        elif piece == start:
            spans.append([length, None])
        elif piece == end:
            if spans and spans[-1][1] is None:
                spans[-1][1] = length
        else:
            pieces.append(piece)
            length += len(piece)
    text = "".join(pieces)
    genuine, is_forged = _genuine_control(tokenizer, text, cuts)
    token_ids, offsets = (
        tokenizer.encode_around(text, genuine) if is_forged else tokenizer.encode_parsed(text)
    )
    generation = [(first, length if last is None else last) for first, last in spans]
    return RenderedChat(tuple(token_ids), text, tuple(_in_spans(offsets, generation)))


def _genuine_control(
    tokenizer: Tokenizer, text: str, cuts: set[int]
) -> tuple[list[tuple[int, int, int]], bool]:
    """Return the template's own control tokens in text, and whether there are forged ones."""
    genuine, is_forged, position = [], False, 0
    while match := next(iter(tokenizer.find_control(text, position)), None):
        first, last = match.span()
        if any(cut in cuts for cut in range(first + 1, last)):
            is_forged, position = True, first + 1
        else:
            genuine.append((first, last, tokenizer.control_tokens[match.group()]))
            position = last
    return genuine, is_forged


def _in_spans(offsets: Iterable[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Iterator[bool]:
    """Yield for each token whether it overlaps a span; both are in order."""
    index = 0
    for first, last in offsets:
        while index < len(spans) and spans[index][1] <= first:
            index += 1
        yield index < len(spans) and last > spans[index][0] and first < spans[index][1]


class _Marker:
    """Puts the mark into strings from outside."""

    def __init__(self, tokenizer: Tokenizer, constants: frozenset[str], mark: str) -> None:
        """constants: texts the template may look for; those that hold a control token, or end like the
        beginning of one, are no shield."""
        self._mark = mark
        self._pattern = None
        control = sorted(tokenizer.control_tokens, key=len, reverse=True)
        self._first_chars = {text[0] for text in control}
        if not control:
            return
        beginnings = tuple({text[:i] for text in control for i in range(1, len(text))})
        words = [
            word
            for word in sorted(constants, key=len, reverse=True)
            if self._first_chars & set(word[:-1])
            and not any(text in word for text in control)
            and not _ends_open(word, beginnings)
        ]
        groups = {"control": control, "word": words, "first": sorted(self._first_chars)}
        self._pattern = re.compile(
            "|".join(
                f"(?P<{name}>{'|'.join(map(re.escape, texts))})" for name, texts in groups.items() if texts
            )
        )

    def mark(self, value: Any) -> Any:
        """Return a copy of a plain value with marks in all its strings, keys included."""
        if isinstance(value, str):
            return self._pattern.sub(self._marked, value) if self._pattern else value
        if isinstance(value, dict):
            return {self.mark(key): self.mark(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.mark(item) for item in value]
        return value

    def _marked(self, match: re.Match[str]) -> str:
        text = match.group()
        if match.lastgroup == "control":
            return "".join(char + self._mark if char in self._first_chars else char for char in text)
        return text + self._mark if text[-1] in self._first_chars else text


def _ends_open(word: str, beginnings: tuple[str, ...]) -> bool:
    """Return whether word ends with two or more characters that begin a control token; one is marked."""
    return any(len(text) > 1 and word.endswith(text) for text in beginnings)


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UsageError(
            "a message is not an object with a `role`",
            why=f"got: {str(message)[:120]}",
            hint='{"role": "user", "content": "..."}',
        )
    if not _ROLE.fullmatch(message["role"]):
        raise UsageError(
            f"role `{message['role'][:80]}` is not a role",
            why="expected letters, digits, `_`, `-`",
            hint="system, user, assistant or tool",
        )
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    if isinstance(message.get("tool_calls"), list):
        message = {**message, "tool_calls": [_tool_call(call) for call in message["tool_calls"]]}
    return message


def _tool_call(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _with_parsed_arguments(call["function"])}
    return _with_parsed_arguments(call)


def _with_parsed_arguments(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            return function
        if isinstance(parsed, dict):
            return {**function, "arguments": _plain(parsed)}
    return function


def _plain_list(what: str, value: Any) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise UsageError(
            f"{what} are not a list", why=f"got {type(value).__name__}", hint=f"{what}=[{{...}}]"
        )
    return _plain(list(value))


def _plain(value: Any, depth: int = 0) -> Any:
    """Return value rebuilt from JSON types; an object of another type becomes `<TypeName>`.

    Source: `_plain_template_data` of transformers 5.23.0. Raises: UsageError for deep nesting.
    """
    if depth > _MAX_DEPTH:
        raise UsageError(f"messages are nested deeper than {_MAX_DEPTH}", why="templates read a few levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key, depth + 1): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    return f"<{type(value).__name__}>"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _unused(taken: set[str], count: int) -> list[str]:
    """Return private-use characters (plane 16) that occur in no text."""
    free = (char for char in map(chr, range(0x100000, 0x10FFFE)) if char not in taken)
    return [next(free) for _ in range(count)]
