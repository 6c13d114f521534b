"""Tiny random Llama models on disk, written by the libraries we are tested against."""

from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXT = [
    "The quick brown fox jumps over the lazy dog. 0123456789",
    "def main():\n    print('hello world')\n\treturn None",
    "Die Katze sitzt auf der Matte. Le chat est sur le tapis. \u732b\u304c\u30de\u30c3\u30c8\u306e\u4e0a\u306b\u3044\u308b",
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
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>",
                                   unk_token="<|endoftext|>", pad_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return fast


def build_llama(folder: Path, *, seed: int = 0, dtype: str = "float32", with_tokenizer: bool = True, **overrides):
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
