"""The answer is JSON of a schema, and of a value where the problem gives one."""

from __future__ import annotations

import json
import re
from typing import Any

from openhearth.tasks.packages import need
from openhearth.tasks.records import Problem, Verdict, correct, no_answer, wrong
from openhearth.tasks.tags import tagged_answer, without_thinking

_FENCE = re.compile(r"^```[ \t]*(?:json)?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE | re.IGNORECASE)


def grade(problem: Problem, response: str) -> Verdict:
    """Judge the tagged answer, else the last fenced block, else the whole response.

    `Problem.metadata["schema"]` is a JSON schema (draft 2020-12 where it names no other); where
    `Problem.answer` is not empty it is JSON, and the answer must be that value. Constants that JSON does
    not have (NaN) and keys given twice are wrong. References go no further than the schema itself.
    Raises: Unsupported without `jsonschema`, its SchemaError for a schema that is none, ValueError for a
    reference that is no JSON.
    """
    text = json_text(response)
    if not text:
        return no_answer("nothing was said")
    jsonschema = need("jsonschema", "jsonschema")
    schema = problem.metadata["schema"]
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    kind.check_schema(schema)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return no_answer(f"no JSON: {error}"[:160])
    # An empty registry: a reference to an address is an error, never a request.
    registry = need("referencing", "jsonschema").Registry()
    errors = sorted((error.json_path, error.message)
                    for error in kind(schema, registry=registry).iter_errors(value))
    if errors:
        return wrong(": ".join(errors[0])[:160])
    if problem.answer and not _is_same(value, json.loads(problem.answer)):
        return wrong(f"fits the schema; got {text[:80]}, expected {problem.answer[:80]}")
    return correct()


def json_text(response: str) -> str:
    """Return the part of a response that is meant to be JSON."""
    text = without_thinking(response)
    tagged = tagged_answer(text)
    if tagged is not None:
        text = tagged
    blocks = _FENCE.findall(text)
    return (blocks[-1] if blocks else text).strip()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _is_same(first: Any, second: Any) -> bool:
    """Compare JSON values: true is not 1, but 1.0 is 1."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_is_same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_is_same, first, second))
    return bool(first == second)
