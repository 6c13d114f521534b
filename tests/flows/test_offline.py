"""G7: with HEARTH_OFFLINE=1, and for what is on disk also without it, no socket is opened."""

import pytest
from support.command import hearth


@pytest.fixture
def log(tmp_path):
    return tmp_path / "sockets.log"


def opened(log):
    return log.read_text() if log.exists() else ""


VERBS = [
    ("--help",),
    ("list",),
    ("show", "{model}"),
    ("pull", "{model}"),
    ("pull", "{model}", "--dry-run"),
    ("run", "{model}", "hello", "--max-tokens", "2"),
    ("doctor", "--no-measure"),
    ("keys", "create", "alice"),
    ("usage", "--csv"),
]


@pytest.mark.parametrize("offline", ["0", "1"])
@pytest.mark.parametrize("args", VERBS, ids=lambda args: "-".join(args[:1] + args[2:3]))
def test_verb_on_a_model_on_disk_opens_no_socket(args, offline, tiny_folder, tmp_path, log):
    hearth(*(arg.format(model=tiny_folder) for arg in args), home=tmp_path / "home", socket_log=log,
           HEARTH_OFFLINE=offline)
    assert opened(log) == ""


@pytest.mark.parametrize("ref", ["smollm2", "hub:owner/name", "index:some-dist==1.0:a/b.gguf",
                                 "https://models.example/a.gguf"])
@pytest.mark.parametrize("verb", ["pull", "run"])
def test_a_model_that_is_not_on_disk_is_refused_offline_without_a_socket(verb, ref, tmp_path, log):
    done = hearth(verb, ref, *(["hi"] if verb == "run" else []), home=tmp_path / "home", socket_log=log,
                  check=False, HEARTH_OFFLINE="1")
    assert done.returncode == 6
    assert "HEARTH_OFFLINE" in done.stderr
    assert "hint:" in done.stderr
    assert opened(log) == ""


def test_the_guard_sees_a_socket(tmp_path, log):
    done = hearth("pull", "https://127.0.0.1:9/none.gguf", home=tmp_path / "home", socket_log=log,
                  check=False)
    assert done.returncode != 0
    assert "family" in opened(log)
