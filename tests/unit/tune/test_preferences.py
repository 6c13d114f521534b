"""Preference losses by hand, in float64 and by TRL's formulas; pairs, references, resumed runs."""

import json
import math

import pytest
import torch
from support.tuning import config_of, write_jsonl
from torch.nn import functional

from openhearth import chat
from openhearth.errors import Diverged
from openhearth.formats import open_checkpoint
from openhearth.models import load_model
from openhearth.runs import RunFolder, hash_files
from openhearth.spec import read_spec
from openhearth.tune import DpoSettings, prepare, references, run_job
from openhearth.tune.data import Preference, PreferenceRenderer, Refusal, Renderer, Row
from openhearth.tune.data.preferences import mismatched, partners
from openhearth.tune.data.records import Sample
from openhearth.tune.loops.preference import PREFERENCE_LOSSES, _pack
from openhearth.tune.losses.preferred import Answers, PreferenceInput
from openhearth.tune.packs import pack_samples, trained_logprobs

LOSSES = tuple(PREFERENCE_LOSSES)
BETA = 0.25


def answers(policy, reference=(0.0,), lengths=(3.0,)):
    return Answers(*(torch.tensor(values, dtype=torch.float64) for values in (policy, reference, lengths)))


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


# Three tokens chosen with probabilities 1/2, 1/4, 1/4 (1/32 together), three rejected with 1/8 each (1/512);
# before tuning 1/64 and 1/64. All logarithms are whole numbers of ln 2.
HALF = math.log(2)
CHOSEN, REJECTED = answers([-5 * HALF], [-6 * HALF]), answers([-9 * HALF], [-6 * HALF])
BY_HAND = {
    "dpo": -math.log(sigmoid(BETA * (1 + 3) * HALF)),
    "ipo": ((1 + 3) / 3 * HALF - 1 / (2 * BETA)) ** 2,
    "kto": (1 - sigmoid(BETA * (1 * HALF - 0.5)) + 1 - sigmoid(BETA * (0.5 + 3 * HALF))) / 2,
    "orpo": 5 / 3 * HALF - BETA * math.log(sigmoid(
        math.log(2 ** (-5 / 3) / (1 - 2 ** (-5 / 3))) - math.log(2 ** -3 / (1 - 2 ** -3)))),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_three_tokens_a_side_is_that_computed_by_hand(name):
    found = PREFERENCE_LOSSES[name].loss(PreferenceInput(CHOSEN, REJECTED, BETA, divergence=0.5))
    assert found.terms_U.mean().item() == pytest.approx(BY_HAND[name], rel=1e-12)
    assert found.is_right_U.all()
    turned = PREFERENCE_LOSSES[name].loss(PreferenceInput(REJECTED, CHOSEN, BETA, divergence=0.5))
    assert turned.terms_U.mean() > found.terms_U.mean() and not turned.is_right_U.all()


def draw(count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected, chosen_reference, rejected_reference = (
        -torch.rand(count, generator=generator, dtype=torch.float64) * 20 - 1 for _ in range(4))
    lengths = torch.randint(1, 9, (2, count), generator=generator).double()
    return chosen, rejected, chosen_reference, rejected_reference, *lengths


def trl_formula(name, chosen, rejected, chosen_reference, rejected_reference, chosen_lengths,
                rejected_lengths, divergence):
    """As TRL 0.23 has them: `DPOTrainer.dpo_loss`, `KTOTrainer.kto_loss`, `ORPOTrainer.odds_ratio_loss`."""
    if name == "orpo":
        chosen, rejected = chosen / chosen_lengths, rejected / rejected_lengths
        log_odds = (chosen - rejected) - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
        return (-chosen).mean() - (BETA * functional.logsigmoid(log_odds)).mean()
    if name == "ipo":
        chosen, chosen_reference = chosen / chosen_lengths, chosen_reference / chosen_lengths
        rejected, rejected_reference = rejected / rejected_lengths, rejected_reference / rejected_lengths
    logits = (chosen - rejected) - (chosen_reference - rejected_reference)
    if name == "kto":
        return torch.cat([1 - torch.sigmoid(BETA * ((chosen - chosen_reference) - divergence)),
                          1 - torch.sigmoid(BETA * (divergence - (rejected - rejected_reference)))]).mean()
    return ((logits - 1 / (2 * BETA)) ** 2 if name == "ipo" else -functional.logsigmoid(BETA * logits)).mean()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_are_those_of_trl(name):
    values = [value.requires_grad_(place < 2) for place, value in enumerate(draw())]
    chosen, rejected = Answers(values[0], values[2], values[4]), Answers(values[1], values[3], values[5])
    ours = PREFERENCE_LOSSES[name].loss(PreferenceInput(chosen, rejected, BETA, 0.7)).terms_U.mean()
    found = torch.autograd.grad(ours, values[:2])
    wanted = trl_formula(name, *values, 0.7)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=0)
    for one, other in zip(found, torch.autograd.grad(wanted, values[:2]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_losses_are_those_of_finite_differences(name):
    chosen, rejected, *rest = draw(seed=1)

    def loss(chosen, rejected):
        return PREFERENCE_LOSSES[name].loss(PreferenceInput(
            Answers(chosen, rest[0], rest[2]), Answers(rejected, rest[1], rest[3]), BETA, 0.3, 1.5,
            0.5)).terms_U

    assert torch.autograd.gradcheck(loss, (chosen.requires_grad_(), rejected.requires_grad_()))


@pytest.fixture(scope="module")
def renderer(tiny_folder):
    checkpoint = open_checkpoint(tiny_folder)
    tokenizer = chat.load_tokenizer(checkpoint)
    return Renderer(tokenizer, chat.load_template(checkpoint, tokenizer), is_chat=True, max_tokens=64,
                    vocab_size=512)


def said(renderer, sample):
    marked = zip(sample.token_ids, sample.is_trained, strict=True)
    return renderer.tokenizer.decode([token for token, is_trained in marked if is_trained], skip_special=True)


ASK, YES, NO = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "the fox"},
                {"role": "assistant", "content": "the lazy dog"})


@pytest.mark.parametrize("fields", [
    {"prompt": "hello", "chosen": "the fox", "rejected": "the lazy dog"},
    {"prompt": [ASK], "chosen": [YES], "rejected": [NO]},
    {"chosen": [ASK, YES], "rejected": [ASK, NO]},
    {"prompt": "hello", "chosen": [ASK, YES], "rejected": [ASK, NO]},
], ids=["text", "messages", "chats", "chats beside the prompt's text"])
def test_pairs_are_read_however_they_are_written(renderer, fields):
    found = PreferenceRenderer(renderer, is_paired=True).render(Row("a", 1, fields))
    assert isinstance(found, Preference), found
    assert (said(renderer, found.chosen), said(renderer, found.rejected)) == ("the fox", "the lazy dog")
    start = found.chosen.is_trained.index(True)
    assert found.chosen.token_ids[:start] == found.rejected.token_ids[:start]


def test_single_answers_are_read_where_the_loss_takes_them(renderer):
    reader = PreferenceRenderer(renderer, is_paired=False)
    for label, kind in ((True, "chosen"), ("false", "rejected"), (0, "rejected")):
        found = reader.render(Row("a", 1, {"prompt": "hello", "completion": "the fox", "label": label}))
        assert said(renderer, getattr(found, kind)) == "the fox" and len(found.sequences) == 1
    refused = PreferenceRenderer(renderer, is_paired=True).render(
        Row("a", 1, {"prompt": "hello", "completion": "the fox", "label": True}))
    assert isinstance(refused, Refusal) and "expected prompt, chosen and rejected" in refused.reason


@pytest.mark.parametrize("fields, told", [
    ({"prompt": "x", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
    ({"prompt": "x", "chosen": "a", "rejected": "fox " * 99}, "rejected: too long"),
    ({"prompt": "x", "chosen": 3, "rejected": "a"}, "chosen: `completion` is a int"),
    ({"prompt": "x", "completion": "a", "label": "maybe"}, "`label` is `maybe`"), ({"x": 1}, "columns x")])
def test_rows_that_are_no_preference_are_named_with_the_reason(renderer, fields, told):
    found = PreferenceRenderer(renderer, is_paired=False).render(Row("a", 7, fields))
    assert isinstance(found, Refusal) and found.line == 7 and told in found.reason


def test_prompts_get_the_answer_to_another_prompt():
    def row(prompt, answer):
        return Preference(Sample((*prompt, *answer), (*[False] * len(prompt), *[True] * len(answer)), "a", 1),
                          None)

    rows = [row((1, 2), (7,)), row((1, 2), (8,)), row((3,), (9, 9))]
    assert partners(rows, 8) == [2, 2, 0]
    found = [mismatched(rows[place], rows[other]) for place, other in enumerate(partners(rows, 8))]
    assert [sample.token_ids for sample in found] == [(1, 2, 9, 9), (1, 2, 9, 9), (3, 7)]
    assert partners(rows, 3)[0] == -1 and partners(rows[:2], 8) == [-1, -1]


def pairs(count=10):
    words = ("the fox", "the lazy dog", "over the dog")
    return [{"prompt": " ".join([f"item {number}"] * (1 + number % 3)), "chosen": words[number % 3],
             "rejected": words[(number + 1) % 3]} for number in range(count)]


def settings_of(folder, data, **settings):
    return DpoSettings(**{**dict(
        model=str(folder), data=(str(data),), out="run", batch_size=4, pack_tokens=64, steps=5, lora_rank=4,
        learning_rate=5e-3, dtype="float32", threads=1, checkpoint_every=2), **settings})


class Cut(Exception):
    pass


def train(home, settings, *, cut_after=None):
    """Do a run in this process, or begin it and be cut after a step."""
    config = config_of(home)
    run = RunFolder(config.home, settings.out)

    def on_step(metrics):
        if metrics.step == cut_after:
            raise Cut

    with run.working():
        resumed = run.config() if run.exists else None
        run_job(prepare(settings, config, resumed=resumed), run, versions={}, on_step=on_step)
    return run


@pytest.mark.parametrize("name", LOSSES)
def test_a_cut_run_goes_on_bit_for_bit_and_learns_what_is_liked(tiny_folder, tmp_path, name):
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs())
    settings = settings_of(tiny_folder, data, loss=name, eval_data=(str(data),))
    whole = train(tmp_path / "whole", settings)
    with pytest.raises(Cut):
        train(tmp_path / "cut", settings, cut_after=3)
    resumed = train(tmp_path / "cut", settings)
    assert hash_files(resumed.output) == hash_files(whole.output)
    assert resumed.receipt()["result"] == whole.receipt()["result"]
    held_out = whole.receipt()["result"]["held_out"]
    assert held_out["after"]["loss"] < held_out["before"]["loss"]
    assert held_out["after"]["margin"] > held_out["before"]["margin"]
    first = whole.metrics()[0]
    exact = {"dpo": math.log(2), "ipo": (1 / (2 * 0.1)) ** 2, "kto": 0.5}
    if name in exact:
        assert (first["loss"], first["margin"]) == (exact[name], 0), "policy and reference have equal bits"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_answers_that_share_a_prompt_have_the_bits_of_answers_alone(tiny_folder, renderer, dtype):
    checkpoint = open_checkpoint(tiny_folder)
    model = load_model(checkpoint, read_spec(checkpoint), dtype=dtype)
    turns = [YES, ASK, NO]
    for rejected, is_shared in (([NO], True), (turns, False)):
        pair = PreferenceRenderer(renderer, is_paired=True).render(
            Row("a", 1, {"prompt": [ASK], "chosen": [YES], "rejected": rejected}))
        together = _pack(pair.sequences)
        assert together.num_tokens < sum(len(one.token_ids) for one in pair.sequences) or not is_shared
        alone = [trained_logprobs(model, pack_samples([one])) for one in pair.sequences]
        assert torch.equal(trained_logprobs(model, together), torch.cat(alone))


def test_packed_pairs_have_the_bits_of_pairs_alone(tiny_folder, tmp_path):
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs())
    found = {size: train(tmp_path / str(size), settings_of(tiny_folder, data, pack_tokens=size, steps=1))
             for size in (2, 512)}
    references_of = [next(run.path.glob("reference-*")).read_bytes() for run in found.values()]
    assert references_of[0] == references_of[1]


def test_the_reference_is_computed_once_for_a_run_and_its_reruns(tiny_folder, tmp_path, monkeypatch):
    counted = []
    compute = references._compute
    monkeypatch.setattr(references, "_compute", lambda *given: counted.append(1) or compute(*given))
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs())
    first = train(tmp_path, settings_of(tiny_folder, data, steps=1))
    again = train(tmp_path, settings_of(tiny_folder, data, steps=1, out="again", learning_rate=1e-3))
    assert len(counted) == 1
    (file,), (copy,) = (list(run.path.glob("reference-*")) for run in (first, again))
    assert file.name == copy.name and file.read_bytes() == copy.read_bytes()
    file.write_bytes(file.read_bytes()[:-3])
    copy.unlink()
    train(tmp_path, settings_of(tiny_folder, data, steps=1, out="third"))
    assert len(counted) == 2, "a broken file is not believed"
    other = write_jsonl(tmp_path / "b.jsonl", pairs(9))
    train(tmp_path, settings_of(tiny_folder, other, steps=1, out="other"))
    assert len(counted) == 3, "other rows, another reference"


def test_kto_weighs_the_rarer_kind_of_answer_more(tiny_folder, tmp_path):
    rows = [{"prompt": f"item {number}", "completion": "the fox", "label": number % 4 == 0}
            for number in range(8)]
    job = prepare(settings_of(tiny_folder, write_jsonl(tmp_path / "a.jsonl", rows), loss="kto"),
                  config_of(tmp_path))
    assert (job.plan.settings.chosen_weight, job.plan.settings.rejected_weight) == (3.0, 1.0)
    assert json.loads(json.dumps(job.plan.reasons))["chosen_weight"] == "2 chosen and 6 rejected answers"


def test_a_loss_that_is_no_number_keeps_a_checkpoint_and_the_pairs_that_did_it(tiny_folder, tmp_path):
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs())
    with pytest.raises(Diverged, match="loss") as error:
        train(tmp_path, settings_of(tiny_folder, data, learning_rate=1e30, checkpoint_every=1))
    run = RunFolder(config_of(tmp_path).home, "run")
    named = run.read("diverged.json")
    assert run.checkpoints.newest().step == named["step"] - 1 >= 1
    assert f"step {named['step'] - 1} is kept" in error.value.why and named["rows"][0] in error.value.why
    kept = [json.loads(line) for line in (run.path / "diverged.jsonl").read_text().splitlines()]
    assert len(kept) == 4 and all(row["chosen"]["token_ids"] and row["rejected"]["token_ids"] for row in kept)
