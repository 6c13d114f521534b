"""GGUF models cut into several files, `name-00001-of-00003.gguf` and so on.

The keys split.no, split.count and split.tensors.count and the file names are those of llama.cpp's
gguf-split. The first file carries the model's key-values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openhearth.errors import BadFile
from openhearth.formats.gguf import read_gguf
from openhearth.formats.mapping import damaged
from openhearth.formats.quoting import quoted, quoted_list
from openhearth.formats.records import Checkpoint, TensorEntry, WeightFile

MAX_PARTS = 4096

_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)


def part_paths(path: Path) -> tuple[Path, ...]:
    """Return the paths of all parts that a file name speaks of, itself alone when it names no split.

    Raises: BadFile when the numbers in the name make no sense. Example:
    ``part_paths(Path("m-00002-of-00002.gguf"))`` names `m-00001-of-00002.gguf` and the path itself.
    """
    match = _PART_NAME.fullmatch(path.name)
    if match is None:
        return (path,)
    number, count = int(match["number"]), int(match["count"])
    if not 1 <= number <= count <= MAX_PARTS:
        raise BadFile(f"{quoted(path)} is named part {number} of {count}",
                      why=f"expected 1 to {MAX_PARTS} parts", hint="rename the file as its source does")
    return tuple(path.with_name(f"{match['stem']}-{index:05}-of-{count:05}.gguf")
                 for index in range(1, count + 1))


def read_gguf_model(path: Path) -> Checkpoint:
    """Read a GGUF file, and all other parts when it is one of a split.

    Raises: as `read_gguf`; BadFile when a part is missing, in the wrong place, or holds a tensor of
    another part.
    """
    paths = part_paths(path)
    missing = [part.name for part in paths if part != path and not part.exists()]
    if missing:
        raise BadFile(f"{quoted(path)} is one of {len(paths)} parts, {len(missing)} of them missing",
                      why=f"not in its folder: {quoted_list(missing)}", hint="fetch the missing parts")
    parts = [read_gguf(part) for part in paths]
    tensors: dict[str, TensorEntry] = {}
    for number, part in enumerate(parts):
        _check_place(part, number, len(parts))
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            raise damaged(f"{quoted(part.path)} holds tensors of another part: {quoted_list(twice)}")
        tensors.update(part.tensors)
    _check_total(parts, len(tensors))
    return Checkpoint(paths[0], "gguf", paths, _without_split_keys(parts[0].metadata), {}, tensors)


def _check_place(part: WeightFile, number: int, count: int) -> None:
    stated = part.metadata.get("split.count", 0), part.metadata.get("split.no", 0)
    if stated == (count, number) or (count == 1 and stated[0] == 0):
        return
    raise BadFile(f"{quoted(part.path)} is named part {number + 1} of {count}, its header says part "
                  f"{quoted(_plus_one(stated[1]))} of {quoted(stated[0])}",
                  why="parts of a split model are found by the names they were given when they were made",
                  hint="rename the files to NAME-00001-of-0000N.gguf and so on, or fetch them again")


def _plus_one(value: Any) -> Any:
    return value + 1 if isinstance(value, int) else value


def _check_total(parts: Sequence[WeightFile], num_tensors: int) -> None:
    for part in parts:
        stated = part.metadata.get("split.tensors.count", num_tensors)
        if stated != num_tensors:
            raise damaged(f"{quoted(part.path)} says the model has {quoted(stated)} tensors",
                          f"its {len(parts)} files hold {num_tensors}")


def _without_split_keys(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if not key.startswith("split.")}
