"""Order of package versions (PEP 440), as far as choosing a wheel needs it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PATTERN = re.compile(
    r"v?(?:(?P<epoch>\d{1,9})!)?(?P<release>\d{1,18}(?:\.\d{1,18}){0,20})"
    r"(?:[-_.]?(?P<pre>alpha|a|beta|b|preview|pre|c|rc)[-_.]?(?P<pre_n>\d{1,18})?)?"
    r"(?P<post>-(?P<post_n1>\d{1,18})|[-_.]?(?:post|rev|r)[-_.]?(?P<post_n2>\d{1,18})?)?"
    r"(?P<dev>[-_.]?dev[-_.]?(?P<dev_n>\d{1,18})?)?"
    r"(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?", re.ASCII)
_PRE = {"alpha": 0, "a": 0, "beta": 1, "b": 1, "preview": 2, "pre": 2, "c": 2, "rc": 2}
_LAST = 9


@dataclass(frozen=True)
class Version:
    """A version: its text as published, a key that sorts, and whether it is a pre- or development release."""

    text: str
    key: tuple
    is_pre: bool


def parse_version(text: str) -> Version | None:
    """Return a version, or None when the text is none. Source: PEP 440, appendix B and "Summary of ordering".

    Example: ``parse_version("1.0rc1").key < parse_version("1.0").key < parse_version("1.0.post1").key``.
    """
    match = _PATTERN.fullmatch(text.strip().lower())
    if match is None:
        return None
    release = tuple(int(part) for part in match["release"].split("."))
    while len(release) > 1 and release[-1] == 0:
        release = release[:-1]
    is_post, is_dev = match["post"] is not None, match["dev"] is not None
    pre = (_PRE[match["pre"]], int(match["pre_n"] or 0)) if match["pre"] else (_LAST, 0)
    if not match["pre"] and is_dev and not is_post:
        pre = (-1, 0)
    post = int(match["post_n1"] or match["post_n2"] or 0) if is_post else -1
    dev = (0, int(match["dev_n"] or 0)) if is_dev else (_LAST, 0)
    local = tuple((1, int(part), "") if part.isdigit() else (0, 0, part)
                  for part in re.split(r"[-_.]", match["local"])) if match["local"] else ()
    key = (int(match["epoch"] or 0), release, pre, post, dev, local)
    return Version(text.strip(), key, bool(match["pre"]) or is_dev)
