"""References: what a user types to name a model, parsed once and spelled one way.

`hub:owner/name[@revision][:file]` (a data set: `hub:datasets/owner/name...`), `index:dist[==version]:path`,
`https://...`, a local file or folder, a short name of the catalogue. A plain `owner/name` that is no local
path means the hub.

Does not: look into the store or reach any source.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from openhearth.errors import ModelNotFound, UsageError
from openhearth.hub.records import Ref

# Hub names: huggingface_hub's own rule (`validate_repo_id`): at most 96 characters, no "--" or "..".
_HUB = re.compile(r"(?P<location>(?:datasets/)?[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
                  r"(?:@(?P<revision>[^\s:@]+))?(?::(?P<file>.+))?", re.ASCII)
# Distribution names: PEP 508. Versions: the characters of PEP 440.
_INDEX = re.compile(r"(?P<location>[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)(?:==(?P<revision>[A-Za-z0-9.!+_-]+))?"
                    r"(?::(?P<file>.+))?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_CREDENTIALS = re.compile(r"https?://[^/?#]*@", re.IGNORECASE)
MAX_PATH_LENGTH = 1024
FORMS = ("smollm2, owner/name, hub:owner/name@revision:file, index:dist==version:path, https://..., "
         "or ./path")


def parse_ref(text: str) -> Ref:
    """Return what a reference names; an existing local path wins over other readings.

    Raises: UsageError when the text has none of the known forms.
    """
    if not text or text != text.strip() or not text.isprintable() or len(text) > 2 * MAX_PATH_LENGTH:
        raise _malformed(text, "it is empty, too long, or has blanks or control characters around it")
    if text.startswith("hub:"):
        return _parse_hub(text, text.removeprefix("hub:"))
    if text.startswith("index:"):
        return _parse_index(text)
    if text.lower().startswith(("https://", "http://")):
        if _CREDENTIALS.match(text):
            raise UsageError("the address has a user name or password in it",
                             why="references are stored and shown", hint="give the address without them")
        return Ref("https", text)
    if text.startswith(("/", "./", "../", "~")) or text in {".", ".."}:
        return _local(text)
    if _is_local(text):
        return _local(text)
    if "/" in text:
        return _parse_hub(text, text)
    if not _NAME.fullmatch(text):
        raise _malformed(text, "no local file has this name, and it is no short name")
    return Ref("name", text)


def format_ref(ref: Ref) -> str:
    """Return the one spelling of a reference; `parse_ref` reads it back as the same reference."""
    if ref.kind in {"name", "https", "path"}:
        return ref.location
    joiner = "@" if ref.kind == "hub" else "=="
    revision = f"{joiner}{ref.revision}" if ref.revision else ""
    return f"{ref.kind}:{ref.location}{revision}" + (f":{ref.file}" if ref.file else "")


def check_relative_path(path: str) -> str:
    """Return a '/'-separated path that stays inside any folder it is joined to.

    Raises: UsageError for absolute paths, `..`, backslashes, control characters, or over-long ones.
    """
    parts = path.split("/")
    if (len(path) > MAX_PATH_LENGTH or "\\" in path or not path.isprintable()
            or any(part in {"", ".", ".."} or len(part.encode()) > 255 for part in parts)):
        raise UsageError(f"`{path[:100]}` is not a relative path inside a model")
    return str(PurePosixPath(path))


def unknown_name(name: str, known: Iterable[str]) -> ModelNotFound:
    """Return the error for a short name that nobody has, naming the closest ones."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return ModelNotFound(f"`{name}` is not a model",
                         why="no file, stored model or short name is called that\n"
                             f"short names: {', '.join(known) or 'none'}",
                         hint=f"did you mean {' or '.join(f'`{match}`' for match in close)}?" if close
                         else f"a reference looks like {FORMS}")


def _parse_hub(text: str, rest: str) -> Ref:
    match = _HUB.fullmatch(rest)
    if not match:
        raise _malformed(text, "no local path has this name, and it is not hub:owner/name[@revision][:file]")
    location, revision, file = match["location"], match["revision"], match["file"]
    if len(location) > 96 or ".." in location or "--" in location or location.endswith((".", "-", ".git")):
        raise _malformed(text, f"`{location}` is not a repository name")
    if revision and (".." in revision or revision.startswith(("/", "-")) or revision.endswith("/")):
        raise _malformed(text, f"`{revision}` is not a revision")
    return Ref("hub", location, revision, _file_part(text, file) if file else None)


def _parse_index(text: str) -> Ref:
    match = _INDEX.fullmatch(text.removeprefix("index:"))
    if not match:
        raise _malformed(text, "expected index:dist==version:path, the path inside the wheel")
    if not match["file"]:
        raise _malformed(text, "the path of the file inside the wheel is missing: index:dist==version:path")
    return Ref("index", match["location"], match["revision"], _file_part(text, match["file"]))


def _file_part(text: str, file: str) -> str:
    try:
        return check_relative_path(file)
    except UsageError as error:
        raise _malformed(text, error.what) from None


def _is_local(text: str) -> bool:
    """Whether a bare word means a path here; a folder without a model does not hide a short name."""
    path = Path(text)
    try:
        if path.is_dir() and "/" not in text and _NAME.fullmatch(text):
            return any(any(path.glob(pattern)) for pattern in ("config.json", "*.gguf", "*.safetensors"))
        return path.exists()
    except OSError:
        return False


def _local(text: str) -> Ref:
    try:
        return Ref("path", str(Path(text).expanduser().absolute()))
    except RuntimeError:
        raise _malformed(text, "no such user") from None


def _malformed(text: str, reason: str) -> UsageError:
    return UsageError(f"`{text[:200]}` is not a model reference", why=reason,
                      hint=f"a reference looks like {FORMS}")
