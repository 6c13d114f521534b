"""Names of files that a source offers, checked before they become paths on this machine."""

from __future__ import annotations

from pathlib import PurePosixPath

from openhearth.errors import BadFile, UnsafeFile

_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill"})
_MAX_PATH_BYTES = 1024
_MAX_NAME_BYTES = 200


def check_path(path: str, source: str) -> str:
    """Return a relative '/'-separated path unchanged when it is safe to create below a folder.

    Raises: BadFile for an absolute path, an empty, `.` or `..` part, a backslash, a character that does
    not print, or a name that is too long. source: who said so, for the message.
    """
    reason = _reason_against(path)
    if reason:
        raise BadFile(f"{source} offers a file named {path[:200]!a}", why=f"refused: {reason}")
    return path


def is_pickle(path: str) -> bool:
    """Return whether a file's name says that it is a pickle."""
    return PurePosixPath(path).suffix.lower() in _PICKLES


def refuse_pickle(path: str) -> str:
    """Return path unchanged. Raises: UnsafeFile when it names a pickle, which can run code when read."""
    if is_pickle(path):
        raise UnsafeFile(f"`{path}` is a pickle and is not fetched", why="reading a pickle can run any code",
                         hint="ask for a .safetensors or .gguf file of the same model")
    return path


def _reason_against(path: str) -> str:
    if not path or path.startswith("/"):
        return "expected a relative path"
    if "\\" in path or not path.isprintable():
        return "a backslash or a character that does not print"
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "not valid Unicode"
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return "an empty, `.` or `..` part"
    if len(encoded) > _MAX_PATH_BYTES or any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        return f"longer than {_MAX_PATH_BYTES} bytes, or a part longer than {_MAX_NAME_BYTES}"
    return ""
