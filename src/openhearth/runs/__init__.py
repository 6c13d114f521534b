"""Run directories: what a long job was asked for, how it went, where it can go on, what came out."""

from openhearth.runs.checkpoints import Checkpoint, Checkpoints
from openhearth.runs.events import writing_events
from openhearth.runs.folder import RunFolder, find_output, find_run, list_runs
from openhearth.runs.page import StageRecord, render_chain_page, render_page
from openhearth.runs.receipt import hash_file, hash_files
from openhearth.runs.rollouts import (
    SampledRollout,
    load_parquet,
    read_rollouts,
    rollout_steps,
    write_rollouts,
)

__all__ = ["Checkpoint", "Checkpoints", "RunFolder", "SampledRollout", "StageRecord", "find_output",
           "find_run", "hash_file", "hash_files", "list_runs", "load_parquet", "read_rollouts",
           "render_chain_page", "render_page", "rollout_steps", "write_rollouts", "writing_events"]
