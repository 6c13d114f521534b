"""Rows of JSONL, CSV and Parquet files, one by one, each with its place.

Does not: know what columns mean (`rendering.py` does), or stop at a row that is malformed: it is given as a
`Refusal`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openhearth.errors import BadFile, ModelNotFound, Unsupported
from openhearth.tune.data.records import Refusal

_MAX_LINE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """One row. line: of the file, from 1; of Parquet, the row's number."""

    file: str
    line: int
    fields: dict[str, Any]


def read_rows(path: Path) -> Iterator[Row | Refusal]:
    """Yield the rows of a file in order. Raises: ModelNotFound, BadFile, Unsupported for other kinds."""
    if not path.is_file():
        raise ModelNotFound(f"there is no data file `{path}`", hint="--data train.jsonl")
    readers = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise Unsupported(f"`{path.name}` is no data file that can be read",
                          why=f"expected a name that ends with {', '.join(readers)}")
    return readers[path.suffix](path)


def _read_jsonl(path: Path) -> Iterator[Row | Refusal]:
    with open(path, "rb") as file:
        number = 0
        while raw := file.readline(_MAX_LINE_BYTES):
            number += 1
            if len(raw) == _MAX_LINE_BYTES and not raw.endswith(b"\n"):
                raise BadFile(f"line {number} of `{path}` is longer than {_MAX_LINE_BYTES} bytes")
            if not raw.strip():
                continue
            try:
                value = json.loads(raw)
            except RecursionError:
                yield Refusal(str(path), number, "nested too deeply")
            except UnicodeDecodeError as error:
                yield Refusal(str(path), number, f"not UTF-8: byte {error.start}")
            except ValueError as error:
                yield Refusal(str(path), number, f"not JSON: {error}")
            else:
                if isinstance(value, dict):
                    yield Row(str(path), number, value)
                else:
                    yield Refusal(str(path), number, f"a JSON {type(value).__name__}, expected an object")


def _read_csv(path: Path) -> Iterator[Row | Refusal]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []
            line = reader.line_num
            for fields in reader:
                line, first = reader.line_num, line + 1
                if None in fields or None in fields.values():
                    yield Refusal(str(path), first, f"not {len(names)} columns, as the first line has")
                else:
                    yield Row(str(path), first, fields)
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"`{path}` is no CSV file in UTF-8", why=str(error)) from None


def _read_parquet(path: Path) -> Iterator[Row | Refusal]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise Unsupported(f"`{path.name}` is a Parquet file, and pyarrow is not installed",
                          hint="pip install 'openhearth[tune]', or convert it to JSONL") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(str(path), number, fields)
    except (ArrowException, OSError) as error:
        raise BadFile(f"`{path}` cannot be read as Parquet", why=str(error)[:300]) from None
