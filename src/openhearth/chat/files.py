"""The files and keys of a checkpoint that say how text and chats become tokens.

Does not: check what a template does (`template.py`) or build a tokenizer (`load.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openhearth.errors import BadFile, ModelNotFound
from openhearth.formats.json_files import read_json_object
from openhearth.formats.records import Checkpoint

MAX_TOKENIZER_BYTES = 64 << 20
MAX_CONFIG_BYTES = 16 << 20
MAX_TEMPLATE_BYTES = 1 << 20
_MAX_NAMED_TEMPLATES = 32
TOKENIZER_MODELS = ("tokenizer.model", *(f"tokenizer.model.v{version}" for version in (7, 3, 2, 1)))
"""Names of SentencePiece's file, the first of them in use; Mistral numbers its own."""


def read_config(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    """Return a small JSON file of a folder; empty for a GGUF file or when there is none. Raises: BadFile."""
    if checkpoint.format == "gguf":
        return {}
    path = checkpoint.path / name
    return read_json_object(path, MAX_CONFIG_BYTES) if path.is_file() else {}


def read_tokenizer_json(checkpoint: Checkpoint) -> str:
    """Return the text of tokenizer.json. Raises: ModelNotFound without the file, BadFile."""
    path = checkpoint.path / "tokenizer.json"
    if not path.is_file():
        raise ModelNotFound(
            f"`{checkpoint.path}` has no tokenizer.json",
            why="read are tokenizer.json, tekken.json and tokenizer.model; vocab.json is not",
            hint="hearth pull the model again with its tokenizer.json, or take a GGUF file of it",
        )
    return _read_text(path, MAX_TOKENIZER_BYTES)


def find_tekken(checkpoint: Checkpoint) -> Path | None:
    """Return the path of tekken.json where that is the folder's tokenizer; tokenizer.json goes before it."""
    path = checkpoint.path / "tekken.json"
    return path if path.is_file() and not (checkpoint.path / "tokenizer.json").is_file() else None


def find_tokenizer_model(checkpoint: Checkpoint) -> Path | None:
    """Return the path of SentencePiece's file where that is the folder's tokenizer.

    tokenizer.json and tekken.json go before it.
    """
    if any((checkpoint.path / name).is_file() for name in ("tokenizer.json", "tekken.json")):
        return None
    return next((path for name in TOKENIZER_MODELS if (path := checkpoint.path / name).is_file()), None)


def find_templates(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the chat templates by name ("default", "tool_use", ...); empty when there is none.

    Order for a folder: chat_template.jinja with additional_chat_templates/, then `chat_template` of
    tokenizer_config.json, then of chat_template.json; the first that exists wins. Source:
    transformers 5.23.0, `PreTrainedTokenizerBase.from_pretrained`. Raises: BadFile.
    """
    if checkpoint.format == "gguf":
        return _gguf_templates(checkpoint.metadata)
    templates = {}
    additional = checkpoint.path / "additional_chat_templates"
    if additional.is_dir():
        paths = sorted(additional.glob("*.jinja"))[:_MAX_NAMED_TEMPLATES]
        templates = {path.stem: _read_text(path, MAX_TEMPLATE_BYTES) for path in paths}
    path = checkpoint.path / "chat_template.jinja"
    if path.is_file():
        templates["default"] = _read_text(path, MAX_TEMPLATE_BYTES)
    if templates:
        return templates
    return _named(
        read_config(checkpoint, "tokenizer_config.json").get("chat_template"), "tokenizer_config.json"
    ) or _named(read_config(checkpoint, "chat_template.json").get("chat_template"), "chat_template.json")


def _gguf_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    templates = {}
    prefix = "tokenizer.chat_template"
    for key, value in metadata.items():
        if key == prefix or key.startswith(prefix + "."):
            if not isinstance(value, str):
                raise _bad_template(f"`{key[:80]}` is not text")
            templates[key[len(prefix) + 1 :] or "default"] = value
    return templates


def _named(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    if not isinstance(value, dict) or not all(
        isinstance(text, str) for item in value.items() for text in item
    ):
        raise _bad_template(f"`chat_template` in {where} is neither text nor a list of name and template")
    return dict(value)


def _read_text(path: Path, max_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
        if len(raw) > max_bytes:
            raise BadFile(
                f"`{path}` has more than {max_bytes} bytes",
                why="such a file is smaller",
                hint="hearth pull the model again",
            )
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadFile(
            f"`{path}` is not UTF-8 at byte {error.start}",
            why="the file is damaged",
            hint="hearth pull the model again",
        ) from error
    except OSError as error:
        raise BadFile(
            f"`{path}` cannot be read", why=str(error), hint="check the file's permissions"
        ) from error


def _bad_template(what: str) -> BadFile:
    return BadFile(
        what, why="a chat template is a text", hint="hearth run --raw, or another conversion of the model"
    )
