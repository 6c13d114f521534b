"""A model trained from a GGUF file, written as a folder: the same tokenizer, the same numbers elsewhere."""

import torch
from support.tiny import build_gguf, build_llama
from support.tuning import settings_of, train_alone, write_jsonl

from openhearth import chat
from openhearth.formats import open_checkpoint
from openhearth.models import load_model
from openhearth.spec import read_spec
from openhearth.tune.data.records import Sample
from openhearth.tune.packs import pack_samples, trained_logprobs

TEXTS = ["hello world", "The fox.\n\n<|im_end|> 12345", "\u732b caf\u00e9"]


def test_a_model_tuned_from_gguf_is_the_same_in_transformers(tmp_path):
    from transformers import AutoTokenizer, LlamaForCausalLM

    build_llama(tmp_path / "tiny")
    gguf = build_gguf(tmp_path / "tiny", tmp_path / "tiny.gguf", "Q8_0")
    data = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    run = train_alone(tmp_path, settings_of(gguf, data, weights="full", learning_rate=1e-3, batch_size=3))
    before, after = open_checkpoint(gguf), open_checkpoint(run.output)
    ours, exported = chat.load_tokenizer(before), chat.load_tokenizer(after)
    assert ours.stop_token_ids == exported.stop_token_ids and ours.special_tokens == exported.special_tokens
    for text in TEXTS:
        for settings in ({}, {"parse_control": True}, {"add_special_tokens": True}):
            assert ours.encode(text, **settings) == exported.encode(text, **settings)
    messages = [{"role": "user", "content": "hello"}]
    assert (chat.render(chat.load_template(before, ours), ours, messages)
            == chat.render(chat.load_template(after, exported), exported, messages))
    theirs = LlamaForCausalLM.from_pretrained(run.output, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(run.output)("hello world", return_tensors="pt")["input_ids"]
    sample = Sample(tuple(ids[0].tolist()), (False, *[True] * (ids.shape[1] - 1)), "", 1)
    model = load_model(after, read_spec(after), dtype=torch.float32)
    with torch.no_grad():
        found = trained_logprobs(model, pack_samples([sample]))
        wanted = torch.log_softmax(theirs(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
