"""From a name to a task: built in, of reasoning-gym, from a Python file, or of an installed package.

A package offers tasks through the entry point group `openhearth.tasks`; a file or package names a `Task`
or a function that makes one from the options. Such code runs with the user's rights: it is their own.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from openhearth.errors import BadFile, UsageError
from openhearth.tasks import bbh, gsm8k, reasoning_gym
from openhearth.tasks.naming import TaskRef, parse_task
from openhearth.tasks.records import Task

GROUP = "openhearth.tasks"
_GYM = "reasoning-gym"
_PRESETS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "max_digits": 2, "style": "plain"},
    "products": {"min_terms": 2, "max_terms": 2, "max_digits": 2, "style": "plain"},
    "gcd": {"style": "plain"},
    "letter_counting": {"style": "plain"},
    "countdown": {},
}
"""Small settings of reasoning-gym's data sets under short names; options given replace them."""
_BUILT_IN: dict[str, Callable[..., Task]] = {"gsm8k": gsm8k.make_task, "bbh": bbh.make_task}


def list_names() -> list[str]:
    """Return the names of all tasks that can be found here, data sets of reasoning-gym excluded."""
    return sorted({*_PRESETS, *_BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def find(name: str) -> Task:
    """Return the task of this name; the same name gives the same problems in every process.

    Raises: UsageError for a name or option that does not exist; Unsupported without the package that a
    task is made with; BadFile for a Python file that cannot be loaded, or damaged data.
    """
    ref = parse_task(name)
    if ref.head == _GYM and ref.item:
        return _make(ref, reasoning_gym.make_task, ref.item, str(ref), **ref.options)
    if ref.head.endswith(".py") and ref.item:
        return _from_file(ref)
    if ref.item is not None or ref.head == _GYM:
        raise UsageError(f"task `{name}` is not complete", why="expected name:option=value",
                         hint=f"--task {_GYM}:chain_sum")
    if ref.head in _PRESETS:
        options = {**_PRESETS[ref.head], **ref.options}
        return _make(ref, reasoning_gym.make_task, ref.head, str(ref), **options)
    if ref.head in _BUILT_IN:
        return _make(ref, _BUILT_IN[ref.head], str(ref), **ref.options)
    for point in entry_points(group=GROUP, name=ref.head):
        return _from_entry_point(ref, point)
    near = difflib.get_close_matches(ref.head, list_names(), 1)
    raise UsageError(f"there is no task `{ref.head}`",
                     why=f"tasks: {', '.join(list_names())}; {_GYM}:NAME; file.py:NAME",
                     hint=f"--task {near[0] if near else 'chain_sum'}")


def _make(ref: TaskRef, make: Callable[..., Task], *args: Any, **options: Any) -> Task:
    try:
        return make(*args, **options)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise UsageError(f"task `{ref}` has an option that does not fit", why=f"{error}",
                         hint=f"--task {ref.head}") from error


def _from_file(ref: TaskRef) -> Task:
    path = Path(ref.head).expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"there is no file `{ref.head}`", why="expected a Python file that defines tasks",
                         hint="--task mine.py:name")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    spec = importlib.util.spec_from_file_location(f"openhearth_task_{digest[:16]}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BadFile(f"`{ref.head}` could not be loaded", why=f"{type(error).__name__}: {error}",
                      hint=f"python {ref.head}") from error
    found = getattr(module, ref.item, None)
    return _finished(TaskRef(str(path), ref.item, ref.options), found, f"sha256:{digest}")


def _from_entry_point(ref: TaskRef, point: EntryPoint) -> Task:
    source = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    return _finished(ref, point.load(), source)


def _finished(ref: TaskRef, found: Any, source: str) -> Task:
    """Return a Task under its reference, made from a Task or from a function that makes one."""
    task = found
    if callable(found) and not isinstance(found, Task):
        task = _make(ref, found, **ref.options)
    elif ref.options and isinstance(found, Task):
        raise UsageError(f"task `{ref}` takes no options", why="it is a Task, not a function that makes one",
                         hint=f"--task {ref.head}:{ref.item}" if ref.item else f"--task {ref.head}")
    if not isinstance(task, Task):
        raise UsageError(f"`{ref}` is no task", hint="name a Task, or a function that makes one",
                         why=f"it is of type {type(task).__name__}")
    return replace(task, name=str(ref), source=f"{task.source} {source}".strip())
