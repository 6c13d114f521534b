"""Text completions of OpenAI's dialect: plain prompts, token ids, and the log-probabilities of a prompt.

What evaluation harnesses use: `echo` with `logprobs` scores the prompt as the model reads it, each token
given those before it at temperature 1, in steps that others share.

With `suffix` what is drawn stands between the prompt and the suffix.

Does not: draw more answers than it returns (`best_of`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from openhearth.chat import Infill, Reading, TextStream
from openhearth.server.dialects.openai_fields import (
    COMMON_FIELDS,
    MAX_LOGPROBS,
    include_usage,
    sampling_settings,
    stream_error,
    to_event,
    usage_of,
)
from openhearth.server.dialects.tokens import finite, plain_text
from openhearth.server.errors import Refusal
from openhearth.server.exchange import Call, Stream
from openhearth.server.fields import Field, flag, read_fields, refused, require, text, texts_or_ids, whole
from openhearth.server.generation import Generation
from openhearth.server.reading import score_whole
from openhearth.server.served import Limits

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own default for this path."""

Pairs = tuple[tuple[int, float], ...]


FIELDS = (
    Field("prompt", "a text, token ids, or a list of either; control tokens in text stay text",
          texts_or_ids(Limits.max_prompts)),
    *COMMON_FIELDS,
    Field("max_tokens", f"longest answer, {DEFAULT_MAX_TOKENS} when left out; 0 with `echo` only scores",
          whole(0, 2**31)),
    Field("echo", "the prompt comes first, with its log-probabilities if they are asked for", flag),
    Field("logprobs", "log-probabilities of the tokens, the one that ended the answer included, and of 0 to "
          f"{MAX_LOGPROBS} alternatives", whole(0, MAX_LOGPROBS)),
    refused("best_of", "answers that are not returned would be computed; ask for `n`", 1),
    Field("suffix", "a text: the answer is what stands between the prompt, or each of several texts, and it, "
          "by models that have marks for it. Not with `echo` or token ids; without effect when empty", text),
)


@dataclass(frozen=True)
class _Shown:
    """Tokens of an answer or a prompt with their log-probabilities; None for the first of a prompt."""

    token_ids: Sequence[int]
    logprobs: Sequence[float | None]
    top_logprobs: Sequence[Pairs | None]


class _Row:
    """One choice while it is written: where in its text the next token begins."""

    def __init__(self, call: Call, num_logprobs: int | None, *, is_middle: bool) -> None:
        self._tokenizer = call.served.model.tokenizer
        self._stream = TextStream(self._tokenizer, is_middle=is_middle)
        self._num_logprobs = num_logprobs
        self._offset = 0

    def logprobs(self, shown: _Shown) -> dict[str, Any] | None:
        """Return the record of these tokens, None when nobody asked."""
        if self._num_logprobs is None:
            return None
        offsets = []
        for token_id in shown.token_ids:
            offsets.append(self._offset)
            self._offset += len(self._stream.push(token_id))
        return {"tokens": [plain_text(self._tokenizer, token_id) for token_id in shown.token_ids],
                "token_logprobs": [None if one is None else finite(one) for one in shown.logprobs],
                "top_logprobs": [self._alternatives(*entry) for entry in zip(
                    shown.token_ids, shown.logprobs, shown.top_logprobs, strict=True)],
                "text_offset": offsets}

    def _alternatives(self, token_id: int, logprob: float | None,
                      top: Pairs | None) -> dict[str, float] | None:
        """Return text -> log-probability of the likeliest tokens and of the one that is there."""
        if logprob is None:
            return None
        found: dict[str, float] = {}
        for pair in (*(top or ()), (token_id, logprob)):
            found.setdefault(plain_text(self._tokenizer, pair[0]), finite(pair[1]))
        return found


async def complete(call: Call) -> Stream | dict[str, Any]:
    """`POST /v1/completions`."""
    values = read_fields(FIELDS, call.body)
    require(values, "model", "prompt")
    served = call.served
    adapter = served.adapter_of(values["model"])
    max_tokens, does_echo = values.get("max_tokens", DEFAULT_MAX_TOKENS), values.get("echo", False)
    if max_tokens == 0 and not does_echo:
        raise Refusal("`max_tokens` is `0` without `echo`", field="max_tokens", hint="max_tokens: 16")
    num_logprobs, with_usage = values.get("logprobs"), include_usage(values)
    call.note(model=values["model"])
    settings = {**sampling_settings(values), "num_logprobs": num_logprobs or 0}
    if "structured_outputs" in values:
        settings["token_mask"] = await served.follow(values["structured_outputs"], "structured_outputs")
    suffix = values.get("suffix", "")
    if suffix:
        _check_infill(values)
        prompts = [await served.encode_infill(Infill(prompt, suffix), values["model"])
                   for prompt in values["prompt"]]
    else:
        prompts = [await served.encode(prompt) if isinstance(prompt, str) else prompt
                   for prompt in values["prompt"]]
    if not max_tokens:
        call.count_prompt(adapter, sum(map(len, prompts)))
    # All at once: prompts of one request share steps.
    generations = [await call.open(served.job(
        prompt, adapter=adapter, settings=settings, max_tokens=max_tokens, n=values.get("n", 1),
        seed=values.get("seed"), stops=values.get("stop", ()), reading=Reading(is_middle=bool(suffix)),
        cache_salt=call.cache_salt)) for prompt in prompts] if max_tokens else []
    echoed = await _echo(call, prompts, num_logprobs, adapter) if does_echo else []
    texts = [prompt if isinstance(prompt, str) else served.model.tokenizer.decode(prompt)
             for prompt in values["prompt"]] if does_echo else []
    answer = _Answer(call, values, prompts, generations, echoed, texts)
    if values.get("stream", False):
        return Stream("text/event-stream", answer.chunks(with_usage=with_usage), stream_error)
    return await answer.whole()


def _check_infill(values: dict[str, Any]) -> None:
    """Refuse what makes no sense with `suffix`. Raises: Refusal."""
    if values.get("echo", False):
        raise Refusal("`echo` is given with `suffix`", field="echo", code="unsupported_field",
                      why="the prompt is not what stands before the answer", hint="leave `echo` out")
    if not all(isinstance(prompt, str) for prompt in values["prompt"]):
        raise Refusal("`suffix` is given with token ids", field="suffix", code="unsupported_field",
                      why="marks are put around texts; token ids may hold the marks themselves",
                      hint="a prompt that is a text, or the ids of prompt, suffix and marks without `suffix`")


async def _echo(call: Call, prompts: Sequence[tuple[int, ...]], num_logprobs: int | None,
                adapter: str | None) -> list[_Shown]:
    """Score prompts, where that is asked for."""
    shown = [_Shown(prompt, nothing := [None] * len(prompt), nothing) for prompt in prompts]
    if num_logprobs is None:
        return shown
    places = [place for place, prompt in enumerate(prompts) if len(prompt) > 1]
    scores = await score_whole(call, [prompts[place] for place in places], adapter, num_logprobs)
    for place, one in zip(places, scores, strict=True):
        top = one.top or [()] * len(one.logprobs)
        shown[place] = _Shown(prompts[place], [None, *one.logprobs], [None, *top])
    return shown


class _Answer:
    """The answer to one request: n choices for each of its prompts, numbered in that order."""

    def __init__(self, call: Call, values: dict[str, Any], prompts: Sequence[tuple[int, ...]],
                 generations: Sequence[Generation], echoed: Sequence[_Shown], texts: Sequence[str]) -> None:
        self._call, self._prompts, self._generations = call, prompts, generations
        self._echoed, self._texts = echoed, texts
        self._n = values.get("n", 1)
        self._rows = [_Row(call, values.get("logprobs"), is_middle=bool(values.get("suffix")))
                      for _ in range(self._n * len(prompts))]
        self._head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion",
                      "created": int(time.time()), "model": values["model"],
                      "system_fingerprint": f"fp_{call.served.engine.weights_version[:12]}"}

    async def whole(self) -> dict[str, Any]:
        """Return the answer as one document."""
        choices: dict[int, dict[str, Any]] = {}
        async for choice in self._parts():
            if choice is None:
                continue
            known = choices.setdefault(choice["index"], choice)
            if known is not choice:
                known["text"] += choice["text"]
                known["finish_reason"] = choice["finish_reason"]
                for name, entries in (choice["logprobs"] or {}).items():
                    known["logprobs"][name] += entries
        return {**self._head, "usage": self._usage(),
                "choices": [choices[index] for index in sorted(choices)]}

    async def chunks(self, *, with_usage: bool) -> AsyncIterator[bytes]:
        """Yield the answer as events."""
        usage = {"usage": None} if with_usage else {}
        async for choice in self._parts():
            if choice is None:
                yield b": still here\n\n"
            else:
                yield to_event({**self._head, **usage, "choices": [choice]})
        if with_usage:
            yield to_event({**self._head, "choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    async def _parts(self) -> AsyncIterator[dict[str, Any] | None]:
        """Yield what is added to choices, those of the first prompt first; None while nothing comes."""
        for place in range(len(self._prompts)):
            if self._echoed:
                reason = None if self._generations else "length"
                for index in range(place * self._n, (place + 1) * self._n):
                    yield self._choice(index, self._texts[place], self._echoed[place], reason)
            if not self._generations:
                continue
            async for part in self._generations[place].parts():
                if part is None:
                    yield None
                    continue
                # The token that ended the answer is among them, as in vLLM: harnesses drop the last one.
                events = part.events if part.last is None else (*part.events, part.last)
                yield self._choice(
                    place * self._n + part.index, part.text,
                    _Shown([event.token_id for event in events], [event.logprob for event in events],
                           [event.top_logprobs for event in events]), part.finish_reason)
        self._call.note_generation(*self._generations)

    def _choice(self, index: int, text: str, shown: _Shown, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": self._rows[index].logprobs(shown),
                "finish_reason": reason}

    def _usage(self) -> dict[str, Any]:
        unread = 0 if self._generations else sum(map(len, self._prompts))
        return usage_of(self._generations, unread)
