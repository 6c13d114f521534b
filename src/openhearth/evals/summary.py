"""Samples counted: accuracy with its interval, pass@k, and one model against another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from openhearth.evals.records import Sample
from openhearth.evals.statistics import Paired, compare, pass_at_k, wilson_interval


@dataclass(frozen=True)
class TaskResult:
    """One task's outcome. Problems without a single graded sample are counted, and in no share.

    accuracy: mean over problems of the share of right samples; low and high bound it at 95 %. pass_at: k
    -> chance that one of k samples is right, over problems with at least k graded samples. num_failed:
    samples whose grader failed; num_no_answer and num_cut (at max_tokens) count samples too.
    Example: ``summarise(samples)["chain_sum"].accuracy``.
    """

    num_problems: int
    num_ungraded: int
    num_samples: int
    num_right: int
    num_no_answer: int
    num_failed: int
    num_cut: int
    mean_reward: float
    accuracy: float
    low: float
    high: float
    pass_at: dict[int, float]
    mean_tokens: float


def summarise(samples: Sequence[Sample]) -> dict[str, TaskResult]:
    """Return each task's result, in the order of first appearance."""
    by_task: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        by_task[sample.task][sample.problem].append(sample)
    return {task: _result(list(problems.values())) for task, problems in by_task.items()}


def _result(problems: list[list[Sample]]) -> TaskResult:
    samples = [sample for group in problems for sample in group]
    counts = []
    for group in problems:
        graded = [sample for sample in group if sample.reward is not None]
        if graded:
            counts.append((len(graded), sum(sample.verdict == "correct" for sample in graded)))
    right = sum(num_right / num for num, num_right in counts)
    low, high = wilson_interval(right, len(counts))
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    return TaskResult(
        num_problems=len(problems), num_ungraded=len(problems) - len(counts), num_samples=len(samples),
        num_right=sum(sample.verdict == "correct" for sample in samples),
        num_no_answer=sum(sample.verdict == "no_answer" for sample in samples),
        num_failed=sum(sample.verdict == "grader_failed" for sample in samples),
        num_cut=sum(sample.finish_reason == "length" for sample in samples),
        mean_reward=sum(rewards) / len(rewards) if rewards else 0.0,
        accuracy=right / len(counts) if counts else 0.0, low=low, high=high, pass_at=_pass_at(counts),
        mean_tokens=sum(len(sample.token_ids) for sample in samples) / len(samples))


def _pass_at(counts: list[tuple[int, int]]) -> dict[int, float]:
    found = {}
    k = 1
    most = max((num for num, _ in counts), default=0)
    while k <= most:
        enough = [pass_at_k(num, num_right, k) for num, num_right in counts if num >= k]
        found[k] = sum(enough) / len(enough)
        k *= 2
    return found


def compare_samples(first: Sequence[Sample], second: Sequence[Sample]) -> dict[str, Paired]:
    """Compare two models per task, by the first sample of every problem that both were graded on."""
    outcomes = [{(sample.task, sample.problem): sample.verdict == "correct" for sample in samples
                 if sample.sample == 0 and sample.reward is not None} for samples in (first, second)]
    shared = [key for key in outcomes[0] if key in outcomes[1]]
    tasks = dict.fromkeys(task for task, _ in shared)
    return {task: compare([outcomes[0][key] for key in shared if key[0] == task],
                          [outcomes[1][key] for key in shared if key[0] == task]) for task in tasks}
