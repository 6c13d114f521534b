"""One row to token ids, and which of them are trained.

Three kinds of rows, told by their columns:

    messages                a chat; what the assistant says is trained
    prompt, completion      (or question, answer; or instruction, output) text or messages; the completion is
    text                    plain text; all of it is

A chat's trained tokens come from the template's `{% generation %}` spans. A template without them is
rendered once more per assistant turn, up to it and with it: the tokens in between are the turn's, if both
renderings begin as the whole does, which is checked. What follows the turn's stop token (a line break of
the template) is not trained: the model never gets to write it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openhearth import chat
from openhearth.errors import HearthError, UsageError
from openhearth.tune.data.reading import Row
from openhearth.tune.data.records import Refusal, Sample

_PAIRS = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))


class Renderer:
    """Turns rows into samples for one model.

    is_chat: whether a prompt and a completion given as text become a user's and an assistant's message;
    False writes one after the other as they are.
    """

    hint = '{"prompt": "...", "completion": "..."}'

    def __init__(self, tokenizer: chat.Tokenizer, template: chat.ChatTemplate | None, *, is_chat: bool,
                 max_tokens: int, vocab_size: int) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.is_chat, self.max_tokens, self.vocab_size = is_chat, max_tokens, vocab_size

    def render(self, row: Row) -> Sample | Refusal:
        """Return the row's sample, or why there is none."""
        try:
            token_ids, is_trained = self._tokens(row.fields)
            is_trained = (False, *is_trained[1:])
            self._check(token_ids, is_trained)
        except HearthError as error:
            reason = "; ".join(filter(None, (error.what, *error.why.splitlines())))
            return Refusal(row.file, row.line, reason)
        return Sample(tuple(token_ids), is_trained, row.file, row.line)

    def _check(self, token_ids: Sequence[int], is_trained: Sequence[bool]) -> None:
        if len(token_ids) > self.max_tokens:
            raise UsageError(f"too long: {len(token_ids)} tokens, the limit is {self.max_tokens}")
        if not any(is_trained):
            raise UsageError("no token to learn: nothing the assistant says, or an empty text")
        if max(token_ids) >= self.vocab_size:
            raise UsageError(f"token {max(token_ids)} is outside of the model's {self.vocab_size}")

    def _tokens(self, fields: Mapping[str, Any]) -> tuple[Sequence[int], Sequence[bool]]:
        if "messages" in fields:
            return self._chat(fields["messages"], fields.get("tools"))
        for prompt, completion in _PAIRS:
            if prompt in fields and completion in fields:
                return self._pair(fields, prompt, completion)
        if "text" in fields:
            token_ids = [*self._encode(fields, "text", is_start=True), *self._end()]
            return token_ids, [True] * len(token_ids)
        raise UsageError(f"columns {', '.join(map(str, fields)) or 'none'}",
                         why="expected messages, prompt and completion, or text")

    def _pair(self, fields: Mapping[str, Any], prompt: str,
              completion: str) -> tuple[Sequence[int], Sequence[bool]]:
        if isinstance(fields[prompt], list) and isinstance(fields[completion], list):
            return self._chat([*fields[prompt], *fields[completion]], fields.get("tools"),
                              num_given=len(fields[prompt]))
        if self.is_chat:
            return self._chat([{"role": "user", "content": _text(fields, prompt)},
                               {"role": "assistant", "content": _text(fields, completion)}], None)
        before = self._encode(fields, prompt, is_start=True)
        after = [*self._encode(fields, completion, is_start=False), *self._end()]
        return [*before, *after], [False] * len(before) + [True] * len(after)

    def _chat(self, messages: Any, tools: Any, *, num_given: int = 0) -> tuple[Sequence[int], Sequence[bool]]:
        if self.template is None:
            raise UsageError("messages, but the model has no chat template")
        if not isinstance(messages, list) or not messages:
            raise UsageError("`messages` is not a list of messages")
        whole = self._rendered(messages, tools)
        if any(whole.generation_mask) and num_given == 0:
            return whole.token_ids, whole.generation_mask
        is_trained = [False] * len(whole.token_ids)
        for index in range(num_given, len(messages)):
            if isinstance(messages[index], dict) and messages[index].get("role") == "assistant":
                self._mark_turn(messages, index, tools, whole.token_ids, is_trained)
        return whole.token_ids, is_trained

    def _mark_turn(self, messages: list[Any], index: int, tools: Any, whole_ids: tuple[int, ...],
                   is_trained: list[bool]) -> None:
        before_ids = self._rendered(messages[:index], tools, add_generation_prompt=True).token_ids
        with_ids = self._rendered(messages[:index + 1], tools).token_ids
        start, end = len(before_ids), len(with_ids)
        if whole_ids[:end] != with_ids or with_ids[:start] != before_ids:
            raise UsageError(f"message {index + 1} cannot be told apart in the chat",
                             why="the template writes the turns before it in another way when it is there")
        stops = [place for place in range(start, end) if whole_ids[place] in self.tokenizer.stop_token_ids]
        end = stops[-1] + 1 if stops else end
        is_trained[start:end] = [True] * (end - start)

    def _rendered(self, messages: list[Any], tools: Any, *,
                  add_generation_prompt: bool = False) -> chat.RenderedChat:
        return chat.render(self.template, self.tokenizer, messages, tools=tools,
                           add_generation_prompt=add_generation_prompt)

    def _encode(self, fields: Mapping[str, Any], name: str, *, is_start: bool) -> list[int]:
        text = _text(fields, name)
        token_ids = self.tokenizer.encode(text, add_special_tokens=is_start)
        if is_start and token_ids and token_ids[-1] == self.tokenizer.eos_token_id:
            token_ids.pop()  # a tokenizer that ends texts itself; the end comes once, at the end
        return token_ids

    def _end(self) -> tuple[int, ...]:
        eos = self.tokenizer.eos_token_id
        return () if eos is None else (eos,)


def _text(fields: Mapping[str, Any], name: str) -> str:
    if not isinstance(fields[name], str):
        raise UsageError(f"`{name}` is a {type(fields[name]).__name__}, expected text")
    return fields[name]
