"""Text from tokens, one token at a time: only whole UTF-8 characters come out.

Byte-level and SentencePiece tokens are turned into bytes and decoded as UTF-8 with replacement, so
that what a stream gives is always what decoding the whole gives. A decoder of another kind is asked
for the whole of what is pending, which is handed out once it ends in a whole character.

Does not: know stop strings (`stops.py`) or markup in the text.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openhearth.chat.tokenizer import Tokenizer

_SPACE = "\u2581"


def byte_alphabet() -> dict[str, int]:
    """Return character -> byte of the byte-level alphabet.

    Printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards in order.
    Source: GPT-2's `bytes_to_unicode` (openai/gpt-2, src/encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + i): byte for i, byte in enumerate(others)},
    }


_ALPHABET = byte_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """Return the bytes of a byte-level token; a token outside the alphabet stands for its own text."""
    try:
        return bytes(_ALPHABET[char] for char in token)
    except KeyError:
        return token.encode()


def sentencepiece_bytes(token: str) -> bytes:
    """Return the bytes of a SentencePiece token: `<0x0A>` is one byte, U+2581 a space."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace(_SPACE, " ").encode()


def token_bytes_of(decoder_state: bytes | None) -> tuple[Callable[[str], bytes] | None, int]:
    """Return how a decoder turns a token into bytes, and how many spaces it strips at the start.

    decoder_state: JSON of a `tokenizers` decoder. The function is None for a decoder that is
    neither byte-level nor SentencePiece with byte fallback.
    """
    decoder = json.loads(decoder_state) if decoder_state else {}
    if decoder.get("type") == "ByteLevel":
        return byte_level_bytes, 0
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return byte_level_bytes, 0
    if kinds[:3] != ["Replace", "ByteFallback", "Fuse"] or kinds[3:] not in ([], ["Strip"]):
        return None, 0
    if steps[0].get("pattern") != {"String": _SPACE} or steps[0].get("content") != " ":
        return None, 0
    if kinds[3:] and (steps[3].get("content"), steps[3].get("stop")) != (" ", 0):
        return None, 0
    return sentencepiece_bytes, steps[3]["start"] if kinds[3:] else 0


class TextStream:
    """Decodes a growing list of token ids.

    skip_special: control tokens give no text, but for those shown. is_middle: the text stands between
    others and keeps its first space, which SentencePiece otherwise put there. Example: ``s =
    TextStream(t); text = s.push(5) + s.push(9) + s.finish()`` equals ``t.decode([5, 9])``.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True,
                 shown: Iterable[str] = (), is_middle: bool = False) -> None:
        self._tokenizer = tokenizer
        self._shown = {tokenizer.control_tokens.get(text) for text in shown} - {None}
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = 0 if is_middle else tokenizer.num_stripped_spaces
        self._pending: list[int] = []
        self._given = ""

    def push(self, token_id: int) -> str:
        """Return the text that this token completes; it may be empty."""
        if self._tokenizer.has_token_bytes:
            skip_special = self._skip_special and token_id not in self._shown
            token = self._tokenizer.token_bytes(token_id, skip_special=skip_special)
            return self._stripped(self._utf8.decode(token))
        self._pending.append(token_id)
        text = self._tokenizer.decode_whole(self._pending, skip_special=self._skip_special)
        if text.endswith("\ufffd") or not text.startswith(self._given):
            return ""
        new, self._given = text[len(self._given) :], text
        return new

    def finish(self) -> str:
        """Return what is left; an unfinished character becomes U+FFFD."""
        if self._tokenizer.has_token_bytes:
            return self._stripped(self._utf8.decode(b"", final=True))
        text = self._tokenizer.decode_whole(self._pending, skip_special=self._skip_special)
        return text[len(self._given) :]

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if not text.startswith(" "):
                self._strip = 0
                break
            text, self._strip = text[1:], self._strip - 1
        return text


def decode_all(tokenizer: Tokenizer, token_ids: Iterable[int], *, skip_special: bool) -> str:
    """Return the text of all the tokens."""
    stream = TextStream(tokenizer, skip_special=skip_special)
    return "".join([*map(stream.push, token_ids), stream.finish()])
