"""From a reference to a loaded model, with what people see meanwhile on stderr.

Does not: decide where a model comes from (`hub.pull`) or how it is loaded (`local.load`).
"""

from __future__ import annotations

import gc
import importlib
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from openhearth.cli.output import print_note
from openhearth.config import Config

if TYPE_CHECKING:
    from openhearth.cli.memory import MemoryPlan
    from openhearth.formats.records import Checkpoint
    from openhearth.hub import StoredModel
    from openhearth.local import LocalModel
    from openhearth.spec import ModelSpec, WeightChoice

_QUIET_S = 2.0
_TICK_S = 0.2


@dataclass(frozen=True)
class LoadSettings:
    """How a model is to be loaded; `local.load` says what the values mean.

    Example: ``LoadSettings(dtype="float32", num_threads=2)``.
    """

    dtype: str = "auto"
    weights: str = "auto"
    context_length: int | None = None
    num_threads: int | None = None
    cache_dtype: str = "auto"
    adapter: Path | None = None
    speculate: int | None = None
    draft: StoredModel | str | None = None


def import_engine() -> None:
    """Import torch and all that runs a model, without Python's garbage collector.

    What it would look through, again and again, are objects that stay until the process ends; they are left
    out of what it looks through then and later. An exception that torch's import leaves behind keeps the
    frames that this is called from: none of them may come to hold a model.
    """
    gc.disable()
    try:
        importlib.import_module("openhearth.local")
    finally:
        gc.freeze()
        gc.enable()


def fetch_model(ref: str | None, config: Config, before_fetch: Callable[[], None]) -> StoredModel:
    """Return a model that is on disk, pulled first when it is not, with `hearth pull`'s progress.

    before_fetch: called before the network is used, to refuse bad settings before the wait.
    Raises: as `hub.pull`.
    """
    from openhearth import hub
    from openhearth.cli.progress import show_progress

    text = hub.DEFAULT_MODEL if ref is None else ref
    stored = hub.find(text, config)
    if stored is not None:
        return stored
    before_fetch()
    with show_progress() as on_progress:
        return hub.pull(text, config, on_progress)


def fetch_draft(ref: str | None, config: Config) -> StoredModel | str | None:
    """Return what `--draft` names: a model, as `fetch_model`, or the layer of the model itself."""
    from openhearth.spec import OWN_DRAFT

    return ref if ref in (None, OWN_DRAFT) else fetch_model(ref, config, lambda: None)


def load_stored(stored: StoredModel, ref: str | None, config: Config, settings: LoadSettings) -> LocalModel:
    """Load a model that is on disk; a wait of more than two seconds is shown on a terminal.

    Raises: as `local.load`.
    """
    with WaitLine(f"loading {stored.name}") as line:
        from openhearth.local import load

        return load(ref, dtype=settings.dtype, weights=settings.weights,
                    context_length=settings.context_length, num_threads=settings.num_threads,
                    cache_dtype=settings.cache_dtype, adapter=settings.adapter, speculate=settings.speculate,
                    draft=settings.draft, config=config, on_load=line.update, on_choice=_note_size)


def _note_size(weights: WeightChoice, checkpoint: Checkpoint, model: ModelSpec) -> None:
    """Say on stderr what happens where the weights do not fit into memory as they are."""
    if weights.resident_bytes is not None:
        from openhearth.cli.oversize import describe_streaming

        print_note(describe_streaming(weights, model, checkpoint))
    elif weights.is_reduced:
        from openhearth.cli.oversize import describe_quantising

        print_note(describe_quantising(weights, checkpoint))


def note_other_base(model: LocalModel) -> None:
    """Say on stderr that an adapter was trained on other weights than those it now adapts."""
    trained_on = model.adapter.base_weights_sha256 if model.adapter else ""
    if trained_on and trained_on != model.stored.weights_sha256:
        print_note(f"the adapter was trained on other weights ({trained_on[:16]}) than "
                   f"`{model.stored.name}` ({model.stored.weights_sha256[:16]})")


def predict_memory(stored: StoredModel, settings: LoadSettings, num_tokens: int) -> MemoryPlan:
    """Predict the peak memory of one answer over num_tokens of prompt and answer.

    Reads headers only. Raises: BadFile, Unsupported, UsageError.
    """
    from openhearth.cli.memory import with_draft
    from openhearth.spec import OWN_DRAFT

    drafts_itself = settings.draft == OWN_DRAFT
    plan = _predict_alone(stored, settings, settings.weights, num_tokens, drafts_itself=drafts_itself)
    if settings.draft is None or drafts_itself:
        return plan
    return with_draft(plan, _predict_alone(settings.draft, settings, "auto", num_tokens))


def _predict_alone(stored: StoredModel, settings: LoadSettings, form: str, num_tokens: int, *,
                   drafts_itself: bool = False) -> MemoryPlan:
    from openhearth import formats, spec
    from openhearth.cli.memory import plan_memory
    from openhearth.kernels import select

    checkpoint = formats.open_checkpoint(stored.path)
    model = spec.in_context(spec.read_spec(checkpoint), settings.context_length)
    if drafts_itself:
        model = spec.with_mtp(model, checkpoint)
    weights = spec.choose_weights(form, settings.dtype, checkpoint, model,
                                  has_native=select.chosen().is_native)
    return plan_memory(model, weights, min(num_tokens, settings.context_length or num_tokens),
                       settings.cache_dtype)


def print_prediction(stored: StoredModel, plan: MemoryPlan) -> None:
    """Say on stderr what a run will hold, before it is loaded."""
    from openhearth import hardware
    from openhearth.cli.memory import describe_plan

    print_note(f"{stored.name} {describe_plan(plan, hardware.read_memory().available_bytes)}")


class WaitLine:
    """A line on a terminal's stderr that appears when something takes more than two seconds.

    A thread of its own draws it, so that it also moves while a library is being imported. Nothing is
    written where stderr is no terminal.
    """

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        self.what = what
        self.stream = stream or sys.stderr
        self.share = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True)

    def update(self, done_bytes: int, total_bytes: int) -> None:
        """Take the state of loading."""
        self.share = f" {100 * done_bytes // max(1, total_bytes)}%"

    def __enter__(self) -> WaitLine:
        if self.stream.isatty():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _draw(self) -> None:
        started = time.monotonic()
        if self._done.wait(_QUIET_S):
            return
        while not self._done.is_set():
            tail = f"{self.share} ({time.monotonic() - started:.0f} s)"
            room = max(0, shutil.get_terminal_size().columns - len(tail) - 1)
            print(f"\r{self.what[:room]}{tail}", end="", file=self.stream, flush=True)
            self._done.wait(_TICK_S)
        print("\r\033[K", end="", file=self.stream, flush=True)
