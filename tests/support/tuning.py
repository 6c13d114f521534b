"""Data files and tiny jobs for tests of tuning."""

import json
from dataclasses import replace
from pathlib import Path

from openhearth.config import Config
from openhearth.runs import RunFolder
from openhearth.tune import GrpoSettings, SftSettings, prepare, run_job

TASKS = Path(__file__).with_name("reward_task.py")
COLOURS = ("red", "green", "blue")


def write_jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def colour_rows(count: int = 24):
    """Prompts with one right answer each; lengths differ."""
    return [{"prompt": " ".join([f"item {number}"] * (1 + number % 4)), "completion": COLOURS[number % 3]}
            for number in range(count)]


def config_of(home: Path) -> Config:
    return Config.from_env({"HEARTH_HOME": str(home), "HOME": str(home), "HEARTH_OFFLINE": "1"})


def settings_of(folder: Path, data: Path, **settings) -> SftSettings:
    """Settings for the tiny model: small packs, so that a step adds up several."""
    defaults = SftSettings(str(folder), (str(data),), "run", batch_size=4, pack_tokens=64, steps=6,
                           lora_rank=4, learning_rate=5e-3, dtype="float32", threads=2, checkpoint_every=2)
    return replace(defaults, **settings)


def grpo_settings_of(folder: Path, task: str = "letter", **settings) -> GrpoSettings:
    """Settings for the tiny model: few short completions, several packs."""
    defaults = GrpoSettings(str(folder), (f"{TASKS}:{task}",), "run", prompts=4, group_size=6,
                            pack_tokens=256, steps=3, lora_rank=4, learning_rate=5e-3, threads=2,
                            checkpoint_every=2)
    return replace(defaults, **settings)


def train_alone(home: Path, settings: SftSettings | GrpoSettings):
    """Do a run in this process; returns its folder."""
    config = config_of(home)
    run = RunFolder(config.home, settings.out)
    with run.working():
        resumed = run.config() if run.exists else None
        run_job(prepare(settings, config, resumed=resumed), run, versions={})
    return run
