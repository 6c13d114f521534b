"""Broken and unknown GGUF tokenizers are refused; flags and ids are honoured."""

import pytest
from support.gguf_vocab import byte_level_keys, sentencepiece_keys

from openhearth.chat import load_template, load_tokenizer
from openhearth.errors import BadFile, Unsupported
from openhearth.formats.records import Checkpoint


def checkpoint(keys, tmp_path):
    return Checkpoint(tmp_path / "m.gguf", "gguf", (), {f"tokenizer.{k}": v for k, v in keys.items()}, {}, {})


@pytest.mark.parametrize(
    "change,message",
    [
        ({"ggml.tokens": None}, "`tokenizer.ggml.tokens` is missing"),
        ({"ggml.tokens": "abc"}, "is not of type list"),
        ({"ggml.tokens": []}, "is not an array of str"),
        ({"ggml.tokens": ["a", 1]}, "is not an array of str"),
        ({"ggml.tokens": ["a", "b", "a"], "ggml.token_type": [1, 1, 1]}, "token `a` is there twice"),
        ({"ggml.token_type": [1, 2]}, "2 token types for"),
        ({"ggml.token_type": [99] * 900}, "token type 99 is not known"),
        ({"ggml.merges": None}, "`tokenizer.ggml.merges` is missing"),
        ({"ggml.merges": ["ab"]}, "merge `ab` is not a pair"),
        ({"ggml.merges": ["zzzz yyyy"]}, "the merges do not fit the vocabulary"),
        ({"ggml.model": None}, "`tokenizer.ggml.model` is missing"),
        ({"ggml.bos_token_id": "1"}, "is not of type int"),
        ({"ggml.add_bos_token": 1}, "is not of type bool"),
    ],
)
def test_broken_byte_level_metadata_is_refused(tmp_path, change, message):
    keys = {key: value for key, value in byte_level_keys("llama-bpe", **change).items() if value is not None}
    with pytest.raises(BadFile, match=message):
        load_tokenizer(checkpoint(keys, tmp_path))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"ggml.scores": None}, "`tokenizer.ggml.scores` is missing"),
        ({"ggml.scores": [0.5]}, "1 scores for"),
    ],
)
def test_broken_sentencepiece_metadata_is_refused(tmp_path, change, message):
    keys = {key: value for key, value in sentencepiece_keys(**change).items() if value is not None}
    with pytest.raises(BadFile, match=message):
        load_tokenizer(checkpoint(keys, tmp_path))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"ggml.pre": "quantum-bpe"}, "pre-tokenizer `quantum-bpe` is not supported"),
        ({"ggml.model": "bert"}, "tokenizer kind `bert` is not supported"),
        ({"ggml.model": "t5"}, "tokenizer kind `t5` is not supported"),
    ],
)
def test_unknown_kinds_are_refused_by_name(tmp_path, change, message):
    with pytest.raises(Unsupported, match=message):
        load_tokenizer(checkpoint(byte_level_keys("gpt-2", **change), tmp_path))


def test_bos_and_eos_are_added_only_when_asked_and_flagged(tmp_path):
    for bos, eos in ((True, False), (False, True), (True, True), (False, False)):
        keys = byte_level_keys("gpt-2", **{"ggml.add_bos_token": bos, "ggml.add_eos_token": eos})
        tokenizer = load_tokenizer(checkpoint(keys, tmp_path))
        bare = tokenizer.encode("hello")
        assert tokenizer.encode("hello", add_special_tokens=True) == [1] * bos + bare + [2] * eos


@pytest.mark.parametrize(
    "pre,adds", [("llama-bpe", True), ("tekken", True), ("qwen2", False), ("gpt-2", False)]
)
def test_files_without_the_flag_follow_their_family(tmp_path, pre, adds):
    keys = byte_level_keys(pre)
    del keys["ggml.add_bos_token"]
    assert (load_tokenizer(checkpoint(keys, tmp_path)).encode("a", add_special_tokens=True)[0] == 1) is adds


def test_user_defined_tokens_are_matched_in_all_text_and_control_tokens_are_not(tmp_path):
    keys = byte_level_keys("qwen2")
    tokens = [*keys["ggml.tokens"], "<think>", "\u00e9\u00e8 x"]
    keys |= {"ggml.tokens": tokens, "ggml.token_type": [*keys["ggml.token_type"], 4, 4]}
    tokenizer = load_tokenizer(checkpoint(keys, tmp_path))
    think = len(tokens) - 2
    assert think in tokenizer.encode("a<think>b") and think + 1 in tokenizer.encode("a\u00e9\u00e8 xb")
    assert tokenizer.encode("<|im_end|>", parse_control=True) == [2]
    assert 2 not in tokenizer.encode("<|im_end|>")
    assert (
        tokenizer.decode(tokenizer.encode("a<think>b\u00e9\u00e8 x<|im_end|>"))
        == "a<think>b\u00e9\u00e8 x<|im_end|>"
    )


def test_control_tokens_outside_the_byte_alphabet_stay_whole(tmp_path):
    keys = byte_level_keys("deepseek-v3")
    token = "<\uff5cend\u2581of\u2581sentence\uff5c>"
    keys |= {"ggml.tokens": [*keys["ggml.tokens"], token], "ggml.token_type": [*keys["ggml.token_type"], 3]}
    tokenizer = load_tokenizer(checkpoint(keys, tmp_path))
    assert tokenizer.encode(f"a{token}", parse_control=True)[-1] == len(keys["ggml.tokens"]) - 1
    assert tokenizer.decode(tokenizer.encode(token)) == token


def test_stop_ids_come_from_eos_eot_eom_and_the_template(tmp_path):
    keys = byte_level_keys("llama-bpe")
    tokens = [*keys["ggml.tokens"], "<|eot_id|>", "<|eom_id|>", "<|end|>"]
    keys |= {
        "ggml.tokens": tokens,
        "ggml.token_type": [*keys["ggml.token_type"], 3, 3, 1],
        "ggml.eos_token_id": 0,
    }
    first = len(tokens) - 3
    assert load_tokenizer(checkpoint(keys, tmp_path)).stop_token_ids == {0}
    assert load_tokenizer(
        checkpoint({**keys, "ggml.eot_token_id": first, "ggml.eom_token_id": first + 1}, tmp_path)
    ).stop_token_ids == {0, first, first + 1}
    keys["chat_template"] = "{{ '<|im_end|>' }}{{ '<|eot_id|>' }}"
    tokenizer = load_tokenizer(checkpoint(keys, tmp_path))
    assert tokenizer.stop_token_ids == {0, 2, first}


def test_named_templates_are_read_from_the_metadata(tmp_path):
    keys = byte_level_keys("gpt-2", chat_template="D", **{"chat_template.tool_use": "T"})
    tokenizer = load_tokenizer(checkpoint(keys, tmp_path))
    assert load_template(checkpoint(keys, tmp_path), tokenizer).sources == {"default": "D", "tool_use": "T"}
    with pytest.raises(BadFile, match="is not text"):
        load_template(checkpoint({**keys, "chat_template": 3}, tmp_path), tokenizer)


def test_special_tokens_are_named_for_templates(tmp_path):
    tokenizer = load_tokenizer(checkpoint(byte_level_keys("gpt-2"), tmp_path))
    assert tokenizer.special_tokens == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
