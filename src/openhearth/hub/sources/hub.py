"""A repository on any Hugging Face compatible hub: `hub:owner/name[@revision][:file or glob]`.

A data set is `hub:datasets/owner/name`, fetched in the same way.

Source of the wire format: the Hub's HTTP API as huggingface_hub 2.4.0 speaks it (model info, tree with
`Link` pages, resolve, `X-Error-Code`). The revision is resolved to a commit first, and every address names
that commit, so a branch that moves during a download mixes nothing.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from openhearth.config import Config
from openhearth.errors import BadFile, ModelNotFound, NetworkError, Offline, UnsafeFile, UsageError
from openhearth.hub.http import Client, error_of, etag_of, join, origin, redact
from openhearth.hub.paths import check_path, is_pickle, refuse_pickle
from openhearth.hub.records import DATA_SUFFIXES, Listing, Ref, RemoteFile, is_dataset
from openhearth.units import format_bytes

_MAX_PAGE_BYTES = 32 << 20
_MAX_PAGES = 500
_REPO = re.compile(r"(datasets/(?=[^/]+/))?[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
                   r"(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMPANIONS = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template|"
    r"params|tekken|adapter_config)\.json|tokenizer\.model(\.v\d+)?|vocab\.txt|merges\.txt|chat_template\.jinja|"
    r"additional_chat_templates/[^/]+\.jinja|[^/]*\.safetensors\.index\.json")
_PAPERS = re.compile(r"(?i)(licen[cs]e|notice|copying|use_policy|acceptable_use)[^/]*|readme\.md")
_MODEL_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)


@dataclass(frozen=True)
class _Entry:
    path: str
    size: int | None
    sha256: str | None
    git_sha1: str | None


def list_files(ref: Ref, config: Config) -> Listing:
    """Return the files of a model that are needed to run it, or those that `:file` names.

    Safetensors are taken before GGUF; several GGUF files need a `:file`. The token goes to the endpoint's
    origin only. Raises: UsageError, Offline, ModelNotFound, AccessDenied, NetworkError, UnsafeFile, BadFile.
    """
    if not _REPO.fullmatch(ref.location) or ".." in ref.location:
        raise UsageError(f"`{ref.location}` is no repository name", why="expected owner/name",
                         hint="hearth pull hub:owner/name")
    if config.is_offline:
        raise Offline(f"HEARTH_OFFLINE is set and `hub:{ref.location}` would have been looked up at "
                      f"{redact(config.hf_endpoint)}",
                      hint="HEARTH_OFFLINE=0, or use a model that `hearth list` shows")
    client = Client(config)
    headers = {"Authorization": f"Bearer {config.hf_token}"} if config.hf_token else {}
    try:
        repo = _Repo(client, config.hf_endpoint, ref.location, headers)
        commit, card = repo.resolve(ref.revision)
        entries = repo.tree(commit)
        choose = _named if ref.file else _rows if is_dataset(ref.location) else _needed
        chosen = choose(entries, ref)
        files = tuple(repo.remote_file(commit, entry) for entry in chosen)
    finally:
        client.close()
    suffix = f":{ref.file}" if ref.file else ""
    return Listing(source=f"hub:{ref.location}@{commit}{suffix}", files=files, revision=commit,
                   licence=_licence(card))


class _Repo:
    """One repository at one endpoint."""

    def __init__(self, client: Client, endpoint: str, name: str, headers: dict[str, str]) -> None:
        self._client = client
        self._endpoint = endpoint
        self._api = name if is_dataset(name) else f"models/{name}"
        self._name = name
        self._headers = headers

    def resolve(self, revision: str | None) -> tuple[str, dict[str, Any]]:
        """Return the commit that a branch, tag or commit means, and the repository's description."""
        url = f"{self._endpoint}/api/{self._api}/revision/{quote(revision or 'main', safe='')}"
        what = f"`hub:{self._name}@{revision}`" if revision else f"`hub:{self._name}`"
        page, _ = self._read_json(url, what)
        commit = page.get("sha") if isinstance(page, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise NetworkError(f"{redact(url)} does not answer like a model hub",
                               why="no commit in its answer", hint="check HF_ENDPOINT")
        return commit, page

    def tree(self, commit: str) -> list[_Entry]:
        """Return every file of a commit, sorted by path, following the pages."""
        url: str | None = (f"{self._endpoint}/api/{self._api}/tree/{commit}?"
                           + urlencode({"recursive": "true", "expand": "false"}))
        entries: dict[str, _Entry] = {}
        for _ in range(_MAX_PAGES):
            page, link = self._read_json(url, f"`hub:{self._name}`")
            try:
                for item in page:
                    if item["type"] == "file":
                        entries[item["path"]] = _entry(item, self._name)
            except (KeyError, TypeError, AttributeError):
                raise NetworkError(f"{redact(url)} does not answer like a model hub") from None
            url = self._next_page(url, link)
            if url is None:
                return [entries[path] for path in sorted(entries)]
        raise NetworkError(f"`hub:{self._name}` lists more than {_MAX_PAGES} pages of files")

    def remote_file(self, commit: str, entry: _Entry) -> RemoteFile:
        """Return where to get a file; asks with HEAD where the tree did not say what its bytes are."""
        url = f"{self._endpoint}/{self._name}/resolve/{commit}/{quote(entry.path)}"
        size, sha256, git_sha1 = entry.size, entry.sha256, entry.git_sha1
        if size is None or not (sha256 or git_sha1):
            size, sha256, git_sha1 = self._head(url, f"`{entry.path}` of `hub:{self._name}`")
        return RemoteFile(entry.path, url, size=size, sha256=sha256, git_sha1=git_sha1, headers=self._headers)

    def _head(self, url: str, what: str) -> tuple[int | None, str | None, str | None]:
        """Return (size, sha256, git blob id) from the headers of `resolve`; `X-Linked-*` win over others."""
        answer = self._client.open(url, method="HEAD", headers=self._headers, is_following=False)
        answer.close()
        if answer.status >= 400:
            raise error_of(answer, what)
        is_there = 200 <= answer.status < 300
        etag = (answer.headers.get("X-Linked-Etag") or (etag_of(answer) if is_there else "") or "")
        etag = etag.removeprefix("W/").strip('"')
        own_size = answer.headers.get("Content-Length", "") if is_there else ""
        size = answer.headers.get("X-Linked-Size") or own_size
        return (int(size) if re.fullmatch(r"\d{1,19}", size) else None,
                etag if _SHA256.fullmatch(etag) else None, etag if _COMMIT.fullmatch(etag) else None)

    def _read_json(self, url: str, what: str) -> tuple[Any, str]:
        answer, body = self._client.read(url, headers=self._headers, max_bytes=_MAX_PAGE_BYTES)
        if answer.status != 200:
            raise error_of(answer, what)
        try:
            return json.loads(body), answer.headers.get("Link", "")
        except (ValueError, RecursionError):
            raise NetworkError(f"{redact(url)} does not answer with JSON", hint="check HF_ENDPOINT") from None

    def _next_page(self, url: str, link: str) -> str | None:
        """Return the address of the next page. Raises: NetworkError when it leaves the endpoint."""
        match = re.search(r'<([^<>]*)>\s*;\s*rel="?next"?', link)
        if match is None:
            return None
        target = join(url, match[1])
        if origin(target) != origin(self._endpoint) or not urlsplit(target).path.startswith(
                urlsplit(self._endpoint).path):
            raise NetworkError(f"`hub:{self._name}`: the next page of files is not on the endpoint",
                               why=f"{redact(target)} is not below {redact(self._endpoint)}")
        return target


def _entry(item: dict[str, Any], name: str) -> _Entry:
    """Return one file of a tree page. A file in LFS has a sha256; the id of any other is its git blob's."""
    path = check_path(str(item["path"]), f"`hub:{name}`")
    size, lfs, oid = item.get("size"), item.get("lfs") or {}, item.get("oid")
    sha256 = str(lfs.get("oid") or lfs.get("sha256") or "").removeprefix("sha256:").lower()
    if sha256 and not _SHA256.fullmatch(sha256):
        raise BadFile(f"`hub:{name}` promises `{path}` with a malformed sha256", why=repr(sha256[:80]))
    size = lfs.get("size", size)
    return _Entry(path, size if isinstance(size, int) and size >= 0 else None, sha256 or None,
                  oid if not lfs and isinstance(oid, str) and _COMMIT.fullmatch(oid) else None)


def _named(entries: list[_Entry], ref: Ref) -> list[_Entry]:
    """Return the files that `:file` names, exactly or as a glob; a split GGUF comes with all its parts."""
    wanted = check_path(ref.file, "the reference")
    refuse_pickle(wanted)
    exact = [entry for entry in entries if entry.path == wanted]
    if exact and _SPLIT.search(wanted):
        exact = [entry for entry in entries if _group(entry.path) == _group(wanted)]
    found = exact or [entry for entry in entries if fnmatch.fnmatchcase(entry.path, wanted)]
    if not found:
        near = difflib.get_close_matches(wanted, [entry.path for entry in entries], 3, 0.3)
        raise ModelNotFound(f"`hub:{ref.location}` has no file `{wanted}`",
                            why="nearest: " + ", ".join(f"`{path}`" for path in near) if near else "",
                            hint=f"hearth pull hub:{ref.location}{_at(ref)} --dry-run")
    kept = [entry for entry in found if not is_pickle(entry.path)]
    if not kept:
        raise UnsafeFile(f"`{wanted}` names pickles only, which are not fetched",
                         why="reading a pickle can run any code", hint="ask for .safetensors or .gguf files")
    _one_gguf(kept, ref)
    return kept


def _needed(entries: list[_Entry], ref: Ref) -> list[_Entry]:
    """Return weights, configuration, tokenizer, templates, licence and card: what a model needs to run."""
    papers = [entry for entry in entries if _PAPERS.fullmatch(entry.path)]
    companions = [entry for entry in entries if _COMPANIONS.fullmatch(entry.path)]
    weights = [entry for entry in entries if _MODEL_WEIGHTS.fullmatch(entry.path)] or [
        entry for entry in entries if entry.path.endswith(".safetensors") and "/" not in entry.path]
    if weights:
        return sorted(papers + companions + weights, key=lambda entry: entry.path)
    ggufs = [entry for entry in entries
             if entry.path.lower().endswith(".gguf") and "mmproj" not in entry.path.lower()]
    if ggufs:
        _one_gguf(ggufs, ref)
        return sorted(papers + ggufs, key=lambda entry: entry.path)
    pickles = [entry.path for entry in entries if is_pickle(entry.path)]
    if pickles:
        raise UnsafeFile(f"`hub:{ref.location}` has its weights only as pickles",
                         why=", ".join(pickles[:4]) + "\nreading a pickle can run any code",
                         hint="look for a repository with .safetensors or .gguf files")
    raise ModelNotFound(f"`hub:{ref.location}` has no weights",
                        why=f"{len(entries)} files, no .safetensors at the top and no .gguf anywhere")


def _rows(entries: list[_Entry], ref: Ref) -> list[_Entry]:
    """Return a data set's files of rows, those for training where some are named so, its licence and card."""
    papers = [entry for entry in entries if _PAPERS.fullmatch(entry.path)]
    rows = [entry for entry in entries if entry.path.lower().endswith(DATA_SUFFIXES)]
    if not rows:
        raise ModelNotFound(f"`hub:{ref.location}` has no rows",
                            why=f"{len(entries)} files, none ends with {', '.join(DATA_SUFFIXES)}")
    training = [entry for entry in rows if "train" in entry.path.lower()]
    return sorted(papers + (training or rows), key=lambda entry: entry.path)


def _one_gguf(entries: list[_Entry], ref: Ref) -> None:
    """Raises: UsageError when the files are several GGUF models; it lists them with a ready command."""
    groups: dict[str, list[_Entry]] = {}
    for entry in entries:
        if entry.path.lower().endswith(".gguf"):
            groups.setdefault(_group(entry.path), []).append(entry)
    if len(groups) < 2:
        return
    lines = [f"{format_bytes(sum(part.size or 0 for part in parts)):>10}  {parts[0].path}"
             for parts in groups.values()]
    smallest = min(groups.values(), key=lambda parts: sum(part.size or 0 for part in parts))
    liked = next((parts for parts in groups.values() if "q4_k_m" in parts[0].path.lower()), smallest)
    raise UsageError(f"`hub:{ref.location}` has {len(groups)} GGUF files; say which", why="\n".join(lines),
                     hint=f"hearth pull hub:{ref.location}{_at(ref)}:{liked[0].path}")


def _group(path: str) -> str:
    """Return the name that the parts of a split GGUF share."""
    return _SPLIT.sub("", path)


def _at(ref: Ref) -> str:
    return f"@{ref.revision}" if ref.revision else ""


def _licence(page: dict[str, Any]) -> str | None:
    """Return the licence that the model card or the tags name; the owner's own name for `other`."""
    card = page.get("cardData")
    card = card if isinstance(card, dict) else {}
    licence = card.get("license")
    if isinstance(licence, list):
        licence = " OR ".join(str(item) for item in licence)
    if licence == "other" and isinstance(card.get("license_name"), str):
        licence = card["license_name"]
    if not isinstance(licence, str) or not licence:
        tags = page.get("tags") if isinstance(page.get("tags"), list) else []
        licence = next((tag[8:] for tag in tags if isinstance(tag, str) and tag.startswith("license:")), None)
    return licence[:200] if licence else None
