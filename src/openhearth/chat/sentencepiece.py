"""A tokenizer from SentencePiece's pieces, whether a `tokenizer.model` or a GGUF file lists them.

What a piece is, how BPE chooses pieces, and what spaces become: sentencepiece 0.2.1 (`normalizer.cc`,
`bpe_model.cc`). The order of merges: transformers 5.23.

Does not: replace characters before encoding (`precompiled_charsmap`): the `tokenizers` library does that by
grapheme and so gives other ids than sentencepiece. It is refused by name, as kinds and settings are that
no decoder known here uses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from openhearth.errors import BadFile, Unsupported
from openhearth.formats.quoting import quoted
from openhearth.formats.sentencepiece import SentencePieceModel

SPACE = "\u2581"
_BYTE = "<0x%02X>"


class TokenType(IntEnum):
    """Of a piece; the same numbers in `tokenizer.model` and in `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


Prefix = Literal["none", "text", "stretch"]
"""Where a space is put before text: nowhere; where the text begins without one, as `transformers` does; or,
as sentencepiece, before each stretch between control tokens, whatever it begins with."""


@dataclass(frozen=True)
class Pieces:
    """A vocabulary of SentencePiece.

    tokens, types: by id; ids: token -> id. unknown: the token for what has no piece. bad: the error for what
    is wrong with the file.
    Example: ``Pieces(["<unk>", "a"], [UNKNOWN, NORMAL], {"<unk>": 0, "a": 1}, "<unk>", "text", bad)``.
    """

    tokens: Sequence[str]
    types: Sequence[TokenType]
    ids: Mapping[str, int]
    unknown: str | None
    prefix: Prefix
    bad: Callable[[str], BadFile]

    def of_type(self, *types: TokenType) -> list[str]:
        """Return the tokens of these types, by id."""
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind in types and token]


def read_pieces(model: SentencePieceModel, *, prefix: Prefix) -> Pieces:
    """Return the vocabulary of a `tokenizer.model`.

    prefix: where the space goes, if the file asks for one. Raises: Unsupported for a kind or a setting
    that is not computed here, by name; BadFile without exactly one unknown piece or without all bytes.
    """
    def bad(what: str) -> BadFile:
        return BadFile(f"{quoted(model.path)} is no tokenizer that can be used: {what}",
                       hint="hearth pull the model again")

    types = [TokenType(value) for value in model.types]
    wrong = {
        f"is of the kind `{model.kind}`": model.kind != "bpe",
        "has no pieces for bytes, so that it loses characters it does not know": not model.has_byte_fallback,
        "removes spaces": model.removes_extra_spaces,
        f"replaces characters by the rule {quoted(model.normalization)}": model.has_charsmap,
        "replaces characters in decoded text": model.has_denormalizer,
        "does not write spaces as U+2581": not model.escapes_spaces,
        "puts spaces behind words": model.has_space_suffix,
        "has pieces marked as unused": TokenType.UNUSED in types,
    }
    for what, is_so in wrong.items():
        if is_so:
            raise Unsupported(f"{quoted(model.path)} {what}",
                              why="read are SentencePiece models of the kind bpe that keep every character",
                              hint="use a folder of the model with its tokenizer.json, or a GGUF file of it")
    unknown = [token for token, kind in zip(model.pieces, types, strict=True) if kind is TokenType.UNKNOWN]
    if len(unknown) != 1:
        raise bad(f"it has {len(unknown)} unknown pieces, expected 1")
    ids = {token: token_id for token_id, token in enumerate(model.pieces)}
    missing = sum(_BYTE % byte not in ids for byte in range(256))
    if missing:
        raise bad(f"{missing} of the 256 byte pieces are missing")
    return Pieces(model.pieces, types, ids, unknown[0], prefix if model.adds_dummy_prefix else "none", bad)


def build_bpe(pieces: Pieces, merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """Return the backend of a BPE vocabulary, without control and user-defined tokens. Raises: BadFile."""
    has_bytes = TokenType.BYTE in pieces.types
    try:
        model = models.BPE(vocab=dict(pieces.ids), merges=list(merges), fuse_unk=True,
                           byte_fallback=has_bytes, unk_token=pieces.unknown)
    except Exception as error:  # the library raises plain Exception for a merge outside the vocabulary
        raise pieces.bad(f"the merges do not fit the vocabulary: {str(error)[:200]}") from error
    return _around(pieces, Tokenizer(model))


def merges_from_scores(pieces: Pieces, scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return the merges that a SentencePiece vocabulary implies, best score first.

    Each normal piece is reached from every pair of pieces it splits into; pairs of one piece are
    ordered by length. Source: `generate_merges` of transformers 5.23.0, whose order this gives.
    """
    known = {token: token_id for token, token_id in pieces.ids.items()
             if pieces.types[token_id] in (TokenType.NORMAL, TokenType.USER_DEFINED)}
    merges = []
    for token, token_id in known.items():
        if pieces.types[token_id] is TokenType.NORMAL:
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in known and right in known:
                    merges.append(((-scores[token_id], -len(left), -len(right), token_id), left, right))
    merges.sort(key=lambda merge: merge[0])
    return [(left, right) for _, left, right in merges]


def added_tokens(pieces: Pieces, special: Sequence[str]) -> dict[str, AddedToken]:
    """Return what is cut out of text before pieces are chosen.

    special: control tokens. User-defined pieces are found in the text as pieces see it, so that no space
    is put behind them that sentencepiece would not put there.
    """
    own = {token: AddedToken(token, normalized=False, special=True) for token in special}
    is_normalized = pieces.prefix != "text"
    return own | {token: AddedToken(token, normalized=is_normalized, special=False)
                  for token in pieces.of_type(TokenType.USER_DEFINED) if token not in own}


def _around(pieces: Pieces, built: Tokenizer) -> Tokenizer:
    """Set what becomes of spaces, and how tokens become text again."""
    if pieces.prefix == "text":
        built.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    else:
        steps = [normalizers.Replace(" ", SPACE)]
        if pieces.prefix == "stretch":
            steps.insert(0, _prepended(pieces.of_type(TokenType.USER_DEFINED)))
        built.normalizer = normalizers.Sequence(steps)
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    built.decoder = decoders.Sequence(back if pieces.prefix == "none" else [*back, decoders.Strip(" ", 1, 0)])
    return built


def _prepended(user_defined: Sequence[str]) -> normalizers.Normalizer:
    """A space before a stretch of text, but not before the spelling of a token that is to be found in it.

    So a stretch that is nothing but such a token has no space before it, where sentencepiece puts one.
    """
    if not user_defined:
        return normalizers.Prepend(SPACE)
    spellings = "|".join(map(re.escape, user_defined))
    return normalizers.Replace(Regex(rf"\A(?!(?:{spellings})?\z)"), SPACE)
