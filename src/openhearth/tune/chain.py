"""Several stages as one run, such as R1's: fine-tuning, reinforcement learning, rejection sampling, again.

    runs/<name>/config.json            the stages as asked for and as planned; before the first begins
                stages/<n>-<method>/   each stage, a run like any other, named `<name>:<n>-<method>`
                output/                the last stage's adapter
                receipt.json           every stage's receipt by hash; last

Each stage goes on from the adapter that the one before it left (`start.py`). What was derived is derived for
all stages before the first begins, and kept: a chain that was killed anywhere, also between two stages, ends
with the bytes of one that was not.

Does not: change the model, its numbers or the adapter's shape between stages; learn all weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from openhearth.config import Config
from openhearth.errors import UsageError
from openhearth.runs import RunFolder, StageRecord, hash_file, hash_files, render_chain_page
from openhearth.tune.jobs import (
    changed_settings,
    check_environment,
    describe_base,
    describe_environment,
    prepare,
    revive,
)
from openhearth.tune.methods.records import Job
from openhearth.tune.settings import METHODS, TuneSettings, build_settings, unknown_setting

SHARED = ("model", "out", "weights", "base", "dtype", "lora_rank", "lora_alpha", "is_rank_stabilised",
          "use_dora", "lora_layers", "threads")
"""Settings that all stages have in common: the model, its numbers, and the shape of the one adapter."""
_LINKED = "start_adapter"


@dataclass(frozen=True)
class Stage:
    """A stage of a chain. is_taught: it is fine-tuned on right answers of the stage before it.

    settings: as asked for. Example: ``build_chain(recipe, {}).stages[0].settings.batch_size``.
    """

    name: str
    method: str
    settings: TuneSettings
    is_taught: bool = False

    def preview(self) -> TuneSettings:
        """Return the settings with the model in place of what the stage before will leave."""
        settings = replace(self.settings, start_adapter=None)
        if self.is_taught:
            settings = replace(settings, teacher=settings.model, teacher_adapter=None)
        return settings


@dataclass(frozen=True)
class Chain:
    """Stages in order. out: the run's name. Example: ``build_chain(read_recipe(path), {}).out``."""

    out: str
    stages: tuple[Stage, ...]


def build_chain(recipe: Mapping[str, Any], flags: Mapping[str, Any]) -> Chain:
    """Return the chain of a recipe with `[[stage]]` tables.

    What stands above the first stage is for every stage that knows it; a stage's own word wins, and a flag
    over both. Raises: UsageError, as `build_settings`; for a setting of all stages inside of one.
    """
    tables = recipe["stage"]
    shared = {name: value for name, value in recipe.items() if name != "stage"}
    known = {table["method"]: {one.name for one in fields(METHODS[table["method"]])} for table in tables}
    every = sorted(set().union(*known.values()) - {_LINKED})
    for name in (*shared, *flags):
        if name not in every:
            raise unknown_setting(name, every)
    if "out" not in {**shared, **flags}:
        raise UsageError("out must be said", why="it names the run", hint='out = "r1" above the stages')
    stages: list[Stage] = []
    for number, table in enumerate(tables, start=1):
        of_method = known[table["method"]]
        values = {key: value for key, value in shared.items() if key in of_method} | _own(table, number)
        values |= {key: value for key, value in flags.items() if key in of_method}
        stages.append(_build_stage(table["method"], number, values, stages))
    return Chain(str({**shared, **flags}["out"]), tuple(stages))


def _own(table: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return what a stage's table says itself. Raises: UsageError for what is not its own to say."""
    for name in table:
        if name in SHARED:
            raise UsageError(f"`{name}` in stage {number}", why="all stages share it",
                             hint="say it above the first [[stage]]")
        if name == _LINKED:
            raise UsageError(f"`{name}` in stage {number}", why="a stage goes on from the one before it")
    return {name: value for name, value in table.items() if name != "method"}


def _build_stage(method: str, number: int, values: dict[str, Any], before: Sequence[Stage]) -> Stage:
    out, name, is_taught = values["out"], f"{number}-{method}", False
    values["out"] = f"{out}:{name}"
    if before:
        values[_LINKED] = before[-1].settings.out
        is_taught = method == "distill" and "teacher" not in values and "teacher_adapter" not in values
    if is_taught:
        values["teacher_adapter"] = values[_LINKED]
    try:
        settings = build_settings(method, values)
    except UsageError as error:
        raise UsageError(f"stage {number} ({method}): {error.what}", why=error.why,
                         hint=error.hint) from None
    if settings.weights != "lora":
        raise UsageError("a chain of all weights", why="a stage goes on from an adapter",
                         hint="--weights lora")
    return Stage(name, method, settings, is_taught)


def plan_chain(chain: Chain, config: Config) -> list[Job]:
    """Return every stage's job as it can be known before the first begins. Raises: as `prepare`."""
    return [prepare(stage.preview(), config) for stage in chain.stages]


def begin_chain(chain: Chain, run: RunFolder, config: Config) -> list[TuneSettings]:
    """Return the settings of the stages with everything decided; the caller holds the run.

    The first time the plan is written, later it is read. Raises: UsageError when the chain is another than
    the one that was begun; as `prepare`.
    """
    if not run.exists:
        run.write_config(_plan_record(chain, plan_chain(chain, config)))
        write_chain_page(run)
    record = run.config()
    begun = record.get("stages", [])
    if [stage["name"] for stage in begun] != [stage.name for stage in chain.stages]:
        raise UsageError(f"the run `{run.name}` has stages {', '.join(one['name'] for one in begun)}",
                         why=f"asked for now: {', '.join(stage.name for stage in chain.stages)}",
                         hint="choose another --out NAME")
    for stage, then in zip(chain.stages, begun, strict=True):
        if changed := changed_settings(stage.settings, revive(type(stage.settings), then["given"])):
            raise UsageError(f"stage {stage.name} of the run `{run.name}` began with another "
                             f"{', '.join(changed)}",
                             hint="resume it as it began, or choose another --out NAME")
    check_environment(run.name, record["environment"], describe_environment(chain.stages[0].settings))
    return [revive(type(stage.settings), then["settings"])
            for stage, then in zip(chain.stages, begun, strict=True)]


def prepare_stage(run: RunFolder, settings: TuneSettings, config: Config) -> Job:
    """Return the job of a stage; those before it are finished. settings: of `begin_chain`.

    Raises: UsageError where rows or tasks are not those that the chain was planned with; as `prepare`.
    """
    stage = RunFolder(config.home, settings.out)
    job = prepare(settings, config, resumed=stage.config() if stage.exists else None)
    planned = next(one for one in run.config()["stages"] if f"{run.name}:{one['name']}" == stage.name)
    if planned["data"] not in (None, job.work.data()):
        raise UsageError(f"the data of the stage `{stage.name}` changed since the chain began",
                         why=f"then {planned['data']}\nnow {job.work.data()}",
                         hint="start again under another name: --out NAME")
    return job


def finish_chain(run: RunFolder, *, versions: Mapping[str, str]) -> dict[str, Any]:
    """Make the last stage's output the chain's, and write and return the receipt; all stages are finished."""
    stages = run.stages()
    with run.writing_output() as folder:
        for path in stages[-1].output.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    receipts = [stage.receipt() for stage in stages]
    record = run.config()
    receipt = {
        "receipt": 1, "method": "chain", "settings": record["settings"], "num_steps": record["num_steps"],
        "base": {**record["base"], "files": receipts[0]["base"]["files"]},
        "code": dict(versions), "environment": record["environment"],
        "predicted": {"memory_bytes": max(one["predicted"]["memory_bytes"] for one in receipts)},
        "measured": {"peak_memory_bytes": max(one["measured"]["peak_memory_bytes"] for one in receipts),
                     "seconds": sum(one["measured"]["seconds"] for one in receipts)},
        "stages": [{"name": planned["name"], "method": planned["method"],
                    "receipt_sha256": hash_file(stage.path / "receipt.json"), "result": one["result"],
                    "predicted": one["predicted"], "measured": one["measured"], "outputs": one["outputs"]}
                   for planned, stage, one in zip(record["stages"], stages, receipts, strict=True)],
        "result": {}, "outputs": hash_files(run.output)}
    run.write_receipt(receipt)
    write_chain_page(run)
    return receipt


def write_chain_page(run: RunFolder) -> None:
    """Write the chain's page as its stages stand."""
    record = run.config()
    stages = [StageRecord(planned["name"], planned["method"], planned["num_steps"], stage.metrics(),
                          stage.is_finished)
              for planned, stage in zip(record["stages"], run.stages(), strict=True)]
    run.write("index.html", render_chain_page(run.name, record, stages, run.receipt()))


def _plan_record(chain: Chain, jobs: Sequence[Job]) -> dict[str, Any]:
    stages = [{"name": stage.name, "method": stage.method, "given": asdict(stage.settings),
               "settings": asdict(_decided(stage, job)), "reasons": job.plan.reasons,
               "num_steps": job.plan.num_steps,
               "data": None if stage.method == "distill" else job.work.data(),
               "predicted": {"memory_bytes": job.plan.memory.total_bytes}}
              for stage, job in zip(chain.stages, jobs, strict=True)]
    first = jobs[0]
    return {"method": "chain", "given": {"stages": [stage["given"] for stage in stages]},
            "settings": {name: getattr(first.plan.settings, name) for name in SHARED if name != "out"},
            "num_steps": sum(stage["num_steps"] for stage in stages), "reasons": {},
            "base": describe_base(first.opened), "stages": stages,
            "environment": describe_environment(first.plan.settings)}


def _decided(stage: Stage, job: Job) -> TuneSettings:
    """Return a stage's settings with what was derived; the number of steps follows from the data."""
    derived = {one.name: getattr(job.plan.settings, one.name) for one in fields(stage.settings)
               if getattr(stage.settings, one.name) in (None, "auto")
               and one.name not in (_LINKED, "teacher", "teacher_adapter", "steps", "threads")}
    return replace(stage.settings, **derived)
