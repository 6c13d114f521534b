"""Finding a model on this machine, and fetching it when it is not there.

`find` looks at local paths, the store and the Hugging Face cache, in this order, and never at the
network. `pull` goes on to the sources, in order; bytes are checked against the promised hash, and the
headers read, before a model becomes visible.

Does not: transfer bytes (`transfer.py`) or know a source's protocol (`sources/`).
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

from openhearth.config import Config
from openhearth.durable import disk_errors, locked
from openhearth.errors import (
    BadFile,
    HashMismatch,
    NotEnoughDisk,
    Offline,
    UsageError,
)
from openhearth.hub import in_place
from openhearth.hub.catalogue import CatalogueEntry, load_catalogue
from openhearth.hub.hf_cache import find_snapshot
from openhearth.hub.leftovers import leftovers, part_bytes, partial_key, pulling
from openhearth.hub.manifest import Manifest, StoredFile, file_stem
from openhearth.hub.records import (
    DATA_SUFFIXES,
    Listing,
    OnProgress,
    Progress,
    Ref,
    RemoteFile,
    StoredModel,
    is_dataset,
)
from openhearth.hub.refs import format_ref, parse_ref, unknown_name
from openhearth.hub.sourcing import OnNote, first_that_works, list_from, newer_listing, sources_of, tell
from openhearth.hub.store import Store
from openhearth.units import format_bytes


def find(text: str, config: Config, *, on_progress: OnProgress | None = None) -> StoredModel | None:
    """Return a model that is on this machine, None when it would have to be fetched.

    Raises: UsageError for a malformed reference, ModelNotFound for a local path that is not there,
    BadFile (UnsafeFile) when what is there is damaged, Unsupported for a newer store's manifest.
    """
    ref = parse_ref(text)
    name = format_ref(ref)
    if ref.kind == "path":
        return in_place.describe(name, Path(ref.location), config, source=name, on_progress=on_progress)
    if stored := Store(config.home).find(name):
        return stored
    entry = load_catalogue(config).get(ref.location) if ref.kind == "name" else None
    for source in sources_of(ref, entry):
        cached = find_snapshot(source, config.hf_cache) if source.kind == "hub" else None
        if cached:
            found = in_place.describe(name, cached.path, config, revision=cached.commit,
                                      source=format_ref(replace(source, revision=cached.commit)),
                                      on_progress=on_progress)
            if entry is None or found.weights_sha256 == entry.sha256:
                return replace(found, licence=entry.licence if entry else None)
    return None


def pull(text: str, config: Config, on_progress: OnProgress | None = None, *, num_connections: int = 4,
         does_refresh: bool = False, on_note: OnNote | None = None) -> StoredModel:
    """Return a model, fetching what is missing; a damaged stored model is repaired.

    does_refresh: of a hub reference without a commit, ask the hub what it has now, and fetch that where it
    is another commit. on_note: told in one line when a source failed and the next is tried, and what a
    refresh found. Raises: what `find` raises;
    ModelNotFound, NetworkError (Offline, AccessDenied), HashMismatch or NotEnoughDisk. What arrived
    before an error or an interrupt is kept and not fetched again.
    """
    ref = parse_ref(text)
    name = format_ref(ref)
    try:
        found = find(text, config, on_progress=on_progress)
    except BadFile as error:
        if ref.kind == "path":
            raise
        found = None
        tell(on_note, f"{error.what}; fetching it again")
    store = Store(config.home)
    if found:
        if not does_refresh or newer_listing(ref, found, config, on_note) is None:
            return found
        with disk_errors(config.home):
            return _pull_alone(store, name, [ref], None, config, on_progress, num_connections, on_note,
                               stale=found.revision)
    entry = _known_entry(ref, config)
    if entry and store.blob_size(entry.sha256) == entry.size:
        return _adopt(store, entry)
    sources = sources_of(ref, entry)
    _refuse_offline(text, name, sources, config)
    with disk_errors(config.home):
        return _pull_alone(store, name, sources, entry, config, on_progress, num_connections, on_note)


def list_sources(text: str, config: Config, *, on_note: OnNote | None = None) -> Listing:
    """Return what a pull would fetch, from the first source that answers; no weights are fetched.

    Raises: as `pull`; UsageError for a local path.
    """
    ref = parse_ref(text)
    if ref.kind == "path":
        raise UsageError(f"`{text}` is a local path", why="it has no source to list",
                         hint=f"hearth show {text}")
    entry = _known_entry(ref, config)
    sources = sources_of(ref, entry)
    _refuse_offline(text, format_ref(ref), sources, config)
    return first_that_works(
        sources, lambda source, is_last: list_from(source, entry, config, is_last), on_note)


def bytes_on_disk(listing: Listing, config: Config) -> int:
    """Return how many of a listing's bytes need not be fetched."""
    store, done = Store(config.home), 0
    for remote in listing.files:
        whole = store.blob_size(remote.sha256) if remote.sha256 else None
        done += part_bytes(store.partial / partial_key(remote), remote.size) if whole is None else whole
    return done


def _pull_alone(store: Store, name: str, sources: list[Ref], entry: CatalogueEntry | None, config: Config,
                on_progress: OnProgress | None, num_connections: int, on_note: OnNote | None, *,
                stale: str | None = None) -> StoredModel:
    """Pull while no other process pulls the same name; if one does, wait and take its result.

    stale: the revision that is stored and no longer wanted.
    """

    def attempt(source: Ref, is_last: bool) -> StoredModel:
        listing = list_from(source, entry, config, is_last)
        return _pull_from(store, name, listing, entry, config, on_progress, num_connections)

    claim = store.partial / f"{file_stem(name)}.pull"
    while True:
        with locked(claim, does_wait=False) as is_mine:
            if is_mine:
                try:
                    found = _find_sound(store, name)
                    if found and (stale is None or found.revision != stale):
                        return found
                    return first_that_works(sources, attempt, on_note)
                finally:
                    claim.unlink(missing_ok=True)
        if on_progress:
            for leftover in leftovers(store):
                if leftover.name == name:
                    on_progress(Progress(name, "wait", leftover.done_bytes, leftover.total_bytes))
        time.sleep(0.2)


def _pull_from(store: Store, name: str, listing: Listing, entry: CatalogueEntry | None, config: Config,
               on_progress: OnProgress | None, num_connections: int) -> StoredModel:
    """Fetch a listing's files and make the model visible."""
    files = {remote.path: remote for remote in listing.files}
    rows = tuple(sorted(path for path in files if is_dataset(name.removeprefix("hub:"))
                        and path.lower().endswith(DATA_SUFFIXES)))
    _check_space(store, listing, config)
    with pulling(store, name, files):
        for _ in range(3):
            stored = {path: _bring(store, remote, config, on_progress, num_connections)
                      for path, remote in files.items()}
            manifest = Manifest(name=name, files=_with_suffix(store, stored), weights=(),
                                source=listing.source, pulled_at=_now(), revision=listing.revision,
                                licence=entry.licence if entry else listing.licence)
            try:
                return store.commit(manifest, (lambda path: rows) if rows else _inspect)
            except FileNotFoundError:
                continue
        raise BadFile(f"files of `{name}` keep disappearing from the store",
                      why="another process removes them", hint=f"hearth pull {name}")


def _bring(store: Store, remote: RemoteFile, config: Config, on_progress: OnProgress | None,
           num_connections: int) -> StoredFile:
    """Bring one file into the store, waiting for a process that is fetching the same bytes.

    The claim lasts longer than the lock inside `fetch`: it covers the check, the move and the clean-up too.
    """
    from openhearth.hub.transfer import fetch

    key = partial_key(remote)
    partial, claim = store.partial / key, store.partial / f"{key}.claim"
    while True:
        with locked(claim, does_wait=False) as is_mine:
            size = store.blob_size(remote.sha256) if remote.sha256 else None
            if size is not None and remote.size in {None, size}:
                return StoredFile(remote.sha256, size)
            if is_mine:
                digest = fetch(remote, partial, config=config, on_progress=on_progress,
                               num_connections=num_connections)
                size = partial.stat().st_size
                if remote.sha256 not in {None, digest} or remote.size not in {None, size}:
                    partial.unlink()
                    raise HashMismatch(f"`{remote.path}` is not the file that was promised",
                                       why=f"expected sha256 {remote.sha256}, {remote.size} bytes\n"
                                           f"got sha256 {digest}, {size} bytes\nfrom {remote.url}")
                store.add_blob(partial, digest)
                for companion in store.partial.glob(f"{key}*"):
                    companion.unlink(missing_ok=True)
                return StoredFile(digest, size)
        if on_progress:
            on_progress(Progress(remote.path, "wait", part_bytes(partial, remote.size), remote.size))
        time.sleep(0.2)


def _known_entry(ref: Ref, config: Config) -> CatalogueEntry | None:
    if ref.kind != "name":
        return None
    catalogue = load_catalogue(config)
    if ref.location not in catalogue:
        raise unknown_name(ref.location, [*catalogue, *Store(config.home).names()])
    return catalogue[ref.location]


def _adopt(store: Store, entry: CatalogueEntry) -> StoredModel:
    """Make a short name visible whose bytes are in the store already."""
    files = {entry.file: StoredFile(entry.sha256, entry.size)}
    return store.commit(Manifest(name=entry.name, files=files, weights=(), source=entry.sources[0],
                                 pulled_at=_now(), licence=entry.licence), _inspect)


def _find_sound(store: Store, name: str) -> StoredModel | None:
    try:
        return store.find(name)
    except BadFile:
        return None


def _refuse_offline(text: str, name: str, sources: list[Ref], config: Config) -> None:
    if config.is_offline:
        raise Offline(f"`{name}` is not on this machine, and HEARTH_OFFLINE is set",
                      why="it would have been fetched from\n" + "\n".join(format_ref(ref) for ref in sources),
                      hint=f"HEARTH_OFFLINE=0 hearth pull {text}")


def _check_space(store: Store, listing: Listing, config: Config) -> None:
    store.partial.mkdir(parents=True, exist_ok=True)
    missing = sum(remote.size or 0 for remote in listing.files) - bytes_on_disk(listing, config)
    free = shutil.disk_usage(store.partial).free
    if missing > free:
        raise NotEnoughDisk(f"{format_bytes(missing)} are to be fetched, {format_bytes(free)} are free",
                            why=f"on the disk of `{store.home}`; nothing was started",
                            hint="hearth rm NAME, or HEARTH_HOME=/larger/disk")


def _with_suffix(store: Store, files: dict[str, StoredFile]) -> dict[str, StoredFile]:
    """Give a single GGUF file the name ending that readers go by, when its address had none."""
    if len(files) == 1:
        (path, file), = files.items()
        with open(store.blob_path(file.sha256), "rb") as blob:
            if blob.read(4) == b"GGUF" and not path.endswith(".gguf"):
                return {f"{path}.gguf": file}
    return files


def _inspect(path: Path) -> tuple[str, ...]:
    base = path if path.is_dir() else path.parent
    return tuple(sorted(in_place.relative_name(file, base) for file in in_place.weight_files(path)))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
