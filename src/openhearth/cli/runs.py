"""`hearth runs`: what was tuned, how it went, and how runs compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import typer

from openhearth.errors import UsageError

if TYPE_CHECKING:
    from openhearth.runs import RunFolder


def command(
    action: Literal["list", "show", "compare"] = typer.Argument("list", help="What to do."),
    names: list[str] = typer.Argument(None, metavar="[NAME]...", help="One run to show, several to compare."),
    json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """List runs of `hearth tune`, show one, or compare several."""
    from openhearth import runs
    from openhearth.cli.output import print_json
    from openhearth.config import Config

    home, names = Config.from_env().home, names or []
    if action == "list" and names:
        raise UsageError("`hearth runs list` takes no names", hint=f"hearth runs show {names[0]}")
    if action == "show" and len(names) != 1:
        raise UsageError(f"`hearth runs show` got {len(names)} names, expected one", hint="hearth runs list")
    if action == "compare" and len(names) < 2:
        raise UsageError("`hearth runs compare` needs two names or more", hint="hearth runs list")
    found = runs.list_runs(home) if action == "list" else [runs.find_run(home, name) for name in names]
    records = [_summary(run) for run in found]
    if json:
        print_json(records[0] if action == "show" else records)
    elif action == "list":
        _print_list(records, home)
    elif action == "show":
        _print_run(found[0], records[0])
    else:
        _print_comparison(records)


def _summary(run: RunFolder) -> dict[str, Any]:
    config, metrics = run.config(), run.metrics()
    stages = [_stage_summary(stage, planned) for stage, planned in
              zip(run.stages(), config.get("stages", ()), strict=True)]
    if stages:
        metrics = [row for stage in run.stages() for row in stage.metrics()]
    last = metrics[-1] if metrics else {}
    return {"name": run.name, "path": str(run.path), "method": config["method"],
            "base": config["base"]["name"], "is_finished": run.is_finished,
            "steps": len(metrics), "num_steps": config["num_steps"],
            "first_loss": metrics[0]["loss"] if metrics else None, "last_loss": last.get("loss"),
            "first_reward": metrics[0].get("reward") if metrics else None, "last_reward": last.get("reward"),
            "seconds": sum(row["seconds"] for row in metrics),
            "tokens": sum(row["tokens"] for row in metrics),
            "settings": config["settings"], "receipt": run.receipt(), "stages": stages}


def _stage_summary(stage: RunFolder, planned: dict[str, Any]) -> dict[str, Any]:
    if stage.exists:
        return _summary(stage)
    return {"name": stage.name, "method": planned["method"], "is_finished": False, "steps": 0,
            "num_steps": planned["num_steps"], "last_loss": None, "last_reward": None, "seconds": 0.0}


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _last(record: dict[str, Any]) -> str:
    """The number that a run is about: of reinforcement learning, the reward."""
    reward = record["last_reward"]
    return f"loss {_loss(record['last_loss'])}" if reward is None else f"reward {reward:.3f}"


def _print_list(records: list[dict[str, Any]], home: object) -> None:
    from openhearth.cli.output import print_note, print_table
    from openhearth.units import format_seconds

    print_table(["NAME", "METHOD", "BASE", "STEPS", "LAST", "TIME", "STATE"],
                [[record["name"], record["method"], record["base"],
                  f"{record['steps']}/{record['num_steps']}", _last(record),
                  format_seconds(record["seconds"]), "finished" if record["is_finished"] else "not finished"]
                 for record in records])
    if not records:
        print_note(f"no runs in {home}\nhint: hearth tune sft MODEL --data FILE --out NAME")


def _print_run(run: RunFolder, record: dict[str, Any]) -> None:
    from openhearth.cli.output import print_fields
    from openhearth.units import format_count, format_seconds

    receipt = record["receipt"] or {}
    held_out = receipt.get("result", {}).get("held_out_loss")
    reasons = run.config()["reasons"]
    print_fields({
        "run": record["name"], "method": record["method"], "base": record["base"],
        "steps": f"{record['steps']} of {record['num_steps']}",
        "loss": "" if record["stages"] else f"{_loss(record['first_loss'])} -> {_loss(record['last_loss'])}",
        "reward": "" if record["first_reward"] is None or record["last_reward"] is None
                  else f"{record['first_reward']:.3f} -> {record['last_reward']:.3f}",
        "held out": f"{held_out['before']:.4f} -> {held_out['after']:.4f}" if held_out else "",
        "tokens": format_count(record["tokens"]), "time": format_seconds(record["seconds"]),
        "stages": "\n".join(_stage_line(stage) for stage in record["stages"]),
        "settings": "\n".join(f"{name} {value}" + (f" ({reasons[name]})" if name in reasons else "")
                              for name, value in record["settings"].items()),
        "outputs": "\n".join(f"{digest[:16]}  {path}" for path, digest in receipt.get("outputs", {}).items()),
        "page": str(run.path / "index.html")})


def _stage_line(stage: dict[str, Any]) -> str:
    from openhearth.units import format_seconds

    state = "finished" if stage["is_finished"] else "not finished"
    if not stage["steps"]:
        return f"{stage['name']}  0/{stage['num_steps']}  not begun"
    return (f"{stage['name']}  {stage['steps']}/{stage['num_steps']}  {_last(stage)}  "
            f"{format_seconds(stage['seconds'])}  {state}")


def _print_comparison(records: list[dict[str, Any]]) -> None:
    """Print what differs: a line per setting that is not the same in all runs, then the results."""
    from openhearth.cli.output import print_table
    from openhearth.units import format_seconds

    settings = [record["settings"] for record in records]
    differing = [name for name in settings[0] if len({str(one.get(name)) for one in settings}) > 1]
    rows = [[name, *(str(one.get(name)) for one in settings)] for name in differing if name != "out"]
    rows += [["steps", *(f"{record['steps']}/{record['num_steps']}" for record in records)],
             ["first loss", *(_loss(record["first_loss"]) for record in records)],
             ["last loss", *(_loss(record["last_loss"]) for record in records)],
             ["time", *(format_seconds(record["seconds"]) for record in records)]]
    print_table(["", *(record["name"] for record in records)], rows)
