"""`hearth tune`: adapt a model to data, from flags or a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from openhearth.errors import UsageError

if TYPE_CHECKING:
    from openhearth.tune import Job


def command(
    what: str = typer.Argument(metavar="METHOD|RECIPE",
                               help="sft, dpo, grpo, distill, or a recipe: a TOML file."),
    model: str = typer.Argument(None, metavar="[MODEL]", show_default=False, help="As for `hearth run`."),
    data: list[str] = typer.Option(None, "--data", help="JSONL, CSV or Parquet; may be repeated."),
    task: list[str] = typer.Option(None, "--task",
                                   help="As for `hearth eval`; may be repeated (grpo, distill)."),
    teacher: str = typer.Option(None, "--teacher", metavar="MODEL", help="Whom to learn from (distill)."),
    teacher_adapter: str = typer.Option(None, "--teacher-adapter", metavar="RUN|PATH",
                                        help="Adapter that the teacher takes (distill)."),
    on_policy: bool = typer.Option(None, "--on-policy", help="Learn the teacher's probabilities along the "
                                                             "student's own answers (distill)."),
    out: str = typer.Option(None, "--out", metavar="NAME", help="Name of the run."),
    eval_data: list[str] = typer.Option(None, "--eval-data", help="Its loss is measured before and after."),
    weights: Literal["lora", "full"] = typer.Option(None, "--weights", help="What learns. Default: lora."),
    base: Literal["plain", "stored", "int8", "int4"] = typer.Option(
        None, "--base", help="How the frozen weights under LoRA are held. Default: plain."),
    lora_rank: int = typer.Option(None, "--lora-rank", help="Inner size of the adapter."),
    lora_alpha: float = typer.Option(None, "--lora-alpha", help="Scale is alpha / rank."),
    rslora: bool = typer.Option(None, "--rslora", help="Scale is alpha / sqrt(rank)."),
    dora: bool = typer.Option(None, "--dora", help="Also learn the magnitudes of the layers' rows."),
    optimizer: Literal["adamw", "muon"] = typer.Option(None, "--optimizer", help="muon with full weights."),
    learning_rate: float = typer.Option(None, "--learning-rate", help="At its peak."),
    schedule: Literal["cosine", "linear", "wsd", "constant"] = typer.Option(None, "--schedule"),
    epochs: float = typer.Option(None, "--epochs", help="Passes over the data. Default: 1."),
    steps: int = typer.Option(None, "--steps", help="Instead of epochs."),
    batch_size: int = typer.Option(None, "--batch-size", help="Samples per step. Default: 8."),
    max_tokens: int = typer.Option(None, "--max-tokens", help="Longest sample or (grpo) completion."),
    loss: str = typer.Option(None, "--loss", help="Of dpo: dpo, ipo, kto, orpo. "
                                                  "Of grpo: grpo, dr_grpo, dapo, gspo, cispo."),
    beta: float = typer.Option(None, "--beta", help="Strength of the reference (dpo). Default: 0.1."),
    prompts: int = typer.Option(None, "--prompts", help="Problems of a step (grpo, distill). Default: "
                                                        "8; off-policy distill asks 256 in all."),
    group_size: int = typer.Option(None, "--group-size", help="Completions of each. Default: 8; distill 4."),
    temperature: float = typer.Option(None, "--temperature", help="Of the completions. Default: 1."),
    kl: float = typer.Option(None, "--kl", help="Weight of the divergence from the base (grpo). Default: 0."),
    updates: int = typer.Option(None, "--updates", help="Optimizer steps per rollout (grpo). Default: 1."),
    pack_tokens: int = typer.Option(None, "--pack-tokens", help="Tokens of one forward."),
    chat: bool = typer.Option(None, "--chat/--no-chat", help="Prompt and completion as a chat, or plain."),
    recompute: bool = typer.Option(None, "--recompute/--no-recompute", help="Less memory, more time."),
    dtype: Literal["auto", "float32", "bfloat16"] = typer.Option(None, "--dtype", help="Numbers to use."),
    seed: int = typer.Option(None, "--seed", help="Of the order of the samples and of fresh weights."),
    checkpoint_every: int = typer.Option(None, "--checkpoint-every", metavar="STEPS", help="Default: 50."),
    threads: int = typer.Option(None, "--threads", help="CPU threads. Default: every usable core."),
    resume: bool = typer.Option(False, "--resume", help="Go on with a run that was interrupted."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would happen, show samples, and leave."),
    json: bool = typer.Option(False, "--json", help="One JSON record on stdout."),
) -> None:
    """Adapt a model: `hearth tune sft smollm2 --data train.jsonl --out polite`, or

    `hearth tune grpo smollm2 --task chain_sum --out sums`. Recipes know more settings than there are flags.
    """
    given = {"model": model, "teacher": teacher, "teacher_adapter": teacher_adapter,
             "is_on_policy": on_policy,
             "data": data or None, "out": out, "eval_data": eval_data or None,
             "task": task or None, "base": base, "loss": loss, "beta": beta, "prompts": prompts,
             "group_size": group_size,
             "temperature": temperature, "kl": kl, "updates": updates,
             "weights": weights, "lora_rank": lora_rank, "lora_alpha": lora_alpha,
             "is_rank_stabilised": rslora, "use_dora": dora, "optimizer": optimizer,
             "learning_rate": learning_rate,
             "schedule": schedule,
             "epochs": epochs, "steps": steps, "batch_size": batch_size, "max_tokens": max_tokens,
             "pack_tokens": pack_tokens, "chat": chat, "recompute": recompute, "dtype": dtype, "seed": seed,
             "checkpoint_every": checkpoint_every, "threads": threads}
    given = {name: value for name, value in given.items() if value is not None}
    _tune(what, given, is_resumed=resume, is_dry_run=dry_run, is_json=json)


def _tune(what: str, given: dict[str, Any], *, is_resumed: bool, is_dry_run: bool, is_json: bool) -> None:
    from openhearth import runs, tune
    from openhearth.cli.loading import fetch_model
    from openhearth.cli.output import print_note
    from openhearth.cli.tune_work import ask_teacher, print_end, refuse_existing, train
    from openhearth.config import Config

    config = Config.from_env()
    if what.endswith(".toml"):
        recipe = tune.read_recipe(Path(what))
        if "stage" in recipe:
            from openhearth.cli.tune_chain import tune_chain

            tune_chain(tune.build_chain(recipe, given), config, is_resumed=is_resumed, is_dry_run=is_dry_run,
                       is_json=is_json)
            return
        what, given = recipe.pop("method"), {**recipe, **given}
    settings = tune.build_settings(what, given)
    run = runs.RunFolder(config.home, settings.out)
    if ":" in settings.out:
        raise UsageError(f"`{settings.out}` is the name of a chain's stage",
                         hint="hearth tune RECIPE.toml --resume goes on with the chain")
    fetch_model(settings.model, config, before_fetch=lambda: None)
    if is_dry_run:
        _show_plan(tune.prepare(settings, config), is_json=is_json)
        return
    refuse_existing(run, is_resumed=is_resumed)
    with run.working():
        if run.is_finished:
            print_note(f"the run `{settings.out}` is finished")
            print_end(run, run.receipt(), is_json=is_json)
            return
        ask_teacher(settings, config, run)
        job = tune.prepare(settings, config, resumed=run.config() if run.exists else None)
        print_end(run, train(job, run), is_json=is_json)


def _show_plan(job: Job, *, is_json: bool) -> None:
    from openhearth.cli.output import print_json, use_colour
    from openhearth.cli.tune_report import plan_record, print_plan, print_samples

    if is_json:
        print_json(plan_record(job))
        return
    print_plan(job, sys.stdout)
    print_samples(job, has_colour=use_colour(sys.stdout))
