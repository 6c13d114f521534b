"""What went wrong, as HTTP says it: one table from the error tree to a status and a code.

Does not: know how a dialect writes an error (`dialects/`), or print (`cli/`).
"""

from __future__ import annotations

from openhearth.errors import (
    BadFile,
    HashMismatch,
    HearthError,
    LimitReached,
    ModelNotFound,
    NetworkError,
    NotEnoughDisk,
    NotEnoughMemory,
    Offline,
    PromptTooLong,
    QueueFull,
    TemplateError,
    Unsupported,
    UsageError,
)

RETRY_AFTER_S = 1
"""Told to a client that found the queue full: the time of some steps."""

_TABLE: tuple[tuple[type[HearthError] | tuple[type[HearthError], ...], int, str | None], ...] = (
    (PromptTooLong, 400, "context_length_exceeded"),
    (QueueFull, 429, "queue_full"),
    (ModelNotFound, 404, "model_not_found"),
    (NotEnoughMemory, 503, "not_enough_memory"),
    (Offline, 403, "offline"),
    (NotEnoughDisk, 507, "not_enough_disk"),
    ((NetworkError, HashMismatch, BadFile), 502, "source_failed"),
    (UsageError, 400, None),
    (TemplateError, 400, "chat_template"),
    (Unsupported, 400, "unsupported"),
)


class Refusal(HearthError):
    """A request that the server does not serve, with the status and code that say why.

    field: the one that is wrong, where one is.
    Example: ``Refusal("no model `x`", status=404, code="model_not_found", field="model")``.
    """

    def __init__(self, what: str, *, status: int = 400, code: str | None = None, field: str | None = None,
                 why: str = "", hint: str = "") -> None:
        super().__init__(what, why=why, hint=hint)
        self.status, self.code, self.field = status, code, field


def status_and_code(error: HearthError) -> tuple[int, str | None]:
    """Return the HTTP status of an error, and a code for programs; 500 for what is no fault of a request."""
    if isinstance(error, Refusal):
        return error.status, error.code
    if isinstance(error, LimitReached):
        return 429, "insufficient_quota" if error.is_quota else "rate_limit_exceeded"
    for kind, status, code in _TABLE:
        if isinstance(error, kind):
            return status, code
    return 500, "internal_error"


def retry_headers(error: HearthError, status: int) -> list[tuple[bytes, bytes]]:
    """Return the headers that say when to try again, or that trying again soon is of no use."""
    if status not in (429, 503):
        return []
    if not isinstance(error, LimitReached):
        return [(b"retry-after", str(RETRY_AFTER_S).encode())]
    headers = [] if error.retry_after_s is None else [(b"retry-after", str(error.retry_after_s).encode())]
    if error.is_quota or error.retry_after_s is None:
        headers.append((b"x-should-retry", b"false"))  # OpenAI's and Anthropic's clients give up at once
    return headers


def sentence(error: HearthError) -> str:
    """Return an error's message in one line."""
    parts = [error.what, "; ".join(error.why.splitlines()), f"hint: {error.hint}" if error.hint else ""]
    return "; ".join(part for part in parts if part)
