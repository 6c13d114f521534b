"""Distillation: a teacher's answers sampled, graded and learned; its probabilities on the student's own."""

import json
from dataclasses import replace

import pytest
import torch
from support.tiny import build_llama
from support.tuning import colour_rows, config_of, train_alone, write_jsonl
from support.tuning import settings_of as sft_settings

from openhearth.engine import Engine, Request, Sampling
from openhearth.errors import UsageError
from openhearth.formats import open_checkpoint
from openhearth.models import attach, load_model
from openhearth.models.adapter_files import read_adapter
from openhearth.runs import RunFolder, hash_files
from openhearth.spec import read_spec
from openhearth.tune import DistillSettings, prepare, run_job, sample_teacher, teaching
from openhearth.tune.data.records import Sample
from openhearth.tune.mixture import Mixture
from openhearth.tune.packs import pack_samples, trained_hidden
from openhearth.tune.rollout import ask

TASK = """
from openhearth.tasks import Listed, Problem, Task, correct, wrong

COLOURS = ("red", "green", "blue")

def grade(problem, response):
    return correct() if response.strip() == problem.answer else wrong(response)

problems = [Problem(f"colour/{n}", ({"role": "user", "content": " ".join([f"item {n}"] * (1 + n % 4))},),
                    COLOURS[n % 3]) for n in range(6)]
colours = Task(None, {"train": Listed(problems)}, grade, source="colours 1", max_tokens=6)
"""


@pytest.fixture(scope="module")
def home(tiny_folder, tmp_path_factory):
    """A home with a task, the run `knows`, a model that knows the colours, and `leans`, an adapter."""
    home = tmp_path_factory.mktemp("home")
    (home / "colours.py").write_text(TASK)
    data = write_jsonl(home / "colours.jsonl", colour_rows(6))
    settings = sft_settings(tiny_folder, data, batch_size=6, threads=1, checkpoint_every=60)
    train_alone(home, replace(settings, out="knows", weights="full", steps=40, learning_rate=3e-3))
    train_alone(home, replace(settings, out="leans", lora_rank=8, steps=20, learning_rate=1e-2))
    return home


def settings_of(folder, home, **settings):
    return DistillSettings(**{**dict(
        model=str(folder), task=(f"{home / 'colours.py'}:colours",), out="run", prompts=6, group_size=3,
        batch_size=6, lora_rank=8, dtype="float32", threads=1, pack_tokens=128, checkpoint_every=2,
        **({} if "teacher" in settings else {"teacher_adapter": "leans"})), **settings})


def knowing(home):
    return str(RunFolder(home, "knows").output)


class Cut(Exception):
    pass


def distil(home, settings, *, cut_after=None):
    config = config_of(home)
    run = RunFolder(config.home, settings.out)

    def on_step(metrics):
        if metrics.step == cut_after:
            raise Cut

    with run.working():
        if not settings.is_on_policy:
            sample_teacher(settings, config, run)
        resumed = run.config() if run.exists else None
        run_job(prepare(settings, config, resumed=resumed), run, versions={}, on_step=on_step)
    return run


def test_right_answers_of_a_teacher_are_learned(tiny_folder, home):
    run = distil(home, settings_of(tiny_folder, home, teacher=knowing(home), weights="full", steps=30,
                                   learning_rate=3e-3))
    answers = [json.loads(line) for line in (run.path / "answers.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (run.path / "rows.jsonl").read_text().splitlines()]
    assert len(answers) == 6 * 3
    right = {(one["problem"], one["text"]) for one in answers
             if one["verdict"] == "correct" and one["finish_reason"] == "stop"}
    assert len(rows) == len(right) >= 4, "each right text once"
    assert {row["completion"][0]["content"] for row in rows} <= {"red", "green", "blue"}
    receipt = run.receipt()
    assert receipt["method"] == "distill" and receipt["data"]["answers"]["rows"] == len(rows)
    assert receipt["data"]["teacher"]["adapter"] is None
    assert receipt["result"]["last_loss"] < 0.3 < 2 < receipt["result"]["first_loss"]


def test_a_teacher_that_was_cut_gives_the_same_rows(tiny_folder, home, monkeypatch):
    monkeypatch.setattr(teaching, "_BLOCK", 2)
    config, whole, cut = config_of(home), RunFolder(home, "whole"), RunFolder(home, "cut")
    asked = settings_of(tiny_folder, home, teacher=knowing(home))
    sample_teacher(asked, config, whole)

    def stop(done, right, total):
        raise Cut

    with pytest.raises(Cut):
        sample_teacher(asked, config, cut, on_block=stop)
    with open(cut.path / "answers.partial.jsonl", "a") as file:
        file.write('[{"half": ')
    done = []
    sample_teacher(asked, config, cut, on_block=lambda *numbers: done.append(numbers[0]))
    assert done == [4, 6], "what was answered is not asked again"
    for name in ("answers.jsonl", "rows.jsonl"):
        assert (cut.path / name).read_bytes() == (whole.path / name).read_bytes()
    (cut.path / "rows.jsonl").unlink()
    with pytest.raises(UsageError, match="other settings"):
        sample_teacher(settings_of(tiny_folder, home, teacher=knowing(home), seed=5), config, cut)


def test_a_teacher_that_is_never_right_is_said_to_be(tiny_folder, home):
    with pytest.raises(UsageError, match="none of the teacher's 18 answers is right"):
        sample_teacher(settings_of(tiny_folder, home, teacher=str(tiny_folder)),
                       config_of(home), RunFolder(home, "wrong"))


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_a_student_comes_near_its_teacher_and_a_cut_run_goes_on_bit_for_bit(tiny_folder, home, weights):
    asked = dict(is_on_policy=True, steps=8, weights=weights,
                 learning_rate={"lora": 2e-2, "full": 3e-3}[weights])
    whole = distil(home, settings_of(tiny_folder, home, out=f"whole-{weights}", **asked))
    cut = settings_of(tiny_folder, home, out=f"cut-{weights}", **asked)
    with pytest.raises(Cut):
        distil(home, cut, cut_after=5)
    assert hash_files(distil(home, cut).output) == hash_files(whole.output)
    losses = [row["loss"] for row in whole.metrics()]
    assert losses[-1] < 0.6 * losses[0]
    assert whole.receipt()["data"]["teacher"]["adapter"] == read_adapter(
        RunFolder(home, "leans").output).sha256


def test_the_first_loss_is_the_divergence_over_the_whole_vocabulary(tiny_folder, home):
    settings = settings_of(tiny_folder, home, out="once", is_on_policy=True, steps=1, prompts=3, group_size=2)
    run, job = distil(home, settings), prepare(settings, config_of(home))
    checkpoint = open_checkpoint(tiny_folder)
    model = load_model(checkpoint, read_spec(checkpoint), dtype=torch.float32)
    slot = attach(model, "teacher", read_adapter(RunFolder(home, "leans").output).weights).slot
    total, count = 0.0, 0
    engine = Engine(load_model(checkpoint, read_spec(checkpoint), dtype=torch.float32), weights_version="x")
    for place, (task, problem) in enumerate(Mixture(job.work.tasks, seed=0).take(0, 3)):
        asked = ask(problem, task, job.opened.tokenizer, job.opened.template, seed=f"0/0/{place}")
        drawn = engine.generate([Request(asked.prompt, Sampling(
            seed=asked.seed, max_tokens=6, stop_token_ids=job.opened.tokenizer.stop_token_ids), n=2)])[0]
        for one in drawn:
            sample = Sample((*asked.prompt, *one.token_ids),
                            (*[False] * len(asked.prompt), *[True] * len(one.token_ids)), "", 1)
            with torch.no_grad():
                own, wanted = (torch.log_softmax(model.logits(trained_hidden(
                    model, pack_samples([sample]), slot)).double(), -1) for slot in (None, slot))
            total += float((own.exp() * (own - wanted)).sum())
            count += len(one.token_ids)
    assert run.metrics()[0]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_teachers_that_cannot_teach_are_refused(tiny_folder, home, tmp_path):
    def prepared(**settings):
        prepare(settings_of(tiny_folder, home, out="refused", is_on_policy=True, steps=1, **settings),
                config_of(home))

    with pytest.raises(UsageError, match="the teacher is the student"):
        prepared(teacher=str(tiny_folder))
    other = tmp_path / "other"
    build_llama(other, seed=5)
    with pytest.raises(UsageError, match="is of other weights than"):
        prepared(teacher=str(other), teacher_adapter="leans")
    build_llama(tmp_path / "wide", vocab_size=600)
    with pytest.raises(UsageError, match="vocabularies of 600 and 512"):
        prepared(teacher=str(tmp_path / "wide"))
    with pytest.raises(UsageError, match="there is no teacher"):
        settings_of(tiny_folder, home, teacher=None)


def test_a_plan_before_the_teacher_has_answered_says_so(tiny_folder, home):
    job = prepare(settings_of(tiny_folder, home, out="planned"), config_of(home))
    assert job.plan.reasons["steps"] == "if every answer is right" and job.plan.num_steps == 3
    with pytest.raises(UsageError, match="has not answered yet"):
        run_job(job, RunFolder(home, "planned"), versions={})
