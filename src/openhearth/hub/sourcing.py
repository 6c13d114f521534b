"""Asking sources what they have, in order, until one answers.

A source that is down costs seconds while others remain. What a source offers is checked against the
catalogue's hash before anything is fetched.

Does not: fetch weights.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from openhearth.config import Config
from openhearth.errors import BadFile, HashMismatch, HearthError, ModelNotFound, NetworkError, UsageError
from openhearth.hub.catalogue import CatalogueEntry
from openhearth.hub.manifest import check_no_file_is_a_folder
from openhearth.hub.records import Listing, Ref, StoredModel
from openhearth.hub.refs import check_relative_path, format_ref, parse_ref

PATIENCE_S = 5.0
"""How long a source may take to say what it has, while others remain to be tried."""

_COMMIT = re.compile(r"[0-9a-f]{40}")

OnNote = Callable[[str], None]
_Result = TypeVar("_Result")


def sources_of(ref: Ref, entry: CatalogueEntry | None) -> list[Ref]:
    """Return where a reference can be had, in the order to try; none for an unknown short name."""
    if ref.kind != "name":
        return [ref]
    return [parse_ref(source) for source in entry.sources] if entry else []


def first_that_works(sources: list[Ref], attempt: Callable[[Ref, bool], _Result],
                     on_note: OnNote | None) -> _Result:
    """Return attempt(source, is_last) of the first source that does not fail.

    Raises: a single source's own error; for several, one error that lists each with its reason.
    """
    failures: list[tuple[str, HearthError]] = []
    for i, source in enumerate(sources):
        try:
            return attempt(source, i == len(sources) - 1)
        except (NetworkError, ModelNotFound, BadFile) as error:
            if len(sources) == 1:
                raise
            failures.append((format_ref(source), error))
            if i < len(sources) - 1:
                tell(on_note, f"{format_ref(source)}: {error.what}; trying the next source")
    raise _combined(failures)


def list_from(source: Ref, entry: CatalogueEntry | None, config: Config, is_last: bool) -> Listing:
    """Ask a source what it has, checked; while others remain it has only so long to answer."""
    listing = _list_files(source, config) if is_last else _within(
        PATIENCE_S, lambda: _list_files(source, config), format_ref(source))
    try:
        for remote in listing.files:
            check_relative_path(remote.path)
        check_no_file_is_a_folder(remote.path for remote in listing.files)
    except UsageError as error:
        raise BadFile(f"`{listing.source}` offers a file that is refused", why=error.what) from None
    if not listing.files:
        raise ModelNotFound(f"`{listing.source}` has no model files")
    return _pinned(listing, entry) if entry else listing


def newer_listing(ref: Ref, found: StoredModel, config: Config, on_note: OnNote | None) -> Listing | None:
    """Return what a hub now has under a reference that names no commit, None when `found` is to be kept.

    It is kept when it is what the hub has, and offline or when the hub does not answer; on_note is told
    which commit that is.
    """
    if ref.kind != "hub" or found.revision is None or _COMMIT.fullmatch(ref.revision or ""):
        return None
    name, commit = format_ref(ref), found.revision[:12]
    if config.is_offline:
        tell(on_note, f"HEARTH_OFFLINE is set: kept {name} at commit {commit}")
        return None
    try:
        listing = list_from(ref, None, config, is_last=False)
    except HearthError as error:
        tell(on_note, f"{error.what}; kept {name} at commit {commit}")
        return None
    if listing.revision == found.revision:
        return None
    tell(on_note, f"{name} went from commit {commit} to {(listing.revision or '')[:12]}")
    return listing


def _combined(failures: list[tuple[str, HearthError]]) -> HearthError:
    """Return one error for several: their class if it is the same, every source and its reason."""
    classes = {type(error) for _, error in failures}
    if len(classes) == 1:
        kind = classes.pop()
    else:
        kind = next((kind for kind in (HashMismatch, NetworkError) if kind in classes), NetworkError)
    why = []
    for source, error in failures:
        why += [source, f"  {error.what}", *(f"    {line}" for line in error.why.splitlines())]
        why += [f"    {error.hint}"] if error.hint else []
    return kind(f"none of {len(failures)} sources gave the model", why="\n".join(why),
                hint="try again with a network, or give a local file: hearth run ./model.gguf")


def _list_files(source: Ref, config: Config) -> Listing:
    if source.kind == "hub":
        from openhearth.hub.sources.hub import list_files
    elif source.kind == "index":
        from openhearth.hub.sources.index import list_files
    else:
        from openhearth.hub.sources.https import list_files
    return list_files(source, config)


def _within(patience_s: float, task: Callable[[], Listing], label: str) -> Listing:
    """Return task() if it ends in time; a thread that does not is left to its own timeouts."""
    answers: queue.Queue = queue.Queue()

    def work() -> None:
        try:
            answers.put((task(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        listing, error = answers.get(timeout=patience_s)
    except queue.Empty:
        raise NetworkError(f"`{label}` did not answer within {patience_s:.0f} s") from None
    if error:
        raise error
    return listing


def _pinned(listing: Listing, entry: CatalogueEntry) -> Listing:
    """Return a listing bound to the catalogue's hash, whatever the source promises."""
    if len(listing.files) != 1:
        raise ModelNotFound(f"`{listing.source}` gives {len(listing.files)} files, `{entry.name}` is one")
    remote = listing.files[0]
    if remote.sha256 not in {None, entry.sha256} or remote.size not in {None, entry.size}:
        raise HashMismatch(f"`{listing.source}` offers another file than `{entry.name}`",
                           why=f"expected sha256 {entry.sha256}, {entry.size} bytes\n"
                               f"offered sha256 {remote.sha256}, {remote.size} bytes")
    pinned = replace(remote, path=entry.file, sha256=entry.sha256, size=entry.size)
    return replace(listing, files=(pinned,), licence=entry.licence or listing.licence)


def tell(on_note: OnNote | None, text: str) -> None:
    """Pass on a remark if somebody listens."""
    if on_note:
        on_note(text)
