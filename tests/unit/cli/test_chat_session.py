"""A conversation: what is kept, saved and loaded."""

import json
import os
import stat

import pytest

from openhearth.cli.chat_session import MAX_FILE_BYTES, ChatSession, Turn, read_session
from openhearth.errors import BadFile, UsageError


@pytest.fixture
def session():
    session = ChatSession("tiny", "ab" * 32, "be brief", {"temperature": 0.5, "stop": ("###",)})
    session.add_exchange("hello", "hi", is_partial=False)
    session.add_exchange("tell me \u732b", "once upon", is_partial=True)
    return session


def test_messages_hold_system_turns_and_the_new_question(session):
    assert session.messages("and?") == [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"}, {"role": "user", "content": "tell me \u732b"},
        {"role": "assistant", "content": "once upon"}, {"role": "user", "content": "and?"}]
    assert len(session.turns) == 4, "asking keeps nothing yet"


def test_a_saved_chat_comes_back_whole(session, tmp_path):
    session.save(tmp_path / "chat.json")
    loaded = read_session(tmp_path / "chat.json")
    assert loaded.turns == session.turns
    assert loaded.turns[-1] == Turn("assistant", "once upon", is_partial=True)
    assert (loaded.system, loaded.model, loaded.weights) == ("be brief", "tiny", "ab" * 32)
    assert loaded.settings == {"temperature": 0.5, "stop": ["###"]}


def test_saving_twice_replaces_and_leaves_no_other_file(session, tmp_path):
    session.save(tmp_path / "chat.json")
    session.drop_exchange()
    session.save(tmp_path / "chat.json")
    assert [path.name for path in tmp_path.iterdir()] == ["chat.json"]
    assert len(read_session(tmp_path / "chat.json").turns) == 2
    assert stat.S_IMODE((tmp_path / "chat.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"my notes", b"{}", b'{"format": "other"}', b""])
def test_a_file_that_is_no_chat_is_not_overwritten(session, tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no saved chat"):
        session.save(path)
    assert path.read_bytes() == content


def test_a_folder_or_missing_folder_is_refused_and_leaves_nothing(session, tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        session.save(tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        session.save(tmp_path / "none" / "chat.json")
    assert os.listdir(tmp_path) == []


def damage(record, **changes):
    return json.dumps({**record, **changes}).encode()


def test_anything_else_is_refused_by_reason(session, tmp_path):
    path = tmp_path / "chat.json"
    session.save(path)
    record = json.loads(path.read_text())
    turn = record["turns"][0]
    cases = [
        (b"not json", "not JSON"), (b"[" * 100_000, "not JSON"), (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "`format`"), (damage(record, version=2), "version"), (damage(record, turns=[turn]), "pairs"),
        (damage(record, turns=[turn, turn]), "turn 2 must be of role assistant"),
        (damage(record, turns=[{**turn, "content": 3}, turn]), "turn 1 has no text"),
        (damage(record, turns=[{**turn, "is_partial": "yes"}, turn]), "is_partial"),
        (damage(record, turns="x"), "pairs"), (damage(record, turns=["a", "b"]), "turn 1"),
        (damage(record, system=5), "`system`"), (damage(record, settings=[]), "`settings`"),
        (damage(record, model=None), "`model`"),
    ]
    for content, reason in cases:
        path.write_bytes(content)
        with pytest.raises(BadFile) as caught:
            read_session(path)
        assert reason in str(caught.value), content[:60]


def test_a_huge_file_is_refused_unread(tmp_path):
    with (tmp_path / "big").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(BadFile, match=r"larger than 32.0 MiB"):
        read_session(tmp_path / "big")
    with pytest.raises(UsageError, match="cannot be read"):
        read_session(tmp_path / "none")


def test_dropping_from_an_empty_conversation_is_refused():
    with pytest.raises(UsageError, match="no earlier question"):
        ChatSession("m", "w").drop_exchange()
