"""`tekken.json`, the tokenizer file of Mistral's newer models, as a byte-level BPE.

The first ids are special tokens, named in the file (or, in files up to version 7, by a list that all of them
share), the others are byte strings in the order in which they merge. Text is cut by a pattern in the file.
Source: mistral-common 1.13 (`Tekkenizer`); transformers 5.23 (`MistralConverter`), which gives the same ids.

Does not: read images or audio, or make a chat template; that is in other files of the folder.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from openhearth.errors import BadFile
from openhearth.formats.json_files import read_json_object

MAX_BYTES = 64 << 20
_MAX_TOKENS, _MAX_TOKEN_BYTES = 1 << 20, 512
_OLD_SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)
_OLD_VERSIONS = ("v3", "v7")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
"""Names of the special tokens that every file has."""


def build_tekken(path: Path) -> Tokenizer:
    """Return the `tokenizers` object of a tekken.json, which puts `<s>` before a text. Raises: BadFile."""
    content = read_json_object(path, MAX_BYTES)
    config = content.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("pattern"), str):
        raise _bad(path, "`config` has no `pattern`")
    num_special = _count(path, config, "default_num_special_tokens")
    special = _special_tokens(path, content, config.get("version"), num_special)
    pieces = _pieces(path, content.get("vocab"), _count(path, config, "default_vocab_size") - num_special)
    ids = {piece: rank for rank, piece in enumerate(pieces)}
    spelling = _spelling()
    vocabulary = {"".join(spelling[byte] for byte in piece): num_special + rank
                  for piece, rank in ids.items()}
    merges = [tuple("".join(spelling[byte] for byte in half) for half in pair) for pair in _merges(ids)]
    if len(ids) != len(pieces) or vocabulary.keys() & set(special):
        raise _bad(path, "a token is there twice")
    vocabulary |= {token: rank for rank, token in enumerate(special)}
    try:
        built = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
        cut = pre_tokenizers.Split(Regex(config["pattern"]), behavior="isolated")
    except Exception as error:  # the library raises plain Exception
        raise _bad(path, str(error)[:300]) from error
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    first = SPECIAL["bos_token"]
    built.post_processor = processors.TemplateProcessing(
        single=[first, "$A"], special_tokens=[(first, special.index(first))])
    return built


def _count(path: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value <= _MAX_TOKENS:
        raise _bad(path, f"`{key}` is {str(value)[:40]}, expected a number up to {_MAX_TOKENS}")
    return value


def _special_tokens(path: Path, content: dict[str, Any], version: Any, count: int) -> list[str]:
    """The spelling of every id below count; those without a name are numbered."""
    entries = content.get("special_tokens")
    if entries is None and version in _OLD_VERSIONS:
        entries = [{"rank": rank, "token_str": token} for rank, token in enumerate(_OLD_SPECIAL)]
    if not isinstance(entries, list):
        raise _bad(path, f"a file of version `{str(version)[:20]}` has no list of `special_tokens`")
    names: dict[int, str] = {}
    for entry in entries:
        rank, token = (entry.get("rank"), entry.get("token_str")) if isinstance(entry, dict) else (None, None)
        if type(rank) is not int or not 0 <= rank < count or not isinstance(token, str) or not token:
            raise _bad(path, f"a special token is {str(entry)[:60]}")
        if rank in names:
            raise _bad(path, f"two special tokens have the rank {rank}")
        names[rank] = token
    special = [names.get(rank, f"<SPECIAL_{rank}>") for rank in range(count)]
    missing = [token for token in (SPECIAL["bos_token"], SPECIAL["eos_token"]) if token not in special]
    if missing or len(set(special)) != count:
        raise _bad(path, f"its special tokens lack {missing[0]}" if missing else
                   "two special tokens are spelled the same")
    return special


def _pieces(path: Path, entries: Any, count: int) -> list[bytes]:
    """The byte strings of the vocabulary; files hold more than the models were made with."""
    if not isinstance(entries, list) or not 256 <= count <= len(entries):
        held = len(entries) if isinstance(entries, list) else 0
        raise _bad(path, f"its vocabulary holds {held} byte strings, `default_vocab_size` asks for {count}")
    pieces = []
    for rank, entry in enumerate(entries[:count]):
        try:
            if entry["rank"] != rank:
                raise ValueError
            piece = base64.b64decode(entry["token_bytes"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise _bad(path, f"entry {rank} of its vocabulary is {str(entry)[:60]}") from None
        if not 0 < len(piece) <= _MAX_TOKEN_BYTES:
            raise _bad(path, f"entry {rank} of its vocabulary has {len(piece)} bytes")
        pieces.append(piece)
    if not {bytes([byte]) for byte in range(256)} <= set(pieces):
        raise _bad(path, "its vocabulary lacks single bytes")
    return pieces


def _merges(ids: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """All pairs of tokens that make a token, in the order of what they make."""
    merges = []
    for piece in ids:
        pairs = [(piece[:place], piece[place:]) for place in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def _spelling() -> list[str]:
    """The character that byte-level BPE writes for each byte: itself where it is printable, else from 256 on.

    Source: GPT-2's `bytes_to_unicode`.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _bad(path: Path, what: str) -> BadFile:
    return BadFile(f"`{path}` is no tekken tokenizer: {what}", hint="hearth pull the model again")
