"""The fields of a request: each one is read, refused by name, or has nothing here that it could change.

A dialect lists its fields in a table; the same table reads requests and writes `docs/serve.md`. A field that
is in no table is refused, so that nothing a client asks for is quietly left out.

Does not: know what a field means to the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openhearth.server.errors import Refusal

Reader = Callable[[str, Any], Any]
"""(name, value as JSON has it) -> value as the dialect uses it. Raises: Refusal."""

_STOP = {"type": "string", "minLength": 1, "maxLength": 1000}
_TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}

Status = Literal["done", "refused", "not applicable"]


@dataclass(frozen=True)
class Field:
    """One public field. note: what it does here, or why it is refused.

    read: for a field that is done. neutral: values of a refused field that ask for nothing; null always is.
    Example: ``Field("seed", "same request, same seed, same answer", whole(0, 2**63 - 1))``.
    """

    name: str
    note: str
    read: Reader | None = None
    status: Status = "done"
    neutral: tuple[Any, ...] = ()

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of what it takes; {} for anything."""
        if self.status == "refused":
            return {"enum": [*self.neutral, None]}
        taken = getattr(self.read, "schema", None)
        return {} if taken is None else {"anyOf": [taken, {"type": "null"}]}


def shaped(schema: Mapping[str, Any]) -> Callable[[Reader], Reader]:
    """Return a decorator that says which JSON a reader takes; `openapi.py` tells clients."""
    def mark(read: Reader) -> Reader:
        read.schema = dict(schema)
        return read
    return mark


def refused(name: str, why: str, *neutral: Any) -> Field:
    """Return a field that is refused by name unless its value asks for nothing."""
    return Field(name, why, status="refused", neutral=neutral)


def not_applicable(name: str, why: str) -> Field:
    """Return a field that could change nothing here, whatever its value."""
    return Field(name, why, status="not applicable")


def read_fields(fields: Sequence[Field], body: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return name -> value of the fields that were given and mean something. null counts as not given.

    where: name of the object they are in. Raises: Refusal for a field that is unknown, refused or wrong.
    """
    table = {field.name: field for field in fields}
    values = {}
    for name, value in body.items():
        full = f"{where}.{name}" if where else name
        field = table.get(name)
        if field is None:
            raise Refusal(f"`{full[:120]}` is not a field that this server knows", field=full[:120],
                          code="unknown_field", hint="docs/serve.md lists every field")
        if value is None or field.status == "not applicable":
            continue
        if field.read is None:
            if value not in field.neutral:
                raise Refusal(f"`{full}` is not supported", why=field.note, field=full,
                              code="unsupported_field", hint="leave it out")
            continue
        values[name] = field.read(full, value)
    return values


def require(values: Mapping[str, Any], *names: str, where: str = "") -> None:
    """Refuse a request that lacks a field. where: name of the object it is in. Raises: Refusal."""
    for name in names:
        full = f"{where}.{name}" if where else name
        if name not in values:
            raise Refusal(f"`{full}` is missing", field=full, code="missing_field")


def text_or_list(items: Mapping[str, Any], **bounds: Any) -> dict[str, Any]:
    """Return the JSON schema of a text, or of a list. bounds: of the list, such as maxItems."""
    return {"anyOf": [{"type": "string"}, {"type": "array", "items": dict(items), **bounds}]}


def object_schema(fields: Iterable[Field], *required: str) -> dict[str, Any]:
    """Return the JSON schema of an object with these fields. required: names of those that must be there."""
    schema = {"type": "object", "additionalProperties": False, "properties": {
        field.name: {**field.schema, "description": field.note} for field in fields}}
    for name in required:
        schema["properties"][name] = {**schema["properties"][name], "not": {"type": "null"}}
    return {**schema, "required": list(required)} if required else schema


def object_of(fields: Sequence[Field], *required: str) -> Reader:
    """Return a reader of an object with fields of its own. required: names of those that have to be there."""
    @shaped(object_schema(fields, *required))
    def read(name: str, value: Any) -> dict[str, Any]:
        values = read_fields(fields, mapping(name, value), name)
        for one in required:
            if one not in values:
                raise Refusal(f"`{name}.{one}` is missing", field=f"{name}.{one}", code="missing_field")
        return values
    return read


def describe(fields: Iterable[Field]) -> str:
    """Return a Markdown table of fields."""
    rows = [f"| `{field.name}` | {field.status} | {field.note} |" for field in fields]
    return "\n".join(["| field | here | what it does, or why not |", "|---|---|---|", *rows])


def wrong(name: str, value: Any, expected: str) -> Refusal:
    """Return the error of a value that is not what was expected."""
    shown = repr(value)
    return Refusal(f"`{name}` is `{shown if len(shown) <= 80 else shown[:77] + '...'}`",
                   why=f"expected {expected}", field=name, code="invalid_value")


def number(lowest: float, highest: float) -> Reader:
    """Return a reader of finite numbers in a range."""
    @shaped({"type": "number", "minimum": lowest, "maximum": highest})
    def read(name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not lowest <= value <= highest or not math.isfinite(value):
            raise wrong(name, value, f"a number from {lowest:g} to {highest:g}")
        return float(value)
    return read


def whole(lowest: int, highest: int) -> Reader:
    """Return a reader of whole numbers in a range. `8192.0` is one, as in JSON schema; clients send it."""
    @shaped({"type": "integer", "minimum": lowest, "maximum": highest})
    def read(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise wrong(name, value, f"a whole number from {lowest} to {highest}")
        return value
    return read


@shaped({"type": "boolean"})
def flag(name: str, value: Any) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise wrong(name, value, "true or false")
    return value


@shaped({"type": "string"})
def text(name: str, value: Any) -> str:
    """Read a text."""
    if not isinstance(value, str):
        raise wrong(name, value, "a text")
    return value


@shaped({"type": "object"})
def mapping(name: str, value: Any) -> dict[str, Any]:
    """Read an object."""
    if not isinstance(value, dict):
        raise wrong(name, value, "an object")
    return value


@shaped({"type": "array"})
def array(name: str, value: Any) -> list[Any]:
    """Read a list."""
    if not isinstance(value, list):
        raise wrong(name, value, "a list")
    return value


def one_of(*allowed: Any) -> Reader:
    """Return a reader of one of some values."""
    @shaped({"enum": list(allowed)})
    def read(name: str, value: Any) -> Any:
        if not any(type(value) is type(option) and value == option for option in allowed):
            raise wrong(name, value, " or ".join(f"`{option}`" for option in allowed))
        return value
    return read


def stop_texts(most: int) -> Reader:
    """Return a reader of one stop text, or of a list with some."""
    @shaped({"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": most}]})
    def read(name: str, value: Any) -> tuple[str, ...]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or len(texts) > most or not all(
                isinstance(one, str) and 0 < len(one) <= 1000 for one in texts):
            raise wrong(name, value, f"up to {most} texts that are not empty, of at most 1000 characters")
        return tuple(texts)
    return read


def texts_or_ids(most: int) -> Reader:
    """Return a reader of a text, token ids, or a list of up to `most` of either."""
    one = {"anyOf": [{"type": "string"}, _TOKEN_IDS]}

    @shaped({"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": most}]})
    def read(name: str, value: Any) -> list[str | tuple[int, ...]]:
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list) or not value:
            raise wrong(name, value, "a text, token ids, or a list of either that is not empty")
        if all(type(one) is int for one in value):
            return [tuple(value)]
        if len(value) > most:
            raise Refusal(f"`{name}` has {len(value)} prompts", field=name, code="invalid_value",
                          why=f"at most {most} are taken at a time")
        return [one if isinstance(one, str) else _token_ids(name, one) for one in value]
    return read


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(token_id) is int for token_id in value):
        raise wrong(name, value, "a text or token ids")
    return tuple(value)


@shaped({"type": "object", "propertyNames": {"pattern": "^[0-9]{1,10}$"},
         "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}})
def logit_bias(name: str, value: Any) -> dict[int, float]:
    """Read token id -> bias, from -100 to 100; ids are texts, as JSON's keys are."""
    biases = {}
    for key, bias in mapping(name, value).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise wrong(f"{name}.{key[:40]}", bias, "token ids as keys")
        biases[int(key)] = number(-100, 100)(f"{name}.{key}", bias)
    return biases
