"""The tokenizer of a folder that has SentencePiece's `tokenizer.model` and no `tokenizer.json`.

Text becomes the pieces that the `sentencepiece` package gives for each stretch between control tokens, as
in the folders that were made for it (transformers 4, `LlamaTokenizer` with ``legacy``). Where
tokenizer_config.json sets ``legacy`` to false, a space is put where the text begins and nowhere else, as
transformers 5.23 does.

Does not: run code that a folder brings for its tokenizer; the files alone say what it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from openhearth.chat.sentencepiece import (
    Pieces,
    TokenType,
    added_tokens,
    build_bpe,
    merges_from_scores,
    read_pieces,
)
from openhearth.errors import BadFile
from openhearth.formats.quoting import quoted
from openhearth.formats.sentencepiece import read_sentencepiece

_FLAGS = ("single_word", "lstrip", "rstrip")


def build_sentencepiece(path: Path, config: Mapping[str, Any], added: Mapping[str, Any]
                        ) -> tuple[Tokenizer, dict[str, str]]:
    """Return the backend, which puts the first token before a text, and the special tokens by name.

    config: tokenizer_config.json; added: added_tokens.json, token -> id. Raises: ModelNotFound; BadFile for
    a broken file, or where the files do not agree about an id; Unsupported, as `read_pieces`.
    """
    model = read_sentencepiece(path)
    pieces = read_pieces(model, prefix="text" if config.get("legacy") is False else "stretch")
    built = build_bpe(pieces, merges_from_scores(pieces, model.scores))
    special = pieces.of_type(TokenType.CONTROL, TokenType.UNKNOWN)
    tokens = {pieces.ids[token]: entry for token, entry in added_tokens(pieces, special).items()}
    for token_id, entry in _declared(path.parent, pieces, config, added).items():
        if entry.special or token_id not in tokens:
            tokens[token_id] = entry
    built.add_tokens([tokens[token_id] for token_id in sorted(tokens)])
    named = {"bos_token": model.bos_piece, "eos_token": model.eos_piece, "pad_token": model.pad_piece,
             "unk_token": pieces.unknown}
    named = {name: token for name, token in named.items() if token in special}
    first = named.get("bos_token")
    if first is not None:
        built.post_processor = processors.TemplateProcessing(
            single=[first, "$A"], special_tokens=[(first, pieces.ids[first])])
    return built, named


def _declared(folder: Path, pieces: Pieces, config: Mapping[str, Any], added: Mapping[str, Any]
              ) -> dict[int, AddedToken]:
    """The tokens that the other files name, by id; what they add follows the vocabulary without a gap."""
    entries = [(token_id, {"content": token}) for token, token_id in added.items()]
    listed = config.get("added_tokens_decoder")
    if isinstance(listed, dict):
        entries += [(int(key) if key.isdecimal() and len(key) < 10 else key, entry)
                    for key, entry in listed.items()]
    found: dict[int, AddedToken] = {}
    for token_id, entry in entries:
        token = entry.get("content") if isinstance(entry, dict) else None
        if type(token_id) is not int or not isinstance(token, str) or not token:
            raise _disagree(folder, f"an added token is {quoted(token)} with the id {quoted(token_id)}")
        if token_id < len(pieces.tokens) and pieces.tokens[token_id] != token:
            raise _disagree(folder, f"the id {token_id} is {quoted(token)} in one and "
                                    f"{quoted(pieces.tokens[token_id])} in the other")
        if token_id >= len(pieces.tokens) and token in pieces.ids:
            raise _disagree(folder, f"the token {quoted(token)} has the ids {token_id} and "
                                    f"{pieces.ids[token]}")
        found[token_id] = AddedToken(token, special=bool(entry.get("special", False)), normalized=False,
                                     **{flag: bool(entry.get(flag, False)) for flag in _FLAGS})
    beyond = sorted(token_id for token_id in found if token_id >= len(pieces.tokens))
    if beyond and beyond[-1] - len(pieces.tokens) >= len(beyond):
        raise _disagree(folder, f"{len(beyond)} tokens are added to {len(pieces.tokens)} pieces, and the "
                                f"last of them has the id {beyond[-1]}")
    if len({entry.content for entry in found.values()}) != len(found):
        raise _disagree(folder, "an added token has two ids")
    return found


def _disagree(folder: Path, what: str) -> BadFile:
    return BadFile(f"the tokenizer files of {quoted(folder)} do not agree: {what}",
                   why="a token's id would be wrong", hint="hearth pull the model again")
