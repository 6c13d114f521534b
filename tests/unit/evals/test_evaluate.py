"""Asking a model and counting: the same bits whatever is asked beside, cut or resumed."""

from dataclasses import replace

import pytest

import openhearth
from openhearth.engine import Request, Sampling
from openhearth.errors import BadFile, PromptTooLong, UsageError
from openhearth.evals import (
    EvalFolder,
    EvalSettings,
    Sample,
    compare_samples,
    describe,
    evaluate,
    read_samples,
    request_seed,
    summarise,
)
from openhearth.tasks import Grading, Listed, Problem, Task, Verdict, correct, find, wrong

SAMPLED = EvalSettings(num_problems=12, num_samples=3, max_tokens=10, sampling={"temperature": 1.0})


@pytest.fixture(scope="module")
def model(tiny_folder):
    return openhearth.load(str(tiny_folder), dtype="float32", num_threads=1)


@pytest.fixture(scope="module")
def tasks():
    return [find("chain_sum"), find("gcd")]


def ask(model, tasks, settings, **more):
    with Grading(tasks) as grading:
        found = [sample for group in evaluate(model, tasks, settings, grading=grading, **more)
                 for sample in group]
    return sorted(found, key=lambda sample: (sample.task, sample.problem, sample.sample))


@pytest.fixture(scope="module")
def samples(model, tasks):
    return ask(model, tasks, SAMPLED)


def test_every_problem_is_asked_once_and_is_what_the_engine_says_alone(model, tasks, samples):
    assert len(samples) == len({(s.task, s.problem, s.sample) for s in samples}) == 2 * 12 * 3
    one = samples[7]
    request = Request(one.prompt_token_ids, Sampling(
        temperature=1.0, seed=request_seed(0, one.task, one.problem), max_tokens=10,
        stop_token_ids=model.tokenizer.stop_token_ids), n=3)
    [completions] = model.engine.generate([request])
    assert completions[one.sample].token_ids == one.token_ids
    assert completions[one.sample].logprobs == one.logprobs


def test_a_problem_has_the_same_bits_in_another_selection(model, tasks, samples):
    fewer = ask(model, tasks[1:], replace(SAMPLED, num_problems=5))
    assert fewer == [sample for sample in samples if sample in fewer] and len(fewer) == 15


def test_problems_that_are_done_are_left_out_and_the_rest_is_equal(model, tasks, samples):
    done = {(sample.task, sample.problem) for sample in samples[:30]}
    rest = ask(model, tasks, SAMPLED, done=done)
    assert rest == [sample for sample in samples if (sample.task, sample.problem) not in done]


def test_another_seed_says_something_else(model, tasks, samples):
    other = ask(model, tasks[:1], replace(SAMPLED, seed=1, num_problems=4))
    assert not {sample.token_ids for sample in other} <= {sample.token_ids for sample in samples}


def test_closing_early_leaves_the_engine_empty(model, tasks):
    with Grading(tasks) as grading:
        groups = evaluate(model, tasks, SAMPLED, grading=grading)
        next(groups)
        assert model.engine.has_work
        groups.close()
    while model.engine.has_work:
        model.engine.step()
    assert model.engine.stats().num_running == model.engine.stats().num_waiting == 0


def test_a_problem_that_does_not_fit_is_named(model):
    long = Problem("too/long", ({"role": "user", "content": "word " * 2000},), "")
    task = Task(None, {"test": Listed([long])}, lambda problem, response: correct())
    with pytest.raises(PromptTooLong, match="too/long"):
        ask(model, [task], EvalSettings())


@pytest.mark.parametrize("settings", [{"num_problems": 0}, {"num_samples": 0}, {"split": "dev"}, {"seed": -1},
                                      {"max_tokens": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UsageError):
        EvalSettings(**settings)


def sample(problem, verdict, index=0, task="t", **more):
    reward = {"correct": 1.0, "grader_failed": None}.get(verdict, 0.0)
    values = dict(task=task, problem=problem, sample=index, seed=1, prompt_token_ids=(1,), token_ids=(2, 3),
                  logprobs=(-0.5, -1.0), text="x", finish_reason="stop", verdict=verdict, reward=reward,
                  reason="")
    return Sample(**{**values, **more})


def test_failed_graders_are_in_no_share():
    result = summarise([sample("a", "correct"), sample("b", "wrong"), sample("c", "grader_failed"),
                        sample("d", "no_answer", finish_reason="length")])["t"]
    assert (result.num_problems, result.num_ungraded, result.num_failed) == (4, 1, 1)
    assert result.accuracy == pytest.approx(1 / 3) and result.mean_reward == pytest.approx(1 / 3)
    assert (result.num_no_answer, result.num_cut, result.mean_tokens) == (1, 1, 2.0)
    assert result.pass_at == {1: pytest.approx(1 / 3)}


def test_pass_at_k_counts_problems_with_enough_graded_samples():
    found = [sample("a", kind, i) for i, kind in enumerate(["correct", "wrong", "wrong", "wrong"])]
    found += [sample("b", kind, i) for i, kind in enumerate(["correct", "grader_failed", "wrong", "wrong"])]
    result = summarise(found)["t"]
    assert result.accuracy == pytest.approx((1 / 4 + 1 / 3) / 2)
    assert result.pass_at == {1: pytest.approx(7 / 24), 2: pytest.approx((1 / 2 + 2 / 3) / 2),
                              4: pytest.approx(1.0)}


def test_models_are_compared_on_problems_that_both_were_graded_on():
    first = [sample(str(i), "correct") for i in range(6)] + [sample("x", "grader_failed")]
    second = [sample(str(i), "wrong") for i in range(6)] + [sample("x", "correct"), sample("y", "correct")]
    found = compare_samples(first, second)["t"]
    assert (found.num_pairs, found.only_first, found.only_second) == (6, 6, 0)
    assert found.p_value == pytest.approx(2 / 64)


@pytest.fixture
def asked(model, tasks):
    return describe(model, tasks, SAMPLED, isa="any", versions={"openhearth": "1"})


def test_a_folder_is_resumed_to_the_same_bytes(tmp_path, asked, samples, tasks):
    order = [task.name for task in tasks]
    whole = EvalFolder.begin(tmp_path / "whole", asked, is_resumed=False)
    whole.add(samples)
    receipt = whole.finish({"results": {}}, order)
    cut = EvalFolder.begin(tmp_path / "cut", asked, is_resumed=False)
    for start in range(30, 60, 3):
        cut.add(samples[start:start + 3])
    cut.close()
    with (tmp_path / "cut" / "samples.partial.jsonl").open("a") as file:
        file.write(samples[0].to_line() + "\n" + samples[1].to_line()[:50])
    with pytest.raises(UsageError, match="was cut"):
        EvalFolder.begin(tmp_path / "cut", asked, is_resumed=False)
    resumed = EvalFolder.begin(tmp_path / "cut", asked, is_resumed=True)
    assert resumed.samples == samples[30:60]
    resumed.add(samples[:30])
    resumed.add(samples[60:])
    assert resumed.finish({"results": {}}, order) == receipt
    assert (tmp_path / "cut" / "samples.jsonl").read_bytes() == (
        tmp_path / "whole" / "samples.jsonl").read_bytes()
    assert not (tmp_path / "cut" / "samples.partial.jsonl").exists()
    assert sorted(read_samples(tmp_path / "cut"), key=samples.index) == samples
    again = EvalFolder.begin(tmp_path / "cut", asked, is_resumed=False)
    assert again.earlier == receipt and again.samples == []
    again.close()


def test_a_folder_of_other_settings_or_changed_samples_is_refused(tmp_path, asked, samples, tasks):
    folder = EvalFolder.begin(tmp_path, asked, is_resumed=False)
    folder.add(samples)
    folder.finish({}, [task.name for task in tasks])
    with pytest.raises(UsageError, match="different: seed"):
        EvalFolder.begin(tmp_path, {**asked, "seed": 1}, is_resumed=True)
    path = tmp_path / "samples.jsonl"
    path.write_text(path.read_text().replace('"wrong"', '"correct"', 1))
    with pytest.raises(BadFile, match="not what the receipt names"):
        read_samples(tmp_path)
    with pytest.raises(UsageError, match="nothing to resume"):
        EvalFolder.begin(tmp_path / "new", asked, is_resumed=True)


def test_a_verdict_reaches_the_sample_as_the_grader_gave_it(model):
    problem = Problem("p", ({"role": "user", "content": "hello"},), "")
    verdicts = iter([wrong("half", 0.5), Verdict("grader_failed", None, "gone")])
    task = Task(None, {"test": Listed([problem])}, lambda problem, response: next(verdicts))
    found = ask(model, [task], EvalSettings(num_samples=2, max_tokens=4, sampling={"temperature": 0.5}))
    assert sorted((s.verdict, s.reward, s.reason) for s in found) == [
        ("grader_failed", None, "gone"), ("wrong", 0.5, "half")]
