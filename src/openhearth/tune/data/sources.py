"""Where rows come from: files here, a data set of a hub, or worked answers to a task's training problems.

`hub:datasets/owner/name[@revision][:file]` is kept in the store like a model. `task:COUNT:NAME` writes the
first COUNT training problems of the task NAME (`tasks/finding.py`) with their worked answers
(`Problem.worked`) to a file of the store, named after its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from openhearth import hub
from openhearth.config import Config
from openhearth.durable import disk_errors, write_durably
from openhearth.errors import ModelNotFound, UsageError
from openhearth.tasks import find


def find_files(data: Sequence[str], config: Config) -> list[Path]:
    """Return the files that --data names; a data set of a hub is fetched if need be.

    Raises: ModelNotFound for a data set without rows, UsageError for a task without worked answers, and as
    `hub.pull` (Offline where that is asked for) and `find`.
    """
    files: list[Path] = []
    for text in data:
        if text.startswith("task:"):
            files.append(_worked_file(text, config))
            continue
        if not text.startswith("hub:"):
            files.append(Path(text))
            continue
        found = hub.data_files(hub.pull(text, config).path)
        if not found:
            raise ModelNotFound(f"`{text}` has no rows", why=f"expected {', '.join(hub.DATA_SUFFIXES)} there",
                                hint="hub:datasets/owner/name, or with :file behind it")
        files += found
    return files


def _worked_file(text: str, config: Config) -> Path:
    count, _, name = text.removeprefix("task:").partition(":")
    if not count.isdigit() or int(count) < 1 or not name:
        raise UsageError(f"`{text}` says not how many rows of which task", hint="task:1000:chain_sum")
    task = find(name)
    problems = [task.problem("train", index) for index in range(int(count))]
    if missing := [problem.id for problem in problems if not problem.worked]:
        raise UsageError(f"{len(missing)} of {count} problems of `{name}` have no worked answer",
                         why=f"the first: `{missing[0]}`", hint="task:1000:chain_sum")
    rows = "".join(json.dumps({
        "prompt": [dict(message) for message in problem.messages],
        "completion": [{"role": "assistant", "content": problem.worked}]}) + "\n" for problem in problems)
    path = config.home / "worked" / f"{hashlib.sha256(rows.encode()).hexdigest()[:32]}.jsonl"
    if not path.exists():
        with disk_errors(config.home):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, rows.encode())
    return path
