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

_PROMPT = "Solve the problem step by step. End with the answer in the form \\boxed{{answer}}.\n\n{question}"


def make_task(ref: str, *, path: str = "", seed: int = 0) -> Task:
    """Return GSM8K as a task; seed decides the order of problems.

    A training problem that also is a test problem is left out of training.
    Raises: UsageError without a path or file; BadFile for a malformed line.
    """
    if not path:
        raise UsageError("gsm8k needs its data", why="it is not part of this package",
                         hint="--task gsm8k:path=FOLDER, with train.jsonl and test.jsonl of openai/gsm8k")
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
    splits = {split: Listed([_problem(split, number, row, files[split]) for number, row in enumerate(found)
                             if split == "test" or row["question"] not in tested], seed)
              for split, found in rows.items()}
    return Task(ref, splits, math.grade, source=hash_files(list(files.values())), max_tokens=512)


def _problem(split: Split, number: int, row: dict[str, Any], path: Path) -> Problem:
    _, mark, answer = row["answer"].rpartition("####")
    if not mark or not answer.strip():
        raise BadFile(f"{path}:{number + 1}: the answer has no `#### n`", hint="use the published file")
    content = _PROMPT.format(question=row["question"])
    return Problem(f"gsm8k/{split}/{number}", ({"role": "user", "content": content},),
                   answer.strip().replace(",", ""), split=split)
