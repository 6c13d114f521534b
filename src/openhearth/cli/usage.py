"""`hearth usage`: what was used with each key, by model and hour."""

from __future__ import annotations

from typing import Literal

import typer

from openhearth.errors import UsageError

_COUNTS = ("requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens")


def command(
    since: str = typer.Option(None, "--since", metavar="30d|DATE", help="From this hour on (UTC)."),
    until: str = typer.Option(None, "--until", metavar="1d|DATE", help="Up to this hour."),
    key: str = typer.Option(None, "--key", metavar="NAME", help="Of one key."),
    by: Literal["total", "month", "day", "hour"] = typer.Option("total", "--by", help="One row per span."),
    csv: bool = typer.Option(False, "--csv", help="Comma-separated values on stdout."),
    json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Show requests and tokens by key and model, as servers with keys have counted them."""
    from openhearth.cli.output import print_json, print_note, print_table

    if csv and json:
        raise UsageError("--csv and --json exclude each other", hint="hearth usage --csv")
    rows = _rows(since, until, key, by)
    columns = [*([] if by == "total" else [by]), "key", "model", *_COUNTS]
    if json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    elif csv:
        _print_csv(columns, rows)
    else:
        print_table([column.upper().replace("_", " ") for column in columns],
                    [[str(cell) if cell != "" else "-" for cell in row] for row in rows])
        if not rows:
            print_note("nothing was used\nhint: hearth serve --keys counts what each key uses")


def _rows(since: str | None, until: str | None, key: str | None, by: str) -> list[list[str | int]]:
    """Return a row per span, key and model. model is "" for requests that came to none."""
    import time
    from datetime import UTC, datetime

    from openhearth.accounts import Usage, UsageStore
    from openhearth.cli.times import read_time
    from openhearth.config import Config

    now = time.time()
    begin = 0 if since is None else read_time("--since", since, now=now, sign=-1)
    end = float("inf") if until is None else read_time("--until", until, now=now, sign=-1)
    form = {"total": "", "month": "%Y-%m", "day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H:00Z"}[by]
    sums: dict[tuple[str, ...], Usage] = {}
    for place, used in UsageStore(Config.from_env().home).read(since=begin, until=end, key=key):
        span = [f"{datetime.fromtimestamp(place.hour, UTC):{form}}"] if form else []
        sums.setdefault((*span, place.key, place.model), Usage()).add(used)
    return [[*place, *(getattr(used, name) for name in _COUNTS)] for place, used in sorted(
        sums.items(), key=lambda item: item[0])]


def _print_csv(columns: list[str], rows: list[list[str | int]]) -> None:
    import csv
    import sys

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
