"""What every loop shares: the steps in order, their metrics, checkpoints, and the ways a run ends.

A checkpoint holds the optimizer's state and the number of steps done; everything else follows from the
configuration. A run that was killed goes on from its newest checkpoint and does the same steps again, bit
for bit (guarantee G4).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

from openhearth.errors import BadFile, Diverged
from openhearth.models.tensor_files import read_tensors, write_tensors
from openhearth.runs import RunFolder
from openhearth.tune.optimizer import Optimizer
from openhearth.tune.schedule import Schedule

_STATE, _TENSORS = "state.json", "state.safetensors"
_EXPLODED = 3.0
"""A loss this many times that of guessing among all tokens is no longer learning."""


@dataclass(frozen=True)
class StepWork:
    """What a step computed. rows: the samples' places in the data.

    Example: ``StepWork(2.1, 512, 128, 10**12, ("a.jsonl:3",))``.
    """

    loss: float
    num_tokens: int
    num_trained: int
    flops: int
    rows: tuple[str, ...]


@dataclass(frozen=True)
class StepMetrics:
    """One line of `metrics.jsonl`. step counts from 1; mfu: share of the machine's matrix rate, 0 unknown.

    Example: ``StepMetrics(1, 2.1, 1e-4, 0.7, 512, 128, 540.0, 0.3, 0.95)``.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    trained_tokens: int
    tokens_per_s: float
    mfu: float
    seconds: float


class Loop(Protocol):
    """A method's own part."""

    optimizer: Optimizer

    def backward(self, step: int) -> StepWork:
        """Leave the gradients of a step, counted from 0, in the optimizer; return what it took."""
        ...


def train(run: RunFolder, loop: Loop, schedule: Schedule, *, vocab_size: int, checkpoint_every: int,
          matmul_flops_per_s: float, on_step: Callable[[StepMetrics], None]) -> None:
    """Do the steps of a run that are not done yet. The last one is always followed by a checkpoint.

    Raises: Diverged for a loss or gradient that is not finite, or far above that of guessing: the weights
    are those of the newest checkpoint then, and `diverged.json` names the batch. NotEnoughDisk.
    """
    first = _resume(run, loop.optimizer)
    for step in range(first, schedule.num_steps):
        started = time.perf_counter()
        work = loop.backward(step)
        norm = loop.optimizer.gradient_norm()
        if not math.isfinite(work.loss) or not math.isfinite(norm) or (
                work.loss > _EXPLODED * math.log(vocab_size)):
            raise _diverged(run, step, work, norm)
        rate = schedule.rate(step)
        loop.optimizer.step(rate, norm)
        seconds = time.perf_counter() - started
        mfu = work.flops / seconds / matmul_flops_per_s if matmul_flops_per_s else 0.0
        metrics = StepMetrics(step + 1, work.loss, rate, norm, work.num_tokens, work.num_trained,
                              work.num_tokens / seconds, mfu, seconds)
        run.append_metrics(asdict(metrics))
        on_step(metrics)
        if (step + 1) % checkpoint_every == 0 or step + 1 == schedule.num_steps:
            _save(run, loop.optimizer, step + 1)


def _save(run: RunFolder, optimizer: Optimizer, step: int) -> None:
    with run.checkpoints.writing(step) as folder:
        write_tensors(folder / _TENSORS, optimizer.state())
        (folder / _STATE).write_text(json.dumps({"step": step, "optimizer_steps": optimizer.num_steps}))


def _resume(run: RunFolder, optimizer: Optimizer) -> int:
    checkpoint = run.checkpoints.newest()
    if checkpoint is None:
        run.rewind_metrics(0)
        return 0
    state = json.loads((checkpoint.path / _STATE).read_bytes())
    tensors = read_tensors(checkpoint.path / _TENSORS)[0]
    own = optimizer.state()
    if tensors.keys() != own.keys() or any(tensors[name].shape != own[name].shape for name in own):
        raise BadFile(f"the checkpoint `{checkpoint.path}` is of other weights than this run trains",
                      hint="start again under another name: --out NAME")
    optimizer.load_state(tensors, state["optimizer_steps"])
    run.rewind_metrics(checkpoint.step)
    return checkpoint.step


def _diverged(run: RunFolder, step: int, work: StepWork, norm: float) -> Diverged:
    run.write("diverged.json", {"step": step + 1, "loss": str(work.loss), "gradient_norm": str(norm),
                                "rows": list(work.rows)})
    kept = run.checkpoints.newest()
    shown = ", ".join(work.rows[:8]) + (" ..." if len(work.rows) > 8 else "")
    last = f"the checkpoint of step {kept.step} is kept" if kept else "no checkpoint was due yet"
    return Diverged(f"loss {work.loss:.4g}, gradient norm {norm:.4g} in step {step + 1}",
                    why=f"the batch: {shown}\n{last}",
                    hint="a lower --learning-rate, or look at the rows named above")
