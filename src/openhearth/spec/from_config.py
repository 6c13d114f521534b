"""ModelSpec from a Hugging Face `config.json`.

Both layouts of the rotary settings are read: `rope_theta` with `rope_scaling` (older files) and
`rope_parameters`. Defaults and precedence follow transformers 5.23 (`LlamaConfig`,
`modeling_rope_utils`). A key is either read, required to have the one value we compute, known to be
harmless, or refused by name; what an architecture adds to that is its row in `architectures/`.
"""

from __future__ import annotations

from typing import Any

from openhearth.errors import BadFile, Unsupported
from openhearth.formats.records import Checkpoint
from openhearth.formats.unsafe import refuse_foreign_classes
from openhearth.spec.architectures import ArchitectureRow, find_row
from openhearth.spec.architectures.rotary import as_float32, rope_fields, yarn_factor
from openhearth.spec.fields import Fields
from openhearth.spec.fp8 import fp8_block_of
from openhearth.spec.records import ModelSpec, RopeSpec

_READ = {
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "original_max_position_embeddings",
    "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "attention_bias", "mlp_bias",
    "tie_word_embeddings", "dtype", "torch_dtype", "hidden_act", "quantization_config",
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_REQUIRED = {
    "pretraining_tp": (1,),
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({},),
    "use_sliding_window": (False,),
}
# Names, ids, training and generation settings: none of them changes the forward pass.
_HARMLESS = {
    "_name_or_path", "name_or_path", "_model_name_or_path", "_attn_implementation",
    "_attn_implementation_autoset", "architectures", "auto_map", "transformers_version",
    "transformers.js_config", "transformers_weights",
    "unsloth_version", "unsloth_fixed", "is_llama_config", "is_decoder",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id",
    "tokenizer_class", "prefix", "use_cache", "initializer_range", "attention_dropout", "hidden_dropout",
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "gradient_checkpointing", "neftune_noise_alpha",
    "max_sequence_length", "model_max_length", "max_length", "min_length", "do_sample", "temperature",
    "top_k",
    "top_p", "typical_p", "min_p", "repetition_penalty", "num_beams", "num_beam_groups", "diversity_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "early_stopping", "forced_bos_token_id", "forced_eos_token_id",
    "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    "output_attentions", "output_hidden_states", "output_scores", "return_dict", "return_dict_in_generate",
    "use_return_dict", "torchscript", "use_bfloat16", "tf_legacy_loss", "problem_type", "finetuning_task",
    "task_specific_params", "id2label", "label2id", "num_labels",
}
_ROPE_KEYS = {
    "type", "rope_type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor",
    "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate",
    "partial_rotary_factor", "short_factor", "long_factor",
}
_ROPE_KINDS = ("full_attention", "sliding_attention")
_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}
_TENSOR_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def spec_from_config(checkpoint: Checkpoint) -> ModelSpec:
    """Return the shape that `config.json` describes. Raises: Unsupported, BadFile."""
    given = Fields(f"`config.json` of `{checkpoint.path.name}`", checkpoint.config)
    row = find_row(given.text("model_type"), checkpoint.path.name)
    config = Fields(given.source, {**row.defaults, **given.values})
    fp8_block_of(checkpoint)
    required = {key: values for key, values in _REQUIRED.items()
                if key not in row.keys | row.harmless} | dict(row.required)
    config.require(required)
    config.refuse_unknown(_READ | row.keys | required.keys() | _HARMLESS | row.harmless)
    refuse_foreign_classes(config.values.get("auto_map"), checkpoint.path / "config.json", row.own_modules)
    settings = _common_settings(config, checkpoint, row) | dict(row.fixed)
    return ModelSpec(**(settings | row.read(config, settings)))


def _common_settings(config: Fields, checkpoint: Checkpoint, row: ArchitectureRow) -> dict[str, Any]:
    """What most architectures say with the same keys."""
    hidden_size = config.integer("hidden_size", 1, 1 << 20)
    num_heads = config.integer("num_attention_heads", 1, 1 << 14)
    if not config.has("head_dim") and hidden_size % num_heads:
        raise BadFile(f"{config.source}: `hidden_size` {hidden_size} is no multiple of {num_heads} heads",
                      why="without `head_dim` the heads share the hidden size evenly",
                      hint="fetch the model again with `hearth pull`")
    max_position = config.integer("max_position_embeddings", 1, 1 << 28, 2048)
    rope, local_rope = _read_ropes(config, max_position, row)
    if rope.type == "dynamic":
        max_position = int(max_position * max(rope.factor, 1.0))
    activation = config.text("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise Unsupported(f"{config.source} sets `hidden_act` to `{activation}`",
                          why=f"this version computes: {', '.join(_ACTIVATIONS)}", hint="hearth run smollm2")
    return dict(
        model_type=config.text("model_type"),
        vocab_size=config.integer("vocab_size", 1, 1 << 24),
        hidden_size=hidden_size,
        num_layers=config.integer("num_hidden_layers", 1, 1 << 12),
        num_heads=num_heads,
        num_kv_heads=config.integer("num_key_value_heads", 1, 1 << 14, num_heads),
        head_dim=config.integer("head_dim", 1, 1 << 14, hidden_size // num_heads),
        intermediate_size=config.integer("intermediate_size", 1, 1 << 22),
        max_position=max_position,
        rms_norm_eps=config.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        rope=rope,
        local_rope=local_rope,
        is_tied=config.flag("tie_word_embeddings", False),
        has_attention_bias=config.flag("attention_bias", False),
        has_mlp_bias=config.flag("mlp_bias", False),
        activation=_ACTIVATIONS[activation],
        dtype=_read_dtype(config, checkpoint))


def _read_ropes(config: Fields, max_position: int, row: ArchitectureRow) -> tuple[RopeSpec, RopeSpec | None]:
    """The rotation of layers that see everything, and of those with a window, None where the file has one."""
    rope = rope_fields(config)
    if config.has("rope_scaling") or not rope.has("full_attention"):
        return _read_rope(config, rope, max_position, row), None
    rope.refuse_unknown(_ROPE_KINDS)
    full, local = (rope.mapping(kind) for kind in _ROPE_KINDS)
    if local.values:
        local.number("rope_theta", 1.0001, 1e30)  # no architecture's default: there, none is given
    return (_read_rope(config, full, max_position, row),
            _read_rope(config, local, max_position, row) if local.values else None)


def _read_rope(config: Fields, rope: Fields, max_position: int, row: ArchitectureRow) -> RopeSpec:
    kind = rope.text("rope_type", rope.text("type", "default"))
    kind = row.rope_names.get(kind, kind)
    if kind not in _ROPE_TYPES:
        raise Unsupported(f"{config.source} wants rope scaling `{kind}`",
                          why=f"this version computes: {', '.join(_ROPE_TYPES)}", hint="hearth run smollm2")
    if "partial_rotary_factor" not in row.keys:
        rope.require({"partial_rotary_factor": (1,)})
    rope.refuse_unknown(_ROPE_KEYS | row.rope_keys | ({"attn_factor"} if kind == "yarn" else set()))
    theta = rope if rope.has("rope_theta") else config
    settings: dict = {"type": kind, "theta": theta.number("rope_theta", 1.0001, 1e30, 10000.0),
                      "original_max_position": max_position}
    if kind in ("llama3", "yarn", "longrope"):
        original = config if config.has("original_max_position_embeddings") else rope
        settings["original_max_position"] = original.integer(
            "original_max_position_embeddings", 2 if kind == "longrope" else 1, 1 << 28, max_position)
    if kind == "yarn":
        settings |= _read_yarn(rope, max_position / settings["original_max_position"])
    elif kind == "longrope":
        settings |= _read_longrope(rope, max_position / settings["original_max_position"])
    elif kind != "default":
        settings["factor"] = rope.number("factor", 1e-6, 1e6)
    if kind == "llama3":
        low, high = rope.number("low_freq_factor", 1e-6, 1e6), rope.number("high_freq_factor", 1e-6, 1e6)
        if low >= high:
            raise BadFile(
                f"{rope.source}: `low_freq_factor` {low:g} is not below `high_freq_factor` {high:g}",
                          why="frequencies between the two are interpolated",
                          hint="fetch the model again with `hearth pull`")
        settings |= {"low_freq_factor": low, "high_freq_factor": high}
    return RopeSpec(**settings)


def _read_yarn(rope: Fields, context_ratio: float) -> dict:
    """A zero counts as absent for the betas and both mscales, as in transformers 5.23.

    attn_factor multiplies what the formula gives, as in vLLM; transformers leaves it out, although
    DeepSeek-R1-0528-Qwen3-8B has it (github.com/deepseek-ai/DeepSeek-R1/issues/684).
    """
    settings: dict = {"factor": rope.number("factor", 1e-6, 1e6, context_ratio),
                      "beta_fast": rope.number("beta_fast", 0.0, 1e6, 32.0) or 32.0,
                      "beta_slow": rope.number("beta_slow", 0.0, 1e6, 1.0) or 1.0,
                      "truncate": rope.flag("truncate", True)}
    for key in ("attention_factor", "mscale", "mscale_all_dim"):
        if rope.has(key):
            settings[key] = rope.number(key, 0.0, 1e6)
    if rope.has("attn_factor"):
        rope.require({"mscale": (0,), "mscale_all_dim": (0,)})  # what it would multiply then, nobody has said
        own = settings.get("attention_factor", yarn_factor(settings["factor"]))
        settings["attention_factor"] = own * rope.number("attn_factor", 0.0, 1e6)
    return settings


def _read_longrope(rope: Fields, context_ratio: float) -> dict:
    """Factors become numbers of float32, which is what they are computed with everywhere."""
    settings: dict = {"factor": rope.number("factor", 1e-6, 1e6, context_ratio),
                      "short_factors": as_float32(rope.numbers("short_factor", 1e-6, 1e6)),
                      "long_factors": as_float32(rope.numbers("long_factor", 1e-6, 1e6))}
    if rope.has("attention_factor"):
        settings["attention_factor"] = rope.number("attention_factor", 0.0, 1e6)
    return settings


def _read_dtype(config: Fields, checkpoint: Checkpoint) -> str:
    key = "dtype" if config.has("dtype") else "torch_dtype"
    if config.has(key):
        name = config.text(key).removeprefix("torch.")
        return _DTYPES.get(name, name)
    largest = max(checkpoint.tensors.values(), key=lambda entry: entry.num_bytes, default=None)
    return _TENSOR_DTYPES.get(largest.type, largest.type.lower()) if largest else "float32"
