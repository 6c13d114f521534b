"""`hearth keys`: who may use a server, and how much."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import typer

from openhearth.errors import UsageError

if TYPE_CHECKING:
    from openhearth.accounts import Key, KeyLimits


def command(
    action: Literal["create", "list", "revoke"] = typer.Argument("list", help="What to do."),
    name: str = typer.Argument(None, metavar="[NAME]", help="The key to create or revoke."),
    role: Literal["user", "admin"] = typer.Option(
        "user", "--role", help="admin: may also see metrics, the machine, and the use of all keys."),
    requests_per_minute: int = typer.Option(None, "--requests-per-minute", metavar="N", help="Highest rate."),
    tokens_per_minute: int = typer.Option(None, "--tokens-per-minute", metavar="N",
                                          help="Highest rate, prompts and answers together."),
    tokens_per_day: int = typer.Option(None, "--tokens-per-day", metavar="N", help="Quota of a day (UTC)."),
    tokens_per_month: int = typer.Option(None, "--tokens-per-month", metavar="N",
                                         help="Quota of a month (UTC)."),
    tokens_total: int = typer.Option(None, "--tokens-total", metavar="N", help="Quota for all time."),
    expires: str = typer.Option(None, "--expires", metavar="30d|DATE", help="When the key ends."),
    json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Create, list and revoke the keys that `hearth serve --keys` takes."""
    from openhearth.accounts import KeyLimits, KeyStore
    from openhearth.config import Config

    limits = KeyLimits(requests_per_minute, tokens_per_minute, tokens_per_day, tokens_per_month, tokens_total)
    if action != "create" and (limits != KeyLimits() or expires is not None or role != "user"):
        raise UsageError(f"`hearth keys {action}` takes no limits, role or end",
                         hint="revoke a key and create it again to change it; its usage goes on")
    if (action == "list") != (name is None):
        raise UsageError(f"`hearth keys {action}` takes {'no' if action == 'list' else 'a'} name",
                         hint=f"hearth keys {action}{'' if action == 'list' else ' alice'}")
    store = KeyStore(Config.from_env().home)
    if action == "create":
        _create(store, name, role, limits, expires, is_json=json)
    elif action == "revoke":
        _revoke(store, name, is_json=json)
    else:
        _list(store.list(), is_json=json)


def _create(store: Any, name: str, role: str, limits: KeyLimits, expires: str | None, *,
            is_json: bool) -> None:
    import time

    from openhearth.cli.output import print_json, print_note
    from openhearth.cli.times import read_time, show_time

    expires_at = None if expires is None else read_time("--expires", expires, now=time.time(), sign=1)
    secret = store.create(name, role=role, limits=limits, expires_at=expires_at)
    if is_json:
        print_json({"name": name, "key": secret, "role": role, "limits": asdict(limits),
                    "expires_at": expires_at})
        return
    print(secret)
    print_note(f"the key of `{name}` ({role}{_describe(limits)}"
               f"{f', until {show_time(expires_at)} UTC' if expires_at else ''}); it is not shown again, "
               f"and only its hash is kept")


def _revoke(store: Any, name: str, *, is_json: bool) -> None:
    from openhearth.cli.output import print_json, print_note
    from openhearth.cli.times import show_time

    key = store.revoke(name)
    if is_json:
        print_json({"name": name, "revoked_at": key.revoked_at})
    else:
        print_note(f"`{name}` is revoked since {show_time(key.revoked_at)} UTC; servers end its requests "
                   f"within a second")


def _list(keys: list[Key], *, is_json: bool) -> None:
    import time

    from openhearth.cli.output import print_json, print_note, print_table
    from openhearth.cli.times import show_time

    now = time.time()
    if is_json:
        print_json([{"name": key.name, "role": key.role, "state": key.state(now),
                     "limits": asdict(key.limits), "created_at": key.created_at,
                     "expires_at": key.expires_at, "revoked_at": key.revoked_at} for key in keys])
        return
    print_table(["NAME", "ROLE", "STATE", "CREATED (UTC)", "EXPIRES", "LIMITS"],
                [[key.name, key.role, key.state(now), show_time(key.created_at), show_time(key.expires_at),
                  _describe(key.limits).removeprefix(", ")] for key in keys])
    if not keys:
        print_note("no keys\nhint: hearth keys create NAME")


def _describe(limits: KeyLimits) -> str:
    """Return the limits as `, 60 requests per minute, 1000 tokens in all`; "" for none."""
    words = {"requests_per_minute": "requests per minute", "tokens_per_minute": "tokens per minute",
             "tokens_per_day": "tokens a day", "tokens_per_month": "tokens a month",
             "tokens_total": "tokens in all"}
    return "".join(f", {value} {words[name]}" for name, value in asdict(limits).items() if value is not None)
