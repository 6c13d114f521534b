"""A tokenizer from a checkpoint: which tokens are special, and which end an answer.

Does not: read weights, or take the chat template's word for anything but which end-of-turn token
it writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken

from openhearth.chat.files import (
    find_tekken,
    find_templates,
    find_tokenizer_model,
    read_config,
    read_tokenizer_json,
)
from openhearth.chat.gguf_tokenizer import GGUFVocabulary, adds_bos, build_gguf_tokenizer
from openhearth.chat.infill import find_infill
from openhearth.chat.sentencepiece_file import build_sentencepiece
from openhearth.chat.tekken import SPECIAL, build_tekken
from openhearth.chat.tokenizer import Marks, Tokenizer
from openhearth.errors import BadFile
from openhearth.formats.records import Checkpoint

END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|END_OF_TURN_TOKEN|>",
    "<end_of_utterance>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|return|>",
    "<|call|>",
    "</s>",
    "[EOT]",
    "<EOT>",
)
"""Tokens that end a turn in a public chat format; one counts when the checkpoint's template writes it."""


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Return the tokenizer of a folder or of a GGUF file (its metadata).

    A folder's is tokenizer.json, else tekken.json, else tokenizer.model. Raises: ModelNotFound without one
    of them, BadFile for a broken one, Unsupported for a kind that is not known, by name.
    """
    if checkpoint.format == "gguf":
        return _from_gguf(checkpoint)
    config = read_config(checkpoint, "tokenizer_config.json")
    backend, own = _build(checkpoint, config)
    special = _special_tokens(config) or _special_tokens(read_config(checkpoint, "special_tokens_map.json"))
    special = own | special
    _add_special(backend, config, special)
    ids = {name: backend.token_to_id(text) for name, text in special.items()}
    stops = {
        ids.get("eos_token"),
        *_eos_ids(read_config(checkpoint, "generation_config.json")),
        *_eos_ids(checkpoint.config),
        *_ends_of_turn(checkpoint, backend),
    }
    prefix, suffix = _around(backend, config, ids)
    return Tokenizer(
        backend,
        Marks(
            bos_token_id=ids.get("bos_token"),
            eos_token_id=ids.get("eos_token"),
            stop_token_ids=frozenset(
                i for i in stops if i is not None and backend.id_to_token(i) is not None
            ),
            special_tokens=special,
            prefix_ids=prefix,
            suffix_ids=suffix,
            infill=find_infill(_added_ids(backend), END_OF_TURN),
        ),
    )


def _build(checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """Return the backend, and the special tokens that its file names itself."""
    if (path := find_tekken(checkpoint)) is not None:
        backend = build_tekken(path)
        return backend, {name: text for name, text in SPECIAL.items()
                         if backend.token_to_id(text) is not None}
    if (path := find_tokenizer_model(checkpoint)) is not None:
        return build_sentencepiece(path, config, read_config(checkpoint, "added_tokens.json"))
    return _from_tokenizer_json(checkpoint), {}


def _from_tokenizer_json(checkpoint: Checkpoint) -> tokenizers.Tokenizer:
    text = read_tokenizer_json(checkpoint)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise BadFile(
            f"`{checkpoint.path / 'tokenizer.json'}` is not a tokenizer",
            why=str(error)[:300],
            hint="hearth pull the model again",
        ) from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _from_gguf(checkpoint: Checkpoint) -> Tokenizer:
    vocabulary = GGUFVocabulary(checkpoint.metadata)
    backend = build_gguf_tokenizer(
        vocabulary, architecture=str(checkpoint.metadata.get("general.architecture", ""))
    )
    bos, eos = vocabulary.named.get("bos_token"), vocabulary.named.get("eos_token")
    stops = {
        eos,
        vocabulary.token_id("eot_token_id"),
        vocabulary.token_id("eom_token_id"),
        *_ends_of_turn(checkpoint, backend),
    }
    adds_eos = vocabulary.value("add_eos_token", bool)
    return Tokenizer(
        backend,
        Marks(
            bos_token_id=bos,
            eos_token_id=eos,
            stop_token_ids=frozenset(i for i in stops if i is not None),
            special_tokens={name: vocabulary.tokens[i] for name, i in vocabulary.named.items()},
            prefix_ids=(bos,) if bos is not None and adds_bos(vocabulary) else (),
            suffix_ids=(eos,) if eos is not None and adds_eos else (),
            infill=find_infill(_added_ids(backend), END_OF_TURN, vocabulary.token_id),
        ),
    )


def _added_ids(backend: tokenizers.Tokenizer) -> dict[str, int]:
    return {token.content: token_id for token_id, token in backend.get_added_tokens_decoder().items()}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return name -> text of `bos_token`, `eos_token` and any other `..._token` of a config."""
    special = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str) and text:
            special[name] = text
    return special


def _add_special(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]
) -> None:
    """Add what tokenizer_config.json names and tokenizer.json lacks, as `transformers` does."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    decoder = config.get("added_tokens_decoder")
    entries = (
        sorted(decoder.items(), key=lambda item: int(item[0]) if item[0].isdecimal() else -1)
        if isinstance(decoder, dict)
        else []
    )
    for _, entry in entries:
        if (
            isinstance(entry, dict)
            and isinstance(text := entry.get("content"), str)
            and text
            and text not in known
        ):
            flags = {
                key: bool(entry.get(key, False)) for key in ("single_word", "lstrip", "rstrip", "normalized")
            }
            backend.add_tokens([AddedToken(text, special=bool(entry.get("special", False)), **flags)])
            known.add(text)
    for text in special.values():
        if text not in known:
            backend.add_tokens([AddedToken(text, special=True, normalized=False)])
            known.add(text)


def _eos_ids(config: Mapping[str, Any]) -> list[int]:
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return [i for i in values if type(i) is int and 0 <= i < 2**31]


def _ends_of_turn(checkpoint: Checkpoint, backend: tokenizers.Tokenizer) -> Iterable[int]:
    source = "\0".join(find_templates(checkpoint).values())
    written = [token for token in END_OF_TURN if token in source]
    if "<|return|>" in written:
        written = [
            token for token in written if token != "<|end|>"
        ]  # gpt-oss: ends a message, not the answer
    ids = [backend.token_to_id(token) for token in written]
    return [i for i in ids if i is not None]


def _around(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], ids: Mapping[str, int | None]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids put before and after a text: the config's flags, else the post-processor's doing."""
    if "add_bos_token" in config or "add_eos_token" in config:
        wants = [(name, config.get(f"add_{name}")) for name in ("bos_token", "eos_token")]
        return tuple(
            (ids[name],) if flag is True and ids.get(name) is not None else () for name, flag in wants
        )
    bare = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    return (), ()
