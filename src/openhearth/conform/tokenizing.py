"""`/tokenize` and `/detokenize` in vLLM's shape.

Does not: know which tokenizer is right; texts are sent there and back.
"""

from __future__ import annotations

from openhearth.conform.openai import CHAT, GREEDY, USER
from openhearth.conform.records import expect, has, shown
from openhearth.conform.wire import Peer

TEXT = "The quick brown fox \u732b \U0001f642 jumps.\n\tx = 1"


def a_text_comes_back(peer: Peer) -> None:
    """A text's tokens give the text again, characters of several bytes included."""
    found = has(peer.served(peer.post("/tokenize", prompt=TEXT, add_special_tokens=False)).ok(), "the answer",
                tokens=list, count=int, max_model_len=int)
    expect(found["count"] == len(found["tokens"]) > 0, f"`count` is {found['count']}")
    text = has(peer.served(peer.post("/detokenize", tokens=found["tokens"])).ok(), "the answer",
               prompt=str)["prompt"]
    expect(text == TEXT, f"{shown(TEXT)} comes back as {shown(text)}")


def a_conversation_has_its_tokens(peer: Peer) -> None:
    """The tokens of a conversation are as many as a chat with it uses."""
    found = has(peer.served(peer.done(peer.post("/tokenize", messages=USER))).ok(), "the answer", tokens=list)
    answer = has(peer.served(peer.post(CHAT, **GREEDY)).ok(), "the answer", usage=dict)
    used = answer["usage"]["prompt_tokens"]
    expect(len(found["tokens"]) == used, f"{len(found['tokens'])} tokens, and {used} `prompt_tokens`")


CHECKS = (a_text_comes_back, a_conversation_has_its_tokens)
