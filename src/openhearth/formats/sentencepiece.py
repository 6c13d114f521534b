"""SentencePiece's `tokenizer.model`: a protobuf message, read with every length checked before it is used.

Fields: sentencepiece's `sentencepiece_model.proto` (0.2.1), by number. The wire format is that of
protobuf: a key with field and type, then a varint, 4 or 8 bytes, or a length and as many bytes.

Does not: know what a piece means for text (`chat/sentencepiece.py`), or keep training settings.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openhearth.errors import BadFile
from openhearth.formats.mapping import damaged, mapped_file
from openhearth.formats.quoting import quoted
from openhearth.units import format_bytes

MAX_BYTES = 64 << 20
MAX_PIECES = 1 << 20
MAX_PIECE_BYTES = 4096
_MAX_SETTINGS = 4096  # fields of the messages besides pieces; known files have about fifty

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_FLOAT = struct.Struct("<f")
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_NORMAL, _NUM_TYPES = 1, 6
_Fields = dict[int, tuple[str, int, Any]]
# Of a piece, of the trainer and of the normaliser: field -> (name, wire type, value where it is absent).
_PIECE: _Fields = {1: ("piece", _BYTES, b""), 2: ("score", _FIXED32, 0.0), 3: ("type", _VARINT, _NORMAL)}
_TRAINER_FIELDS: _Fields = {
    3: ("model_type", _VARINT, 1), 24: ("treat_whitespace_as_suffix", _VARINT, 0),
    35: ("byte_fallback", _VARINT, 0), 46: ("bos_piece", _BYTES, b"<s>"), 47: ("eos_piece", _BYTES, b"</s>"),
    48: ("pad_piece", _BYTES, b"<pad>"),
}
_NORMALIZER_FIELDS: _Fields = {
    1: ("name", _BYTES, b""), 2: ("precompiled_charsmap", _BYTES, b""), 3: ("add_dummy_prefix", _VARINT, 1),
    4: ("remove_extra_whitespaces", _VARINT, 1), 5: ("escape_whitespaces", _VARINT, 1),
}


@dataclass(frozen=True)
class SentencePieceModel:
    """What the file says about encoding.

    pieces, scores, types: by id; types are numbers from 1 to 6, as `chat.sentencepiece.TokenType` names
    them. kind: "unigram", "bpe", "word" or "char". bos_piece, eos_piece, pad_piece: spellings, whether the
    vocabulary has them or not. normalization: the rule's name; has_charsmap, has_denormalizer: whether there
    are replacements of characters before encoding and after decoding.

    Example: ``SentencePieceModel(path, ["<unk>", "a"], [0.0, -1.0], [2, 1], "bpe", ...)``.
    """

    path: Path
    pieces: list[str]
    scores: list[float]
    types: list[int]
    kind: str
    bos_piece: str
    eos_piece: str
    pad_piece: str
    normalization: str
    has_byte_fallback: bool
    has_charsmap: bool
    has_denormalizer: bool
    adds_dummy_prefix: bool
    removes_extra_spaces: bool
    escapes_spaces: bool
    has_space_suffix: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read one `tokenizer.model`.

    Raises: ModelNotFound when there is no file; BadFile when it is too large, cut short, no protobuf message
    or not of these fields, or holds no pieces, a piece twice, or numbers that no such file has.
    """
    with mapped_file(path) as mapping:
        if len(mapping) > MAX_BYTES:
            size = format_bytes(len(mapping))
            raise damaged(f"{quoted(path)} has {size}, the limit is {format_bytes(MAX_BYTES)}")
        message = _Message(mapping[:], path)
    pieces: list[tuple[str, float, int]] = []
    spans: dict[int, list[tuple[int, int]]] = {_TRAINER: [], _NORMALIZER: [], _DENORMALIZER: []}
    for number, wire, value in message.fields(0, len(message.raw), MAX_PIECES + _MAX_SETTINGS):
        if number != _PIECES and number not in spans:
            continue
        if wire != _BYTES:
            raise message.broken(f"field {number} has wire type {wire}, expected {_BYTES}")
        if number == _PIECES:
            pieces.append(_piece(message, value, len(pieces)))
        else:
            spans[number].append(value)
    if not 0 < len(pieces) <= MAX_PIECES:
        raise message.broken(f"it holds {len(pieces)} pieces, expected 1 to {MAX_PIECES}")
    tokens, scores, types = (list(column) for column in zip(*pieces, strict=True))
    if len(set(tokens)) != len(tokens):
        raise message.broken("a piece is there twice")
    trainer = message.settings(spans[_TRAINER], _TRAINER_FIELDS)
    normalizer = message.settings(spans[_NORMALIZER], _NORMALIZER_FIELDS)
    denormalizer = message.settings(spans[_DENORMALIZER], _NORMALIZER_FIELDS)
    kind = _KINDS.get(trainer["model_type"])
    if kind is None:
        raise message.broken(f"its model type is {trainer['model_type']}; 1 to {len(_KINDS)} are defined")
    return SentencePieceModel(
        path, tokens, scores, types, kind,
        *(message.text(trainer[name], name) for name in ("bos_piece", "eos_piece", "pad_piece")),
        normalization=message.text(normalizer["name"], "the name of its normalisation"),
        has_byte_fallback=trainer["byte_fallback"] != 0,
        has_charsmap=bool(normalizer["precompiled_charsmap"]),
        has_denormalizer=bool(denormalizer["precompiled_charsmap"]),
        adds_dummy_prefix=normalizer["add_dummy_prefix"] != 0,
        removes_extra_spaces=normalizer["remove_extra_whitespaces"] != 0,
        escapes_spaces=normalizer["escape_whitespaces"] != 0,
        has_space_suffix=trainer["treat_whitespace_as_suffix"] != 0)


class _Message:
    """The bytes of one file, as fields of protobuf messages that never pass their end."""

    def __init__(self, raw: bytes, path: Path) -> None:
        self.raw = raw
        self.path = path

    def fields(self, start: int, end: int, limit: int) -> Iterator[tuple[int, int, int | tuple[int, int]]]:
        """Yield (field, wire type, value) of raw[start:end]: a varint's number, else where the bytes are."""
        pos, count = start, 0
        while pos < end:
            count += 1
            if count > limit:
                raise self.broken(f"a message at byte {start} has more than {limit} fields")
            key, pos = self._varint(pos, end)
            number, wire = key >> 3, key & 7
            if not 0 < number < 1 << 29:
                raise self.broken(f"byte {pos} follows field {number}; 1 to 2**29 - 1 are possible")
            if wire == _VARINT:
                value, pos = self._varint(pos, end)
                yield number, wire, value
                continue
            if wire == _BYTES:
                num_bytes, pos = self._varint(pos, end)
            elif wire in (_FIXED32, _FIXED64):
                num_bytes = 4 if wire == _FIXED32 else 8
            else:
                raise self.broken(f"field {number} at byte {pos} has wire type {wire}; "
                                  "0, 1, 2 and 5 are known")
            if num_bytes > end - pos:
                raise self.broken(f"field {number} needs {num_bytes} bytes at byte {pos}, "
                                  f"there are {end - pos}")
            yield number, wire, (pos, pos + num_bytes)
            pos += num_bytes

    def settings(self, spans: list[tuple[int, int]], known: _Fields) -> dict[str, Any]:
        """Return the known fields of a message that may come in several parts; the last value counts."""
        found = {name: default for name, _, default in known.values()}
        for start, end in spans:
            for number, wire, value in self.fields(start, end, _MAX_SETTINGS):
                if number not in known:
                    continue
                name, expected, _ = known[number]
                if wire != expected:
                    raise self.broken(f"`{name}` has wire type {wire}, expected {expected}")
                if wire == _VARINT:
                    found[name] = value
                elif wire == _FIXED32:
                    found[name] = _FLOAT.unpack_from(self.raw, value[0])[0]
                else:
                    found[name] = self.raw[slice(*value)]
        return found

    def text(self, raw: bytes, what: str) -> str:
        """Decode UTF-8."""
        if len(raw) > MAX_PIECE_BYTES:
            raise self.broken(f"{what} has {len(raw)} bytes, the limit is {MAX_PIECE_BYTES}")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.broken(f"{what} is not valid UTF-8") from None

    def broken(self, why: str) -> BadFile:
        """Return the error for bytes that break the format."""
        return damaged(f"{quoted(self.path)} is no SentencePiece tokenizer", why)

    def _varint(self, pos: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while pos < end and shift < 70:
            byte = self.raw[pos]
            value |= (byte & 0x7F) << shift
            pos += 1
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, pos
            shift += 7
        raise self.broken(f"the number that ends at byte {pos} is cut short or longer than 10 bytes")


def _piece(message: _Message, span: tuple[int, int], index: int) -> tuple[str, float, int]:
    """Return the spelling, score and type of one piece."""
    found = message.settings([span], _PIECE)
    piece = message.text(found["piece"], f"piece {index}")
    if not piece:
        raise message.broken(f"piece {index} is empty")
    if not math.isfinite(found["score"]):
        raise message.broken(f"the score of piece {index} is {found['score']}")
    if not _NORMAL <= found["type"] <= _NUM_TYPES:
        raise message.broken(f"the type of piece {index} is {found['type']}; {_NORMAL} to {_NUM_TYPES} are "
                             "defined")
    return piece, found["score"], found["type"]
