"""Streamed text is the decoded whole, cut at every token."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpus import corpus
from support.gguf_vocab import byte_level_keys, gguf_checkpoint, sentencepiece_keys, write_gguf
from support.tiny import build_tokenizer

from openhearth.chat import Marks, TextStream, Tokenizer, load_tokenizer
from openhearth.errors import UsageError
from openhearth.formats.records import Checkpoint


@pytest.fixture(scope="module", params=["json", "byte-level", "sentencepiece"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    if request.param == "json":
        build_tokenizer(folder)
        return load_tokenizer(Checkpoint(folder, "safetensors", (), {}, {}, {}))
    keys = byte_level_keys("llama-bpe") if request.param == "byte-level" else sentencepiece_keys()
    return load_tokenizer(gguf_checkpoint(write_gguf(folder / "m.gguf", keys)))


def streamed(tokenizer, ids, **options):
    stream = TextStream(tokenizer, **options)
    return [*(stream.push(token_id) for token_id in ids), stream.finish()]


def test_pieces_join_to_the_decoded_text_and_hold_whole_characters(tokenizer):
    for text in corpus(500, seed=5):
        ids = tokenizer.encode(text)
        pieces = streamed(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids) == tokenizer.decode_whole(ids, skip_special=True)
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_out_with_the_token_that_completes_it(tokenizer):
    ids = tokenizer.encode("a\U00012345b")
    pieces = streamed(tokenizer, ids)
    assert len(ids) >= 5
    assert [piece for piece in pieces if piece] in (["a", "\U00012345", "b"], [" a", "\U00012345", "b"])
    assert pieces[-2:] == ["b", ""]


def test_any_token_ids_stream_as_they_decode(tokenizer):
    draw = random.Random(1)
    for _ in range(300):
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randint(0, 30))]
        for skip in (True, False):
            assert "".join(streamed(tokenizer, ids, skip_special=skip)) == tokenizer.decode(
                ids, skip_special=skip
            )


def test_random_byte_level_ids_decode_as_the_tokenizers_library_decodes(tmp_path):
    ours = load_tokenizer(gguf_checkpoint(write_gguf(tmp_path / "m.gguf", byte_level_keys("gpt-2"))))
    draw = random.Random(2)
    for _ in range(500):
        ids = [draw.randrange(ours.vocab_size) for _ in range(draw.randint(0, 30))]
        assert ours.decode(ids) == ours.decode_whole(ids, skip_special=True)


def test_unfinished_character_becomes_a_replacement_at_the_end(tokenizer):
    ids = tokenizer.encode("x\U00012345")[:-1]
    assert "".join(streamed(tokenizer, ids)).endswith("x\ufffd")


def test_special_tokens_give_no_text_unless_asked(tokenizer):
    name, token_id = next(iter(tokenizer.control_tokens.items()))
    assert tokenizer.decode([token_id]) == ""
    assert tokenizer.decode([token_id], skip_special=False) == name


def test_ids_outside_the_vocabulary_give_no_text(tokenizer):
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == ""
    with pytest.raises(UsageError):
        tokenizer.decode([-1])


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40), data=st.data())
def test_other_decoders_stream_as_they_decode(text, data):
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    words = ["[UNK]", "hel", "##lo", "##\ufffd", "wor", "##ld", "caf\u00e9", "!"]
    backend = Backend(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(cleanup=False)
    ours = Tokenizer(backend, Marks())
    ids = data.draw(st.lists(st.integers(0, len(words) - 1), max_size=12))
    assert not ours.has_token_bytes
    assert "".join(streamed(ours, ids)) == ours.decode(ids) == backend.decode(ids)
