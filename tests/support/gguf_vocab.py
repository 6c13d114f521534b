"""GGUF files that hold only a tokenizer trained on the spot, written by the `gguf` package."""

from functools import cache
from pathlib import Path

from openhearth.formats.records import Checkpoint
from support.corpus import CODE, NUMBERS, SCRIPTS, WORDS, corpus

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@cache
def train_byte_level(num_tokens: int = 900) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges of a byte-level BPE; the control tokens are ids 0 to 2.

    Words are cut at single spaces only, so that merges cross what the families cut at.
    """
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "merged_with_next"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.train_from_iterator(
        corpus(1200, seed=7),
        trainers.BpeTrainer(
            vocab_size=num_tokens,
            special_tokens=CONTROL,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@cache
def train_sentencepiece(**changes) -> bytes:
    """Return a SentencePiece BPE model with byte fallback and no normalisation, as Llama 2 has.

    changes: other settings of the trainer; lists as tuples.
    """
    import io

    import sentencepiece

    out = io.BytesIO()
    known = set("".join([*SCRIPTS.values(), *WORDS, *NUMBERS, *CODE]))
    texts = [text for text in corpus(2000, seed=9) if set(text) <= known | {" "} and text.strip()]
    settings = dict(
        model_type="bpe",
        vocab_size=1500,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
        user_defined_symbols=("<tool>",),
        max_sentence_length=10000,
    )
    settings |= changes
    settings["user_defined_symbols"] = list(settings["user_defined_symbols"])
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=out, **settings)
    return out.getvalue()


def write_gguf(path: Path, keys: dict, architecture: str = "llama") -> Path:
    """Write `tokenizer.<key>` values (and one small tensor) to path."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        name = f"tokenizer.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    writer.add_tensor("token_embd.weight", np.zeros((1, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level_keys(pre: str, **changes) -> dict:
    """Return the keys of a byte-level tokenizer; `changes` replace them."""
    vocab, merges = train_byte_level()
    tokens = sorted(vocab, key=vocab.get)
    return {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": tokens,
        "ggml.token_type": [3 if token in CONTROL else 1 for token in tokens],
        "ggml.merges": [" ".join(pair) for pair in merges],
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.unknown_token_id": 0,
        "ggml.padding_token_id": 2,
        "ggml.add_bos_token": False,
        **changes,
    }


def sentencepiece_keys(**changes) -> dict:
    """Return the keys of the SentencePiece tokenizer as llama.cpp's converter writes them."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece())
    ids = range(model.get_piece_size())
    user_defined = {model.piece_to_id("<tool>")}
    types = [
        2
        if model.is_unknown(i)
        else 3
        if model.is_control(i)
        else 6
        if model.is_byte(i)
        else 4
        if i in user_defined
        else 1
        for i in ids
    ]
    return {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": [model.id_to_piece(i) for i in ids],
        "ggml.scores": [float(model.get_score(i)) for i in ids],
        "ggml.token_type": types,
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.unknown_token_id": 0,
        **changes,
    }


def gguf_checkpoint(path: Path) -> Checkpoint:
    """Open a GGUF file with the reader under test's sibling package."""
    from openhearth.formats import open_checkpoint

    return open_checkpoint(path)
