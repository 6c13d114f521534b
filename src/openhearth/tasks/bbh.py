"""BIG-Bench Hard (arXiv 2210.09261), from the published JSON files, for evaluation only.

``bbh:path=FILE`` or a folder of them: objects with `examples`, each an `input` and a `target`. The data
carries a canary against training, so there is no training split.
"""

from __future__ import annotations

import json
from pathlib import Path

from openhearth.errors import BadFile, UsageError
from openhearth.tasks.graders.exact import exact
from openhearth.tasks.records import Problem, Task
from openhearth.tasks.rows import hash_files, read_bytes
from openhearth.tasks.splits import Listed
from openhearth.tasks.tags import DIRECT, THINK

_STYLES = {"think": THINK, "direct": DIRECT, "plain": "Give only the answer."}


def make_task(ref: str, *, path: str = "", seed: int = 0, style: str = "think") -> Task:
    """Return BIG-Bench Hard as a task; seed decides the order, style as for reasoning-gym, but that plain
    takes the whole response as the answer.

    Raises: UsageError without a path or file, or for a style that does not exist; BadFile for a file of
    another form.
    """
    if not path:
        raise UsageError("bbh needs its data", why="it is not part of this package",
                         hint="--task bbh:path=FOLDER, with bbh/*.json of suzgunmirac/BIG-Bench-Hard")
    if style not in _STYLES:
        raise UsageError(f"style is `{style}`", why=f"expected one of {', '.join(_STYLES)}",
                         hint="style=direct")
    root = Path(path).expanduser()
    files = sorted(root.glob("*.json")) if root.is_dir() else [root]
    if not files:
        raise UsageError(f"`{path}` has no .json files", hint="--task bbh:path=FOLDER")
    problems = [problem for file in files for problem in _read(file, _STYLES[style])]
    grader = exact(is_tagged=style != "plain")
    return Task(ref, {"test": Listed(problems, seed)}, grader, source=hash_files(files),
                max_tokens=512 if style == "think" else 64)


def _read(path: Path, request: str) -> list[Problem]:
    try:
        examples = json.loads(read_bytes(path))["examples"]
        pairs = [(str(example["input"]), str(example["target"])) for example in examples]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadFile(f"`{path}` is no BIG-Bench Hard file", why=f"{type(error).__name__}: {error}",
                      hint='expected {"examples": [{"input": ..., "target": ...}]}') from error
    return [Problem(f"{path.stem}/{number}", ({"role": "user", "content": f"{question}\n{request}"},), target)
            for number, (question, target) in enumerate(pairs)]
