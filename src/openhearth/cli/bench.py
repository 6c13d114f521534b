"""`hearth bench`: tokens per second of a model on this machine, beside what the machine reaches."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import typer

from openhearth.cli.output import print_fields, print_json, print_note, print_table

if TYPE_CHECKING:
    from openhearth.bench import Case, Rate, Row, StepProfile
    from openhearth.local import LocalModel

_ROUNDS = 3
_QUICK_ROUNDS = 1


def command(
    model: str = typer.Argument(None, metavar="[MODEL]", show_default=False,
                                help="As for `hearth run`; the default model when left out."),
    quick: bool = typer.Option(False, "--quick", help="Fewer tokens and rounds; numbers vary more."),
    dtype: Literal["auto", "float32", "bfloat16"] = typer.Option("auto", "--dtype",
                                                             help="As for `hearth run`."),
    weights: Literal["auto", "float32", "bfloat16", "int8", "int4"] = typer.Option(
        "auto", "--weights", help="As for `hearth run`."),
    cache: Literal["auto", "float32", "bfloat16", "int8"] = typer.Option("auto", "--cache",
                                                                        help="As for `hearth run`."),
    threads: int = typer.Option(None, "--threads", min=1, help="CPU threads. Default: every usable core."),
    profile: bool = typer.Option(False, "--profile", help="Also show where a step's time goes, by kernel."),
    json: bool = typer.Option(False, "--json", help="One JSON record on stdout."),
) -> None:
    """Measure decode, prefill and batched speed, and the memory and matrix rates behind them."""
    from openhearth.cli.loading import LoadSettings, fetch_model, load_stored
    from openhearth.config import Config

    config = Config.from_env()
    settings = LoadSettings(dtype=dtype, weights=weights, num_threads=threads, cache_dtype=cache)
    stored = fetch_model(model, config, before_fetch=lambda: None)
    loaded = load_stored(stored, model, config, settings)
    record = run_bench(loaded, is_quick=quick, is_profiled=profile)
    if json:
        print_json(record)
    else:
        _print_report(record)


def run_bench(model: LocalModel, *, is_quick: bool, is_profiled: bool = False) -> dict[str, Any]:
    """Measure the machine, then the model; returns the JSON record."""
    import torch

    from openhearth import bench, hardware
    from openhearth.cli.versions import read_versions

    progress = _ProgressLine()
    num_rounds = _QUICK_ROUNDS if is_quick else _ROUNDS
    progress.show("measuring memory and matrix rates")
    bandwidth = bench.measure_bandwidth()
    matmul = {name: bench.measure_matmul(getattr(torch, name)) for name in ("float32", "bfloat16")}
    cases = bench.list_cases(bench.weights_name(model), is_quick=is_quick)
    yardsticks = bench.Yardsticks(bandwidth.median, matmul[model.dtype].median)
    rows = list(bench.measure_rows(model, cases, yardsticks, num_rounds=num_rounds,
                                   on_round=progress.show_round))
    profiles = {}
    if is_profiled:
        progress.show("profiling steps")
        profiles = {"profile": [_profile_record(step) for step in bench.profile_steps(model, yardsticks)]}
    progress.clear()
    cpu = hardware.read_cpu()
    done = {row.case.name for row in rows}
    left_out = {case.name: f"needs a context of {case.context_tokens} tokens, the model has "
                           f"{model.spec.max_position}" for case in cases if case.name not in done}
    return {
        "rows": {row.case.name: _row_record(row) for row in rows},
        "left_out": left_out,
        **profiles,
        "machine": {"cpu": cpu.model, "features": list(cpu.feature_names), "cores": cpu.num_usable,
                    "last_cache_bytes": cpu.last_cache_bytes,
                    "memory_bytes": hardware.read_memory().total_bytes,
                    "bandwidth_bytes_per_s": _rate_record(bandwidth),
                    "matmul_flops_per_s": {name: _rate_record(rate) for name, rate in matmul.items()}},
        "settings": {"dtype": model.dtype, "weights": model.weights.form,
                     "weights_bytes": model.weights.num_bytes, "cache": model.cache_dtype,
                     "threads": torch.get_num_threads(), "is_quick": is_quick,
                     "rounds": num_rounds},
        "model": {"name": model.stored.name, "source": model.stored.source,
                  "weights": model.stored.weights_sha256, "parameters": model.spec.num_parameters},
        "versions": read_versions(),
        "peak_memory_bytes": hardware.peak_memory_bytes(),
    }


def _rate_record(rate: Rate) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(rate).items() if value is not None}


def _row_record(row: Row) -> dict[str, Any]:
    rate = _rate_record(row.tokens_per_s)
    record = {"tokens_per_s": rate.pop("median"), **rate, "sequences": row.case.num_sequences,
              "prompt_tokens": row.case.prompt_tokens, "new_tokens": row.case.new_tokens}
    return record | {"share_of_limit": round(row.share, 4),
                     "percent_of_bandwidth": round(100 * row.bandwidth_share, 2),
                     "percent_of_matmul": round(100 * row.matmul_share, 2)}


def _profile_record(step: StepProfile) -> dict[str, Any]:
    kernels = [{"kernel": kernel.name, "calls": kernel.num_calls, "seconds": round(kernel.seconds, 9),
                "share_of_step": round(kernel.seconds / step.seconds, 4), "bytes": kernel.num_bytes,
                "flops": kernel.flops, "share_of_limit": round(kernel.share_of_limit, 4)}
               for kernel in step.kernels]
    return {"work": step.work, "sequences": step.num_sequences, "context_tokens": step.context_tokens,
            "seconds": round(step.seconds, 9), "kernels": kernels}


def _print_profile(step: dict[str, Any]) -> None:
    print(f"\n{step['work']}: {step['seconds'] * 1e3:.2f} ms, {step['sequences']} sequences, "
          f"context {step['context_tokens']}")
    rows = []
    for kernel in step["kernels"]:
        seconds = kernel["seconds"]
        rates = [f"{kernel[unit] / seconds / 1e9:.1f}" if kernel[unit] and seconds else ""
                 for unit in ("bytes", "flops")]
        limit = f"{100 * kernel['share_of_limit']:.0f}%" if kernel["bytes"] else ""
        rows.append([kernel["kernel"], str(kernel["calls"]), f"{seconds * 1e3:.3f}",
                     f"{100 * kernel['share_of_step']:.0f}%", *rates, limit])
    print_table(["kernel", "calls", "ms", "of step", "GB/s", "GFLOP/s", "of limit"], rows)


def _print_report(record: dict[str, Any]) -> None:
    rows = []
    for name, row in record["rows"].items():
        percents = (100 * row["share_of_limit"], row["percent_of_bandwidth"], row["percent_of_matmul"])
        rows.append([name, f"{row['tokens_per_s']:.1f}", f"{row['low']:.1f} - {row['high']:.1f}",
                     *(f"{percent:.0f}%" for percent in percents)])
    print_table(["row", "tokens/s", "spread", "of limit", "bandwidth", "matmul"], rows)
    print()
    machine, settings, versions = record["machine"], record["settings"], record["versions"]
    print_fields({
        "model": f"{record['model']['name']}, weights {record['model']['weights'][:16]}",
        "settings": f"weights {settings['weights']}, {settings['dtype']}, cache {settings['cache']}, "
                    f"{settings['threads']} threads, "
                    f"{settings['rounds']} rounds",
        "cpu": f"{machine['cpu']}: {', '.join(machine['features'])}",
        "bandwidth": f"{machine['bandwidth_bytes_per_s']['median'] / 1e9:.1f} GB/s",
        "matmul": ", ".join(f"{name} {rate['median'] / 1e9:.0f} GFLOP/s"
                            for name, rate in machine["matmul_flops_per_s"].items()),
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
    })
    for step in record.get("profile", ()):
        _print_profile(step)
    for name, reason in record["left_out"].items():
        print_note(f"{name} was left out: {reason}")
    loads = [row["foreign_load"] for row in record["rows"].values() if "foreign_load" in row]
    if loads and max(loads) > 0.1:
        print_note(f"other programs used up to {100 * max(loads):.0f}% of the cores: numbers are too low")


class _ProgressLine:
    """What is being measured, on a terminal's stderr."""

    def show(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def show_round(self, case: Case, number: int, num_rounds: int) -> None:
        self.show(f"measuring {case.name}, round {number} of {num_rounds}")

    def clear(self) -> None:
        self.show("")
