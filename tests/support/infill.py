"""Tokenizers with further tokens, such as those that mark a gap."""

MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def add_tokens(folder, *texts, is_special=True):
    """Add tokens to a folder's tokenizer.json; returns it as the `tokenizers` library reads it."""
    from tokenizers import AddedToken, Tokenizer

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens([AddedToken(text, special=is_special, normalized=False) for text in texts])
    backend.save(str(folder / "tokenizer.json"))
    return backend


def build_coder(folder):
    """Write a tiny random Llama whose tokenizer has the marks, not as special tokens, as Qwen2.5-Coder's."""
    from support.tiny import build_llama, build_tokenizer

    model = build_llama(folder, with_tokenizer=False)
    build_tokenizer(folder, 400)
    return model, add_tokens(folder, *MARKS, "<|file_sep|>", is_special=False)
