"""The description of what is served, in OpenAPI, written from the tables of fields that read requests.

Does not: describe answers; those have the shapes of the dialects' own clients.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from openhearth.server.exchange import Dialect, Route
from openhearth.server.fields import Field, object_schema

_PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")


def describe_api(dialects: Iterable[Dialect]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of these dialects' paths."""
    paths: dict[str, dict[str, Any]] = {}
    for dialect in dialects:
        for route in dialect.routes:
            path = _PARAMETER.sub(r"{\1}", route.path)
            paths.setdefault(path, {})[route.method.lower()] = _operation(dialect, route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "openhearth", "version": version("openhearth"),
                 "description": "A field that is null counts as not given; one not described is refused."},
        "components": {"securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "x-api-key"}}},
        "security": [{}, {"bearer": []}, {"key": []}], "paths": paths}


def _operation(dialect: Dialect, route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": [dialect.name], "summary": (inspect.getdoc(route.handler) or route.path).splitlines()[0],
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "parameters": [_parameter(name, "path") for name in _PARAMETER.findall(route.path)]
        + [_parameter(field.name, "query", field) for field in route.query],
        "responses": {"200": {"description": "as the clients of this dialect read it"},
                      "default": {"description": "an error, in this dialect's shape"}}}
    if route.fields:
        operation["requestBody"] = {"required": True, "content": {
            "application/json": {"schema": object_schema(route.fields)}}}
    return operation


def _parameter(name: str, place: str, field: Field | None = None) -> dict[str, Any]:
    taken = getattr(field.read, "schema", None) if field else None
    if field and field.status == "refused":
        taken = {"enum": list(field.neutral)}
    return {"name": name, "in": place, "required": place == "path", "schema": taken or {"type": "string"},
            **({"description": field.note} if field else {})}
