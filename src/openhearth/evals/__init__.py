"""What a model can do, measured: tasks asked, graded, counted and kept."""

from openhearth.evals.folder import EvalFolder, hash_settings, read_samples
from openhearth.evals.records import EvalSettings, Sample, request_seed
from openhearth.evals.running import describe, evaluate, num_problems, render_problem, resolve_sampling
from openhearth.evals.statistics import Paired, compare, pass_at_k, wilson_interval
from openhearth.evals.summary import TaskResult, compare_samples, summarise

__all__ = [
    "EvalFolder",
    "EvalSettings",
    "Paired",
    "Sample",
    "TaskResult",
    "compare",
    "compare_samples",
    "describe",
    "evaluate",
    "hash_settings",
    "num_problems",
    "pass_at_k",
    "read_samples",
    "render_problem",
    "request_seed",
    "resolve_sampling",
    "summarise",
    "wilson_interval",
]
