"""A tokenizer from GGUF metadata: byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`).

Key names and token types: GGUF specification and gguf-py 0.19.0. The result is what the family's
own `tokenizer.json` would give; pre-tokenizers are in `pre_tokenizers.py`, SentencePiece's pieces in
`sentencepiece.py`.

Does not: build WordPiece, Unigram (`t5`) or other kinds; they are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models

from openhearth.chat.pre_tokenizers import PreTokenizer, find_pre_tokenizer
from openhearth.chat.sentencepiece import Pieces, TokenType, added_tokens, build_bpe, merges_from_scores
from openhearth.errors import BadFile, Unsupported

_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
    "cls_token": "cls_token_id",
}


class GGUFVocabulary:
    """The `tokenizer.ggml.*` keys, checked.

    tokens: by id. types: by id. named: name -> id, as "bos_token" -> 1.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Raises: BadFile for a missing key, a wrong type or a length that does not fit."""
        self._metadata = metadata
        self.model: str = self.value("model", str, required=True)
        self.tokens: list[str] = self.array("tokens", str, required=True)
        types = self.array("token_type", int) or [TokenType.NORMAL] * len(self.tokens)
        if len(types) != len(self.tokens):
            raise _bad(f"{len(types)} token types for {len(self.tokens)} tokens")
        kinds = {value: _token_type(value) for value in set(types)}
        self.types = [kinds[value] for value in types]
        self.ids = {token: token_id for token_id, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            twice = next(token for token_id, token in enumerate(self.tokens) if self.ids[token] != token_id)
            raise _bad(f"token `{twice[:80]}` is there twice")
        self.named = {
            name: token_id for name, key in _IDS.items() if (token_id := self.token_id(key)) is not None
        }
        if self.model == "llama":
            # Files without these keys are Llama 1 and 2 conversions; llama.cpp has the same defaults.
            for name, token_id, token in (
                ("bos_token", 1, "<s>"),
                ("eos_token", 2, "</s>"),
                ("unk_token", 0, "<unk>"),
            ):
                if self.tokens[token_id : token_id + 1] == [token]:
                    self.named.setdefault(name, token_id)

    def value(self, key: str, kind: type, *, required: bool = False) -> Any:
        """Return `tokenizer.ggml.<key>` or None."""
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None and required:
            raise _bad(f"`tokenizer.ggml.{key}` is missing")
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise _bad(f"`tokenizer.ggml.{key}` is not of type {kind.__name__}")
        return value

    def array(self, key: str, kind: type, *, required: bool = False) -> list[Any]:
        """Return `tokenizer.ggml.<key>` as a list; empty when it is not there."""
        values = self.value(key, list, required=required) or []
        if not set(map(type, values)) <= {kind} or (required and not values):
            raise _bad(f"`tokenizer.ggml.{key}` is not an array of {kind.__name__}")
        return values

    def token_id(self, key: str) -> int | None:
        """Return a token id stored under a key; None when absent or outside the vocabulary."""
        value = self.value(key, int)
        return value if value is not None and 0 <= value < len(self.tokens) else None


def build_gguf_tokenizer(vocabulary: GGUFVocabulary, *, architecture: str = "") -> Tokenizer:
    """Return the `tokenizers` object that the metadata describes.

    architecture: `general.architecture`; phi3 places its leading space differently.
    Raises: Unsupported for another kind or pre-tokenizer, by name; BadFile.
    """
    if vocabulary.model not in ("gpt2", "llama"):
        raise Unsupported(
            f"tokenizer kind `{vocabulary.model[:80]}` is not supported",
            why="known: gpt2 (byte-level BPE), llama (SentencePiece BPE)",
            hint="use the model's safetensors folder, which carries its tokenizer.json",
        )
    pieces = _pieces(vocabulary, architecture)
    control = dict.fromkeys(pieces.of_type(TokenType.CONTROL, TokenType.UNKNOWN))
    control |= dict.fromkeys(vocabulary.tokens[i] for i in vocabulary.named.values() if vocabulary.tokens[i])
    if vocabulary.model == "llama":
        built = _sentencepiece(vocabulary, pieces)
        built.add_tokens(list(added_tokens(pieces, list(control)).values()))
        return built
    built = _byte_level(vocabulary, pre_tokenizer_of(vocabulary))
    built.add_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    built.add_tokens([AddedToken(token, normalized=False, special=False)
                      for token in pieces.of_type(TokenType.USER_DEFINED) if token not in control])
    return built


def pre_tokenizer_of(vocabulary: GGUFVocabulary) -> PreTokenizer:
    """Return the byte-level cut of this file. Raises: Unsupported."""
    return find_pre_tokenizer(vocabulary.value("pre", str) or "default")


def adds_bos(vocabulary: GGUFVocabulary) -> bool:
    """Return whether plain text begins with BOS: the file's word, else the family's."""
    says = vocabulary.value("add_bos_token", bool)
    if says is not None:
        return says
    return vocabulary.model == "llama" or (
        vocabulary.model == "gpt2" and pre_tokenizer_of(vocabulary).adds_bos
    )


def _byte_level(vocabulary: GGUFVocabulary, cut: PreTokenizer) -> Tokenizer:
    try:
        model = models.BPE(vocabulary.ids, _stored_merges(vocabulary), ignore_merges=cut.ignores_merges)
    except Exception as error:  # the library raises plain Exception for a merge outside the vocabulary
        raise _bad(f"the merges do not fit the vocabulary: {str(error)[:200]}") from error
    built = Tokenizer(model)
    if cut.is_nfc:
        built.normalizer = cut.normalizer()
    built.pre_tokenizer = cut.pre_tokenizer()
    built.decoder = decoders.ByteLevel()
    return built


def _pieces(vocabulary: GGUFVocabulary, architecture: str) -> Pieces:
    unknown = vocabulary.named.get("unk_token")
    has_prefix = vocabulary.value("add_space_prefix", bool) is not False
    prefix = "none" if not has_prefix else "stretch" if architecture == "phi3" else "text"
    return Pieces(vocabulary.tokens, vocabulary.types, vocabulary.ids,
                  None if unknown is None else vocabulary.tokens[unknown], prefix, _bad)


def _sentencepiece(vocabulary: GGUFVocabulary, pieces: Pieces) -> Tokenizer:
    if vocabulary.value("remove_extra_whitespaces", bool):
        raise Unsupported(
            "a SentencePiece tokenizer that removes extra spaces is not supported",
            why="`tokenizer.ggml.remove_extra_whitespaces` is true",
            hint="use the model's safetensors folder, which carries its tokenizer.json",
        )
    if vocabulary.array("merges", str):
        return build_bpe(pieces, _stored_merges(vocabulary))
    scores = vocabulary.array("scores", float, required=True)
    if len(scores) != len(vocabulary.tokens):
        raise _bad(f"{len(scores)} scores for {len(vocabulary.tokens)} tokens")
    return build_bpe(pieces, merges_from_scores(pieces, scores))


def _stored_merges(vocabulary: GGUFVocabulary) -> list[tuple[str, str]]:
    merges = []
    for line in vocabulary.array("merges", str, required=True):
        left, _, right = line.partition(" ") if not line.startswith(" ") else (" ", "", line[2:])
        if not left or not right:
            raise _bad(f"merge `{line[:80]}` is not a pair")
        merges.append((left, right))
    return merges


def _token_type(value: int) -> TokenType:
    try:
        return TokenType(value)
    except ValueError:
        if value == 0:  # "undefined" of llama.cpp
            return TokenType.NORMAL
        raise _bad(f"token type {value} is not known") from None


def _bad(what: str) -> BadFile:
    return BadFile(
        f"the GGUF tokenizer is broken: {what}",
        why="a token's text or id would be wrong",
        hint="hearth pull the model again, or use another conversion",
    )
