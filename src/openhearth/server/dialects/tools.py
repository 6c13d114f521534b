"""Tools, tool calls and answers of a form, as OpenAI's dialect and Ollama's write them.

Does not: call anything; a client does, and sends what came back.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from openhearth.chat import (
    GrammarText,
    ToolCall,
    choice_grammar,
    lark_grammar,
    regex_grammar,
    schema_grammar,
)
from openhearth.chat.tools import NAME, ToolFormat
from openhearth.server.asking import Tool, named
from openhearth.server.errors import Refusal
from openhearth.server.fields import (
    Field,
    array,
    flag,
    mapping,
    not_applicable,
    object_of,
    object_schema,
    one_of,
    read_fields,
    require,
    shaped,
    text,
    whole,
    wrong,
)

MAX_TOOLS = 128
_OBJECT = {"type": "object"}


@shaped({"type": "string", "pattern": f"^{NAME}$"})
def function_name(name: str, value: Any) -> str:
    """Read the name of a function. Raises: Refusal."""
    if not isinstance(value, str) or not re.fullmatch(NAME, value):
        raise wrong(name, value, "letters, digits, `_`, `.`, `:` and `-`, at most 128")
    return value


@shaped(_OBJECT)
def _schema(name: str, value: Any) -> Mapping[str, Any]:
    schema = mapping(name, value) or _OBJECT
    if schema.get("type", "object") != "object":
        raise wrong(f"{name}.type", schema["type"], "`object`")
    return schema


FUNCTION_FIELDS = (
    Field("name", "letters, digits, `_`, `.`, `:` and `-`", function_name),
    Field("description", "what it does, for the model", text),
    Field("parameters", "JSON schema of its arguments", _schema),
    Field("strict", "calls follow the schema also where `tool_choice` is `auto`", flag),
)

TOOL_FIELDS = (
    Field("type", "`function`", one_of("function")),
    Field("function", "its name, description, parameters", object_of(FUNCTION_FIELDS, "name")),
    not_applicable("cache_control", "the cache finds equal beginnings by itself and changes no answer"),
)


@shaped({"type": "array", "items": object_schema(TOOL_FIELDS, "function"), "maxItems": MAX_TOOLS})
def read_tools(name: str, value: Any) -> tuple[Tool, ...]:
    """Read a list of tools. Raises: Refusal."""
    tools = []
    for place, entry in enumerate(array(name, value)):
        where = f"{name}[{place}]"
        values = read_fields(TOOL_FIELDS, mapping(where, entry), where)
        require(values, "function")
        function = values["function"]
        tools.append(Tool(function["name"], function.get("description", ""),
                          function.get("parameters", _OBJECT), function.get("strict", False)))
    return check_tools(name, tools)


def check_tools(name: str, tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """Refuse too many tools, or two of one name. Raises: Refusal."""
    if len(tools) > MAX_TOOLS or len({tool.name for tool in tools}) < len(tools):
        raise Refusal(f"`{name}` has {len(tools)} tools", field=name, code="invalid_value",
                      why=f"at most {MAX_TOOLS} are taken, each with a name of its own")
    return tuple(tools)


@shaped({"anyOf": [{"enum": ["none", "auto", "required"]}, _OBJECT]})
def read_choice(name: str, value: Any) -> tuple[str, str | None]:
    """Read `none`, `auto`, `required` or a function by name, as (choice, name). Raises: Refusal."""
    if value in ("none", "auto", "required"):
        return value, None
    if isinstance(value, dict) and value.get("type") == "function":
        function = mapping(f"{name}.function", value.get("function"))
        return "required", function_name(f"{name}.function.name", function.get("name"))
    raise wrong(name, value, "`none`, `auto`, `required` or a function by name")


@shaped({"type": ["string", "object"]})
def _arguments(name: str, value: Any) -> str | dict[str, Any]:
    if not isinstance(value, str | dict):
        raise wrong(name, value, "JSON text or an object")
    return value


CALLED_FIELDS = (
    Field("name", "the function", function_name),
    Field("arguments", "JSON text, or an object", _arguments),
    Field("index", "its place among the calls", whole(0, MAX_TOOLS)),
    not_applicable("description", "the tools have it"),
    not_applicable("parsed_arguments", "what a client read in `arguments`"),
)

CALL_FIELDS = (
    Field("id", "what `tool_call_id` of its result refers to", text),
    Field("type", "`function`", one_of("function")),
    Field("index", "its place among the calls", whole(0, MAX_TOOLS)),
    Field("function", "name, and arguments as JSON text or as an object", object_of(CALLED_FIELDS, "name")),
)


@shaped({"type": "array", "items": object_schema(CALL_FIELDS, "function")})
def read_calls(name: str, value: Any) -> list[dict[str, Any]]:
    """Read the calls of a past turn. Raises: Refusal."""
    calls = []
    for place, entry in enumerate(array(name, value)):
        where = f"{name}[{place}]"
        values = read_fields(CALL_FIELDS, mapping(where, entry), where)
        require(values, "function")
        function = values["function"]
        calls.append({**({"id": values["id"]} if "id" in values else {}), "type": "function",
                      "function": {"name": function["name"], "arguments": function.get("arguments", {})}})
    return calls


SCHEMA_FIELDS = (
    Field("name", "for the reader", text),
    Field("description", "for the reader; say it in the prompt where the model is to know", text),
    Field("schema", "the JSON schema", mapping),
    Field("strict", "either way the answer follows the schema", flag),
)

RESPONSE_FORMAT_FIELDS = (
    Field("type", "`text`, `json_object` or `json_schema`", one_of("text", "json_object", "json_schema")),
    Field("json_schema", "with `json_schema`: name and schema", object_of(SCHEMA_FIELDS, "schema")),
)

def _any(name: str, value: Any) -> Any:
    return value


STRUCTURED_FIELDS = (
    Field("json", "a JSON schema, as an object or as text", shaped({"type": ["string", "object"]})(_any)),
    Field("regex", "a regular expression for the whole answer, without look-around", text),
    Field("choice", "a list of texts, one of which is the answer", array),
    Field("grammar", "a grammar in llguidance's variant of Lark", text),
    Field("json_object", "any JSON object", one_of(True)),
)


@shaped({"anyOf": [{"type": "object", "properties": {"type": {"enum": ["text", "json_object"]}},
                    "required": ["type"], "additionalProperties": False},
                   object_schema(RESPONSE_FORMAT_FIELDS, "type", "json_schema")]})
def read_response_format(name: str, value: Any) -> GrammarText | None:
    """Read OpenAI's `response_format`; None for text. Raises: Refusal."""
    values = read_fields(RESPONSE_FORMAT_FIELDS, mapping(name, value), name)
    kind = values.get("type")
    if kind is None or (kind == "json_schema") is not ("json_schema" in values):
        raise wrong(name, value, "a type, and with `json_schema` a `json_schema`")
    if kind == "text":
        return None
    if kind == "json_object":
        return schema_grammar(_OBJECT)
    return named(f"{name}.json_schema.schema", lambda: schema_grammar(values["json_schema"]["schema"]))


@shaped({**object_schema(STRUCTURED_FIELDS), "minProperties": 1, "maxProperties": 1})
def read_structured(name: str, value: Any) -> GrammarText:
    """Read vLLM's `structured_outputs`. Raises: Refusal."""
    values = read_fields(STRUCTURED_FIELDS, mapping(name, value), name)
    if len(values) != 1:
        raise wrong(name, value, "one of `json`, `regex`, `choice`, `grammar`, `json_object`")
    (kind, given), = values.items()
    where = f"{name}.{kind}"
    if kind == "json":
        return named(where, lambda: schema_grammar(_json_of(where, given)))
    if kind == "json_object":
        return schema_grammar(_OBJECT)
    if kind == "choice":
        if not given or not all(isinstance(one, str) and one for one in given):
            raise wrong(where, given, "texts that are not empty")
        return named(where, lambda: choice_grammar(given))
    return named(where, lambda: (regex_grammar if kind == "regex" else lark_grammar)(given))


@shaped({"anyOf": [{"enum": ["", "json"]}, _OBJECT]})
def read_format(name: str, value: Any) -> GrammarText | None:
    """Read Ollama's `format`: `json`, or a schema. Raises: Refusal."""
    if value == "":
        return None
    return schema_grammar(_OBJECT) if value == "json" else named(
        name, lambda: schema_grammar(mapping(name, value)))


def _json_of(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise wrong(name, value, "a JSON schema") from None
    return mapping(name, value)


def call_id(form: ToolFormat | None) -> str:
    """Return a new name for a call; Mistral's templates want nine letters and digits."""
    if form is not None and form.name.startswith("mistral"):
        return secrets.token_hex(5)[:9]
    return f"call_{secrets.token_hex(12)}"


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """Return a call's arguments as an object; what is none is kept as the text of `INVALID_JSON`."""
    try:
        value = json.loads(call.arguments)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": call.arguments}


def check_choice(tools: Sequence[Tool], choice: str, chosen: str | None) -> None:
    """Refuse a choice that no tool meets. Raises: Refusal."""
    if choice == "required" and (not tools or chosen not in (None, *(tool.name for tool in tools))):
        raise Refusal("`tool_choice` asks for a tool that is not there", field="tool_choice",
                      code="invalid_value",
                      why=f"`tools` has {', '.join(tool.name for tool in tools) or 'none'}")
