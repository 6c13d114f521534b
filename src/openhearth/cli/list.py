"""`hearth list`: what is in the store, and what was not finished."""

from __future__ import annotations

import typer


def command(
    json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """List the models in the store, and interrupted pulls that can be resumed."""
    from openhearth.cli.output import print_json, print_note, print_table
    from openhearth.config import Config
    from openhearth.errors import HearthError
    from openhearth.hub.catalogue import DEFAULT_MODEL
    from openhearth.hub.leftovers import leftovers
    from openhearth.hub.store import Store
    from openhearth.units import format_bytes

    store = Store(Config.from_env().home)
    models, damaged = [], []
    for name in store.names():
        try:
            model = store.find(name)
        except HearthError as error:
            damaged.append({"name": name, "reason": error.why or error.what, "hint": error.hint})
        else:
            models += [model] if model else []
    unfinished = leftovers(store)
    if json:
        print_json({
            "home": str(store.home),
            "models": [{"name": model.name, "num_bytes": model.num_bytes, "licence": model.licence,
                        "weights_sha256": model.weights_sha256, "source": model.source,
                        "path": str(model.path)} for model in models],
            "resumable": [{"name": part.name, "done_bytes": part.done_bytes, "total_bytes": part.total_bytes}
                          for part in unfinished],
            "damaged": damaged})
        return
    print_table(["NAME", "SIZE", "WEIGHTS", "LICENCE", "SOURCE"],
                [[model.name, format_bytes(model.num_bytes), model.weights_sha256[:12],
                  model.licence or "unknown", model.source] for model in models])
    for part in unfinished:
        total = f" of {format_bytes(part.total_bytes)}" if part.total_bytes is not None else ""
        print_note(f"unfinished: {part.name}, {format_bytes(part.done_bytes)}{total} are here; "
                   f"hearth pull {part.name} goes on, hearth rm --partials removes it")
    for record in damaged:
        print_note(f"damaged: {record['name']}, {record['reason']}; {record['hint']}")
    if not models and not unfinished and not damaged:
        print_note(f"no models in {store.home}\nhint: hearth pull {DEFAULT_MODEL}")
