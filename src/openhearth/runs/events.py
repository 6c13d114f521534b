"""A run's metrics in TensorBoard's format: `tensorboard --logdir <home>/runs` draws them beside each other.

Written where tensorboardX is installed, which comes with the `tune` extra; `metrics.jsonl` has the same
numbers either way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from openhearth.runs.folder import RunFolder


@contextlib.contextmanager
def writing_events(run: RunFolder, first_step: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give a function that takes the metrics of a step: a record with `step` and numbers.

    first_step: of what follows, from 1; what a killed run wrote beyond it is hidden.
    """
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        yield lambda record: None
        return
    writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=first_step, flush_secs=10,
                           filename_suffix=f".{first_step}")

    def add(record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                writer.add_scalar(name, value, record["step"])

    try:
        yield add
    finally:
        writer.close()
