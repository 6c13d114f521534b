"""Every data set of `reasoning-gym` as a task: problems without end and that package's own scoring.

The package draws problem i of seed s from the stream s + i, so that neighbouring seeds share problems;
splits here go by the question's text instead (`splits.py`).

Does not: cover `composite`, which needs other data sets as its configuration.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
from collections.abc import Mapping
from typing import Any

from openhearth.errors import UsageError
from openhearth.tasks.packages import need, version_of
from openhearth.tasks.records import SPLITS, Grader, Problem, Task, Verdict, correct, no_answer, wrong
from openhearth.tasks.splits import Generated, split_of
from openhearth.tasks.tags import DIRECT, THINK, last_number, tagged_answer
from openhearth.tasks.worked import WORKED

_STYLES = {"think": THINK, "direct": DIRECT, "plain": ""}
_SIZE = 1 << 20
_SIZES = {"acre": 4000, "word_ladder": 10_000}
"""Those that make all problems at once, or refuse more."""
_NONSENSE = "openhearth"
"""No answer to anything. Where the package's scoring accepts it (game_of_life_halting takes whatever is not
`True` for `False`), an answer has to be the reference itself."""
_NOT_ALONE = {"composite"}


def names() -> list[str]:
    """Return the data sets there are. Raises: Unsupported without the package."""
    need("reasoning_gym", "reasoning-gym")
    factory = need("reasoning_gym.factory", "reasoning-gym")
    return sorted(set(factory.DATASETS) - _NOT_ALONE)


def make_task(name: str, ref: str, *, seed: int = 0, style: str = "think", shots: int = 0,
              **options: Any) -> Task:
    """Return a data set as a task.

    ref: the name to find it by. style: think asks for steps before the answer, direct for the answer
    alone, plain asks nothing more than the question and takes the last number of the response where there
    is no tagged answer, which suits data sets of numbers and models that do not know tags. shots:
    that many training problems with their worked answers stand before the question, as earlier turns; of the
    data sets in `worked.py`, in style plain. options: fields of the data set's configuration.
    Raises: UsageError for a name, style, option or number of shots that does not exist; Unsupported without
    the package.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        raise UsageError(f"reasoning-gym has no data set `{name}`", why=f"it has {len(names())}",
                         hint=f"--task reasoning-gym:{near[0] if near else 'chain_sum'}")
    if style not in _STYLES:
        raise UsageError(f"style is `{style}`", why=f"expected one of {', '.join(_STYLES)}",
                         hint="style=direct")
    if shots < 0 or (shots and (name not in WORKED or style != "plain")):
        raise UsageError(f"`{name}` in style {style} with shots={shots}",
                         why=f"worked answers exist for {', '.join(WORKED)} in style plain", hint="shots=0")
    data_set = _create(name, seed, options)
    work = WORKED.get(name, lambda question: "")

    def problem(index: int, shown: tuple[Mapping[str, str], ...] = ()) -> tuple[str, Problem]:
        entry = _entry(data_set, index)
        question = str(entry["question"])
        asked = {"role": "user", "content": f"{question}\n{_STYLES[style]}".strip()}
        answer = "" if entry["answer"] is None else str(entry["answer"])
        return question, Problem(f"{name}/{seed}/{index}", (*shown, asked), answer, {"index": index},
                                 split_of(question), work(question) if style == "plain" else "")

    training = Generated(problem, "train")
    examples = [training[index] for index in range(shots)]
    make = functools.partial(problem, shown=tuple(turn for example in examples for turn in (
        *example.messages, {"role": "assistant", "content": example.worked})))
    shown = [str(_entry(data_set, example.metadata["index"])["question"]) for example in examples]
    return Task(ref, {split: Generated(make, split, without=shown) for split in SPLITS},
                _grader(data_set, style), source=version_of("reasoning-gym"),
                max_tokens=512 if style == "think" else 128)


def _grader(data_set: Any, style: str) -> Grader:
    def grade(problem: Problem, response: str) -> Verdict:
        answer = tagged_answer(response)
        if answer is None and style == "plain":
            answer = last_number(response)
        if answer is None:
            return no_answer("no <answer>...</answer> in the response" if style != "plain"
                             else "no number in the response")
        entry = _entry(data_set, problem.metadata["index"])
        try:
            score = float(data_set.score_answer(answer, entry))
        except Exception as error:
            # Scoring that handles the reference but not this answer says something about the answer.
            if not problem.answer or float(data_set.score_answer(problem.answer, entry)) < 1:
                raise
            return wrong(f"{answer[:80]} cannot be read: {type(error).__name__}")
        if score >= 1 and (answer == problem.answer or float(data_set.score_answer(_NONSENSE, entry)) < 1):
            return correct()
        expected = f", expected {problem.answer[:80]}" if problem.answer else ""
        return wrong(f"got {answer[:80]}{expected}", max(0.0, score) if score < 1 else 0.0)

    return grade


def _entry(data_set: Any, index: int) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):  # some data sets print while they search
        return data_set[index]


def _create(name: str, seed: int, options: Mapping[str, Any]) -> Any:
    gym = need("reasoning_gym", "reasoning-gym")
    try:
        return gym.create_dataset(name, seed=seed, size=_SIZES.get(name, _SIZE), **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise UsageError(f"reasoning-gym refuses the options of `{name}`", why=f"{error}",
                         hint=f"--task reasoning-gym:{name}") from error
