"""Every error a user can meet, and how each one is printed.

A message says what happened with the numbers, then why or what was expected, then a hint with a
command or setting that works. `exit_code` is what the command line returns; dialects map the same
classes to HTTP. `assert` is for our own mistakes; wrong input raises a class from here.
"""

from __future__ import annotations


class HearthError(Exception):
    """Base of all errors raised on purpose.

    what: one line with the numbers, lower case start. why: further lines. hint: a command or
    setting that works. Example:

        HearthError("`x` is not a model", why="no file, short name or store entry has this name",
                    hint="hearth list")
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  {line}" for line in self.why.splitlines()]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self):
        return (_rebuild, (type(self), self.what, self.why, self.hint))


def _rebuild(kind: type[HearthError], what: str, why: str, hint: str) -> HearthError:
    return kind(what, why=why, hint=hint)


class UsageError(HearthError):
    """A flag, setting or reference is malformed or out of range."""

    exit_code = 2


class ModelNotFound(HearthError):
    """No source has this model, revision or file."""

    exit_code = 3


class BadFile(HearthError):
    """A file is truncated, corrupted or breaks its format; nothing was loaded from it."""

    exit_code = 4


class HashMismatch(BadFile):
    """The bytes that arrived are not the bytes that were promised."""


class UnsafeFile(BadFile):
    """The file could run code (pickle, remote code) and is refused."""


class Unsupported(HearthError):
    """An architecture, quantisation or feature that this version does not have, by name."""

    exit_code = 5


class NetworkError(HearthError):
    """A source could not be reached or answered with an error."""

    exit_code = 6


class Offline(NetworkError):
    """Something would have needed the network while HEARTH_OFFLINE is set."""


class AccessDenied(NetworkError):
    """A source refused the token, or wants one."""


class NotEnoughDisk(HearthError):
    """The disk cannot hold what was asked for; nothing was started, or what arrived was kept."""

    exit_code = 7


class NotEnoughMemory(HearthError):
    """Weights, cache and workspace do not fit."""

    exit_code = 8


class PromptTooLong(UsageError):
    """The prompt and the tokens asked for exceed the context or the cache; refused before queueing."""


class QueueFull(HearthError):
    """The engine's waiting queue is at its limit."""

    exit_code = 9


class LimitReached(HearthError):
    """A key's rate or quota is used up. retry_after_s: when there is room again, None for never.

    is_quota: of a day, a month or in all; otherwise of the last minute.
    """

    exit_code = 9

    def __init__(self, what: str, *, why: str = "", hint: str = "", retry_after_s: int | None = None,
                 is_quota: bool = False) -> None:
        super().__init__(what, why=why, hint=hint)
        self.retry_after_s, self.is_quota = retry_after_s, is_quota


class TemplateError(HearthError):
    """A chat template is missing, broken, too large, too slow, or raised an error of its own."""

    exit_code = 10


class OffPolicy(HearthError):
    """What was sampled is not what would be differentiated: sampler and trainer disagree about a token."""

    exit_code = 12


class Diverged(HearthError):
    """A loss or gradient is not finite or far too large; the last good checkpoint is kept."""

    exit_code = 11
