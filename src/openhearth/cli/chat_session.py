"""A conversation and its settings, kept apart from the terminal that shows it.

Does not: generate, print, or drop turns that the caller did not ask to drop.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openhearth.errors import BadFile, UsageError
from openhearth.units import format_bytes

FORMAT = "openhearth-chat"
VERSION = 1
MAX_FILE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Turn:
    """One message. is_partial: Ctrl-C cut this answer. Example: ``Turn("user", "hello")``."""

    role: str
    content: str
    is_partial: bool = False

    def as_message(self) -> dict[str, str]:
        """Return the turn as templates take it."""
        return {"role": self.role, "content": self.content}


@dataclass
class ChatSession:
    """What `/save` writes: turns alternate user, assistant; settings hold what `/set` changed."""

    model: str
    weights: str
    system: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)

    def messages(self, text: str) -> list[dict[str, str]]:
        """Return the conversation with a new user turn at its end, as templates take it."""
        system = [Turn("system", self.system)] if self.system else []
        return [turn.as_message() for turn in (*system, *self.turns, Turn("user", text))]

    def add_exchange(self, text: str, answer: str, *, is_partial: bool) -> None:
        """Append a question and its answer. is_partial: Ctrl-C cut the answer."""
        self.turns += [Turn("user", text), Turn("assistant", answer, is_partial)]

    def drop_exchange(self) -> tuple[Turn, Turn]:
        """Take the last question and its answer off the conversation.

        Raises: UsageError when there is none.
        """
        if len(self.turns) < 2:
            raise UsageError("there is no earlier question", why="the conversation is empty")
        question, answer = self.turns[-2:]
        del self.turns[-2:]
        return question, answer

    def save(self, path: Path) -> None:
        """Write the conversation to a temporary name beside `path`, then move it there.

        A file that is no saved chat is not overwritten. Raises: UsageError.
        """
        if path.is_dir():
            raise UsageError(f"`{path}` is a folder", hint=f"/save {path / 'chat.json'}")
        if path.exists() and not _is_chat(path):
            raise UsageError(f"`{path}` exists and is no saved chat", why="it is left as it is",
                             hint=f"/save {path.with_name(path.stem + '-chat.json')}")
        record = {"format": FORMAT, "version": VERSION, "model": self.model, "weights": self.weights,
                  "system": self.system, "settings": self.settings,
                  "turns": [{**turn.as_message(), **({"is_partial": True} if turn.is_partial else {})}
                            for turn in self.turns]}
        text = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogatepass") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise UsageError(f"`{path}` cannot be written", why=error.strerror or str(error),
                             hint="/save ~/chat.json") from None


def read_session(path: Path) -> ChatSession:
    """Read a saved chat whole; settings are checked by the caller.

    Raises: BadFile for anything that `save` does not write, UsageError when it cannot be opened.
    """
    record = _read_record(path)

    def expect(condition: bool, reason: str) -> None:
        if not condition:
            raise BadFile(f"`{path}` is no saved chat", why=reason, hint="/save FILE writes one")

    expect(isinstance(record, dict) and record.get("format") == FORMAT, f"expected `format` to be {FORMAT}")
    expect(record.get("version") == VERSION, f"expected version {VERSION}, found `{record.get('version')}`")
    expect(isinstance(record.get("model"), str) and isinstance(record.get("weights"), str),
           "`model` and `weights` must be text")
    expect(isinstance(record.get("system"), str | None), "`system` must be text or null")
    expect(isinstance(record.get("settings"), dict), "`settings` must be a table")
    turns = record.get("turns")
    expect(isinstance(turns, list) and len(turns) % 2 == 0, "`turns` must be pairs of question and answer")
    for number, turn in enumerate(turns, 1):
        role = ("assistant", "user")[number % 2]
        expect(isinstance(turn, dict) and turn.get("role") == role, f"turn {number} must be of role {role}")
        expect(isinstance(turn.get("content"), str), f"turn {number} has no text")
        expect(isinstance(turn.get("is_partial", False), bool), f"turn {number}: `is_partial` must be a flag")
    return ChatSession(record["model"], record["weights"], record["system"], dict(record["settings"]),
                       [Turn(turn["role"], turn["content"], turn.get("is_partial", False)) for turn in turns])


def _read_record(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"`{path}` cannot be read", why=error.strerror or str(error)) from None
    if len(content) > MAX_FILE_BYTES:
        raise BadFile(f"`{path}` is larger than {format_bytes(MAX_FILE_BYTES)}", why="no saved chat is")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"`{path}` is no saved chat", why=f"not JSON: {error}",
                      hint="/save FILE writes one") from None


def _is_chat(path: Path) -> bool:
    try:
        record = _read_record(path)
    except (BadFile, UsageError):
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT
