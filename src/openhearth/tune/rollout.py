"""Completions of a step's problems, graded: the engine that serves, on the weights that learn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from openhearth import chat
from openhearth.engine import Completion, Engine, Request, Sampling, complete
from openhearth.errors import PromptTooLong, TemplateError
from openhearth.tasks import NOW, Grading, Problem, Verdict


@dataclass(frozen=True)
class Asked:
    """One problem, ready to be answered. task: its place among the run's tasks.

    seed: of the group's random streams. Example: ``ask(problem, 0, tokenizer, template, seed=7)``.
    """

    task: int
    problem: Problem
    prompt: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Rolled:
    """One completion with its verdict. logprobs: of token_ids, under the distribution drawn from.

    reward: None where the grader failed. Example: ``roll(engine, ...)[0][0].verdict == "correct"``.
    """

    task: int
    problem: str
    prompt: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str
    verdict: str
    reward: float | None
    reason: str


def ask(problem: Problem, task: int, tokenizer: chat.Tokenizer, template: chat.ChatTemplate | None, *,
        seed: str) -> Asked:
    """Render a problem as evaluation does. Raises: TemplateError, with the problem's id."""
    if template is None:
        raise TemplateError("the model has no chat template to ask problems with",
                            hint="hearth tune sft, or the instruct version of the model")
    try:
        prompt = chat.render(template, tokenizer, problem.messages, now=NOW).token_ids
    except TemplateError as error:
        raise TemplateError(f"problem `{problem.id}`: {error.what}", why=error.why) from error
    digest = hashlib.sha256(f"{seed}/{task}/{problem.id}".encode()).digest()
    return Asked(task, problem, tuple(prompt), int.from_bytes(digest[:8], "little"))


def roll(engine: Engine, tokenizer: chat.Tokenizer, grading: Grading, asked: Sequence[Asked],
         sampling: Sampling, *, group_size: int, adapter: str | None) -> list[list[Rolled]]:
    """Return a group of graded completions for each problem, in the order asked.

    A group's prompt is computed once; completions leave the batch as they end, and are graded while others
    go on. Raises: PromptTooLong with the problem's id, and as `Engine.submit`.
    """
    for one in asked:
        if len(one.prompt) + sampling.max_tokens > engine.context_length:
            raise PromptTooLong(
                f"problem `{one.problem.id}` has {len(one.prompt)} tokens, completions {sampling.max_tokens}",
                why=f"the context is {engine.context_length}", hint="a smaller --max-tokens")
    requests = ((place, Request(one.prompt, replace(sampling, seed=one.seed), n=group_size, adapter=adapter))
                for place, one in enumerate(asked))
    pending: dict[int, list[tuple[Completion, str, Future[Verdict]]]] = {}
    for ready in complete(engine, requests):
        if ready is not None:
            place, completions = ready
            one = asked[place]
            texts = [_text(completion, tokenizer) for completion in completions]
            pending[place] = [(completion, text, grading.submit(one.task, one.problem, text))
                              for completion, text in zip(completions, texts, strict=True)]
    return [[_rolled(asked[place], completion, text, verdict.result())
             for completion, text, verdict in pending[place]] for place in range(len(asked))]


def _text(completion: Completion, tokenizer: chat.Tokenizer) -> str:
    token_ids = completion.token_ids
    is_ended = bool(token_ids) and token_ids[-1] in tokenizer.stop_token_ids
    return tokenizer.decode(token_ids[:-1] if is_ended else token_ids)


def _rolled(one: Asked, completion: Completion, text: str, verdict: Verdict) -> Rolled:
    return Rolled(one.task, one.problem.id, one.prompt, completion.token_ids, completion.logprobs, text,
                  completion.finish_reason, verdict.kind, verdict.reward, verdict.reason)
