"""A teacher's answers to training problems, graded, and the right ones as rows to learn from.

    teacher.json            what decides the answers, first
    answers.partial.jsonl   whole blocks of problems as they are graded; gone at the end
    answers.jsonl           every answer with its verdict
    rows.jsonl              the right ones that ended by themselves, once per text; last

A run that is killed goes on after its last whole block and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openhearth import local
from openhearth.config import Config
from openhearth.durable import disk_errors
from openhearth.engine import Sampling
from openhearth.errors import UsageError
from openhearth.kernels.select import chosen
from openhearth.runs import RunFolder, find_output
from openhearth.tasks import Grading, Problem, Task, find
from openhearth.tune.mixture import Mixture
from openhearth.tune.rollout import Rolled, ask, roll
from openhearth.tune.settings import DistillSettings

ROWS = "rows.jsonl"
DEFAULT_PROMPTS = 256
_ASKED, _PARTIAL, _ANSWERS = "teacher.json", "answers.partial.jsonl", "answers.jsonl"
_BLOCK = 32


def sample_teacher(settings: DistillSettings, config: Config, run: RunFolder,
                   on_block: Callable[[int, int, int], None] = lambda done, right, total: None) -> None:
    """Leave `rows.jsonl` in the run's folder, unless it is there already.

    on_block: called with problems done, right answers, and problems in all. The caller holds the run.
    Raises: UsageError when the folder has answers to other settings or nothing was right; as `local.load`.
    """
    tasks = tuple(find(name) for name in settings.task)
    folder = None if settings.teacher_adapter is None else find_output(config.home, settings.teacher_adapter)
    model = None
    if not (run.path / ROWS).exists():
        model = local.load(settings.teacher or settings.model, dtype=settings.dtype, adapter=folder,
                           num_threads=settings.threads, config=config)
        asked = _describe(settings, tasks, model)
        if (run.path / _ASKED).exists() and run.read(_ASKED) != asked:
            raise UsageError(f"the run `{run.name}` has answers of another teacher or to other settings",
                             why=f"then {run.read(_ASKED)}\nnow {asked}", hint="choose another --out NAME")
        run.write(_ASKED, asked)
        _ask(settings, tasks, model, run, on_block)


def read_verdicts(run: RunFolder) -> dict[str, int]:
    """Return how many answers got which verdict, and how many rows were made of them."""
    counts: dict[str, int] = {}
    for line in (run.path / _ANSWERS).read_text(encoding="utf-8").splitlines():
        verdict = json.loads(line)["verdict"]
        counts[verdict] = counts.get(verdict, 0) + 1
    num_rows = (run.path / ROWS).read_text(encoding="utf-8").count("\n")
    return {**dict(sorted(counts.items())), "rows": num_rows}


def _describe(settings: DistillSettings, tasks: Sequence[Task], model: local.LocalModel) -> dict[str, Any]:
    return {"teacher": model.stored.name, "weights_sha256": model.stored.weights_sha256,
            "adapter": model.adapter and model.adapter.sha256, "dtype": model.dtype, "isa": chosen().isa,
            "tasks": {str(task.name): task.source for task in tasks}, "seed": settings.seed,
            "prompts": settings.prompts or DEFAULT_PROMPTS, "group_size": settings.group_size,
            "max_tokens": settings.max_tokens or max(task.max_tokens for task in tasks),
            "temperature": settings.temperature, "top_p": settings.top_p}


def _ask(settings: DistillSettings, tasks: Sequence[Task], model: local.LocalModel, run: RunFolder,
         on_block: Callable[[int, int, int], None]) -> None:
    asked = run.read(_ASKED)
    problems = Mixture(tasks, seed=settings.seed).take(0, asked["prompts"])
    sampling = Sampling(temperature=settings.temperature, top_p=settings.top_p,
                        max_tokens=asked["max_tokens"],
                        stop_token_ids=model.tokenizer.stop_token_ids)
    blocks = _read_blocks(run.path / _PARTIAL)
    with Grading(tasks) as grading:
        for start in range(len(blocks) * _BLOCK, len(problems), _BLOCK):
            some = [ask(problem, task, model.tokenizer, model.template,
                        seed=f"{settings.seed}/{start + place}")
                    for place, (task, problem) in enumerate(problems[start:start + _BLOCK])]
            groups = roll(model.engine, model.tokenizer, grading, some, sampling,
                          group_size=settings.group_size, adapter=model.adapter_name)
            blocks.append([_answer(one) for group in groups for one in group])
            with disk_errors(run.path), open(run.path / _PARTIAL, "a", encoding="utf-8") as file:
                file.write(json.dumps(blocks[-1]) + "\n")
            on_block(min(start + _BLOCK, len(problems)), _num_right(blocks), len(problems))
    answers = [answer for block in blocks for answer in block]
    rows = _rows(answers, problems, settings.group_size)
    if not rows:
        num_long = sum(answer["finish_reason"] == "length" for answer in answers)
        raise UsageError(f"none of the teacher's {len(answers)} answers is right and complete",
                         why=f"{num_long} of them reached {asked['max_tokens']} tokens",
                         hint="an easier --task, more --prompts, or a larger --max-tokens")
    run.write_rows(_ANSWERS, answers)
    run.write_rows(ROWS, rows)
    (run.path / _PARTIAL).unlink()


def _read_blocks(path: Path) -> list[list[dict[str, Any]]]:
    """Return the whole blocks of a file, and cut off what a kill left of another."""
    blocks: list[list[dict[str, Any]]] = []
    if path.exists():
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        with contextlib.suppress(ValueError):
            for line in lines:
                blocks.append(json.loads(line))
        path.write_text("".join(line + "\n" for line in lines[:len(blocks)]), encoding="utf-8")
    return blocks


def _answer(one: Rolled) -> dict[str, Any]:
    record = asdict(one)
    return {name: record[name] for name in ("task", "problem", "token_ids", "text", "finish_reason",
                                            "verdict", "reward", "reason")}


def _is_right(answer: dict[str, Any]) -> bool:
    return answer["verdict"] == "correct" and answer["finish_reason"] == "stop"


def _num_right(blocks: Sequence[Sequence[dict[str, Any]]]) -> int:
    return sum(_is_right(answer) for block in blocks for answer in block)


def _rows(answers: Sequence[dict[str, Any]], problems: Sequence[tuple[int, Problem]],
          group_size: int) -> list[dict[str, Any]]:
    rows, seen = [], set()
    for place, answer in enumerate(answers):
        key = (answer["task"], answer["problem"], answer["text"])
        if _is_right(answer) and key not in seen:
            seen.add(key)
            messages = [dict(message) for message in problems[place // group_size][1].messages]
            rows.append({"prompt": messages,
                         "completion": [{"role": "assistant", "content": answer["text"]}]})
    return rows
