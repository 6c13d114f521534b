"""lm-eval asks a server: its numbers are those of our own scoring and evaluation, to the last digit.

lm-eval is large and lives in an environment of its own: HEARTH_TEST_LM_EVAL names its command.
"""

import json
import os
import shutil
import subprocess

import pytest
from support.in_process import run_main
from support.serving import config_of, load_tiny, serving

COMMAND = os.environ.get("HEARTH_TEST_LM_EVAL") or shutil.which("lm_eval")
pytestmark = pytest.mark.skipif(COMMAND is None, reason=(
    "no lm_eval: python -m venv lm && lm/bin/pip install 'lm-eval[api]==0.4.13' transformers, "
    "HEARTH_TEST_LM_EVAL=lm/bin/lm_eval"))

CHOICES = [("The quick brown", [" fox", " dog", " zebra"]), ("Die Katze sitzt auf der", [" Matte", " Mat"]),
           ("def main():\n    print(", ["'hello world')", "1)", "\u732b"]), ("Le chat est", [" sur", " dog"])]
QUESTIONS = ["the quick brown fox", "hello", "who?", "what is 2 + 2?", "la la la", "0123", "one", "lazy dog"]
LOG_LIKELIHOOD_TASK = """
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
CHAT_TASK = """
task: questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_gen_toks: 8, temperature: 0, until: []}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
OWN_TASK = """
import json
from openhearth.tasks import Listed, Problem, Task
from openhearth.tasks.graders.exact import exact

ROWS = [json.loads(line) for line in open({rows!r})]
PROBLEMS = [Problem(f"q/{{place}}", ({{"role": "user", "content": row["question"]}},), row["answer"])
            for place, row in enumerate(ROWS)]
questions = Task(None, {{"test": Listed(PROBLEMS)}}, exact(ignore_case=False))
"""


@pytest.fixture(scope="module")
def running(tiny_folder, tmp_path_factory):
    with serving(tiny_folder, tmp_path_factory.mktemp("home")) as server:
        yield server


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_lm_eval(folder, kind, task, *args, **model_args):
    """Run the command as users do; returns the results of the task and its samples by their number."""
    pairs = ",".join(f"{name}={value}" for name, value in model_args.items())
    done = subprocess.run(
        [COMMAND, "run", "--model", kind, "--model_args", pairs, "--tasks", task, "--include_path", folder,
         "--output_path", folder / "out", "--log_samples", *args],
        capture_output=True, text=True, timeout=400,
        env={**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"),
             "OPENAI_API_KEY": "none"}, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = (folder / "out").rglob("results_*.json")
    [samples] = (folder / "out").rglob("samples_*.jsonl")
    lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    return json.loads(results.read_text())["results"][task], lines


def test_log_likelihoods_are_those_of_the_model_scored_here(running, tiny_folder, tmp_path):
    model = load_tiny(tiny_folder, tmp_path)
    rows, expected = [], []
    for question, choices in CHOICES:
        sums = []
        for choice in choices:
            before = model.encode_prompt(question)
            # As lm-eval does it: where a token spans both, the beginning keeps its own.
            token_ids = (*before, *model.encode_prompt(question + choice)[len(before):])
            sums.append(sum(model.logprobs(token_ids).logprobs[len(before):]))
        best = max(range(len(sums)), key=sums.__getitem__)
        rows.append({"question": question, "choices": choices, "answer": best if len(rows) % 2 else 0})
        expected.append(sums)
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "choices.yaml").write_text(LOG_LIKELIHOOD_TASK.format(rows=tmp_path / "rows.jsonl"))
    results, samples = run_lm_eval(
        tmp_path, "local-completions", "choices", model="tiny", tokenizer=tiny_folder, num_concurrent=2,
        tokenizer_backend="huggingface", base_url=f"{running.url}/v1/completions", max_length=512)
    found = [[float(one[0][0]) for one in sample["resps"]] for sample in samples]
    assert found == expected
    picked = [max(range(len(sums)), key=sums.__getitem__) for sums in expected]
    hits = [place == row["answer"] for place, row in zip(picked, rows, strict=True)]
    assert results["acc,none"] == sum(hits) / len(rows)


def test_chat_answers_are_those_of_hearth_eval(running, tiny_folder, tmp_path, capfd, monkeypatch):
    home = config_of(tmp_path / "home").home
    monkeypatch.setenv("HEARTH_HOME", str(home))
    model = load_tiny(tiny_folder, tmp_path)
    rows = []
    for place, question in enumerate(QUESTIONS):
        answer = model.chat([{"role": "user", "content": question}], temperature=0, max_tokens=8).text
        is_plain = answer == " ".join(answer.split()) and answer
        rows.append({"question": question, "answer": answer if is_plain and place % 3 else "something else"})
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "questions.yaml").write_text(CHAT_TASK.format(rows=tmp_path / "rows.jsonl"))
    (tmp_path / "own.py").write_text(OWN_TASK.format(rows=str(tmp_path / "rows.jsonl")))
    results, samples = run_lm_eval(
        tmp_path, "local-chat-completions", "questions", "--apply_chat_template", model="tiny",
        num_concurrent=4, base_url=f"{running.url}/v1/chat/completions")
    done = run_main(capfd, "eval", tiny_folder, "--dtype", "float32", "--threads", "1", "--task",
                    f"{tmp_path / 'own.py'}:questions", "--max-tokens", "8", "--out", tmp_path / "own",
                    "--json")
    assert done.code == 0, done.err
    [own] = json.loads(done.out)["results"].values()
    assert 0 < own["accuracy"] < 1 and results["exact_match,none"] == own["accuracy"]
    said = {line["problem"]: line["text"]
            for line in map(json.loads, (tmp_path / "own" / "samples.jsonl").read_text().splitlines())}
    assert [sample["resps"][0][0] for sample in samples] == [said[f"q/{place}"] for place in range(len(rows))]
