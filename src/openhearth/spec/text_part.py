"""The text part of a checkpoint that holds more: what reads images is left out, by name.

Gemma 3 (`gemma3`) and Mistral Small 3.1, Magistral and Ministral 3 (`mistral3`) with vision, as in
transformers 5.23 (`Gemma3ForConditionalGeneration`, `Mistral3ForConditionalGeneration`). Without images they
compute what `gemma3_text`, `mistral` and `ministral3` do on the tensors under `language_model.`.

Does not: read images, or leave out a tensor that no pattern here names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from openhearth.errors import BadFile, Unsupported
from openhearth.formats.records import Checkpoint, TensorEntry
from openhearth.spec.architectures import find_row
from openhearth.spec.fields import Fields


@dataclass(frozen=True)
class _Whole:
    """A model of several parts, whose tensors for text begin with _PREFIX.

    text_types: of its text part. keys: of `config.json` that are about the other parts. is_tied_by_file:
    the output matrix is the embedding where the file has none of its own, else where `config.json` says so.
    """

    text_types: tuple[str, ...]
    keys: frozenset[str]
    is_tied_by_file: bool = False


_PREFIX = "language_model."
_LEFT_OUT = (r"vision_tower\..+", r"multi_modal_projector\..+")
_WHOLES = {
    "gemma3": _Whole(("gemma3_text",), frozenset({
        "vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"})),
    "mistral3": _Whole(("mistral", "ministral3"), frozenset({
        "vision_config", "image_token_index", "multimodal_projector_bias", "projector_hidden_act",
        "spatial_merge_size", "vision_feature_layer"}), is_tied_by_file=True),
}


def text_part(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint as if its text part had been saved alone; one that is text comes back as it is.

    Tensors take the names they have there. Keys beside `text_config` that are not about other parts stay, and
    are read or refused like those inside. Raises: BadFile; Unsupported for a text part of another kind.
    """
    whole = _WHOLES.get(str(checkpoint.config.get("model_type")))
    if whole is None:
        return checkpoint
    outer = Fields(f"`config.json` of `{checkpoint.path.name}`", checkpoint.config)
    text = outer.mapping("text_config")
    text.require({"model_type": whole.text_types})
    text_type = text.text("model_type", whole.text_types[0])
    tensors = _text_tensors(checkpoint)
    is_tied = outer.flag("tie_word_embeddings", True)
    if whole.is_tied_by_file:
        is_tied = "lm_head.weight" not in tensors and (is_tied or text.flag("tie_word_embeddings", False))
    elif text.flag("tie_word_embeddings", is_tied) != is_tied:
        raise Unsupported(f"{outer.source} and {text.source} differ in `tie_word_embeddings`",
                          why="the output matrix would be the embedding by one and not by the other",
                          hint="hearth run smollm2")
    kept = {key: value for key, value in outer.values.items() if key not in whole.keys | {"text_config"}}
    own = {"model_type": text_type, "tie_word_embeddings": is_tied,
           "architectures": [find_row(text_type, checkpoint.path.name).class_name]}
    return replace(checkpoint, config={**text.values, **kept, **own}, tensors=tensors)


def _text_tensors(checkpoint: Checkpoint) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    for name, entry in checkpoint.tensors.items():
        if any(re.fullmatch(pattern, name) for pattern in _LEFT_OUT):
            continue
        own = name.removeprefix(_PREFIX)
        if own in tensors:
            raise BadFile(f"`{checkpoint.path.name}` has `{own}` twice, once under `{_PREFIX}`",
                          why="only one of them can be the model's",
                          hint="fetch the model again with `hearth pull`")
        tensors[own] = replace(entry, name=own)
    return tensors
