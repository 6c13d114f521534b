"""docs/serve.md has the tables of fields that the code has, and every path that is served."""

import re
from pathlib import Path

import pytest

from openhearth.server.dialects import (
    DIALECTS,
    anthropic,
    anthropic_blocks,
    completions,
    messages,
    ollama,
    openai,
    openai_fields,
    tokenizing,
    tools,
)
from openhearth.server.fields import describe

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"
TABLES = {
    "POST /v1/chat/completions": openai.CHAT_FIELDS, "POST /v1/completions": completions.FIELDS,
    "stream_options": openai_fields.STREAM_OPTIONS_FIELDS, "POST /v1/messages": anthropic.FIELDS,
    "POST /v1/messages/count_tokens": anthropic.PROMPT_FIELDS, "POST /api/chat": ollama.CHAT_FIELDS,
    "POST /api/generate": ollama.GENERATE_FIELDS, "options": ollama.OPTIONS_FIELDS,
    "POST /api/show": ollama.SHOW_FIELDS, "a message": messages.MESSAGE_FIELDS,
    "a part of a message": messages.PART_FIELDS, "POST /tokenize": tokenizing.TOKENIZE_FIELDS,
    "POST /detokenize": tokenizing.DETOKENIZE_FIELDS, "a tool": tools.TOOL_FIELDS,
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
    missing = [route.path for dialect in DIALECTS for route in dialect.routes if f"{route.path}`" not in text]
    assert not missing


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
