"""What a request to the Responses API says about its answer: tools, which to call, a form, how much to think.

Does not: know tools that run at OpenAI, such as web search; they are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openhearth.chat import GrammarText, schema_grammar
from openhearth.server.asking import Answering, Tool, named
from openhearth.server.dialects.tools import FUNCTION_FIELDS, check_choice, check_tools, function_name
from openhearth.server.fields import (
    Field,
    array,
    flag,
    mapping,
    not_applicable,
    object_schema,
    one_of,
    read_fields,
    refused,
    require,
    shaped,
    text,
    wrong,
)

TOOL_FIELDS = (
    Field("type", "`function`; tools that run at OpenAI are refused", one_of("function")),
    *FUNCTION_FIELDS,
    refused("allowed_callers", "tools are called by the model alone", ["direct"]),
    refused("async", "calls are answered in the next request", False),
    refused("defer_loading", "all tools are in the prompt", False),
    not_applicable("output_schema", "what a tool gives back is read as it is"),
)

CHOICE_FIELDS = (
    Field("type", "`function`, or `allowed_tools`", one_of("function", "allowed_tools")),
    Field("name", "with `function`: which", function_name),
    Field("mode", "with `allowed_tools`: `auto` or `required`", one_of("auto", "required")),
    Field("tools", "with `allowed_tools`: functions by name; the others are kept from the model", array),
)

FORMAT_FIELDS = (
    Field("type", "`text`, `json_object` or `json_schema`", one_of("text", "json_object", "json_schema")),
    Field("name", "with `json_schema`: for the reader", text),
    Field("schema", "with `json_schema`: the JSON schema", mapping),
    Field("description", "for the reader; say it in the prompt where the model is to know", text),
    Field("strict", "either way the answer follows the schema", flag),
)


@dataclass(frozen=True)
class ToolChoice:
    """Which tools to call. kind: "auto", "none" or "required"; chosen: the one; allowed: None for all.

    Example: ``ToolChoice("required", chosen="now")``.
    """

    kind: str = "auto"
    chosen: str | None = None
    allowed: frozenset[str] | None = None


@shaped({"type": "array", "items": object_schema(TOOL_FIELDS)})
def read_tools(name: str, value: Any) -> tuple[Tool, ...]:
    """Read a list of functions. Raises: Refusal."""
    tools = []
    for place, entry in enumerate(array(name, value)):
        where = f"{name}[{place}]"
        values = read_fields(TOOL_FIELDS, mapping(where, entry), where)
        require(values, "type", "name", where=where)
        tools.append(Tool(values["name"], values.get("description", ""),
                          values.get("parameters", {"type": "object"}), values.get("strict", False)))
    return check_tools(name, tools)


@shaped({"anyOf": [{"enum": ["none", "auto", "required"]}, object_schema(CHOICE_FIELDS)]})
def read_choice(name: str, value: Any) -> ToolChoice:
    """Read which tools to call. Raises: Refusal."""
    if value in ("none", "auto", "required"):
        return ToolChoice(value)
    if not isinstance(value, dict):
        raise wrong(name, value, "`none`, `auto`, `required`, or an object")
    values = read_fields(CHOICE_FIELDS, value, name)
    given = {"function": {"type", "name"}, "allowed_tools": {"type", "mode", "tools"}}
    if values.keys() != given.get(values.get("type")):
        raise wrong(name, value, "`type` and `name` of a function, or `type`, `mode` and `tools`")
    if values["type"] == "function":
        return ToolChoice("required", values["name"])
    chosen = [read_choice(f"{name}.tools[{place}]", entry).chosen
              for place, entry in enumerate(values["tools"])]
    if not chosen or None in chosen:
        raise wrong(f"{name}.tools", values["tools"], "functions, each by `type` and `name`")
    return ToolChoice(values["mode"], allowed=frozenset(chosen))


@shaped(object_schema(FORMAT_FIELDS))
def read_format(name: str, value: Any) -> GrammarText | None:
    """Read what form an answer has; None for text. Raises: Refusal."""
    values = read_fields(FORMAT_FIELDS, mapping(name, value), name)
    require(values, "type", where=name)
    if values["type"] == "json_schema":
        require(values, "name", "schema", where=name)
        return named(f"{name}.schema", lambda: schema_grammar(values["schema"]))
    if len(values) > 1:
        raise wrong(name, value, f"a type alone where it is `{values['type']}`")
    return schema_grammar({"type": "object"}) if values["type"] == "json_object" else None


def answering_of(values: Mapping[str, Any]) -> Answering:
    """Return what a request says about its answer. Raises: Refusal for fields that do not go together."""
    tools, choice = values.get("tools", ()), values.get("tool_choice", ToolChoice())
    if choice.allowed is not None:
        for name in choice.allowed:
            check_choice(tools, "required", name)
        tools = tuple(tool for tool in tools if tool.name in choice.allowed)
    check_choice(tools, choice.kind, choice.chosen)
    return Answering(tools=tools, choice=choice.kind, named=choice.chosen,
                     is_parallel=values.get("parallel_tool_calls", True),
                     grammar=values.get("text", {}).get("format"), grammar_field="text.format",
                     effort=values.get("reasoning", {}).get("effort"), effort_field="reasoning.effort")
