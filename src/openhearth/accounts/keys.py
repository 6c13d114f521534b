"""API keys: who a request comes from, what role that one has, and how much they may use.

Only hashes are kept. Keys are long and random (`make_secret`), so a plain SHA-256 of one tells nothing about
it, and a slow hash would protect nothing; nor does the time that it takes to find one tell anything.

Does not: read or write where keys are kept (`key_file.py`, `key_store.py`), or count (`metering.py`).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from openhearth.errors import HearthError

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What a key may be called; no character of it means anything to a log, a header or a path."""

Role = Literal["user", "admin"]
"""admin: may also see the use of all keys, metrics and the machine's state, and change what is served."""


@dataclass(frozen=True)
class KeyLimits:
    """How much may be used with a key; None is no limit. Tokens are those of prompts and of answers.

    Days and months are UTC's. Example: ``KeyLimits(requests_per_minute=60, tokens_per_day=100_000)``.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    tokens_total: int | None = None


@dataclass(frozen=True)
class Key:
    """A key by its name and its hash, in hex. Times are in seconds since 1970.

    Example: ``Key("alice", hash_secret("a long random text"), role="admin")``.
    """

    name: str
    sha256: str
    role: Role = "user"
    limits: KeyLimits = field(default_factory=KeyLimits)
    created_at: int = 0
    expires_at: int | None = None
    revoked_at: int | None = None

    def state(self, now: float) -> Literal["good", "expired", "revoked"]:
        """Return whether a server takes the key, or why not."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "good"


class Keys:
    """The keys that a server takes, as they are now.

    reload: returns all keys when they have changed since it was last called, None when they have not. While
    it raises, the keys known so far hold and `problem` says why.
    Example: ``Keys([Key("alice", hash_secret("secret"))]).find("secret").name == "alice"``.
    """

    def __init__(self, known: Iterable[Key] = (),
                 reload: Callable[[], Iterable[Key] | None] = lambda: None) -> None:
        self.problem: HearthError | None = None
        self._reload = reload
        self._take(known)

    def find(self, secret: str) -> Key | None:
        """Return the key of a secret, None for one that is unknown, revoked or expired."""
        self.refresh()
        sha256 = hash_secret(secret)
        key = self._of_hash.get(sha256)
        is_known = key is not None and hmac.compare_digest(key.sha256, sha256)
        return key if is_known and key.state(time.time()) == "good" else None

    def still_good(self, key: Key) -> bool:
        """Return whether a key that was found before would be found again."""
        self.refresh()
        now = self._of_hash.get(key.sha256)
        return now is not None and now.name == key.name and now.state(time.time()) == "good"

    def refresh(self) -> None:
        """Take over what has changed; `find` and `still_good` do it themselves."""
        try:
            changed = self._reload()
            if changed is not None:
                self._take(changed)
        except HearthError as error:
            self.problem = error

    def now(self) -> list[Key]:
        """Return every key by name, those that are not good included."""
        self.refresh()
        return sorted(self._of_hash.values(), key=lambda key: key.name)

    def _take(self, known: Iterable[Key]) -> None:
        self._of_hash = {key.sha256: key for key in known}
        self.problem = None


def make_secret() -> str:
    """Return a new key of 256 random bits; the beginning lets scanners of leaked secrets know it."""
    return f"hearth_{secrets.token_urlsafe(32)}"


def hash_secret(secret: str) -> str:
    """Return the hash by which a key is known, in hex."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
