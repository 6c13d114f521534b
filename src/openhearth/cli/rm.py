"""`hearth rm`: remove models from the store, after asking."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from openhearth.errors import HearthError, ModelNotFound, UsageError

if TYPE_CHECKING:
    from openhearth.config import Config
    from openhearth.hub.store import Store


def command(
    names: list[str] = typer.Argument(None, metavar="NAME...", help="Names as `hearth list` shows them."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be removed; remove nothing."),
    partials: bool = typer.Option(False, "--partials", help="Remove what interrupted pulls left behind."),
    json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Remove models from the store. Files that are used in place are never touched."""
    from openhearth.cli.output import confirm, print_json, print_note
    from openhearth.config import Config
    from openhearth.hub.leftovers import remove_leftovers, unused_bytes
    from openhearth.hub.store import Store
    from openhearth.units import format_bytes

    config = Config.from_env()
    store = Store(config.home)
    if not names and not partials:
        raise UsageError("nothing to remove", why="expected names, or --partials", hint="hearth list")
    chosen = [_stored_name(store, text, config) for text in names or []]
    freed = store.remove(chosen, is_dry_run=True).num_bytes + (unused_bytes(store) if partials else 0)
    parts = [f"`{name}`" for name in dict.fromkeys(chosen)] + (["unfinished pulls"] if partials else [])
    if not dry_run:
        if not confirm(f"remove {', '.join(parts)} ({format_bytes(freed)})?", is_yes=yes):
            flags = ["--partials", "--yes"] if partials else ["--yes"]
            raise UsageError("nothing was removed", why="the question was not answered with yes",
                             hint=f"hearth rm {' '.join([*chosen, *flags])}")
        freed = remove_leftovers(store) if partials else 0  # may refuse, so it goes first
        freed += store.remove(chosen).num_bytes
    if json:
        print_json({"names": list(dict.fromkeys(chosen)), "partials": partials, "freed_bytes": freed,
                    "is_dry_run": dry_run})
    else:
        print_note(f"{'would remove' if dry_run else 'removed'} {', '.join(parts)}: {format_bytes(freed)} "
                   f"{'would come' if dry_run else 'came'} free")


def _stored_name(store: Store, text: str, config: Config) -> str:
    """Return the store's name for what the user typed.

    Raises: UsageError for a model that is used in place, ModelNotFound when the store has no such name.
    """
    from openhearth.hub import find, format_ref, parse_ref

    stored = store.names()
    if text in stored:
        return text
    name = format_ref(parse_ref(text))
    if name in stored:
        return name
    try:
        found = find(text, config)
    except HearthError:
        found = None
    if found:
        raise UsageError(f"`{text}` is not in the store, it is used in place", why=str(found.path),
                         hint="delete the file or folder yourself if it is not needed elsewhere")
    raise ModelNotFound(f"`{text}` is not in the store",
                        why=f"it has {', '.join(stored) or 'no models'}", hint="hearth list")
