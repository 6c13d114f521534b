"""`hearth conform`: does a server speak its dialects, and the exchange where it does not."""

from __future__ import annotations

import contextlib
import json as json_format
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from openhearth.cli.output import print_json, print_note
from openhearth.config import Config
from openhearth.errors import UsageError

if TYPE_CHECKING:
    from openhearth.conform import Exchange, Result

_MARKS = {"ok": "ok     ", "broken": "BROKEN ", "not served": "--     "}


def command(
    url: str = typer.Argument(metavar="URL", help="Of the server: http://127.0.0.1:8000"),
    dialect: list[str] = typer.Option(None, "--dialect", help="openai, anthropic, ollama or tokenize; may be "
                                                              "repeated. Default: all."),
    model: str = typer.Option(None, "--model", help="Default: the first that the server lists."),
    key: str = typer.Option(None, "--key", help="The API key to send; never shown."),
    timeout: float = typer.Option(120.0, "--timeout", min=1, help="Seconds to wait for an answer."),
    json: bool = typer.Option(False, "--json", help="One JSON record on stdout."),
) -> None:
    """Check what a server sends against its dialects; exit code 1 when something is broken."""
    from openhearth import conform

    if key is not None and (not key.isascii() or not key.isprintable()):
        raise UsageError("the key has characters that no header can hold", hint="--key KEY")
    results = []
    for result in conform.conform(url, dialects=dialect or tuple(conform.DIALECTS), model=model, key=key,
                                  timeout_s=timeout, is_offline=Config.from_env().is_offline):
        results.append(result)
        if not json:
            _print(result, is_first=result.dialect not in [one.dialect for one in results[:-1]])
    counts = Counter(result.outcome for result in results)
    if json:
        print_json({"url": url, "counts": dict(counts), "results": [asdict(result) for result in results]})
    else:
        print_note(", ".join(f"{counts[outcome]} {outcome}" for outcome in _MARKS))
    if counts["broken"]:
        raise typer.Exit(1)


def _print(result: Result, *, is_first: bool) -> None:
    if is_first:
        print(f"{result.dialect}")
    print(f"  {_MARKS[result.outcome]}{result.check}", flush=True)
    if result.reason:
        print(f"         {result.reason}")
    for exchange in result.exchanges:
        for line in _describe(exchange).splitlines():
            print(f"         | {line}")


def _describe(exchange: Exchange) -> str:
    """Return a request and its answer, as people read them on the wire."""
    def headers(values: dict[str, str]) -> str:
        return "\n".join(f"{name}: {value}" for name, value in values.items())

    request = f"{exchange.request}\n{headers(exchange.request_headers)}\n\n{_readable(exchange.request_body)}"
    return f"{request}\n\n{exchange.status}\n{headers(exchange.headers)}\n\n{_readable(exchange.body)}"


def _readable(body: str) -> str:
    """Return a short JSON document indented, anything else as it is; control characters escaped."""
    with contextlib.suppress(ValueError):
        body = json_format.dumps(json_format.loads(body), indent=1, ensure_ascii=False)
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in body)
