"""Models that are used where they lie: local files and folders, snapshots of the Hugging Face cache.

Does not: copy, move or remove anything.
"""

from __future__ import annotations

from pathlib import Path

from openhearth.config import Config
from openhearth.errors import HearthError, ModelNotFound, Unsupported
from openhearth.hub.hashes import HashMemory
from openhearth.hub.manifest import weights_sha256
from openhearth.hub.records import OnProgress, StoredModel

_SIDE_SUFFIXES = {".json", ".jinja", ".model", ".txt"}
_WEIGHT_SUFFIXES = (".gguf", ".safetensors")


def describe(name: str, path: Path, config: Config, *, source: str, revision: str | None = None,
             on_progress: OnProgress | None = None) -> StoredModel:
    """Return a model that stays where it is; its files are hashed once and remembered.

    Raises: ModelNotFound when nothing is there, BadFile or UnsafeFile when it is no readable model.
    """
    try:
        if not path.exists():
            raise ModelNotFound(f"`{path}` does not exist", hint="hearth list")
        weights = weight_files(path)
        base = path if path.is_dir() else path.parent
        sides = [file for file in sorted(base.iterdir()) if path.is_dir() and file.is_file()
                 and file.suffix in _SIDE_SUFFIXES and not file.name.startswith(".")]
        files = {relative_name(file, base): file for file in [*weights, *sides]}
        memory = HashMemory(config.home / "hashes.json")
        hashes = memory.digests(files.values(), on_progress=on_progress)
        num_bytes = sum(file.stat().st_size for file in files.values())
    except OSError as error:
        if isinstance(error, HearthError):
            raise
        raise ModelNotFound(f"`{path}` cannot be read", why=f"{error.filename}: {error.strerror}") from None
    digests = {relative: hashes[file] for relative, file in files.items()}
    weight_digests = {relative_name(file, base): hashes[file] for file in weights}
    return StoredModel(name=name, path=path, source=source, files=digests,
                       weights_sha256=weights_sha256(weight_digests), num_bytes=num_bytes,
                       licence=None, revision=revision, is_in_place=True)


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the weight files of a model after its headers were checked.

    A model that is sound but that this version cannot run still has weight files.
    Raises: BadFile, UnsafeFile.
    """
    from openhearth.formats import open_checkpoint

    try:
        return open_checkpoint(path).files
    except Unsupported:
        if path.is_file():
            return (path,)
        return tuple(sorted(file for file in path.rglob("*") if file.name.endswith(_WEIGHT_SUFFIXES)))


def relative_name(file: Path, base: Path) -> str:
    """Return a file's '/'-separated path inside a model's folder."""
    return file.relative_to(base).as_posix()


