"""The tokenizer of a GGUF file as the files of a Hugging Face folder.

Does not: write files, or convert a folder's own (they are copied as they are).
"""

from __future__ import annotations

import json

from openhearth.chat.files import find_templates
from openhearth.chat.gguf_tokenizer import GGUFVocabulary, adds_bos, build_gguf_tokenizer
from openhearth.chat.load import load_tokenizer
from openhearth.formats.records import Checkpoint


def tokenizer_files(checkpoint: Checkpoint) -> dict[str, str]:
    """Return file name -> text for a GGUF checkpoint, from which `load_tokenizer` makes the same tokenizer.

    Raises: BadFile, Unsupported as `load_tokenizer`.
    """
    vocabulary = GGUFVocabulary(checkpoint.metadata)
    architecture = str(checkpoint.metadata.get("general.architecture", ""))
    backend = build_gguf_tokenizer(vocabulary, architecture=architecture)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": adds_bos(vocabulary),
              "add_eos_token": bool(vocabulary.value("add_eos_token", bool)),
              **{name: vocabulary.tokens[token_id] for name, token_id in vocabulary.named.items()}}
    templates = find_templates(checkpoint)
    if templates:
        config["chat_template"] = (templates["default"] if list(templates) == ["default"] else
                                   [{"name": name, "template": text} for name, text in templates.items()])
    stops = sorted(load_tokenizer(checkpoint).stop_token_ids)
    return {"tokenizer.json": backend.to_str(), "tokenizer_config.json": json.dumps(config, indent=1),
            "generation_config.json": json.dumps({"eos_token_id": stops}, indent=1)}
