"""On-policy by construction: what was sampled is what is differentiated, bit for bit, truncation included."""

import json
import math
import subprocess
import sys

import pytest
import torch
from support.command import environment
from support.tiny import build_gguf, build_llama
from support.tuning import config_of, grpo_settings_of, train_alone

from openhearth.errors import OffPolicy
from openhearth.kernels import select
from openhearth.runs import RunFolder
from openhearth.tune import load_learner, prepare, run_job
from openhearth.tune.loops import grpo as loop_module
from openhearth.tune.loops.grpo import GrpoLoop

TRUNCATED = {"temperature": 0.7, "top_k": 60, "top_p": 0.9, "min_p": 0.01}
FORMS = {
    "bfloat16": {"weights": "full", "dtype": "bfloat16", "learning_rate": 1e-3},
    "float32": {"weights": "full", "dtype": "float32", "learning_rate": 1e-3},
    "lora": {"dtype": "bfloat16"},
    "lora float32": {"dtype": "float32"},
    "lora on int8": {"base": "int8"},
    "lora on int4": {"base": "int4"},
    "lora on blocks of the file": {"base": "stored"},
}
native_only = pytest.mark.skipif(not select.chosen().is_native, reason="bits are promised by native kernels")


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    build_llama(folder / "tiny")
    return build_gguf(folder / "tiny", folder / "tiny.gguf", "Q4_1")


@native_only
@pytest.mark.parametrize("sampling", [{}, TRUNCATED], ids=["whole", "truncated"])
@pytest.mark.parametrize("form", FORMS)
def test_ratios_of_the_first_update_are_one_bit_for_bit(tiny_folder, gguf_path, tmp_path, form, sampling):
    model = gguf_path if form.endswith("file") else tiny_folder
    run = train_alone(tmp_path, grpo_settings_of(model, passes=2, **FORMS[form], **sampling))
    metrics = run.metrics()
    assert len(metrics) == 3 and all(row["ratio_max_difference"] == 0.0 for row in metrics)
    assert metrics[0]["trained_tokens"] > 100 and metrics[0]["gradient_norm"] > 0
    rollout = json.loads((run.path / "rollout.json").read_bytes())
    drawn = [logprob for group in rollout["groups"] for one in group for logprob in one["logprobs"]]
    assert max(drawn) <= 0 and min(drawn) < -1, "distributions that were worth comparing"


@native_only
def test_the_weights_move_between_rollouts(tiny_folder, tmp_path):
    """Otherwise equal bits would show nothing; and the engine's recorded program follows them."""
    job = prepare(grpo_settings_of(tiny_folder), config_of(tmp_path))
    learner, run = load_learner(job), RunFolder(tmp_path, "run")
    with job.work.looping(run, job.opened, job.plan, learner) as loop:
        assert loop.parts.engine.program is not None
        seen = []
        for step in range(2):
            for _ in loop.updates(step):
                loop.optimizer.step(0.05, loop.optimizer.gradient_norm())
            group = json.loads((run.path / "rollout.json").read_bytes())["groups"][0][0]
            seen.append(loop.parts.engine.score(group["prompt"], loop.adapter))
        assert seen[0] != seen[1]
        assert loop.report()["ratio_max_difference"] == 0.0


@native_only
def test_a_sampler_that_disagrees_stops_the_run(tiny_folder, tmp_path, monkeypatch):
    honest = loop_module.roll

    def off_by_a_bit(*arguments, **named):
        groups = honest(*arguments, **named)
        for group in groups:
            for one in group:
                last = torch.nextafter(torch.tensor(one.logprobs[-1]), torch.tensor(0.0)).item()
                object.__setattr__(one, "logprobs", (*one.logprobs[:-1], last))
        return groups

    monkeypatch.setattr(loop_module, "roll", off_by_a_bit)
    with pytest.raises(OffPolicy, match="importance ratios of step 1 are not 1"):
        train_alone(tmp_path, grpo_settings_of(tiny_folder))
    assert RunFolder(tmp_path, "run").metrics() == [], "no weight was moved by it"


def truncated_softmax(logits_V, sampling):
    """ln of the distribution that is drawn from, in float64, written down anew."""
    scaled_V = logits_V.double() / sampling["temperature"]
    order = scaled_V.argsort(descending=True)[:sampling["top_k"]]
    probs = torch.softmax(scaled_V[order], 0)
    order = order[:int((probs.cumsum(0) < sampling["top_p"]).sum()) + 1]
    order = order[torch.softmax(scaled_V, 0)[order] >= sampling["min_p"] * torch.softmax(scaled_V, 0).max()]
    return order, torch.full_like(scaled_V, -math.inf).index_copy(0, order, scaled_V[order].log_softmax(0))


@pytest.mark.parametrize("sampling", [{"temperature": 1.0}, TRUNCATED], ids=["whole", "truncated"])
def test_ratios_after_an_update_are_those_of_the_distribution_sampled_from(tiny_folder, tmp_path, sampling):
    """New over old probability, both over the tokens that the draw could take, against float64."""
    job = prepare(grpo_settings_of(tiny_folder, dtype="float32", steps=1, **sampling), config_of(tmp_path))
    learner, run = load_learner(job), RunFolder(tmp_path, "run")
    full = {"top_k": 512, "top_p": 1.0, "min_p": 0.0, **sampling}
    with job.work.looping(run, job.opened, job.plan, learner) as loop:
        policy, seen = loop.parts.policy, []

        def keep(part, pack, honest=policy.logprobs):
            seen.append((part, pack))
            return honest(part, pack)

        object.__setattr__(policy, "logprobs", keep)
        for _ in loop.updates(0):
            old = _all_logits(learner, seen[0][1])
            loop.optimizer.step(0.02, loop.optimizer.gradient_norm())
    part, pack = seen[0]
    with torch.no_grad():
        found_N = policy.logprobs(part, pack) - torch.cat([one.sampled for one in part])
    new, wanted = _all_logits(learner, pack), []
    for row, target in enumerate(pack.targets_N.tolist()):
        kept, old_V = truncated_softmax(old[row], full)
        new_V = torch.log_softmax(new[row].double()[kept] / full["temperature"], 0)
        wanted.append(float(new_V[kept.tolist().index(target)] - old_V[target]))
    torch.testing.assert_close(found_N.double(), torch.tensor(wanted).double(), rtol=0, atol=2e-5)
    assert found_N.abs().max() > 0.05, "the update moved them"


def _all_logits(learner, pack):
    from openhearth.tune.packs import trained_hidden

    with torch.no_grad():
        return learner.model.logits(trained_hidden(learner.model, pack, learner.slot)).clone()


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_the_reference_is_the_model_before_tuning(tiny_folder, tmp_path, weights):
    settings = grpo_settings_of(tiny_folder, weights=weights, kl=0.1, dtype="float32", steps=4,
                                learning_rate=5e-3)
    metrics = train_alone(tmp_path, settings).metrics()
    assert metrics[0]["kl"] == 0.0, "nothing has moved yet"
    assert all(row["kl"] > 1e-5 for row in metrics[1:])
    held = train_alone(tmp_path / "held", grpo_settings_of(
        tiny_folder, weights=weights, kl=20.0, dtype="float32", steps=4, learning_rate=5e-3)).metrics()
    assert held[-1]["kl"] < metrics[-1]["kl"], "a larger weight holds it back"


def test_on_reference_kernels_ratios_are_near_one_and_logged(tiny_folder, tmp_path):
    code = ("import sys; from pathlib import Path; from support.tuning import *;"
            "given = grpo_settings_of(Path(sys.argv[1]), dtype='float32', steps=1);"
            "run = train_alone(Path(sys.argv[2]), given);"
            "print(run.metrics()[0]['ratio_max_difference'])")
    env = environment(tmp_path, HEARTH_ISA="reference")
    env["PYTHONPATH"] += ":" + str(__import__("pathlib").Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code, str(tiny_folder), str(tmp_path)], text=True, env=env,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 1e-4


def test_a_run_cut_between_rollout_and_update_takes_the_rollout_on_disk(tiny_folder, tmp_path, monkeypatch):
    whole = train_alone(tmp_path / "whole", grpo_settings_of(tiny_folder, checkpoint_every=1))
    honest = GrpoLoop._backward

    def cut(self, step, dealt, **named):
        if step == 2:
            raise KeyboardInterrupt
        return honest(self, step, dealt, **named)

    monkeypatch.setattr(GrpoLoop, "_backward", cut)
    with pytest.raises(KeyboardInterrupt):
        train_alone(tmp_path / "cut", grpo_settings_of(tiny_folder, checkpoint_every=1))
    monkeypatch.setattr(GrpoLoop, "_backward", honest)
    monkeypatch.setattr(loop_module, "roll", lambda *_, **__: pytest.fail("it was rolled out already"))
    resumed = train_alone(tmp_path / "cut", grpo_settings_of(tiny_folder, checkpoint_every=1))
    assert resumed.receipt()["outputs"] == whole.receipt()["outputs"]


def test_receipts_say_what_was_learned_from(tiny_folder, tmp_path):
    job = prepare(grpo_settings_of(tiny_folder), config_of(tmp_path))
    run = RunFolder(tmp_path, "run")
    with run.working():
        receipt = run_job(job, run, versions={"openhearth": "x"})
    source, = receipt["data"]["tasks"].values()
    assert source.startswith("a test sha256:") and receipt["method"] == "grpo"
    assert receipt["result"]["completions"] == 3 * 24 and receipt["result"]["ratio_max_difference"] == 0.0
