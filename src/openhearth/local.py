"""A model on this machine, text in and text out: what `hearth run` and `openhearth.load` use.

It joins the store, the tokenizer and template, and the engine, and adds nothing to them: token ids
are drawn by the engine, text is cut by `chat/`. Requests that are open at the same time share the
engine's batches.

Does not: serve a network, keep conversations, or choose what to say when no template exists
(`chat` then refuses; `generate` takes plain prompts).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from openhearth import chat, formats, hardware, hub
from openhearth.config import Config
from openhearth.engine import (
    CacheDtype,
    Engine,
    EngineSettings,
    Request,
    RequestTimings,
    Sampling,
    TokenEvent,
    TokenMask,
    grammar_mask,
)
from openhearth.errors import TemplateError, UsageError
from openhearth.kernels import select
from openhearth.models import load_model
from openhearth.models.adapter_files import StoredAdapter, read_adapter
from openhearth.spec import (
    OWN_DRAFT,
    ModelSpec,
    WeightChoice,
    choose_weights,
    in_context,
    read_spec,
    with_mtp,
)

DEFAULT_MAX_TOKENS = 1024
DRAFTED_TOKENS = 4
"""Tokens that a draft proposes at a time, unless it is said how many."""
FALLBACK_SAMPLING = {"temperature": 0.7}
_ADAPTER = "loaded"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_RECOMMENDABLE = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

Prompt = str | Sequence[int] | chat.Infill


@dataclass(frozen=True)
class Timings:
    """Where an answer's time went, in seconds.

    load_s: reading the model, fetching not included. first_token_s counts from submission. accepted_tokens
    were drawn as one of the proposed_tokens that were computed beforehand; both 0 without speculation.
    """

    load_s: float
    first_token_s: float
    prefill_tokens: int
    prefill_s: float
    decode_tokens: int
    decode_s: float
    proposed_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """One finished completion.

    text is what was answered, reasoning what was thought before, where the prompt is a conversation and the
    model tells them apart. token_ids includes the stop token when one ended it; text does not. logprobs
    belong to token_ids; top_logprobs holds (token id, logprob) pairs per token, empty unless asked for.
    seed, with the prompt's token ids, the settings and the weights, gives the same answer again.
    """

    text: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...]
    finish_reason: str
    weights_sha256: str
    seed: int
    timings: Timings
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to an answer's text and reasoning; both may be empty (half a character, a mark).

    token_id None: the step drew no token (a long prompt is read in parts), so that a caller can stop
    between any two steps. answer is set on the last piece.
    """

    text: str
    token_id: int | None
    logprob: float | None
    answer: Answer | None = None
    reasoning: str = ""


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probability of each token of a text given those before it; None for the first."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]


def load(
    ref: str | hub.StoredModel | None = None,
    *,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    weights: Literal["auto", "float32", "bfloat16", "int8", "int4"] | WeightChoice = "auto",
    context_length: int | None = None,
    cache_dtype: CacheDtype = "auto",
    cache_bytes: int | None = None,
    num_threads: int | None = None,
    adapter: Path | None = None,
    speculate: int | None = None,
    draft: str | hub.StoredModel | None = None,
    config: Config | None = None,
    on_progress: hub.OnProgress | None = None,
    on_load: Callable[[int, int], None] | None = None,
    on_choice: Callable[[WeightChoice, formats.Checkpoint, ModelSpec], None] | None = None,
) -> LocalModel:
    """Load a model, fetching it first when it is not on disk.

    ref: see `hub.parse_ref`, or a model that is on disk; None is the catalogue's default. dtype, weights:
    see `spec.choose_weights`, or what it chose before. context_length: caps the model's own, in tokens.
    cache_dtype, cache_bytes: see `engine.EngineSettings`.
    num_threads: None uses every core this process may use. adapter: folder of one (PEFT's layout) that
    every answer takes. speculate: tokens proposed at a time, at most, and checked in one step; None and 0
    propose none. draft: a smaller model of the same tokens that proposes them, or "mtp", the model's own
    layer for multi-token prediction; DRAFTED_TOKENS where speculate is None; without one they are looked up
    in the text so far. Neither changes an answer.
    on_load: called with bytes done and bytes in all while weights are read; on_choice, before that, with the
    form of the weights and how much of them stays in memory.
    Raises: ModelNotFound, BadFile, Unsupported, NetworkError, NotEnoughDisk, NotEnoughMemory,
    UsageError.
    """
    if num_threads is not None and num_threads < 1:
        raise UsageError(f"{num_threads} threads cannot run a model", why="expected 1 or more",
                         hint=f"--threads {hardware.usable_cores()}")
    config = config or Config.from_env()
    is_stored = isinstance(ref, hub.StoredModel)
    stored = ref if is_stored else hub.pull(ref or hub.DEFAULT_MODEL, config, on_progress)
    if isinstance(draft, str) and draft != OWN_DRAFT:
        draft = hub.pull(draft, config, on_progress)
    if speculate is None:
        speculate = 0 if draft is None else DRAFTED_TOKENS
    elif speculate == 0 and draft is not None:
        name = draft if draft == OWN_DRAFT else draft.name
        raise UsageError(f"`{name}` is to draft 0 tokens", hint=f"--speculate {DRAFTED_TOKENS}")
    started = time.perf_counter()
    checkpoint = formats.open_checkpoint(stored.path)
    spec = in_context(read_spec(checkpoint), context_length)
    if draft == OWN_DRAFT:
        spec, draft = with_mtp(spec, checkpoint), None
    stored_adapter = None if adapter is None else read_adapter(adapter)
    tokenizer = chat.load_tokenizer(checkpoint)
    template = chat.load_template(checkpoint, tokenizer)
    select.set_num_threads(num_threads or hardware.usable_cores())
    chosen = weights if isinstance(weights, WeightChoice) else choose_weights(
        weights, dtype, checkpoint, spec, has_native=select.chosen().is_native)
    if on_choice is not None:
        on_choice(chosen, checkpoint, spec)
    drafting = None if draft is None else _load_draft(draft, dtype, stored.name, tokenizer)
    model = load_model(checkpoint, spec, dtype=_DTYPES[chosen.dtype], weights=chosen.form,
                       resident_bytes=chosen.resident_bytes, on_progress=on_load)
    engine = Engine(model, weights_version=stored.weights_sha256, draft=drafting,
                    settings=EngineSettings(context_length=context_length, cache_dtype=cache_dtype,
                                            cache_bytes=cache_bytes, speculate=speculate))
    if stored_adapter is not None:
        engine.attach(_ADAPTER, stored_adapter.weights)
    return LocalModel(stored, tokenizer, template, engine, weights=chosen,
                      default_sampling=default_sampling(stored, checkpoint, config),
                      load_s=time.perf_counter() - started, adapter=stored_adapter)


def _load_draft(stored: hub.StoredModel, dtype: str, name: str, tokenizer: chat.Tokenizer) -> nn.Module:
    """Load the model that drafts for the one of that name. Raises: UsageError when it has other tokens."""
    checkpoint = formats.open_checkpoint(stored.path)
    spec = read_spec(checkpoint)
    if not chat.load_tokenizer(checkpoint).has_same_tokens(tokenizer):
        raise UsageError(f"`{stored.name}` cannot draft for `{name}`", why="it has other tokens",
                         hint="a smaller model of the same family, or --speculate without --draft")
    chosen = choose_weights("auto", dtype, checkpoint, spec, has_native=select.chosen().is_native)
    return load_model(checkpoint, spec, dtype=_DTYPES[chosen.dtype], weights=chosen.form)


class LocalModel:
    """A loaded model. Use from several threads is safe; their requests share batches.

    Sampling arguments everywhere: temperature, top_k, top_p, min_p, repetition_penalty,
    presence_penalty, frequency_penalty, logit_bias, max_tokens, num_logprobs, token_mask as in
    `engine.Sampling`; schema (a JSON schema that the answer follows, after a thought); stop (strings);
    stop_token_ids (added to the model's own); seed (None draws one and reports it). What is left out comes
    from `default_sampling`.
    """

    def __init__(self, stored: hub.StoredModel, tokenizer: chat.Tokenizer,
                 template: chat.ChatTemplate | None, engine: Engine, *, weights: WeightChoice,
                 default_sampling: Mapping[str, float], load_s: float,
                 adapter: StoredAdapter | None = None) -> None:
        self.stored = stored
        self.spec: ModelSpec = engine.model.spec
        self.tokenizer = tokenizer
        self.template = template
        self.engine = engine
        self.weights = weights
        self.dtype = weights.dtype
        self.cache_dtype = str(engine.cache_dtype).removeprefix("torch.")
        self.load_s = load_s
        self.adapter = adapter
        self.adapter_name = None if adapter is None else _ADAPTER
        self.default_sampling = dict(default_sampling)
        self.grammars = chat.Grammars(tokenizer)
        self._lock = threading.RLock()
        self._inboxes: dict[int, deque[TokenEvent]] = {}
        self._abandoned: deque[int] = deque()

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a plain prompt: the text as is, with BOS where the tokenizer adds one.

        Raises: Unsupported for an `Infill` where the tokenizer has no marks of a gap.
        """
        if isinstance(prompt, chat.Infill):
            return tuple(chat.infill_prompt(self.tokenizer, prompt, self.stored.name))
        if isinstance(prompt, str):
            return tuple(self.tokenizer.encode(prompt, add_special_tokens=True))
        return tuple(prompt)

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> chat.RenderedChat:
        """Render a conversation up to the assistant's turn. variables: tools, now, template variables.

        Raises: TemplateError when the model has no chat template or it fails.
        """
        if self.template is None:
            raise TemplateError(f"`{self.stored.name}` has no chat template",
                                why="it is a base model: it continues text, it does not hold conversations",
                                hint=f"hearth run --raw {self.stored.name} \"Once upon a time\"")
        return chat.render(self.template, self.tokenizer, messages, **variables)

    def reading(self, prompt: str) -> chat.Reading:
        """Return how the answer to a rendered prompt is read: what is a thought, what the answer itself."""
        return chat.reading_after(self.template, self.tokenizer, prompt)

    def follow(self, grammar: chat.GrammarText) -> Callable[[], TokenMask]:
        """Return a `token_mask` that keeps answers inside a grammar. Raises: UsageError, Unsupported."""
        return grammar_mask(self.grammars.compile(grammar).follow, self.spec.vocab_size)

    def generate(self, prompt: Prompt | Sequence[Prompt], *, n: int = 1,
                 reading: chat.Reading | None = None, **sampling: Any):
        """Continue a plain prompt, or several in one batch.

        prompt: text, token ids, a `chat.Infill` whose gap is filled in, or a list of these. reading: as
        `stream`. Returns an Answer; a list of n for n > 1; a list of those for a list of prompts.
        Raises: PromptTooLong, QueueFull, Unsupported, UsageError.
        """
        is_one = isinstance(prompt, str | chat.Infill) or len(prompt) == 0 or isinstance(prompt[0], int)
        streams: list[_Stream] = []
        answers = []
        try:
            for one in [prompt] if is_one else prompt:
                streams.append(self._open(one, n, reading, **sampling))
            for stream in streams:
                for _ in stream.pieces():
                    pass
                answers.append(stream.answers if n > 1 else stream.answers[0])
        finally:
            for stream in streams[len(answers):]:
                self._close(stream.request_id)
        return answers[0] if is_one else answers

    def stream(self, prompt: Prompt, *, reading: chat.Reading | None = None,
               **sampling: Any) -> Iterator[Piece]:
        """Continue a plain prompt piece by piece; closing or dropping the iterator cancels the request.

        reading: of a rendered conversation; a plain prompt has none, its answer is text as it is.
        """
        return _Pieces(self._open(prompt, 1, reading, **sampling))

    def chat(self, messages: Sequence[Mapping[str, Any]], *, variables: Mapping[str, Any] | None = None,
             **sampling: Any) -> Answer:
        """Answer a conversation of {"role", "content"} messages. Raises: as `generate`, TemplateError."""
        rendered = self.render(messages, **(variables or {}))
        return self.generate(rendered.token_ids, reading=self.reading(rendered.text), **sampling)

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], *,
                    variables: Mapping[str, Any] | None = None, **sampling: Any) -> Iterator[Piece]:
        """As `chat`, piece by piece."""
        rendered = self.render(messages, **(variables or {}))
        return self.stream(rendered.token_ids, reading=self.reading(rendered.text), **sampling)

    def logprobs(self, text: Prompt) -> TokenLogprobs:
        """Score a text: natural-log probability of each token under the model, temperature 1.

        Raises: PromptTooLong, UsageError for an empty text.
        """
        token_ids = self.encode_prompt(text)
        with self._lock:
            scores = self.engine.score(token_ids, self.adapter_name)
        return TokenLogprobs(token_ids, (None, *scores))

    def _open(self, prompt: Prompt, n: int, reading: chat.Reading | None, *,
              stop: str | Sequence[str] = (), stop_token_ids: Sequence[int] = (), seed: int | None = None,
              max_tokens: int | None = None, schema: Mapping[str, Any] | None = None,
              **sampling: Any) -> _Stream:
        reading = reading or chat.Reading(is_middle=isinstance(prompt, chat.Infill))
        prompt_token_ids = self.encode_prompt(prompt)
        if schema is not None:
            sampling["token_mask"] = self.follow(
                reading.after_thinking(chat.schema_grammar(schema), self.tokenizer))
        seed = secrets.randbits(53) if seed is None else seed
        settings = {**self.default_sampling, **{k: v for k, v in sampling.items() if v is not None}}
        try:
            request = Request(prompt_token_ids, Sampling(
                **settings, seed=seed, max_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
                stop_token_ids=reading.stop_token_ids(self.tokenizer) | frozenset(stop_token_ids)),
                n=n, adapter=self.adapter_name)
        except TypeError as error:
            raise UsageError(f"unknown sampling setting: {error}",
                             hint="see openhearth.engine.Sampling") from error
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        rows = [CompletionText(self.tokenizer, stops, reading) for _ in range(n)]
        with self._lock:
            self._close_abandoned()
            request_id = self.engine.submit(request)
            self._inboxes[request_id] = deque()
        return _Stream(self, request_id, request, rows)

    def _next_event(self, request_id: int) -> TokenEvent | None:
        """Return a request's next event; None when a step brought it none. Raises: the event's error."""
        with self._lock:
            self._close_abandoned()
            inbox = self._inboxes[request_id]
            if not inbox:
                for event in self.engine.step():
                    if event.request_id in self._inboxes:
                        self._inboxes[event.request_id].append(event)
            event = inbox.popleft() if inbox else None
        if event is not None and event.error is not None:
            raise event.error
        return event

    def _finish(self, request_id: int, index: int) -> None:
        with self._lock:
            self.engine.finish(request_id, index, reason="stop")

    def _close(self, request_id: int) -> RequestTimings | None:
        """End a request and return its timings; None when it was closed before."""
        with self._lock:
            if self._inboxes.pop(request_id, None) is None:
                return None
            timings = self.engine.timings(request_id)
            self.engine.cancel(request_id)
        return timings

    def _abandon(self, request_id: int) -> None:
        """End a request before the next step; safe where any thread may be inside one."""
        self._abandoned.append(request_id)

    def _close_abandoned(self) -> None:
        while self._abandoned:
            self._close(self._abandoned.popleft())


class CompletionText:
    """Text and tokens of one completion while it grows.

    reader: tells thoughts from the answer. pieces: what was safe to show. events: those that brought a token.
    finish_reason: None until it ended.
    Example: ``CompletionText(tokenizer, ("END",), Reading()).add(event, stop_token_ids)``.
    """

    def __init__(self, tokenizer: chat.Tokenizer, stops: tuple[str, ...], reading: chat.Reading) -> None:
        self.stream = chat.TextStream(tokenizer, shown=reading.marks, is_middle=reading.is_middle)
        self.stops = chat.StopStrings(stops)
        self.reader = reading.begin()
        self.pieces: list[chat.AnswerPiece] = []
        self.events: list[TokenEvent] = []
        self.finish_reason: str | None = None

    def add(self, event: TokenEvent, stop_token_ids: frozenset[int]) -> tuple[str, list[chat.AnswerPiece]]:
        """Take an event of a completion that has not ended; returns the text it brought, and what to show."""
        shown, is_stopped = "", False
        if event.token_id is not None:
            self.events.append(event)
            if not (event.finish_reason == "stop" and event.token_id in stop_token_ids):
                shown, is_stopped = self.stops.push(self.stream.push(event.token_id))
        if not is_stopped and event.finish_reason is not None:
            self.finish_reason = event.finish_reason
            rest, is_stopped = self.stops.push(self.stream.finish())
            shown += rest if is_stopped else rest + self.stops.finish()
        if is_stopped:
            self.finish_reason = "stop"
        pieces = self.reader.push(shown)
        if self.finish_reason is not None:
            pieces += self.reader.finish()
        self.pieces += pieces
        return shown, pieces


class _Stream:
    """The open request behind `generate` and `stream`."""

    def __init__(self, model: LocalModel, request_id: int, request: Request,
                 rows: list[CompletionText]) -> None:
        self.model = model
        self.request_id = request_id
        self.request = request
        self.rows = rows
        self.answers: list[Answer] = []

    def pieces(self) -> Iterator[Piece]:
        timings = None
        try:
            while any(row.finish_reason is None for row in self.rows):
                event = self.model._next_event(self.request_id)
                if event is None:
                    yield Piece("", None, None)
                    continue
                row = self.rows[event.index]
                if row.finish_reason is not None:
                    continue
                _, pieces = row.add(event, self.request.sampling.stop_token_ids)
                new = chat.whole_answer(pieces)
                if row.finish_reason is not None and event.finish_reason is None:
                    self.model._finish(self.request_id, event.index)
                if any(row.finish_reason is None for row in self.rows):
                    yield Piece(new.content, event.token_id, event.logprob, reasoning=new.reasoning)
            timings = self.model._close(self.request_id)
            self.answers = [self._answer(row, timings) for row in self.rows]
            yield Piece(new.content, event.token_id, event.logprob, self.answers[0], new.reasoning)
        finally:
            if timings is None:
                self.model._close(self.request_id)

    def _answer(self, row: CompletionText, timings: RequestTimings) -> Answer:
        whole = chat.whole_answer(row.pieces)
        return Answer(
            text=whole.content, reasoning=whole.reasoning, prompt_token_ids=self.request.prompt_token_ids,
            token_ids=tuple(event.token_id for event in row.events),
            logprobs=tuple(event.logprob for event in row.events),
            top_logprobs=tuple(event.top_logprobs for event in row.events),
            finish_reason=row.finish_reason, weights_sha256=self.model.stored.weights_sha256,
            seed=self.request.sampling.seed,
            timings=Timings(self.model.load_s, timings.first_token_s, timings.prefill_tokens,
                            timings.prefill_s, timings.decode_tokens, timings.decode_s,
                            timings.proposed_tokens, timings.accepted_tokens))


class _Pieces:
    """The iterator that `stream` gives. Its request ends with it, even when nothing was taken from it."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._pieces = stream.pieces()

    def __iter__(self) -> _Pieces:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """Cancel the request unless it is done."""
        self._pieces.close()
        self._stream.model._close(self._stream.request_id)

    def __del__(self) -> None:
        self._stream.model._abandon(self._stream.request_id)


def default_sampling(stored: hub.StoredModel, checkpoint: formats.Checkpoint,
                     config: Config) -> dict[str, float]:
    """Sampling the model's makers recommend.

    Taken from the catalogue, else `generation_config.json`, else GGUF `general.sampling.*`; else
    temperature 0.7.
    """
    recommended = hub.recommended_sampling(stored, config)
    if not recommended and checkpoint.format == "safetensors":
        path = checkpoint.path / "generation_config.json"
        record = formats.read_json(path, 1 << 20) if path.exists() else {}
        if record.get("do_sample", True):
            recommended = {key: record[key] for key in _RECOMMENDABLE if record.get(key) is not None}
        else:
            recommended = {"temperature": 0.0}
    if not recommended:
        names = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
                 "penalty_repeat": "repetition_penalty"}
        metadata = checkpoint.metadata
        recommended = {ours: metadata[f"general.sampling.{theirs}"] for theirs, ours in names.items()
                       if f"general.sampling.{theirs}" in metadata}
    return dict(recommended) or dict(FALLBACK_SAMPLING)
