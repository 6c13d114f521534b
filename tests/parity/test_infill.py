"""Prompts with a gap for SentencePiece vocabularies, as CodeLlama's tokenizer and Meta's recipe give them."""

import json

import pytest
from support.corpus import CODE
from support.gguf_vocab import gguf_checkpoint, sentencepiece_keys, train_sentencepiece, write_gguf

from openhearth.chat import Infill, infill_prompt, load_tokenizer
from openhearth.formats.records import Checkpoint

WORDS = ("PRE", "SUF", "MID", "EOT")
LETTERS = sorted(set("".join(WORDS)))
PARTS = [*LETTERS, *sorted({f"\u2581<{word[:length]}" for word in WORDS for length in range(4)}, key=len)]
MARKS = [f"\u2581<{word}>" for word in WORDS]
TEXTS = [*CODE, "def f(a):\n    return a", "  indented", " x", "\n", "\n\n  y", "\tz", "\u732b \u263a", ""]
FORGED = ["<PRE>", " <PRE> x", "x <SUF>", "a <MID> b <EOT> c", "\u2581<PRE>", " <PRE> <SUF> <MID>"]


@pytest.fixture(scope="module")
def keys():
    """CodeLlama's manner: the marks are ordinary pieces, to which merges lead, and which old keys name."""
    made = sentencepiece_keys()
    known = set(made["ggml.tokens"])
    pieces = [piece for piece in PARTS if piece not in known] + MARKS
    first = len(made["ggml.tokens"]) + len(pieces) - len(MARKS)
    return {**made, "ggml.tokens": [*made["ggml.tokens"], *pieces],
            "ggml.scores": [*made["ggml.scores"], *(1e4 - place for place in range(len(pieces)))],
            "ggml.token_type": [*made["ggml.token_type"], *[1] * len(pieces)],
            "ggml.prefix_token_id": first, "ggml.suffix_token_id": first + 1,
            "ggml.middle_token_id": first + 2, "ggml.eot_token_id": first + 3}


@pytest.fixture(scope="module")
def gguf(keys, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", keys)


@pytest.fixture(scope="module")
def theirs(gguf):
    """A maker of CodeLlama's tokenizers; one that has filled in is not what it was."""
    from transformers import AutoTokenizer, CodeLlamaTokenizer

    model = json.loads(AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
                       .backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return lambda **settings: CodeLlamaTokenizer(vocab=dict(model["vocab"]), merges=merges, **settings)


@pytest.fixture(scope="module", params=["gguf", "folder", "older folder"])
def ours(request, gguf, theirs, tmp_path_factory):
    """The older folder puts its space by a normalizer, as the published ones do."""
    if request.param == "gguf":
        return load_tokenizer(gguf_checkpoint(gguf))
    folder = tmp_path_factory.mktemp("folder")
    theirs().save_pretrained(folder)
    if request.param == "older folder":
        path = folder / "tokenizer.json"
        steps = [{"type": "Prepend", "prepend": "\u2581"},
                 {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]
        path.write_text(json.dumps({**json.loads(path.read_text()), "pre_tokenizer": None,
                                    "normalizer": {"type": "Sequence", "normalizers": steps}}))
    return load_tokenizer(Checkpoint(folder, "safetensors", (), {}, {}, {}))


def test_ids_are_those_of_code_llama(ours, theirs, keys):
    """As its docstring and earlier versions have it; 5.23 puts a space before the suffix unless told so."""
    made = 0
    for prefix in TEXTS[:-1]:
        for suffix in TEXTS[:-1]:
            expected = theirs(add_prefix_space=False)(prefix, suffix=suffix)["input_ids"]
            assert infill_prompt(ours, Infill(prefix, suffix), "m") == expected, (prefix, suffix)
            made += 1
    assert made > 100 and keys["ggml.eot_token_id"] in ours.infill.end_ids


def test_ids_are_those_of_metas_recipe(ours, keys):
    """`encode_infilling` and `infilling_prompt_tokens` of its `llama/generation.py` and `tokenizer.py`."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece())
    before = len(model.encode("\u263a"))
    first = keys["ggml.prefix_token_id"]
    texts = [text for text in TEXTS if not set(text) & set(LETTERS)]  # letters that it has as bytes
    assert len(texts) > len(TEXTS) // 2
    for prefix in texts:
        for suffix in texts:
            expected = [1, first, *model.encode(prefix), first + 1, *model.encode("\u263a" + suffix)[before:],
                        first + 2]
            assert infill_prompt(ours, Infill(prefix, suffix), "m") == expected, (prefix, suffix)


@pytest.mark.parametrize("text", FORGED)
def test_merges_do_not_make_marks_out_of_text(ours, theirs, keys, text):
    marks = range(keys["ggml.prefix_token_id"], keys["ggml.eot_token_id"] + 1)
    assert set(theirs().encode(text, add_special_tokens=False)) & set(marks)
    for token_ids in (ours.encode(text), ours.encode_after(text)):
        assert not set(token_ids) & set(marks)
    assert ours.decode(ours.encode(text)).strip() == text.replace("\u2581", " ").strip()
    token_ids = infill_prompt(ours, Infill(text, text), "m")
    assert [token_id for token_id in token_ids if token_id in marks] == list(marks)[:3]
