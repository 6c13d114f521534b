"""Run directories: what a long job was asked for, how it went, where it can go on, what came out."""

from openhearth.runs.checkpoints import Checkpoint, Checkpoints
from openhearth.runs.folder import RunFolder, find_output, find_run, list_runs
from openhearth.runs.page import StageRecord, render_chain_page, render_page
from openhearth.runs.receipt import hash_file, hash_files

__all__ = ["Checkpoint", "Checkpoints", "RunFolder", "StageRecord", "find_output", "find_run", "hash_file",
           "hash_files", "list_runs", "render_chain_page", "render_page"]
