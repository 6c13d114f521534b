"""Tokens as wire formats show them: their text, their bytes, their log-probability.

Does not: know which format.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from openhearth.chat import Tokenizer
from openhearth.engine import TokenEvent

LOWEST_LOGPROB = -9999.0
"""JSON has no infinity; OpenAI writes this for what cannot happen."""


def finite(logprob: float) -> float:
    """Return a log-probability that JSON has."""
    return max(logprob, LOWEST_LOGPROB)


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """Return what a token stands for; control tokens stand for their spelling."""
    if tokenizer.has_token_bytes:
        return tokenizer.token_bytes(token_id, skip_special=False)
    return tokenizer.decode([token_id], skip_special=False).encode()


def plain_text(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token's text, or `bytes:\\xe2\\x80` for what is no whole character, so that no two agree."""
    found = token_bytes(tokenizer, token_id)
    try:
        return found.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)


def token_record(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    """Return {token, logprob, bytes}; bytes let a client join a character that tokens share."""
    found = token_bytes(tokenizer, token_id)
    return {"token": found.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(found)}


def token_records(tokenizer: Tokenizer, events: Iterable[TokenEvent]) -> list[dict[str, Any]]:
    """Return a record for each token drawn, with those of its likeliest alternatives."""
    return [{**token_record(tokenizer, event.token_id, event.logprob),
             "top_logprobs": [token_record(tokenizer, *pair) for pair in event.top_logprobs]}
            for event in events]
