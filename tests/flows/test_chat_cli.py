"""The terminal chat on a real pseudo-terminal: editing, commands, Ctrl-C in the middle of an answer."""

import json
import os
import re
import stat
import sys

import pexpect
import pytest
from support.command import environment
from support.tiny import build_llama

PROMPT = ">>>"
EDITING_IS_OVER = r"\x1b\[\?2004l"


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory):
    """A tiny model with room for answers that take long enough to be stopped."""
    folder = tmp_path_factory.mktemp("chat") / "slow"
    build_llama(folder, num_hidden_layers=4, max_position_embeddings=32768)
    return folder


@pytest.fixture
def open_chat(tmp_path):
    """Start `hearth run` on a terminal; the chat has shown its first prompt."""
    chats = []

    def start(*args):
        env = environment(tmp_path / "home", TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1")
        command = ["-m", "openhearth", "run", "--threads", "1", *map(str, args)]
        chat = pexpect.spawn(sys.executable, command, env=env, encoding="utf-8", timeout=60,
                             dimensions=(40, 200), cwd=str(tmp_path))
        chats.append(chat)
        chat.expect(PROMPT)
        return chat

    yield start
    for chat in chats:
        chat.close(force=True)


def say(chat, line, *expected):
    """Send a line, wait for the given texts and the next prompt; returns what was printed."""
    chat.send(line + "\r")
    shown = ""
    for pattern in (*expected, PROMPT):
        chat.expect(pattern)
        shown += chat.before + chat.after
    # prompt_toolkit draws the prompt again while a line is typed; wait until the last one is drawn.
    while chat.expect([PROMPT, pexpect.TIMEOUT], timeout=0.3) == 0:
        pass
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)


def test_a_chat_from_first_question_to_the_saved_file(open_chat, slow_folder, tmp_path):
    chat = open_chat(slow_folder, "--temperature", "0", "--max-tokens", "8", "--system", "be brief")
    say(chat, "hello", r"8 tokens|7 tokens", r"tokens/s")
    say(chat, "/set max_tokens 30000", "max_tokens = 30000")

    chat.send("talk for long\r")
    chat.expect(EDITING_IS_OVER)
    chat.expect(r"\w{8}")
    chat.sendintr()
    chat.expect("stopped; what came is in the conversation")
    chat.expect(PROMPT)

    say(chat, "/set max-tokens 4", "max_tokens = 4")
    say(chat, "and then?", "tokens/s")
    say(chat, "/bogus", "unknown command `/bogus`")
    say(chat, "/set temperature hot", "temperature is `hot`")
    say(chat, "//literally", "tokens/s")
    chat.sendintr()
    chat.expect("Ctrl-D or /exit leaves")
    say(chat, "/save my chat.json", "saved 4 questions")
    say(chat, "/undo", "taken back: /literally")
    say(chat, "/retry", "tokens/s")
    shown = say(chat, "/show", "no such turn|and then")
    assert "assistant (stopped):" in shown
    say(chat, "/clear", "3 questions forgotten")
    say(chat, "/load my chat.json", "loaded 4 questions")
    chat.sendeof()
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0

    saved = json.loads((tmp_path / "my chat.json").read_text())
    assert [turn["content"] for turn in saved["turns"][::2]] == [
        "hello", "talk for long", "and then?", "/literally"]
    assert saved["system"] == "be brief" and saved["settings"]["max_tokens"] == 4
    assert [turn.get("is_partial", False) for turn in saved["turns"][1::2]] == [False, True, False, False]
    history = tmp_path / "home" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "talk for long" in history.read_text()


def test_several_lines_completion_and_a_full_context(open_chat, slow_folder):
    chat = open_chat(slow_folder, "--temperature", "0", "--max-tokens", "4", "--context", "64", "--quiet")
    chat.send("/sys\t")
    chat.expect("/system")
    chat.send(' """two\rlines"""\r')
    chat.expect("system message set")
    say(chat, "/system", "system: two\r\nlines")
    say(chat, "/system off", "removed")
    chat.send("a\x1b\rb")
    chat.expect("a")
    say(chat, "", r"\n.+")
    assert "user:\r\na\r\nb" in say(chat, "/show", "user:")
    say(chat, "word " * 60, r"error: the prompt has \d+ tokens, the context 64",
        "your message is not in the conversation", "/undo")
    assert "word word" not in say(chat, "/show", "user:")
    chat.send("/exit\r")
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0


def test_a_chat_needs_a_terminal_on_both_sides_and_no_flag_of_one_answer(slow_folder, tmp_path):
    env = environment(tmp_path / "home", TERM="xterm")
    for command, reason in ((f"{sys.executable} -m openhearth run {slow_folder} > out", "stdout"),
                            (f"{sys.executable} -m openhearth run --json {slow_folder}", "--json")):
        chat = pexpect.spawn("bash", ["-c", command], env=env, encoding="utf-8", timeout=60,
                             dimensions=(40, 200), cwd=str(tmp_path))
        chat.expect("there is no prompt")
        chat.expect(reason)
        chat.expect(pexpect.EOF)
        chat.close()
        assert chat.exitstatus == 2
    assert os.path.getsize(tmp_path / "out") == 0
