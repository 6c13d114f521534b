"""Tokenizers from folders: special tokens, stop ids, BOS, and files that are broken."""

import json
import threading

import pytest
from support.corpus import corpus
from support.tiny import build_tokenizer

from openhearth.chat import load_template, load_tokenizer
from openhearth.errors import BadFile, ModelNotFound
from openhearth.formats.records import Checkpoint


@pytest.fixture
def folder(tmp_path):
    build_tokenizer(tmp_path)
    return tmp_path


def load(folder, config=None):
    return load_tokenizer(Checkpoint(folder, "safetensors", (), {}, config or {}, {}))


def edit(path, **changes):
    values = json.loads(path.read_text()) if path.exists() else {}
    values.update(changes)
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_stop_ids_come_from_every_place_that_names_them(folder):
    assert load(folder).stop_token_ids == {2}
    edit(folder / "generation_config.json", eos_token_id=[2, 0])
    assert load(folder).stop_token_ids == {0, 2}
    edit(folder / "generation_config.json", eos_token_id=[99999, "x", True, -1])
    assert load(folder, {"eos_token_id": 1}).stop_token_ids == {1, 2}


def test_bos_flag_of_the_config_is_honoured(folder):
    bare = load(folder).encode("hi")
    assert load(folder).encode("hi", add_special_tokens=True) == bare
    edit(folder / "tokenizer_config.json", add_bos_token=True)
    assert load(folder).encode("hi", add_special_tokens=True) == [1, *bare]
    edit(folder / "tokenizer_config.json", add_eos_token=True)
    assert load(folder).encode("hi", add_special_tokens=True) == [1, *bare, 2]


def test_post_processor_of_tokenizer_json_is_honoured(folder):
    from tokenizers import Tokenizer, processors

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = load(folder)
    assert tokenizer.encode("a b", add_special_tokens=True) == [1, *tokenizer.encode("a b"), 2]


def test_special_tokens_map_is_read_when_the_config_names_none(folder):
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    assert load(folder).special_tokens == {"eos_token": "<|endoftext|>"}
    assert load(folder).eos_token_id == 0


def test_tokens_that_only_the_config_names_are_added(folder):
    from transformers import AutoTokenizer

    edit(folder / "tokenizer_config.json", eos_token="<|new|>")
    ours, theirs = load(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.encode("a<|new|>b", parse_control=True) == theirs.encode("a<|new|>b")
    assert ours.eos_token_id == theirs.eos_token_id


def test_template_of_the_config_is_used_when_there_is_no_file(folder):
    checkpoint = Checkpoint(folder, "safetensors", (), {}, {}, {})
    (folder / "chat_template.jinja").unlink()
    edit(
        folder / "tokenizer_config.json",
        chat_template=[{"name": "default", "template": "A"}, {"name": "rag", "template": "R"}],
    )
    assert load_template(checkpoint, load(folder)).sources == {"default": "A", "rag": "R"}
    edit(folder / "tokenizer_config.json", chat_template="B")
    assert load_template(checkpoint, load(folder)).sources == {"default": "B"}
    edit(folder / "tokenizer_config.json", chat_template=7)
    with pytest.raises(BadFile, match="neither text nor a list"):
        load_template(checkpoint, load(folder))


def test_folder_without_tokenizer_json_says_so(tmp_path):
    with pytest.raises(ModelNotFound, match=r"has no tokenizer\.json"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff\xfe", b"null", b'{"version": "1.0"}'])
def test_broken_tokenizer_json_is_refused(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(BadFile):
        load(folder)


def test_truncated_and_mutated_tokenizer_json_never_crash(folder):
    import random

    path = folder / "tokenizer.json"
    raw, draw, num_refused = path.read_bytes(), random.Random(4), 0
    for i in range(120):
        damaged = bytearray(raw[: draw.randrange(len(raw))] if i % 2 else raw)
        for _ in range(3):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            load(folder).encode("hello <|im_end|>")
        except BadFile:
            num_refused += 1
    assert num_refused > 60


def test_many_threads_get_the_ids_of_one(folder):
    tokenizer, texts = load(folder), corpus(200, seed=8)
    expected = [(tokenizer.encode(text), tokenizer.encode(text, parse_control=True)) for text in texts]
    wrong = []

    def work():
        got = [(tokenizer.encode(text), tokenizer.encode(text, parse_control=True)) for text in texts]
        if got != expected:
            wrong.append(got)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_lone_surrogates_count_as_replacement_characters(folder):
    tokenizer = load(folder)
    assert tokenizer.encode("a\ud83db") == tokenizer.encode("a\ufffdb")
