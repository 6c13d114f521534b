"""docs/serve.md has the tables of fields that the code has, and every path that is served."""

import re
from pathlib import Path

import pytest

from openhearth.config import Config
from openhearth.server.dialects import (
    DIALECTS,
    anthropic,
    anthropic_blocks,
    messages,
    ollama,
    openai_fields,
    pulling_dialect,
    response_fields,
    response_items,
    response_tools,
    responses_dialect,
    tools,
)
from openhearth.server.fields import describe
from openhearth.server.response_store import ResponseStore

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"
MADE = (*DIALECTS, responses_dialect(ResponseStore(None)), pulling_dialect(Config.from_env({})))
TABLES = {
    "stream_options": openai_fields.STREAM_OPTIONS_FIELDS, "options": ollama.OPTIONS_FIELDS,
    "a message": messages.MESSAGE_FIELDS, "a part of a message": messages.PART_FIELDS,
    "an item": response_items.ITEM_FIELDS, "a part of an item": response_items.ITEM_PART_FIELDS,
    "function_call": response_items.CALL_ITEM_FIELDS,
    "function_call_output": response_items.RESULT_ITEM_FIELDS,
    "reasoning item": response_items.THOUGHT_ITEM_FIELDS,
    "a part of a reasoning item": response_items.THOUGHT_PART_FIELDS,
    "a tool of a response": response_tools.TOOL_FIELDS,
    "tool_choice of a response": response_tools.CHOICE_FIELDS,
    "text.format": response_tools.FORMAT_FIELDS,
    "text": response_fields.TEXT_FIELDS, "reasoning": response_fields.REASONING_FIELDS,
    "stream_options of a response": response_fields.STREAM_OPTIONS_FIELDS, "a tool": tools.TOOL_FIELDS,
    "a function": tools.FUNCTION_FIELDS, "a tool call": tools.CALL_FIELDS,
    "a called function": tools.CALLED_FIELDS, "response_format": tools.RESPONSE_FORMAT_FIELDS,
    "json_schema": tools.SCHEMA_FIELDS, "structured_outputs": tools.STRUCTURED_FIELDS,
    "an Anthropic tool": anthropic_blocks.TOOL_FIELDS,
    "an Anthropic message": anthropic_blocks.MESSAGE_FIELDS,
    "tool_use": anthropic_blocks.USE_FIELDS, "tool_result": anthropic_blocks.RESULT_FIELDS,
    "thinking block": anthropic_blocks.THINKING_FIELDS, "Anthropic tool_choice": anthropic.CHOICE_FIELDS,
    "Anthropic thinking": anthropic.THINKING_FIELDS, "output_config": anthropic.OUTPUT_FIELDS,
    "output_config.format": anthropic.FORMAT_FIELDS,
}
for dialect in MADE:
    for route in dialect.routes:
        if (fields := route.fields or route.query) and fields not in TABLES.values():
            TABLES[f"{route.method} {route.path}"] = fields


def written(text):
    """Return the page with its tables as the code has them."""
    for name, fields in TABLES.items():
        table = describe(fields)
        text = re.sub(rf"(<!-- fields: {re.escape(name)} -->\n).*?(<!-- end -->)",
                      lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text, flags=re.S)
    return text


@pytest.mark.parametrize("name", TABLES)
def test_each_table_is_on_the_page(name):
    assert PAGE.read_text(encoding="utf-8").count(f"<!-- fields: {name} -->") == 1


def test_the_tables_are_those_of_the_code():
    text = PAGE.read_text(encoding="utf-8")
    assert text == written(text), "python tests/docs/test_serve.py writes them"


def test_every_path_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    missing = [route.path for dialect in MADE for route in dialect.routes if f"{route.path}`" not in text]
    assert not missing


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
