"""Every file of examples/ runs, and stays short enough to be read."""

import subprocess
import sys
from pathlib import Path

from support.command import environment
from support.tuning import TASKS

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_grpo_loop_is_short_runs_and_samples_what_it_differentiates(tiny_folder, tmp_path):
    script = EXAMPLES / "grpo.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 200
    done = subprocess.run(
        [sys.executable, str(script), "--model", str(tiny_folder), "--task", f"{TASKS}:letter",
         "--steps", "12", "--learning-rate", "0.01", "--threads", "1", "--max-tokens", "8"],
        env=environment(tmp_path, HEARTH_OFFLINE="1"), text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 12 and all("ratios differ from 1 by 0," in line for line in lines)
    rewards = [float(line.split("reward ")[1].split(",")[0]) for line in lines]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.3, "it learns"
