"""Token ids from a tekken.json are those of `transformers`; what is no such file is refused."""

import base64
import json

import pytest
from support.corpus import corpus
from support.gguf_vocab import CONTROL, train_byte_level

from openhearth.chat import load_tokenizer
from openhearth.errors import BadFile, ModelNotFound
from openhearth.formats.records import Checkpoint

CORPUS = corpus()
PATTERN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
           r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
           r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
NUM_SPECIAL = 30
NAMED = [{"rank": rank, "token_str": token, "is_control": True}
         for rank, token in enumerate(["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[THINK]"])]


def tekken(*, version="v11", special=NAMED, num_unused=20):
    """The content of a file: single bytes by their number, then what a training merged."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    bytes_of = {text: byte for byte, text in bytes_to_unicode().items()}
    words = [bytes(bytes_of[char] for char in word) for word in train_byte_level()[0] if word not in CONTROL]
    pieces = [bytes([byte]) for byte in range(256)] + [word for word in words if len(word) > 1]
    vocabulary = [{"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
                  for rank, piece in enumerate(pieces)]
    config = {"pattern": PATTERN, "num_vocab_tokens": len(pieces), "version": version,
              "default_vocab_size": len(pieces) - num_unused + NUM_SPECIAL,
              "default_num_special_tokens": NUM_SPECIAL}
    found = {"config": config, "vocab": vocabulary}
    return found if special is None else found | {"special_tokens": special}


def load(folder, content):
    (folder / "tekken.json").write_text(json.dumps(content))
    return load_tokenizer(Checkpoint(folder, "safetensors", (), {}, {}, {}))


def test_ids_and_texts_are_those_of_transformers(tmp_path):
    from transformers.integrations.mistral.tokenizer import MistralConverter

    ours = load(tmp_path, tekken())
    theirs = MistralConverter(str(tmp_path / "tekken.json")).converted()
    assert ours.vocab_size == theirs.get_vocab_size()
    for text in [*CORPUS, "[INST] hi [/INST]</s>", "<SPECIAL_29>"]:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, parse_control=True) == ids
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids, skip_special_tokens=False)


def test_a_file_of_an_old_version_has_the_special_tokens_that_all_of_them_share(tmp_path):
    """mistral-common 1.13 (`Tekkenizer.DEPRECATED_SPECIAL_TOKENS`)."""
    ours = load(tmp_path, tekken(version="v3", special=None))
    text = "<s>[INST]</s>[TOOL_CALLS]<pad>[TOOL_CONTENT]<SPECIAL_20>"
    assert ours.encode(text, parse_control=True) == [1, 3, 2, 9, 11, 19, 20]
    assert ours.special_tokens["pad_token"] == "<pad>"


def test_bos_and_the_end_are_known_and_user_text_cannot_write_them(tmp_path):
    ours = load(tmp_path, tekken())
    assert (ours.bos_token_id, ours.eos_token_id, ours.stop_token_ids) == (1, 2, {2})
    assert ours.encode("a", add_special_tokens=True) == [1, NUM_SPECIAL + ord("a")]
    assert min(ours.encode("[INST]</s><s>")) >= NUM_SPECIAL
    assert ours.special_tokens["bos_token"] == "<s>" and "pad_token" not in ours.special_tokens


def test_a_tokenizer_json_goes_before_it(tmp_path):
    from support.tiny import build_tokenizer

    theirs = build_tokenizer(tmp_path)
    assert load(tmp_path, tekken()).encode("hello") == theirs.encode("hello", add_special_tokens=False)


@pytest.mark.parametrize(("change", "problem"), [
    (lambda all: all["config"].pop("pattern"), "no `pattern`"),
    (lambda all: all["config"].update(pattern="("), "no tekken tokenizer"),
    (lambda all: all["config"].update(default_vocab_size=1 << 19), "holds"),
    (lambda all: all["config"].update(default_num_special_tokens=-1), "-1"),
    (lambda all: all.pop("special_tokens"), "`v11` has no list"),
    (lambda all: all["special_tokens"].append({"rank": 2, "token_str": "[X]"}), "have the rank 2"),
    (lambda all: all["special_tokens"].append({"rank": 9, "token_str": "[INST]"}), "spelled the same"),
    (lambda all: all["special_tokens"].append({"rank": 30, "token_str": "[X]"}), "special token is"),
    (lambda all: all["special_tokens"].pop(1), "lack <s>"),
    (lambda all: all["special_tokens"].append({"rank": 9, "token_str": "a"}), "twice"),
    (lambda all: all["vocab"][300].update(rank=301), "entry 300"),
    (lambda all: all["vocab"][300].update(token_bytes="?"), "entry 300"),
    (lambda all: all["vocab"][300].update(token_bytes=""), "0 bytes"),
    (lambda all: all["vocab"][300].update(token_bytes=all["vocab"][301]["token_bytes"]), "twice"),
    (lambda all: all["vocab"][65].update(token_bytes=all["vocab"][301]["token_bytes"]), "single bytes"),
    (lambda all: all.update(vocab={}), "holds 0"),
])
def test_what_is_no_such_file_is_refused(change, problem, tmp_path):
    content = json.loads(json.dumps(tekken()))
    change(content)
    with pytest.raises(BadFile, match="tekken") as raised:
        load(tmp_path, content)
    assert problem in str(raised.value)


def test_without_a_tokenizer_what_is_read_is_named(tmp_path):
    with pytest.raises(ModelNotFound, match=r"tokenizer.json, tekken.json and tokenizer.model"):
        load_tokenizer(Checkpoint(tmp_path, "safetensors", (), {}, {}, {}))
