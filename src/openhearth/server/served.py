"""A loaded model that a server serves, by its names, and what a request in text becomes for the engine.

Does not: know wire formats, or decide what is loaded (`models.py`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from openhearth.chat import GrammarText, Infill, Reading, infill_prompt
from openhearth.engine import Engine, Request, Sampling, TokenMask
from openhearth.errors import Unsupported
from openhearth.local import LocalModel
from openhearth.models.adapter_files import StoredAdapter
from openhearth.server.asking import Answering, Asked, named, prepare
from openhearth.server.engine_thread import EngineThread
from openhearth.server.errors import Refusal
from openhearth.server.generation import Generation, Job

_HUBS = ("hf.co/", "huggingface.co/")
_RESERVED = frozenset({"self", "template", "tokenizer", "messages", "tools", "add_generation_prompt", "now",
                       "template_name"})


def check_variables(variables: Mapping[str, Any]) -> None:
    """Refuse variables for the template that the server sets. Raises: Refusal."""
    taken = sorted(_RESERVED & set(variables))
    if taken:
        raise Refusal(f"`chat_template_kwargs` has `{taken[0]}`", field="chat_template_kwargs",
                      why="the server sets it")


@dataclass(frozen=True)
class Limits:
    """What a server lets a request ask for.

    max_body_bytes: of a request's body, which must be there within body_s seconds. max_waiting: completions
    in the line, more are refused. max_n: answers to one prompt. max_prompts: prompts of one request.
    load_s: how long a request waits for its model to be loaded.
    Example: ``Limits(max_waiting=16)``.
    """

    max_body_bytes: int = 16 << 20
    body_s: float = 30.0
    max_waiting: int = 256
    max_n: int = 128
    max_prompts: int = 256
    load_s: float = 60.0


class Served:
    """One model with its adapters, over one engine thread.

    name: what requests call the model; each adapter is called by its own name. The thread is not started.
    Raises: UsageError for an adapter that does not fit.
    Example: ``Served(load("smollm2"), "smollm2", adapters={"polite": read_adapter(path)})``.
    """

    def __init__(self, model: LocalModel, name: str, *, adapters: Mapping[str, StoredAdapter] | None = None,
                 limits: Limits = Limits()) -> None:
        self.model, self.name, self.limits = model, name, limits
        self.thread = EngineThread(model.engine, max_waiting=limits.max_waiting)
        self._attached = {one: _attached_name(one, adapter) for one, adapter in (adapters or {}).items()}
        for one, adapter in (adapters or {}).items():
            model.engine.attach(self._attached[one], adapter.weights)

    @property
    def names(self) -> tuple[str, ...]:
        """The model's name, then those of its adapters."""
        return (self.name, *self._attached)

    @property
    def engine(self) -> Engine:
        """The engine; only the engine thread may change it."""
        return self.model.engine

    def adapter_of(self, name: str) -> str | None:
        """Return the engine's name of the adapter that a model name means, None for the model itself.

        Names are read as by `plain_name`. Raises: Refusal with status 404.
        """
        short = plain_name(name)
        if short not in self.names:
            raise unknown_model(name, self.names)
        return None if short == self.name else self._attached[short]

    async def change_adapters(self, adapters: Mapping[str, StoredAdapter]) -> list[str]:
        """Serve these adapters from now on; returns the engine's names of those that no new request takes.

        Requests on their way go on with what they began with: `forget` the returned ones when those ended.
        Raises: UsageError for one that does not fit; nothing has changed then.
        """
        wanted = {name: _attached_name(name, adapter) for name, adapter in adapters.items()}
        known = set(self._attached.values())
        added = {wanted[name]: adapter.weights for name, adapter in adapters.items()
                 if wanted[name] not in known}

        def attach(engine: Engine) -> None:
            done = []
            try:
                for name, weights in added.items():
                    if name not in engine.model.adapters:
                        engine.attach(name, weights)
                        done.append(name)
            except Exception:
                for name in done:
                    engine.detach(name)
                raise

        await self.thread.run(attach)
        self._attached = wanted
        return sorted(known - set(wanted.values()))

    async def forget(self, attached: Sequence[str]) -> None:
        """Take adapters out of the engine that no request takes any more, by the engine's names.

        One that is served again stays.
        """
        gone = [name for name in attached if name not in self._attached.values()]

        def detach(engine: Engine) -> None:
            for name in gone:
                if name in engine.model.adapters:
                    engine.detach(name)

        await self.thread.run(detach)

    async def render(self, messages: Sequence[Mapping[str, Any]],
                     variables: Mapping[str, Any] | None = None, *, prefill: str = "") -> tuple[int, ...]:
        """Return the token ids of a conversation, up to the assistant's turn or into it.

        variables: for the template. prefill: how the assistant's turn begins. Nothing in messages can become
        a control token. Raises: Refusal, TemplateError, UsageError.
        """
        check_variables(variables or {})

        def work() -> tuple[int, ...]:
            rendered = self.model.render(messages, **(variables or {})).token_ids
            return (*rendered, *self.model.tokenizer.encode(prefill)) if prefill else rendered

        return await asyncio.to_thread(work)

    async def prepare(self, messages: Sequence[Mapping[str, Any]], answering: Answering,
                      variables: Mapping[str, Any] | None = None, *, prefill: str = "") -> Asked:
        """As `render`, with what the answer has to be. Raises: as `asking.prepare`, Refusal."""
        check_variables(variables or {})
        return await prepare(self.model, messages, answering, variables or {}, prefill=prefill)

    async def follow(self, grammar: GrammarText, field: str) -> Callable[[], TokenMask]:
        """Return a token mask that keeps answers inside a field's grammar. Raises: Refusal, Unsupported."""
        return await asyncio.to_thread(named, field, lambda: self.model.follow(grammar))

    async def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a plain prompt, with BOS where the tokenizer adds one."""
        return await asyncio.to_thread(self.model.encode_prompt, text)

    async def encode_infill(self, prompt: Infill, name: str) -> tuple[int, ...]:
        """Return the token ids that ask for what is between two texts; its answer is a `Reading.is_middle`.

        name: of the model, as the request has it. Raises: Refusal where the tokenizer has no marks of a gap.
        """
        try:
            return tuple(await asyncio.to_thread(infill_prompt, self.model.tokenizer, prompt, name))
        except Unsupported as error:
            raise Refusal(error.what, field="suffix", code="unsupported_field", why=error.why,
                          hint=error.hint) from None

    def job(self, prompt_token_ids: Sequence[int], *, adapter: str | None, settings: Mapping[str, Any],
            max_tokens: int | None = None, n: int = 1, seed: int | None = None,
            stops: Sequence[str] = (), cache_salt: str = "", reading: Reading = Reading()) -> Job:
        """Return what to ask the engine for. settings: as in `engine.Sampling`; the model's own for the rest.

        max_tokens: None is all that fits the context. seed: None draws one. Raises: UsageError.
        """
        room = max(1, self.engine.context_length - len(prompt_token_ids))
        sampling = Sampling(**{**self.model.default_sampling, **settings},
                            seed=secrets.randbits(63) if seed is None else seed % 2**64,
                            max_tokens=room if max_tokens is None else max_tokens,
                            stop_token_ids=reading.stop_token_ids(self.model.tokenizer))
        return Job(Request(tuple(prompt_token_ids), sampling, n=n, adapter=adapter, cache_salt=cache_salt),
                   tuple(stops), reading)

    async def open(self, job: Job, stack: AsyncExitStack) -> Generation:
        """Put a job into the line; it ends with the stack at the latest.

        Raises: PromptTooLong, QueueFull, UsageError.
        """
        ticket = await self.thread.submit(job.request)
        generation = Generation(self.thread, ticket, job, self.model.tokenizer)
        stack.callback(generation.close)
        return generation


def plain_name(name: str) -> str:
    """Return a model's name without what Ollama's clients write around it: `hf.co/name:latest` is `name`."""
    for hub in _HUBS:
        name = name.removeprefix(hub)
    return name.removesuffix(":latest")


def unknown_model(name: str, names: Sequence[str]) -> Refusal:
    """Return the refusal of a model name that nothing here has."""
    return Refusal(f"no model `{name[:120]}` is served here", status=404, code="model_not_found",
                   field="model", why=f"served: {', '.join(names)}")


def _attached_name(name: str, adapter: StoredAdapter) -> str:
    """Return what the engine calls an adapter: another content is another one, so that both can be there."""
    return f"{name}@{adapter.sha256}"
