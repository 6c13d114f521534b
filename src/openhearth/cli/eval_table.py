"""An evaluation's record as people read it: a table on stdout, remarks on stderr."""

from __future__ import annotations

from typing import Any

from openhearth.cli.output import print_fields, print_note, print_table
from openhearth.units import format_bytes, format_count, format_seconds


def print_plan(record: dict[str, Any]) -> None:
    """Print what `hearth eval --dry-run` found."""
    rows = [[row["task"], str(row["problems"]), str(row["samples"]), str(row["longest_prompt_tokens"]),
             format_count(row["samples"] * row["max_tokens"])] for row in record["tasks"]]
    print_table(["task", "problems", "answers", "longest prompt", "tokens at most"], rows)
    memory = {name.removesuffix("_bytes"): format_bytes(size) for name, size in record["predicted"].items()}
    print_fields({"model": f"{record['model']}, weights {record['weights'][:16]}",
                  "memory": ", ".join(f"{name} {size}" for name, size in memory.items())})
    for row in record["tasks"]:
        print(f"\n{row['task']}, first prompt:\n{row['prompt']}")


def print_report(record: dict[str, Any]) -> None:
    """Print accuracy per task, the comparison where there is one, and where the samples are."""
    against = record.get("against")
    runs = [record, *([against] if against else [])]
    most = max(max(map(int, result["pass_at"]), default=1) for run in runs
               for result in run["results"].values())
    rows = [_row(run["model"], task, result, most) for run in runs for task, result in run["results"].items()]
    columns = ["model", "task", "problems", "accuracy", "95% interval",
               *([f"pass@{most}"] if most > 1 else []), "no answer", "cut", "tokens"]
    print_table(columns, rows)
    for task, pair in record.get("paired", {}).items():
        print(f"{task}: {pair['num_pairs']} pairs, right alone: {record['model']} {pair['only_first']}, "
              f"{against['model']} {pair['only_second']}; exact McNemar p = {pair['p_value']:.3g}")
    for run in runs:
        _print_remarks(run)


def _row(model: str, task: str, result: dict[str, Any], most: int) -> list[str]:
    samples = result["num_samples"]
    best = {int(k): value for k, value in result["pass_at"].items()}.get(most)
    return [model, task, str(result["num_problems"]), f"{100 * result['accuracy']:.1f}%",
            f"{100 * result['low']:.1f} - {100 * result['high']:.1f}",
            *([f"{100 * best:.1f}%" if best is not None else ""] if most > 1 else []),
            f"{100 * result['num_no_answer'] / samples:.0f}%", f"{100 * result['num_cut'] / samples:.0f}%",
            f"{result['mean_tokens']:.0f}"]


def _print_remarks(run: dict[str, Any]) -> None:
    for task, result in run["results"].items():
        if result["num_failed"]:
            print_note(f"{run['model']}, {task}: the grader failed on {result['num_failed']} of "
                       f"{result['num_samples']} answers, which are in no share")
    earlier = run["earlier_samples_sha256"]
    if earlier is not None:
        is_same = earlier == run["samples_sha256"]
        print_note("the samples equal those of the earlier run, bit for bit" if is_same else
                   f"the samples differ from those of the earlier run, {earlier[:16]}")
    print_note(f"{run['model']}: {run['num_samples']} answers in {format_seconds(run['seconds'])}, "
               f"samples {run['samples_sha256'][:16]} in {run['path']}")
