"""Rows to samples: what is trained, what is left out and why, order and packs."""

import json
import tracemalloc
from dataclasses import replace

import pytest
from support.tuning import write_jsonl

from openhearth import chat
from openhearth.errors import BadFile, ModelNotFound, Unsupported, UsageError
from openhearth.formats import open_checkpoint
from openhearth.tune.data import Order, Refusal, Renderer, Row, load_samples, read_rows
from openhearth.tune.data.records import Preference, Sample
from openhearth.tune.data.spool import Spool
from openhearth.tune.packs import pack_samples, split_batch

PLAIN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
DIALOGUE = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the fox"},
            {"role": "user", "content": "more"}, {"role": "assistant", "content": "the dog"}]


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return chat.load_tokenizer(open_checkpoint(tiny_folder))


@pytest.fixture(scope="module")
def template(tiny_folder, tokenizer):
    return chat.load_template(open_checkpoint(tiny_folder), tokenizer)


def renderer(tokenizer, template, **settings):
    return Renderer(tokenizer, template, **{"is_chat": True, "max_tokens": 64, "vocab_size": 512, **settings})


def render(tokenizer, template, fields, **settings):
    return renderer(tokenizer, template, **settings).render(Row("a.jsonl", 3, fields))


def trained_text(tokenizer, sample):
    marked = zip(sample.token_ids, sample.is_trained, strict=True)
    return tokenizer.decode([token for token, is_trained in marked if is_trained], skip_special=False)


def test_what_the_assistant_says_is_trained_with_or_without_generation_spans(tokenizer, template):
    spans = render(tokenizer, template, {"messages": DIALOGUE})
    assert trained_text(tokenizer, spans) == "the fox<|im_end|>the dog<|im_end|>"
    diff = render(tokenizer, chat.ChatTemplate(PLAIN_TEMPLATE), {"messages": DIALOGUE})
    assert spans == diff, "the difference of renderings finds the template's own spans"
    broken = render(tokenizer, chat.ChatTemplate(PLAIN_TEMPLATE.replace("end|>", "end|>\\n")),
                    {"messages": DIALOGUE})
    assert len(broken.token_ids) > len(diff.token_ids), "a line break after every turn"
    assert trained_text(tokenizer, broken) == trained_text(tokenizer, spans), "which is not trained"


def test_a_template_that_rewrites_earlier_turns_is_refused_by_name(tokenizer):
    forgetful = chat.ChatTemplate(
        "{% for m in messages %}{{ m['content'] if loop.last or m['role'] == 'user' else '-' }}<|im_end|>"
        "{% endfor %}")
    found = render(tokenizer, forgetful, {"messages": DIALOGUE})
    assert isinstance(found, Refusal) and (found.file, found.line) == ("a.jsonl", 3)
    assert "message 2 cannot be told apart" in found.reason


PAIRS = [("prompt", "completion"), ("question", "answer"), ("instruction", "output")]


@pytest.mark.parametrize("names", PAIRS)
def test_pairs_become_a_chat_or_stay_plain(tokenizer, template, names):
    fields = dict(zip(names, ("hello", "the fox"), strict=True))
    as_chat = render(tokenizer, template, fields)
    assert as_chat.token_ids == render(tokenizer, template, {"messages": DIALOGUE[:2]}).token_ids
    assert trained_text(tokenizer, as_chat) == "the fox<|im_end|>"
    plain = render(tokenizer, template, fields, is_chat=False)
    assert tokenizer.decode(plain.token_ids, skip_special=False).endswith("hellothe fox<|im_end|>")
    assert trained_text(tokenizer, plain) == "the fox<|im_end|>"


def test_of_a_prompt_of_messages_only_the_completion_is_trained(tokenizer, template):
    found = render(tokenizer, template, {"prompt": DIALOGUE[:3], "completion": DIALOGUE[3:]})
    assert trained_text(tokenizer, found) == "the dog<|im_end|>"


def test_all_of_a_text_but_its_first_token_is_trained(tokenizer, template):
    found = render(tokenizer, template, {"text": "the fox"})
    assert found.is_trained == (False, *[True] * (len(found.token_ids) - 1))
    assert found.token_ids[-1] == tokenizer.eos_token_id != found.token_ids[-2]


@pytest.mark.parametrize("fields, reason", [
    ({"text": "fox " * 90}, "too long: "), ({"answer": "x"}, "columns answer"), ({}, "columns none"),
    ({"text": 3}, "`text` is a int"), ({"messages": "x"}, "not a list"), ({"messages": []}, "not a list"),
    ({"messages": DIALOGUE[:1]}, "no token to learn"), ({"messages": [{"content": "x"}]}, "a `role`"),
    ({"prompt": "x", "completion": None}, "`completion` is a NoneType"),
])
def test_rows_that_cannot_be_trained_on_are_named_with_the_reason(tokenizer, template, fields, reason):
    found = render(tokenizer, template, fields)
    assert isinstance(found, Refusal) and reason in found.reason, found


def test_tokens_outside_of_the_vocabulary_are_refused(tokenizer, template):
    found = render(tokenizer, template, {"text": "the fox"}, vocab_size=20)
    assert isinstance(found, Refusal) and "is outside of the model's 20" in found.reason


def test_every_row_is_a_sample_or_is_named(tokenizer, template, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "the fox"}\n\nnot json\n[1]\n{"text": "\xff"}\n{"text": "the dog"}\n'
                     + b"[" * 99999 + b"\n")
    found = load_samples([path], renderer(tokenizer, template))
    assert [sample.line for sample in found.samples] == [1, 6]
    assert [refusal.line for refusal in found.refusals] == [3, 4, 5, 7]
    told = found.describe_refusals().splitlines()
    assert told[0] == "4 of 6 rows are left out" and told[1].startswith(f"{path}:3: not JSON: ")
    assert "not UTF-8" in told[3] and "an object" in told[2]


def test_samples_come_back_from_the_disk_as_they_were(tokenizer, template):
    one, two = Sample((1, 42, 511), (False, True, False), "a", 1), Sample((5, 6), (False, True), "b", 9)
    beside = replace(two, file="a", line=1)
    units = [one, two, Preference(one, beside), Preference(None, two), replace(one, file="b", line=2)]
    spool = Spool()
    for unit in units:
        spool.add(unit)
    assert list(spool) == units and spool[-1] == units[-1] and spool[1:3] == units[1:3]
    assert list(spool.lengths) == [3, 2, 3 + 1, 2, 3] and spool.num_trained == 1 + 1 + 2 + 1 + 1
    with pytest.raises(IndexError):
        spool[5]


def test_memory_does_not_grow_with_the_data(tmp_path):
    path = tmp_path / "many.jsonl"
    with open(path, "w") as file:
        for number in range(4000):
            file.write(json.dumps({"text": f"{number} " + "the fox " * 100}) + "\n")

    class Words:
        hint = ""

        def render(self, row):
            words = [1000 + hash(word) % 30000 for word in row.fields["text"].split()]
            return Sample(tuple(words), (False, *[True] * (len(words) - 1)), row.file, row.line)

    tracemalloc.start()
    found = load_samples([path], Words())
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.num_tokens == 4000 * 201 and held < 1 << 20, "as Python integers it would be 29 MB"
    assert found.samples[3999].line == 4000


def test_nothing_left_is_an_error_that_says_why(tokenizer, template, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(UsageError, match="the data is empty"):
        load_samples([empty], renderer(tokenizer, template))
    with pytest.raises(UsageError, match="columns x"):
        load_samples([write_jsonl(tmp_path / "x.jsonl", [{"x": 1}])], renderer(tokenizer, template))


def test_csv_rows_keep_the_line_they_begin_on(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\n"two\nlines",yes\nshort\nlast,no\n')
    rows = list(read_rows(path))
    assert [row.line for row in rows] == [2, 4, 5]
    assert rows[0].fields == {"prompt": "two\nlines", "completion": "yes"}
    assert "not 2 columns" in rows[1].reason


@pytest.mark.parametrize("name, content, error", [
    ("a.csv", b"\xff\xfe", BadFile), ("a.txt", b"", Unsupported), ("gone.jsonl", None, ModelNotFound)])
def test_files_that_cannot_be_read_are_refused(tmp_path, name, content, error):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error):
        list(read_rows(tmp_path / name))


def test_the_order_is_a_permutation_per_epoch_and_has_no_memory():
    order = Order(10, seed=3)
    whole = order.take(0, 30)
    assert all(sorted(whole[start:start + 10]) == list(range(10)) for start in (0, 10, 20))
    assert whole[:10] != whole[10:20] != list(range(10))
    assert [Order(10, seed=3).take(place, 1)[0] for place in range(30)] == whole
    assert Order(10, seed=4).take(0, 10) != whole[:10]


def test_packs_hold_every_sample_once_and_fit():
    samples = [Sample((7,) * size, (False,) * (size - 1) + (True,), "a", size)
               for size in (9, 3, 5, 20, 2, 7)]
    packs = split_batch(samples, 12)
    sizes = [sorted(len(sample.token_ids) for sample in pack) for pack in packs]
    assert sorted(size for pack in sizes for size in pack) == [2, 3, 5, 7, 9, 20]
    assert all(sum(size) <= 12 or size == [20] for size in sizes) and len(packs) == 4


def test_a_pack_points_from_each_trained_token_to_the_row_before_it():
    pack = pack_samples([Sample((1, 42, 2), (False, True, True), "a", 1),
                         Sample((5, 6, 7), (False, False, True), "a", 2)])
    assert pack.rows_N.tolist() == [0, 1, 4] and pack.targets_N.tolist() == [42, 2, 7]
    assert pack.positions_T.tolist() == [0, 1, 2, 0, 1, 2] and pack.attn.query_starts == (0, 3, 6)


def test_parquet_is_read_where_pyarrow_is_there_and_refused_with_a_hint_elsewhere(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        path.write_bytes(b"PAR1")
        with pytest.raises(Unsupported, match=r"openhearth\[tune\]"):
            list(read_rows(path))
    else:
        parquet.write_table(pyarrow.Table.from_pylist([{"text": "a"}, {"text": "b"}]), path)
        assert [(row.line, row.fields) for row in read_rows(path)] == [(1, {"text": "a"}), (2, {"text": "b"})]
        path.write_bytes(b"PAR1 and no more")
        with pytest.raises(BadFile):
            list(read_rows(path))


def test_rows_are_json_as_written(tmp_path):
    rows = [{"messages": DIALOGUE}, {"text": "\u00e9"}]
    assert [row.fields for row in read_rows(write_jsonl(tmp_path / "a.jsonl", rows))] == json.loads(
        json.dumps(rows))
