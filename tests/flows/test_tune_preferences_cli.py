"""`hearth tune dpo` and `distill` from the command line: killed and resumed, dry runs, recipes, refusals."""

import json
import signal
import subprocess
import sys

import pytest
from support.command import environment, hearth
from support.in_process import run_main
from support.tuning import write_jsonl

from openhearth.runs import RunFolder, hash_files

STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", [
        {"prompt": f"item {number}", "chosen": "the fox", "rejected": "the lazy dog"} for number in range(9)])


def arguments(folder, data, *more):
    return [str(word) for word in (
        "tune", "dpo", folder, "--data", data, "--out", "run", "--steps", STEPS, "--batch-size", 4,
        "--pack-tokens", 64, "--lora-rank", 4, "--checkpoint-every", 2, "--threads", 1, *more)]


def test_a_killed_run_resumes_to_the_same_bytes_and_shows_its_margin(tiny_folder, data, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = arguments(tiny_folder, data, "--learning-rate", 0.005)
    hearth(*words, home=whole)
    process = subprocess.Popen([sys.executable, "-m", "openhearth", *words], env=environment(cut), text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for line in process.stderr:
        if line.startswith("step 1/"):
            process.send_signal(signal.SIGKILL)
            assert "margin 0.000" in line and "loss 0.6931" in line
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not RunFolder(cut, "run").is_finished
    hearth(*words, "--resume", home=cut)
    runs = [RunFolder(home, "run") for home in (whole, cut)]
    assert hash_files(runs[0].output) == hash_files(runs[1].output)
    assert [row["step"] for row in runs[1].metrics()] == list(range(1, STEPS + 1))
    page = (runs[1].path / "index.html").read_text()
    assert all(f"<h2>{curve}</h2>" in page for curve in ("loss", "margin", "accuracy"))
    assert runs[1].receipt()["result"]["last_margin"] > 0
    listed = json.loads(hearth("runs", "--json", home=cut).stdout)
    assert [(one["method"], one["is_finished"]) for one in listed] == [("dpo", True)]


@pytest.fixture
def tune(capfd, tmp_path, monkeypatch):
    """Run the command in this process."""
    for name, value in environment(tmp_path, HEARTH_OFFLINE="1").items():
        monkeypatch.setenv(name, value)
    return lambda *words: run_main(capfd, *words)


def test_dry_runs_show_both_answers_or_the_teacher_and_write_nothing(tune, tiny_folder, data, tmp_path):
    shown = tune(*arguments(tiny_folder, data, "--dry-run"))
    assert shown.code == 0, shown.err
    assert "chosen: " in shown.out and "[[the fox<|im_end|>]]" in shown.out
    assert "rejected: " in shown.out and "[[the lazy dog<|im_end|>]]" in shown.out
    plan = tune("tune", "distill", tiny_folder, "--teacher", tiny_folder, "--task", "chain_sum", "--out",
                "run", "--prompts", 8, "--group-size", 2, "--dry-run")
    assert plan.code == 0 and "2 of 8 answers; if every answer is right" in plan.out, plan.err
    assert f"teacher        {tiny_folder}" in plan.out
    assert not (tmp_path / "runs").exists()


def test_a_recipe_of_distillation_is_the_same_as_its_flags(tune, tiny_folder, tmp_path):
    recipe = tmp_path / "a.toml"
    recipe.write_text(f'method = "distill"\nmodel = "{tiny_folder}"\nteacher = "{tiny_folder}"\nout = "run"\n'
                      'task = "chain_sum"\ngroup_size = 3\n')
    flags = ("tune", "distill", tiny_folder, "--teacher", tiny_folder, "--task", "chain_sum", "--out", "run",
             "--group-size", 3)
    plans = [json.loads(tune(*words, "--dry-run", "--json").out) for words in (("tune", recipe), flags)]
    assert plans[0]["settings"] == plans[1]["settings"] and plans[0]["settings"]["group_size"] == 3


@pytest.mark.parametrize("more, told", [
    (("--loss", "dop"), "expected ('dpo', 'ipo', 'kto', 'orpo')"),
    (("--beta", "0"), "expected a number above 0"),
    (("--optimizer", "muon"), "--weights full"), (("--dora", "--weights", "full"), "DoRA is a kind of LoRA"),
    (("--teacher", "x"), "there is no setting `teacher`")])
def test_wrong_settings_are_refused_with_what_would_work(tune, tiny_folder, data, more, told):
    done = tune(*arguments(tiny_folder, data, *more, "--dry-run"))
    assert done.code == 2 and told in done.err, done.err


def test_a_teacher_that_is_not_there_is_named(tune, tiny_folder):
    words = ("tune", "distill", tiny_folder, "--task", "chain_sum", "--out", "run", "--on-policy",
             "--dry-run")
    assert "--teacher MODEL, or --teacher-adapter RUN" in tune(*words).err
    gone = tune(*words, "--teacher-adapter", "gone")
    assert gone.code == 3 and "no run `gone`" in gone.err
