"""Text to token ids and back, in vLLM's shape: what a prompt costs, before it is sent.

Does not: give control tokens for their spelling in a text; a conversation has those that the template writes.
"""

from __future__ import annotations

from typing import Any

from openhearth.server.asking import Answering
from openhearth.server.dialects.messages import read_messages
from openhearth.server.dialects.openai_fields import error_document
from openhearth.server.dialects.tokens import plain_text
from openhearth.server.dialects.tools import read_tools
from openhearth.server.errors import Refusal
from openhearth.server.exchange import Call, Dialect, Route
from openhearth.server.fields import (
    Field,
    array,
    flag,
    mapping,
    read_fields,
    refused,
    require,
    shaped,
    text,
    wrong,
)


@shaped({"type": "array", "items": {"type": "integer", "minimum": 0}})
def _token_ids(name: str, value: Any) -> list[int]:
    if not all(type(one) is int for one in array(name, value)):
        raise wrong(name, value, "token ids")
    return value


TOKENIZE_FIELDS = (
    Field("model", "a served model, or an adapter", text),
    Field("prompt", "a plain text", text),
    Field("messages", "or a conversation, up to the assistant's turn", read_messages),
    Field("add_special_tokens", "of a plain text: BOS where the tokenizer adds one; on unless `false`", flag),
    Field("return_token_strs", "also the text of each token", flag),
    Field("chat_template_kwargs", "further variables for the chat template", mapping),
    refused("add_generation_prompt", "conversations end with it; `true` is taken", True),
    refused("continue_final_message", "not in this version", False),
    refused("chat_template", "the model's own template is used"),
    Field("tools", "with `messages`: functions that the model may call", read_tools),
)

DETOKENIZE_FIELDS = (
    Field("model", "a served model, or an adapter", text),
    Field("tokens", "token ids; control tokens give their spelling", _token_ids),
)


async def tokenize(call: Call) -> dict[str, Any]:
    """`POST /tokenize`."""
    values = read_fields(TOKENIZE_FIELDS, call.body)
    served, tokenizer = call.served, call.served.model.tokenizer
    served.adapter_of(values.get("model", served.name))
    if ("prompt" in values) == ("messages" in values):
        raise Refusal("a request has either `prompt` or `messages`", field="prompt")
    if values.get("tools") and "messages" not in values:
        raise Refusal("`tools` is given without `messages`", field="tools")
    if "messages" in values:
        answering = Answering(tools=values.get("tools", ()))
        asked = await served.prepare(values["messages"], answering, values.get("chat_template_kwargs"))
        token_ids = asked.token_ids
    elif values.get("add_special_tokens", True):
        token_ids = await served.encode(values["prompt"])
    else:
        token_ids = tokenizer.encode(values["prompt"])
    has_texts = values.get("return_token_strs", False)
    return {"count": len(token_ids), "max_model_len": served.engine.context_length, "tokens": list(token_ids),
            "token_strs": [plain_text(tokenizer, one) for one in token_ids] if has_texts else None}


async def detokenize(call: Call) -> dict[str, str]:
    """`POST /detokenize`."""
    values = read_fields(DETOKENIZE_FIELDS, call.body)
    require(values, "tokens")
    served, tokenizer = call.served, call.served.model.tokenizer
    served.adapter_of(values.get("model", served.name))
    for token_id in values["tokens"]:
        if not 0 <= token_id < tokenizer.vocab_size:
            raise wrong("tokens", token_id, f"token ids from 0 to {tokenizer.vocab_size - 1}")
    return {"prompt": tokenizer.decode(values["tokens"], skip_special=False)}


TOKENIZING = Dialect("tokenizing", (
    Route("POST", "/tokenize", tokenize, TOKENIZE_FIELDS),
    Route("POST", "/detokenize", detokenize, DETOKENIZE_FIELDS),
), error_document)
