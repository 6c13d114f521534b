"""Tools for models whose chat template has no place for them: described in words, in the Hermes format.

Does not: promise that such a model calls well; a grammar makes its calls valid (`grammar.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_TEXT = """You may call functions to help with the user's request. These are the functions:
<tools>
{tools}
</tools>
To call one, answer with its name and its arguments as JSON between these tags:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>"""


def written_out(messages: Sequence[Mapping[str, Any]],
                tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages of system, user and assistant alone that say the same.

    tools: as in OpenAI's API; calls of past turns become the assistant's words, results the user's.
    """
    plain: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if plain and plain[-1].get("is_result"):
                plain[-1]["content"] += f"\n{text}"
            else:
                plain.append({"role": "user", "content": text, "is_result": True})
        elif message.get("tool_calls"):
            texts = [message["content"], *(_call(call["function"]) for call in message["tool_calls"])]
            plain.append({"role": "assistant", "content": "\n".join(filter(None, texts))})
        else:
            plain.append(dict(message))
    for message in plain:
        message.pop("is_result", None)
    if tools:
        text = _TEXT.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        if plain and plain[0]["role"] == "system":
            text = f"{plain.pop(0)['content']}\n\n{text}"
        plain.insert(0, {"role": "system", "content": text})
    return plain


def _call(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {json.dumps(function["name"])}, "arguments": {text}}}\n</tool_call>'
