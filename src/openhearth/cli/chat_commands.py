"""The slash commands of the terminal chat: a table of name, arguments, meaning and function.

Each function changes the session and returns the lines to print; one that fails raises and has
changed nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openhearth.cli.chat_session import ChatSession, read_session
from openhearth.cli.sampling import SETTINGS, check_sampling, parse_setting
from openhearth.errors import BadFile, HearthError, UsageError


@dataclass
class ChatState:
    """The session, what the loaded model recommends, and what the loop is to do next.

    ask: a question to answer now (`/retry`). is_over: leave the chat.
    """

    session: ChatSession
    defaults: dict[str, Any]
    ask: str | None = None
    is_over: bool = False


@dataclass(frozen=True)
class Command:
    """One slash command. Example: ``COMMANDS["/undo"].arguments == ""``."""

    arguments: str
    meaning: str
    run: Callable[[ChatState, str], list[str]]


def run_command(state: ChatState, line: str) -> list[str]:
    """Run a line that begins with a slash; returns what to print.

    Raises: UsageError for an unknown command or a bad value, BadFile from `/load`.
    """
    name, _, rest = line.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise UsageError(f"unknown command `{name}`", why="known: " + " ".join(COMMANDS),
                         hint="begin with two slashes to send a line that starts with one")
    rest = rest.strip()
    if rest and not command.arguments:
        raise UsageError(f"{name} takes no argument, `{rest}` was given", hint=name)
    return command.run(state, rest)


def unquote_block(text: str) -> str:
    """Take the triple quotes off a block of several lines; other text comes back as it is."""
    bare = text.strip()
    if len(bare) >= 6 and bare.startswith('"""') and bare.endswith('"""'):
        return bare[3:-3].strip("\n")
    return text


def _help(state: ChatState, rest: str) -> list[str]:
    width = max(len(f"{name} {command.arguments}") for name, command in COMMANDS.items())
    return [*(f"{f'{name} {command.arguments}':{width}}  {command.meaning}"
              for name, command in COMMANDS.items()),
            "Enter sends. Alt-Enter starts a new line, and so does Enter inside a block in triple quotes.",
            "Ctrl-C stops an answer and keeps what came; Ctrl-D leaves. // sends a line with one slash."]


def _system(state: ChatState, rest: str) -> list[str]:
    if not rest:
        return [f"system: {state.session.system}" if state.session.system else "no system message"]
    state.session.system = None if rest == "off" else unquote_block(rest)
    return ["system message removed" if rest == "off" else "system message set, from the next question on"]


def _set(state: ChatState, rest: str) -> list[str]:
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UsageError(f"`/set {rest}` cannot be read", why=str(error), hint='/set stop "a b"') from None
    if not words:
        return [_setting_line(state, name) for name in SETTINGS]
    name, value = parse_setting(words[0], words[1:])
    state.session.settings.pop(name, None)
    if value is not None:
        state.session.settings[name] = value
    return [_setting_line(state, name)]


def _setting_line(state: ChatState, name: str) -> str:
    if name in state.session.settings:
        return f"{name} = {state.session.settings[name]}"
    default = f" ({state.defaults[name]})" if name in state.defaults else ""
    return f"{name} = default{default}: {SETTINGS[name][1]}"


def _show(state: ChatState, rest: str) -> list[str]:
    session = state.session
    lines = [f"model    {session.model}", f"weights  {session.weights}"]
    if session.system:
        lines.append(f"system   {session.system}")
    lines += [f"set      {name} {value}" for name, value in session.settings.items()]
    for turn in session.turns:
        mark = " (stopped)" if turn.is_partial else ""
        lines += ["", f"{turn.role}{mark}:", turn.content]
    return lines if session.turns else [*lines, "no questions so far"]


def _clear(state: ChatState, rest: str) -> list[str]:
    dropped = len(state.session.turns) // 2
    state.session.turns.clear()
    return [f"{dropped} questions forgotten; system message and settings stay"]


def _undo(state: ChatState, rest: str) -> list[str]:
    question, _ = state.session.drop_exchange()
    return [f"taken back: {_head(question.content)}"]


def _retry(state: ChatState, rest: str) -> list[str]:
    if not state.session.turns:
        raise UsageError("there is no question to ask again")
    state.ask = state.session.turns[-2].content
    return []


def _save(state: ChatState, rest: str) -> list[str]:
    path = _path("/save", rest)
    state.session.save(path)
    return [f"saved {len(state.session.turns) // 2} questions to {path}"]


def _load(state: ChatState, rest: str) -> list[str]:
    path = _path("/load", rest)
    loaded = read_session(path)
    for name, value in loaded.settings.items():
        value = tuple(value) if isinstance(value, list) else value
        loaded.settings[name] = value
        _check_loaded(path, name, value)
    session = state.session
    lines = [f"loaded {len(loaded.turns) // 2} questions from {path}"]
    if loaded.weights != session.weights:
        lines.append(f"it was saved with other weights ({loaded.model}); {session.model} goes on with it")
    loaded.model, loaded.weights = session.model, session.weights
    state.session = loaded
    return lines


def _check_loaded(path: Path, name: str, value: Any) -> None:
    kind = SETTINGS.get(name, (None, ""))[0]
    is_right = {float: type(value) in (int, float), int: type(value) is int, None: False}.get(
        kind, isinstance(value, tuple) and all(isinstance(text, str) for text in value))
    if not is_right:
        raise BadFile(f"`{path}` has a setting `{name}` of `{value}`", why="no such setting or wrong type",
                      hint="/set lists the settings")
    try:
        check_sampling({name: value})
    except HearthError as error:
        raise BadFile(f"`{path}` has a setting out of range", why=str(error)) from None


def _exit(state: ChatState, rest: str) -> list[str]:
    state.is_over = True
    return []


def _path(name: str, rest: str) -> Path:
    if not rest:
        raise UsageError(f"{name} needs a file", hint=f"{name} chat.json")
    try:
        return Path(rest).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"`{rest}` is no path", why=str(error), hint=f"{name} chat.json") from None


def _head(text: str) -> str:
    first = text.strip().split("\n", 1)[0]
    return first if first == text.strip() and len(first) <= 60 else first[:60] + " ..."


COMMANDS = {
    "/help": Command("", "this list", _help),
    "/system": Command("[TEXT|off]", "show, set or remove the system message", _system),
    "/set": Command("[NAME VALUE]", "list the sampling settings or set one; `default` resets it", _set),
    "/show": Command("", "the model, the settings and the conversation", _show),
    "/save": Command("FILE", "write the conversation to a file", _save),
    "/load": Command("FILE", "go on with a saved conversation", _load),
    "/retry": Command("", "ask the last question again; a seed that was set goes up by one", _retry),
    "/undo": Command("", "take the last question and its answer back", _undo),
    "/clear": Command("", "forget the conversation", _clear),
    "/exit": Command("", "leave (also Ctrl-D)", _exit),
}
