"""Ask a model the problems of some tasks and grade what it says.

The next problems are rendered, submitted and graded while others are still being answered. What a model
says to a problem depends on weights, prompt, settings and seed alone, so runs can be cut, resumed, and
compared bit for bit.

Does not: keep anything on disk (`folder.py`), or count (`summary.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from openhearth.engine import Completion, Request, Sampling, complete
from openhearth.errors import PromptTooLong, TemplateError
from openhearth.evals.records import EvalSettings, Sample, request_seed
from openhearth.local import LocalModel
from openhearth.tasks import NOW, Grading, Problem, Task, Verdict

_ENDLESS = 200


@dataclass(frozen=True)
class Asked:
    """One problem on its way. task: its place among the tasks."""

    task: int
    problem: Problem
    request: Request


def num_problems(task: Task, settings: EvalSettings) -> int:
    """Return how many problems of a task an evaluation asks. Raises: UsageError without such a split."""
    count, wanted = task.num_problems(settings.split), settings.num_problems
    if count is None:
        return wanted or _ENDLESS
    return min(count, wanted or count)


def resolve_sampling(model: LocalModel, settings: EvalSettings) -> dict[str, Any]:
    """Return the sampling that an evaluation uses: greedy for one sample, else the model's own."""
    if settings.sampling:
        return dict(settings.sampling)
    return {"temperature": 0.0} if settings.num_samples == 1 else dict(model.default_sampling)


def evaluate(model: LocalModel, tasks: Sequence[Task], settings: EvalSettings, *, grading: Grading,
             done: AbstractSet[tuple[str, str]] = frozenset()) -> Iterator[list[Sample]]:
    """Yield the graded samples of each problem, in the order in which they are ready.

    grading: of the same tasks. done: (task, problem id) of problems to leave out. Answers take the adapter
    that the model was loaded with. An empty list is yielded where nothing became ready, so that the reader
    can stop at any time. Raises: PromptTooLong and TemplateError with the problem's id, UsageError.
    """
    asked = _requests(model, tasks, settings, done)
    pending: deque[tuple[Asked, list[Completion], list[Future[Verdict]]]] = deque()
    answers = complete(model.engine, asked)
    try:
        for ready in answers:
            if ready is not None:
                question, completions = ready
                futures = [grading.submit(question.task, question.problem, _text(model, completion))
                           for completion in completions]
                pending.append((question, completions, futures))
            while pending and all(future.done() for future in pending[0][2]):
                yield _samples(model, tasks, *pending.popleft())
            yield []
        while pending:
            yield _samples(model, tasks, *pending.popleft())
    finally:
        answers.close()


def _requests(model: LocalModel, tasks: Sequence[Task], settings: EvalSettings,
              done: AbstractSet[tuple[str, str]]) -> Iterator[tuple[Asked, Request]]:
    sampling = resolve_sampling(model, settings)
    for place, task in enumerate(tasks):
        max_tokens = settings.max_tokens or task.max_tokens
        for index in range(num_problems(task, settings)):
            problem = task.problem(settings.split, index)
            if (str(task.name), problem.id) in done:
                continue
            prompt = render_problem(model, problem)
            seed = request_seed(settings.seed, str(task.name), problem.id)
            request = Request(prompt, Sampling(**sampling, seed=seed, max_tokens=max_tokens,
                                               stop_token_ids=model.tokenizer.stop_token_ids),
                              n=settings.num_samples, adapter=model.adapter_name)
            yield Asked(place, problem, request), request


def render_problem(model: LocalModel, problem: Problem) -> tuple[int, ...]:
    """Return the prompt of a problem. Raises: TemplateError, PromptTooLong, both with the problem's id."""
    try:
        prompt = model.render(problem.messages, now=NOW).token_ids
    except TemplateError as error:
        raise TemplateError(f"problem `{problem.id}`: {error.what}", why=error.why,
                            hint="evaluate the instruct version of this model") from error
    if len(prompt) >= model.engine.context_length:
        raise PromptTooLong(f"problem `{problem.id}` has {len(prompt)} tokens",
                            why=f"the context is {model.engine.context_length}", hint="a larger --context")
    return prompt


def _text(model: LocalModel, completion: Completion) -> str:
    token_ids = completion.token_ids
    is_ended = bool(token_ids) and token_ids[-1] in model.tokenizer.stop_token_ids
    return model.tokenizer.decode(token_ids[:-1] if is_ended else token_ids)


def _samples(model: LocalModel, tasks: Sequence[Task], question: Asked, completions: list[Completion],
             futures: list[Future[Verdict]]) -> list[Sample]:
    samples = []
    for completion, future in zip(completions, futures, strict=True):
        verdict = future.result()
        samples.append(Sample(
            task=str(tasks[question.task].name), problem=question.problem.id, sample=completion.index,
            seed=question.request.sampling.seed, prompt_token_ids=question.request.prompt_token_ids,
            token_ids=completion.token_ids, logprobs=completion.logprobs, text=_text(model, completion),
            finish_reason=completion.finish_reason, verdict=verdict.kind, reward=verdict.reward,
            reason=verdict.reason))
    return samples


def describe(model: LocalModel, tasks: Sequence[Task], settings: EvalSettings, *, isa: str,
             versions: Mapping[str, str]) -> dict[str, Any]:
    """Return everything that decides the samples, as JSON values; what is not in it does not matter.

    isa: the kernels' instruction set, to which bits belong. versions: of the code that runs.
    """
    return {
        "weights": model.engine.weights_version, "adapter": model.adapter and model.adapter.sha256,
        "dtype": model.dtype, "isa": isa,
        "context_length": model.engine.context_length,
        "tasks": [{"name": task.name, "source": task.source, "num_problems": num_problems(task, settings),
                   "max_tokens": settings.max_tokens or task.max_tokens} for task in tasks],
        "split": settings.split, "num_samples": settings.num_samples, "seed": settings.seed,
        "sampling": resolve_sampling(model, settings), "versions": dict(versions)}
