"""GSM8K: grade-school word problems (arXiv 2110.14168), from the published JSON lines.

The data is not part of this package: ``gsm8k:path=FOLDER`` with train.jsonl and test.jsonl (fields
`question` and `answer`, the answer ending in ``#### n``), or one file, whose problems are all for testing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openhearth.errors import BadFile, UsageError
from openhearth.tasks.graders import math
from openhearth.tasks.records import Problem, Split, Task
from openhearth.tasks.rows import hash_files, read_rows
from openhearth.tasks.splits import Listed

_STYLES = {"boxed": "Solve the problem step by step. End with the answer in the form \\boxed{answer}.\n\n",
           "plain": ""}


def make_task(ref: str, *, path: str = "", seed: int = 0, style: str = "boxed") -> Task:
    """Return GSM8K as a task; seed decides the order of problems.

    style: boxed asks for the answer in a box; plain asks the question alone, and the last number counts where
    nothing is marked.
    A training problem that also is a test problem is left out of training.
    Raises: UsageError without a path or file, or for a style that does not exist; BadFile for a line of
    another form.
    """
    if not path:
        raise UsageError("gsm8k needs its data", why="it is not part of this package",
                         hint="--task gsm8k:path=FOLDER, with train.jsonl and test.jsonl of openai/gsm8k")
    if style not in _STYLES:
        raise UsageError(f"style is `{style}`", why=f"expected one of {', '.join(_STYLES)}",
                         hint="style=plain")
    root = Path(path).expanduser()
    files: dict[Split, Path] = {"test": root}
    if root.is_dir():
        files = {split: root / f"{split}.jsonl" for split in ("test", "train")
                 if (root / f"{split}.jsonl").exists()}
        if "test" not in files:
            raise UsageError(f"`{path}` has no test.jsonl", why="expected train.jsonl and test.jsonl",
                             hint="--task gsm8k:path=FOLDER")
    rows = {split: read_rows(file, ("question", "answer")) for split, file in files.items()}
    tested = {row["question"] for row in rows["test"]}
    splits: dict[Split, Listed] = {}
    for split, found in rows.items():
        problems = [_problem(split, number, row, files[split], style) for number, row in enumerate(found)
                    if split == "test" or row["question"] not in tested]
        splits[split] = Listed(problems, seed)
    grader = math.grade_last if style == "plain" else math.grade
    return Task(ref, splits, grader, source=hash_files(list(files.values())), max_tokens=512)


def _problem(split: Split, number: int, row: dict[str, Any], path: Path, style: str) -> Problem:
    _, mark, answer = row["answer"].rpartition("####")
    if not mark or not answer.strip():
        raise BadFile(f"{path}:{number + 1}: the answer has no `#### n`", hint="use the published file")
    content = _STYLES[style] + row["question"]
    return Problem(f"gsm8k/{split}/{number}", ({"role": "user", "content": content},),
                   answer.strip().replace(",", ""), split=split)
