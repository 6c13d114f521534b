"""`hearth tune` with a recipe of several stages."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openhearth.config import Config
    from openhearth.tune import Chain, Job


def tune_chain(chain: Chain, config: Config, *, is_resumed: bool, is_dry_run: bool, is_json: bool) -> None:
    """Do the stages of a chain that are not done yet, or say what each would do."""
    from openhearth import hardware, runs, tune
    from openhearth.cli.loading import fetch_model
    from openhearth.cli.output import print_note
    from openhearth.cli.tune_work import ask_teacher, print_end, refuse_existing, train
    from openhearth.cli.versions import read_versions

    run = runs.RunFolder(config.home, chain.out)
    fetch_model(chain.stages[0].settings.model, config, before_fetch=lambda: None)
    if is_dry_run:
        _show_plans(chain, tune.plan_chain(chain, config), is_json=is_json)
        return
    refuse_existing(run, is_resumed=is_resumed)
    with run.working():
        if run.is_finished:
            print_note(f"the run `{run.name}` is finished")
            print_end(run, run.receipt(), is_json=is_json)
            return
        for settings in tune.begin_chain(chain, run, config):
            stage = runs.RunFolder(config.home, settings.out)
            print_note(f"stage {stage.name}" + (" is finished" if stage.is_finished else ""))
            if stage.is_finished:
                continue
            gc.collect()  # what the stage before held
            hardware.reset_peak_memory()
            with stage.working():
                ask_teacher(settings, config, stage)
                train(tune.prepare_stage(run, settings, config), stage)
            tune.write_chain_page(run)
        print_end(run, tune.finish_chain(run, versions=read_versions()), is_json=is_json)


def _show_plans(chain: Chain, jobs: list[Job], *, is_json: bool) -> None:
    from openhearth.cli.output import print_json, use_colour
    from openhearth.cli.tune_report import plan_record, predicted_seconds, print_plan, print_samples
    from openhearth.units import format_bytes, format_seconds

    if is_json:
        print_json({"run": chain.out, "stages": [
            {"name": stage.name, "method": stage.method, **plan_record(job)}
            for stage, job in zip(chain.stages, jobs, strict=True)]})
        return
    for place, (stage, job) in enumerate(zip(chain.stages, jobs, strict=True)):
        if place:
            print(f"\n== {stage.name}, from the adapter of {chain.stages[place - 1].name}")
        else:
            print(f"== {stage.name}, from the model")
        print_plan(job, sys.stdout)
        print_samples(job, has_colour=use_colour(sys.stdout))
    peak_bytes = max(job.plan.memory.total_bytes for job in jobs)
    print(f"\n{len(jobs)} stages: {format_bytes(peak_bytes)} at the most, about "
          f"{format_seconds(sum(map(predicted_seconds, jobs)))} on an idle machine")
