"""What is refused before any reader sees it: pickles in every wrapping, and configs that name code.

Files are known by their first bytes; the name only matters when the bytes say nothing. Loading a
pickle runs what its author wrote, and filters around it have been bypassed again and again
(CVE-2025-32434, CVE-2026-24747, CVE-2025-1716), so there is no switch that allows it.

Does not: look for pickles hidden behind a header that a reader accepts; those bytes are never run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from openhearth.errors import BadFile, UnsafeFile, Unsupported
from openhearth.formats.mapping import FETCH_AGAIN, damaged, read_head
from openhearth.formats.quoting import quoted

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"})
WAY_OUT = ("look for a safetensors or GGUF version of this model, or convert it in a sandbox without "
           "network: load it there with torch and write it with `safetensors.torch.save_file`")

_HEAD_BYTES = 4096
_PICKLE_WITH_PROTOCOL = re.compile(rb"\x80[\x02-\x05]", re.DOTALL)
# Protocols 0 and 1 have no magic number: the usual first opcodes of a container, class or call.
_OLD_PICKLE = re.compile(rb"\(?c[\w.]+\n[\w.]+\n|\(i[\w.]+\n[\w.]+\n|\([dl]p?\d*\n|[\]})]q.", re.DOTALL)
_OBJECT_DTYPE = re.compile(rb"'descr':\s*(?:\[[^\]]*)?'[|<>=]?O")
_OTHER_MAGICS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "git lfs pull"),
    (b"<!DOCTYPE", "a web page", FETCH_AGAIN),
    (b"<!doctype", "a web page", FETCH_AGAIN),
    (b"<html", "a web page", FETCH_AGAIN),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first"),
    (b"\xfd7zXZ", "an xz archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
)
_OLD_GGML = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA"}

_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "_target_", "custom_pipelines"})
_ATTENTION_KEY_START = "_attn_implementation"
_ATTENTION_NAMES = frozenset({"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"})
"""Ways to compute the same that are in transformers itself; any other name is that of a repository."""


def sniff(path: Path) -> Literal["gguf", "safetensors"]:
    """Return the format of a weight file by its first bytes.

    Raises: ModelNotFound when there is no file; UnsafeFile for a pickle, a zip archive (what
    torch.save writes), a tar archive or an array of objects; Unsupported for formats older than
    GGUF; BadFile for anything else.
    """
    head = read_head(path, _HEAD_BYTES)
    if head[:4] == b"GGUF":
        return "gguf"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return "safetensors"
    reason = _pickle_reason(head)
    if reason is None and path.suffix.lower() in PICKLE_SUFFIXES:
        reason = f"files named *{path.suffix.lower()} are pickles, and its bytes show no other format"
    if reason is not None:
        raise UnsafeFile(f"{quoted(path)} is refused: loading it could run code", why=reason, hint=WAY_OUT)
    if head[:4] in _OLD_GGML:
        raise Unsupported(f"{quoted(path)} is a {_OLD_GGML[head[:4]]} file",
                          why="this version reads GGUF 2 and 3", hint="fetch a GGUF file of the model")
    if not head:
        raise damaged(f"{quoted(path)} is empty: 0 bytes")
    for magic, kind, hint in _OTHER_MAGICS:
        if head.startswith(magic):
            raise BadFile(f"{quoted(path)} is {kind}", why="expected a GGUF or safetensors file", hint=hint)
    raise damaged(f"{quoted(path)} is neither a GGUF nor a safetensors file", f"it starts with {head[:8]!r}")


def _pickle_reason(head: bytes) -> str | None:
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        inside = " with a pickle inside" if b".pkl" in head else ""
        return f"it is a zip archive{inside}; torch.save writes such archives around a pickle"
    if _PICKLE_WITH_PROTOCOL.match(head):
        return f"it is a pickle of protocol {head[1]}"
    if head[:6] == b"\x93NUMPY":
        if _OBJECT_DTYPE.search(head):
            return "it is a numpy array of Python objects, which are stored as a pickle"
        return "it is a numpy array file, which may hold a pickle, and no format for models"
    if head[257:262] == b"ustar":
        return "it is a tar archive; early torch.save wrote pickles in such archives"
    if _OLD_PICKLE.match(head):
        return "it is a pickle of protocol 0 or 1"
    return None


def refuse_code_keys(config: Any, path: Path) -> None:
    """Refuse a parsed JSON file that asks a library to load code: every key, at any depth.

    Keys: `auto_map`, `trust_remote_code`, `_target_`, `custom_pipelines`, `_attn_implementation*`
    (CVE-2026-22807, CVE-2026-4372). A key whose value is null, false or empty asks for nothing, nor does one
    that names an attention of transformers' own. Raises: UnsafeFile naming the key.
    """
    for key, value in _items(config):
        if key.startswith(_ATTENTION_KEY_START):
            is_code = value is not True and not (isinstance(value, str) and value in _ATTENTION_NAMES)
        else:
            is_code = key in _CODE_KEYS
        if value and is_code:
            raise _names_code(key, value, path)


def refuse_foreign_classes(auto_map: Any, path: Path, own_modules: Collection[str]) -> None:
    """Refuse an `auto_map` but for classes of own_modules, which this version has itself.

    auto_map: kind of class -> "module.Class", before which "owner/name--" may stand. Tokenizers are read
    from their own files whatever it says of them. Raises: UnsafeFile.
    """
    if not auto_map:
        return
    if not isinstance(auto_map, dict):
        raise _names_code("auto_map", auto_map, path)
    for kind, name in auto_map.items():
        is_own = isinstance(name, str) and name.rpartition("--")[2].partition(".")[0] in own_modules
        if kind != "AutoTokenizer" and not is_own:
            raise _names_code("auto_map", auto_map, path)


def _names_code(key: str, value: Any, path: Path) -> UnsafeFile:
    return UnsafeFile(f"{quoted(path)} is refused: its key {quoted(key)} names code to load",
                      why=f"its value is {quoted(value)}; no code that comes with a model is run",
                      hint="look for a version without custom code, or a GGUF file; if the architecture is a "
                           "standard one, remove the key from a copy of the file")


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    pending = [value]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            yield from current.items()
            pending.extend(current.values())
        elif isinstance(current, list):
            pending.extend(current)
