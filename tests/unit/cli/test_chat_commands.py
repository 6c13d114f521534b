"""Slash commands: what each changes, and that a wrong one changes nothing."""

import copy
import json

import pytest

from openhearth.cli.chat_commands import COMMANDS, ChatState, run_command, unquote_block
from openhearth.cli.chat_session import ChatSession
from openhearth.errors import BadFile, UsageError


@pytest.fixture
def state():
    session = ChatSession("tiny", "cd" * 32)
    session.add_exchange("hello", "hi there", is_partial=False)
    return ChatState(session, {"temperature": 0.2, "top_p": 0.9})


def test_help_names_every_command(state):
    text = "\n".join(run_command(state, "/help"))
    assert all(name in text for name in COMMANDS)
    assert "Alt-Enter" in text and "triple quotes" in text and "Ctrl-C" in text


def test_settings_are_read_by_type_and_reset_by_default(state):
    run_command(state, "/set temperature 0")
    run_command(state, "/set top-k 40")
    run_command(state, '/set stop "### end" User:')
    assert state.session.settings == {"temperature": 0.0, "top_k": 40, "stop": ("### end", "User:")}
    assert type(state.session.settings["temperature"]) is float
    assert run_command(state, "/set temperature default")[0].startswith("temperature = default (0.2)")
    assert "temperature" not in state.session.settings
    assert len(run_command(state, "/set")) >= 10


@pytest.mark.parametrize("line", [
    "/nothing", "/", "/HELP", "/help me", "/set warmth 1", "/set temperature", "/set temperature hot",
    "/set temperature 1 2", "/set temperature -1", "/set temperature nan", "/set temperature inf",
    "/set top_k 1.5", "/set top_p 2", "/set top_p -0.1", "/set max_tokens 0", "/set seed x", "/set stop ''",
    '/set stop "open', "/set repetition_penalty 0", "/save", "/load", "/load /nowhere/at/all", "/save /",
    "/save /nowhere/at/all.json", "/undo 2", "/exit now", "/save ~nobody-has-this-name/x",
])
def test_a_wrong_line_raises_and_changes_nothing(state, line):
    before = copy.deepcopy(state)
    with pytest.raises(UsageError) as caught:
        run_command(state, line)
    assert caught.value.what
    assert state == before


def test_system_is_set_shown_and_removed(state):
    assert run_command(state, "/system") == ["no system message"]
    run_command(state, '/system """be brief\nand kind"""')
    assert state.session.system == "be brief\nand kind"
    assert "be brief" in run_command(state, "/system")[0]
    run_command(state, "/system off")
    assert state.session.system is None


def test_undo_takes_back_and_retry_asks_again(state):
    run_command(state, "/retry")
    assert state.ask == "hello"
    assert run_command(state, "/undo") == ["taken back: hello"]
    assert state.session.turns == []
    with pytest.raises(UsageError, match="no question"):
        run_command(state, "/retry")


def test_clear_forgets_turns_and_keeps_settings(state):
    run_command(state, "/set seed 7")
    run_command(state, "/clear")
    assert state.session.turns == [] and state.session.settings == {"seed": 7}


def test_show_prints_turns_and_marks_stopped_ones(state):
    state.session.add_exchange("more", "half an", is_partial=True)
    lines = run_command(state, "/show")
    assert lines[0] == "model    tiny" and "assistant (stopped):" in lines and "half an" in lines


def test_save_then_load_brings_everything_back(state, tmp_path):
    run_command(state, '/set stop "a b"')
    run_command(state, f"/save {tmp_path / 'my chat.json'}")
    saved = copy.deepcopy(state.session)
    run_command(state, "/clear")
    run_command(state, "/set stop default")
    run_command(state, f"/load {tmp_path / 'my chat.json'}")
    assert state.session == saved


def test_loading_a_chat_of_other_weights_says_so(state, tmp_path):
    path = tmp_path / "chat.json"
    ChatSession("big", "ef" * 32).save(path)
    lines = run_command(state, f"/load {path}")
    assert "other weights (big)" in lines[1]
    assert state.session.weights == "cd" * 32


@pytest.mark.parametrize("settings", [
    {"warmth": 1}, {"temperature": "hot"}, {"temperature": -1}, {"top_k": True}, {"stop": "abc"},
    {"stop": [""]}, {"stop": [1]}, {"seed": 1.5}, {"seed": None}, {"temperature": [1]}])
def test_loading_bad_settings_is_refused_and_keeps_the_chat(state, tmp_path, settings):
    path = tmp_path / "chat.json"
    state.session.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "settings": settings}))
    before = copy.deepcopy(state)
    with pytest.raises(BadFile, match="setting"):
        run_command(state, f"/load {path}")
    assert state == before


def test_exit_ends_the_chat(state):
    run_command(state, "/exit")
    assert state.is_over


@pytest.mark.parametrize("text,expected", [('"""a\nb"""', "a\nb"), ('"""\na\n"""\n', "a"), ("plain", "plain"),
                                           ('"""', '"""'), ('say """x"""', 'say """x"""')])
def test_a_block_loses_its_quotes(text, expected):
    assert unquote_block(text) == expected
