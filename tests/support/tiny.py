"""Tiny random Llama models on disk, written by the libraries we are tested against."""

from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXT = [
    "The quick brown fox jumps over the lazy dog. 0123456789",
    "def main():\n    print('hello world')\n\treturn None",
    "Die Katze sitzt auf der Matte. Le chat est sur le tapis. "
    "\u732b\u304c\u30de\u30c3\u30c8\u306e\u4e0a\u306b\u3044\u308b",
]


def build_tokenizer(folder: Path, vocab_size: int = 512):
    """Write a byte-level BPE tokenizer with chat tokens into folder and return it (transformers)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(TEXT * 4, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>",
                                   eos_token="<|im_end|>", unk_token="<|endoftext|>", pad_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return fast


def build_llama(folder: Path, *, seed: int = 0, dtype: str = "float32", with_tokenizer: bool = True,
                **overrides):
    """Write a random Llama (config.json, model.safetensors, tokenizer) into folder.

    overrides: LlamaConfig fields. Returns the transformers model in eval mode, fp32.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
                    rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
    settings.update(overrides)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**settings)).eval()
    for name, parameter in model.named_parameters():
        # The library's own initialisation (std 0.02, zero biases, unit norms) hides mistakes.
        scale, shift = (0.1, 1.0) if "norm" in name else (0.1, 0.0)
        parameter.data.normal_(0, scale).add_(shift)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if with_tokenizer:
        build_tokenizer(folder, settings["vocab_size"])
    return model.float()


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[rest]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


def interleave_rotary_rows(array, num_heads: int):
    """Reorder rows of Q or K (weight or bias) as llama.cpp's converter does: half-split to interleaved."""
    halves = array.reshape(num_heads, 2, array.shape[0] // num_heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def build_gguf(folder: Path, path: Path, quant: str = "F32", *, metadata=None, rope_factors=None) -> Path:
    """Write the model in folder (from `build_llama`) as one GGUF file with the `gguf` package.

    quant: type of the matrices (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1); vectors stay F32.
    metadata: further or overriding key -> value (str, bool, int, float); value None drops the key.
    rope_factors: values of `rope_freqs.weight`. Tokenizer metadata is written when the folder has one.
    """
    import json

    import gguf
    import numpy as np
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    values = {
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads, "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.attention.key_length": config["head_dim"], "llama.attention.value_length": config["head_dim"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
        "llama.vocab_size": config["vocab_size"], "general.name": "tiny", **(metadata or {})}
    writer = gguf.GGUFWriter(path, "llama")
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in values.items():
        if value is not None:
            add[type(value)](key, value)
    if (folder / "tokenizer.json").exists():
        _add_tokenizer(writer, folder, config["vocab_size"])
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(rope_factors, dtype=np.float32))
    for name, tensor in load_file(folder / "model.safetensors").items():
        array = tensor.float().numpy()
        if ".q_proj." in name or ".k_proj." in name:
            array = interleave_rotary_rows(array, heads if ".q_proj." in name else kv_heads)
        kind = gguf.GGMLQuantizationType[quant if array.ndim == 2 else "F32"]
        blocks = gguf.quants.quantize(np.ascontiguousarray(array), kind)
        writer.add_tensor(gguf_name(name), blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer, folder: Path, vocab_size: int) -> None:
    import json

    import gguf

    record = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    ids = dict(record["model"]["vocab"]) | {token["content"]: token["id"] for token in record["added_tokens"]}
    special = {token["id"] for token in record["added_tokens"] if token["special"]}
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    kinds = [gguf.TokenType.UNUSED] * vocab_size
    for text, i in ids.items():
        tokens[i] = text
        kinds[i] = gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = record["model"]["merges"]
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in merges])
    writer.add_bos_token_id(ids[settings["bos_token"]])
    writer.add_eos_token_id(ids[settings["eos_token"]])
    writer.add_unk_token_id(ids[settings["unk_token"]])
    writer.add_pad_token_id(ids[settings["pad_token"]])
    writer.add_add_bos_token(False)
    template = folder / "chat_template.jinja"
    if template.exists():
        writer.add_chat_template(template.read_text())
