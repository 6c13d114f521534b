"""What every loop shares: the steps in order, their metrics, checkpoints, and the ways a run ends.

A checkpoint holds the optimizer's state and the number of steps done; everything else follows from the
configuration. A run that was killed goes on from its newest checkpoint and does the same steps again, bit
for bit (guarantee G4).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from openhearth.errors import BadFile, Diverged
from openhearth.models.tensor_files import read_tensors, write_tensors
from openhearth.runs import RunFolder
from openhearth.tune.optimizer import Optimizer
from openhearth.tune.schedule import Schedule

_STATE, _TENSORS = "state.json", "state.safetensors"
_EXPLODED = 3.0
"""A loss this many times that of guessing is no longer learning."""


@dataclass(frozen=True)
class StepWork:
    """What one update computed. rows: the samples' places in the data; batch: the samples as records.

    Example: ``StepWork(2.1, 512, 128, 10**12, ("a.jsonl:3",))``.
    """

    loss: float
    num_tokens: int
    num_trained: int
    flops: int
    rows: tuple[str, ...]
    batch: Sequence[Any] = ()


@dataclass(frozen=True)
class StepMetrics:
    """One line of `metrics.jsonl`. step counts from 1; tokens: of the updates' packs.

    mfu: operations that the updates needed (`memory.training_flops`) per second of them, as a share of the
    machine's matrix rate; 0 unknown. loss: mean, gradient_norm: largest of the step's updates. report: what
    the method measured besides. Example: ``StepMetrics(1, 2.1, 1e-4, 0.7, 512, 128, 540.0, 0.3, 0.95)``.
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
    report: Mapping[str, float] = field(default_factory=dict)

    @property
    def update_seconds(self) -> float:
        """Seconds without those in which completions were drawn."""
        return self.seconds - self.report.get("rollout_seconds", 0.0)

    def record(self) -> dict[str, float]:
        """Return all of it as one flat record, as `metrics.jsonl` has it."""
        record = asdict(self)
        return record | record.pop("report")


class Loop(Protocol):
    """A method's own part. guess_loss: that of knowing nothing; a multiple of it is no longer learning."""

    optimizer: Optimizer
    guess_loss: float

    def updates(self, step: int) -> Iterator[StepWork]:
        """Do a step, counted from 0: yield whenever the optimizer holds the gradients of one update."""
        ...

    def report(self) -> dict[str, float]:
        """Return what the last step measured besides, by name."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs besides weights and optimizer, as JSON values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        ...


def train(run: RunFolder, loop: Loop, schedule: Schedule, *, checkpoint_every: int,
          matmul_flops_per_s: float, on_step: Callable[[StepMetrics], None]) -> None:
    """Do the steps of a run that are not done yet. The last one is always followed by a checkpoint.

    Raises: Diverged for a loss or gradient that is not finite, or far above that of guessing: the weights
    are those of the newest checkpoint then, `diverged.json` names the batch and `diverged.jsonl` holds it.
    NotEnoughDisk.
    """
    first = _resume(run, loop)
    for step in range(first, schedule.num_steps):
        started = time.perf_counter()
        rate, works, norms = schedule.rate(step), [], []
        for work in loop.updates(step):
            norm = loop.optimizer.gradient_norm()
            if not math.isfinite(work.loss) or not math.isfinite(norm) or (
                    work.loss > _EXPLODED * loop.guess_loss):
                raise _diverged(run, step, work, norm)
            loop.optimizer.step(rate, norm)
            works.append(work)
            norms.append(norm)
        metrics = _metrics(step, rate, works, norms, time.perf_counter() - started, matmul_flops_per_s,
                           loop.report())
        run.append_metrics(metrics.record())
        on_step(metrics)
        if (step + 1) % checkpoint_every == 0 or step + 1 == schedule.num_steps:
            _save(run, loop, step + 1)


def _metrics(step: int, rate: float, works: Sequence[StepWork], norms: Sequence[float], seconds: float,
             matmul_flops_per_s: float, report: Mapping[str, float]) -> StepMetrics:
    num_tokens = sum(work.num_tokens for work in works)
    flops = sum(work.flops for work in works)
    metrics = StepMetrics(
        step + 1, sum(work.loss for work in works) / max(1, len(works)), rate, max(norms, default=0.0),
        num_tokens, sum(work.num_trained for work in works), num_tokens / seconds, 0.0, seconds, report)
    if not matmul_flops_per_s:
        return metrics
    return replace(metrics, mfu=flops / metrics.update_seconds / matmul_flops_per_s)


def _save(run: RunFolder, loop: Loop, step: int) -> None:
    with run.checkpoints.writing(step) as folder:
        write_tensors(folder / _TENSORS, loop.optimizer.state())
        (folder / _STATE).write_text(json.dumps({
            "step": step, "optimizer_steps": loop.optimizer.num_steps, "loop": loop.state()}))


def _resume(run: RunFolder, loop: Loop) -> int:
    checkpoint = run.checkpoints.newest()
    if checkpoint is None:
        run.rewind_metrics(0)
        return 0
    state = json.loads((checkpoint.path / _STATE).read_bytes())
    tensors = read_tensors(checkpoint.path / _TENSORS)[0]
    own = loop.optimizer.state()
    if tensors.keys() != own.keys() or any(tensors[name].shape != own[name].shape for name in own):
        raise BadFile(f"the checkpoint `{checkpoint.path}` is of other weights than this run trains",
                      hint="start again under another name: --out NAME")
    loop.optimizer.load_state(tensors, state["optimizer_steps"])
    loop.load_state(state["loop"])
    run.rewind_metrics(checkpoint.step)
    return checkpoint.step


def _diverged(run: RunFolder, step: int, work: StepWork, norm: float) -> Diverged:
    run.write("diverged.json", {"step": step + 1, "loss": str(work.loss), "gradient_norm": str(norm),
                                "rows": list(work.rows)})
    run.write_rows("diverged.jsonl", [asdict(sample) for sample in work.batch])
    kept = run.checkpoints.newest()
    shown = ", ".join(work.rows[:8]) + (" ..." if len(work.rows) > 8 else "")
    last = f"the checkpoint of step {kept.step} is kept" if kept else "no checkpoint was due yet"
    return Diverged(f"loss {work.loss:.4g}, gradient norm {norm:.4g} in step {step + 1}",
                    why=f"the batch: {shown}\n{last}",
                    hint="a lower --learning-rate, or look at the rows named above")
