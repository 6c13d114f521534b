"""Token ids from tokenizer.json and GGUF metadata are those of `transformers` and `sentencepiece`."""

import pytest
from support.corpus import corpus
from support.gguf_vocab import (
    CONTROL,
    byte_level_keys,
    gguf_checkpoint,
    sentencepiece_keys,
    train_byte_level,
    train_sentencepiece,
    write_gguf,
)
from support.tiny import build_tokenizer

from openhearth.chat import load_tokenizer
from openhearth.formats.records import Checkpoint

CORPUS = corpus()


def differing(ours, theirs, texts=CORPUS):
    """Texts whose ids differ; `ours` reads control tokens in text as `transformers` does."""
    return [
        text
        for text in texts
        if ours.encode(text, parse_control=True) != theirs.encode(text, add_special_tokens=False)
    ]


def transformers_gguf(path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def test_corpus_is_large_and_covers_what_matters():
    assert len(set(CORPUS)) >= 2000
    joined = "".join(CORPUS)
    for needed in ("\x00", "\r\n", "\u200d", "\u0301", "\ue000", "<|im_start|>", "\t\t", "\U0001f600"):
        assert needed in joined


def test_tokenizer_json_gives_the_ids_and_texts_of_transformers(tmp_path):
    theirs = build_tokenizer(tmp_path)
    ours = load_tokenizer(Checkpoint(tmp_path, "safetensors", (), {}, {}, {}))
    assert differing(ours, theirs) == []
    for text in CORPUS:
        ids = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=True, parse_control=True) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids)


@pytest.mark.parametrize(
    "pre",
    [
        "gpt-2",
        "default",
        "phi-2",
        "llama-bpe",
        "llama3",
        "falcon3",
        "dbrx",
        "smaug-bpe",
        "tekken",
        "gpt-4o",
        "llama4",
    ],
)
def test_byte_level_gguf_gives_the_ids_of_transformers(tmp_path, pre):
    path = write_gguf(tmp_path / "m.gguf", byte_level_keys(pre))
    ours = load_tokenizer(gguf_checkpoint(path))
    assert differing(ours, transformers_gguf(path)) == []


@pytest.mark.parametrize("pre", ["chatglm-bpe", "glm4"])
def test_glm_is_cut_as_dbrx(tmp_path, pre):
    """As llama.cpp groups them (`LLAMA_VOCAB_PRE_TYPE_CHATGLM4`); transformers has no class for its files."""
    paths = [write_gguf(tmp_path / f"{name}.gguf", byte_level_keys(name)) for name in (pre, "dbrx")]
    ours, theirs = (load_tokenizer(gguf_checkpoint(path)) for path in paths)
    for text in CORPUS:
        assert ours.encode(text, add_special_tokens=True) == theirs.encode(text, add_special_tokens=True)


def family_tokenizer(pre):
    """The tokenizer class that `transformers` has for a family, on the test vocabulary."""
    from tokenizers import pre_tokenizers
    from transformers import CohereTokenizer, GPT2Tokenizer, GPTNeoXTokenizer, Qwen2Tokenizer
    from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

    vocab, merges = train_byte_level()
    names = dict(
        unk_token="<|endoftext|>", bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    if pre in ("smollm", "starcoder", "refact", "codeshell"):
        # StarCoder's and SmolLM's tokenizer.json: single digits, then GPT-2's pattern.
        theirs = GPT2Tokenizer(vocab=vocab, merges=merges, **names)
        theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        return theirs
    kind = {
        "command-r": CohereTokenizer,
        "olmo": GPTNeoXTokenizer,
        "mpt": GPTNeoXTokenizer,
        "qwen35": Qwen3_5Tokenizer,
    }.get(pre, Qwen2Tokenizer)
    if kind is CohereTokenizer:
        names |= dict(cls_token="<|im_end|>", sep_token="<|im_end|>", mask_token="<|im_end|>")
    return kind(vocab=vocab, merges=merges, **names)


@pytest.mark.parametrize(
    "pre",
    [
        "qwen2",
        "deepseek-r1-qwen",
        "qwen35",
        "command-r",
        "olmo",
        "mpt",
        "smollm",
        "starcoder",
        "refact",
        "codeshell",
    ],
)
def test_byte_level_gguf_gives_the_ids_of_the_family_it_names(tmp_path, pre):
    path = write_gguf(tmp_path / "m.gguf", byte_level_keys(pre))
    assert differing(load_tokenizer(gguf_checkpoint(path)), family_tokenizer(pre)) == []


DEEPSEEK_V3 = (
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = (rf"(?:(?!\p{{Han}})[{first}\p{{Lm}}\p{{Lo}}\p{{M}}])"
                for first in (r"\p{Lu}\p{Lt}", r"\p{Ll}"))
CONTRACTION = "(?i:'(?:s|t|re|ve|m|ll|d))?"
KIMI_K2 = (
    rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}]?(?:{UPPER}*{LOWER}+{CONTRACTION}|{UPPER}+{LOWER}*{CONTRACTION})"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SECOND = {
    "deepseek-v3": [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u30ff]+", DEEPSEEK_V3],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u0800-\u9fa5\uac00-\ud7ff]+", r"\p{N}"],
    "kimi-k2": [KIMI_K2],
}


@pytest.mark.parametrize("pre", sorted(SECOND))
def test_cuts_are_those_of_a_second_regex_engine(pre):
    import regex

    from openhearth.chat.pre_tokenizers import find_pre_tokenizer

    def pieces(text):
        parts = [text]
        for pattern in SECOND[pre]:
            parts = [piece for part in parts for piece in regex.split(f"({pattern})", part) if piece]
        return parts

    cut = find_pre_tokenizer(pre).pre_tokenizer()
    for text in (t for t in CORPUS if t):
        # Characters that Unicode added lately are letters for one engine only.
        if regex.search(r"\p{Cn}|[\U0001e000-\U0001ffff\U00010500-\U00013fff]", text) is None:
            assert [text[a:b] for _, (a, b) in cut.pre_tokenize_str(text)] == pieces(text), repr(text)


def test_kimi_cuts_han_from_other_letters():
    from openhearth.chat.pre_tokenizers import find_pre_tokenizer

    cut = find_pre_tokenizer("kimi-k2").pre_tokenizer()
    texts = (("\u4e2d\u6587English\u6df7\u5408", [(0, 2), (2, 9), (9, 11)]),
             ("\u5317\u4eac\u5e02 Pascal's 12345", [(0, 3), (3, 12), (12, 13), (13, 16), (16, 18)]))
    for text, pieces in texts:
        assert [place for _, place in cut.pre_tokenize_str(text)] == pieces


def test_deepseek_llm_cuts_words_punctuation_han_and_digits():
    from openhearth.chat.pre_tokenizers import find_pre_tokenizer

    cut = find_pre_tokenizer("deepseek-llm").pre_tokenizer()
    text = "Hello world, \u03ce\u03bd \u4f60\u597d\u3002 2024\n x  "
    assert [text[a:b] for _, (a, b) in cut.pre_tokenize_str(text)] == [
        "Hello",
        " world",
        ",",
        " \u03ce\u03bd",
        " ",
        "\u4f60\u597d",
        "\u3002",
        " ",
        "2",
        "0",
        "2",
        "4",
        "\n",
        " x",
        "  ",
    ]
    # Its punctuation class runs from `:` to `~` and so cuts words at letters outside ASCII.
    assert [text for text, _ in cut.pre_tokenize_str("W\u00f6rld")] == ["W", "\u00c3\u00b6", "rld"]


def test_transformers_reads_smollm_gguf_with_another_cut_at_digits(tmp_path):
    """Why `smollm` is compared with the family above: transformers 5.23 has no row for its name."""
    path = write_gguf(tmp_path / "m.gguf", byte_level_keys("smollm"))
    ours, theirs = load_tokenizer(gguf_checkpoint(path)), transformers_gguf(path)
    wrong = differing(ours, theirs)
    assert wrong and all(any(c.isnumeric() for c in text) for text in wrong)


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_sentencepiece_gguf_gives_the_ids_and_texts_of_transformers(tmp_path, architecture):
    path = write_gguf(tmp_path / "m.gguf", sentencepiece_keys(), architecture)
    ours, theirs = load_tokenizer(gguf_checkpoint(path)), transformers_gguf(path)
    assert differing(ours, theirs) == []
    for text in CORPUS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.encode(text, add_special_tokens=True, parse_control=True) == theirs.encode(text)


def test_sentencepiece_gguf_gives_the_ids_of_sentencepiece(tmp_path):
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece())
    ours = load_tokenizer(gguf_checkpoint(write_gguf(tmp_path / "m.gguf", sentencepiece_keys())))
    # Text that begins with a space gets a second one from sentencepiece and none from transformers;
    # sentencepiece does not take NUL, nor U+2581 as a character of text.
    texts = [text for text in CORPUS if text and text[0] not in " \u2581" and "\x00" not in text]
    assert len(texts) > 2000
    wrong = [text for text in texts if ours.encode(text) != model.encode(text)]
    assert wrong == []
    assert [text for text in texts if "\u2581" not in text and ours.decode(ours.encode(text)) != text] == []


def test_phi3_gguf_gives_the_ids_of_sentencepiece_for_leading_spaces_too(tmp_path):
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece())
    ours = load_tokenizer(gguf_checkpoint(write_gguf(tmp_path / "m.gguf", sentencepiece_keys(), "phi3")))
    texts = [text for text in CORPUS if text.startswith(" ") and "\x00" not in text and "<tool>" not in text]
    assert len(texts) > 100
    assert [text for text in texts if ours.encode(text) != model.encode(text)] == []


def test_no_space_prefix_is_honoured(tmp_path):
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    keys = sentencepiece_keys(**{"ggml.add_space_prefix": False})
    ours = load_tokenizer(gguf_checkpoint(write_gguf(tmp_path / "m.gguf", keys)))
    proto = sentencepiece_model_pb2.ModelProto.FromString(train_sentencepiece())
    proto.normalizer_spec.add_dummy_prefix = False
    model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    texts = [text for text in CORPUS if "\x00" not in text]
    assert [text for text in texts if ours.encode(text) != model.encode(text)] == []
    assert [text for text in texts if "\u2581" not in text and ours.decode(ours.encode(text)) != text] == []


def test_control_tokens_of_the_vocabulary_are_all_known(tmp_path):
    ours = load_tokenizer(gguf_checkpoint(write_gguf(tmp_path / "m.gguf", byte_level_keys("llama-bpe"))))
    assert ours.control_tokens == {token: i for i, token in enumerate(CONTROL)}
    for text in CORPUS:
        assert not set(ours.encode(text)) & {0, 1, 2}
