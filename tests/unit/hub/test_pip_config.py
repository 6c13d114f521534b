"""pip's configuration as pip itself reads it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.transfers import clean_env, isolate_pip

from openhearth.errors import UsageError
from openhearth.hub.pip_config import read_pip_config


def pip(*args, **env):
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *args], env=env,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def env_with(tmp_path, **env):
    """The environment of an isolated user, with pip's files in use."""
    base = {key: value for key, value in clean_env().items() if key not in ("PIP_CONFIG_FILE", "PYTHONPATH")}
    return {**base, "HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path / "xdg"), **env}


def write(path: Path, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{key.replace('_', '-')} = {value}\n" for key, value in settings.items()]
    path.write_text("".join(["[global]\n", *lines]))


@pytest.mark.parametrize("files", [
    ["xdg"], ["legacy"], ["user"], ["own"], ["xdg", "legacy"], ["legacy", "user"], ["xdg", "user", "own"],
    ["legacy", "own"]])
def test_the_strongest_file_is_the_one_pip_takes(tmp_path, files):
    places = {"xdg": tmp_path / "xdg" / "pip" / "pip.conf", "legacy": tmp_path / ".pip" / "pip.conf",
              "user": tmp_path / ".config" / "pip" / "pip.conf", "own": tmp_path / "own.conf"}
    for name in files:
        write(places[name], index_url=f"https://{name}/simple")
    env = env_with(tmp_path, **({"PIP_CONFIG_FILE": str(places["own"])} if "own" in files else {}))
    theirs = re.search(r"^global\.index-url='(.*)'$", pip("config", "list", **env), re.MULTILINE)[1]
    assert read_pip_config(env).index_urls[0] == theirs


def test_variables_beat_files_and_empty_ones_count_as_absent(tmp_path):
    write(tmp_path / "c", index_url="https://file/simple", extra_index_url="https://a/ https://b/",
          timeout="3", find_links="\n  /one\n  /two", trusted_host="h1\n  h2", cert="/c.pem", proxy="http://p:1")
    env = {"PIP_CONFIG_FILE": str(tmp_path / "c"), "HOME": str(tmp_path)}
    settings = read_pip_config(env)
    assert settings.index_urls == ("https://file/simple", "https://a/", "https://b/")
    assert settings.find_links == ("/one", "/two") and settings.trusted_hosts == ("h1", "h2")
    assert (settings.timeout_s, settings.ca_bundle, settings.proxy) == (3, "/c.pem", "http://p:1")
    env |= {"PIP_INDEX_URL": "https://env/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_DEFAULT_TIMEOUT": "7"}
    settings = read_pip_config(env)
    assert settings.index_urls == ("https://env/simple", "https://a/", "https://b/")
    assert settings.timeout_s == 7


def test_a_command_section_beats_the_global_one(tmp_path):
    (tmp_path / "c").write_text("[download]\nindex_url = https://d/\n[global]\nindex-url = https://g/\n"
                                "[install]\nindex-url = https://i/\n[wheel]\nindex-url = https://w/\n")
    assert read_pip_config({"PIP_CONFIG_FILE": str(tmp_path / "c"), "HOME": str(tmp_path)}).index_urls == ("https://d/",)


def test_no_index_leaves_only_find_links(tmp_path):
    env = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "true", "PIP_INDEX_URL": "https://x/",
           "PIP_FIND_LINKS": "/wheels"}
    settings = read_pip_config(env)
    assert settings.index_urls == () and settings.find_links == ("/wheels",)
    with pytest.raises(UsageError, match="names no package index"):
        read_pip_config({**env, "PIP_FIND_LINKS": ""})


def test_the_default_index_is_the_one_pip_is_built_with(tmp_path):
    text = pip("download", "--help", **env_with(tmp_path, COLUMNS="300"))
    theirs = re.search(r"default\s+(https://\S+?)\)", text)[1]
    assert read_pip_config({"PIP_CONFIG_FILE": os.devnull}).index_urls == (theirs,)


def test_without_pip_the_bundled_copy_is_asked(tmp_path):
    env = env_with(tmp_path, PIP_CONFIG_FILE=os.devnull, PYTHONPATH=clean_env()["PYTHONPATH"])
    expected = read_pip_config(env).index_urls
    code = ("import importlib.util\n"
            "assert importlib.util.find_spec('pip') is None\n"
            "from openhearth.hub.pip_config import read_pip_config\n"
            "print(*read_pip_config().index_urls)\n")
    done = subprocess.run([sys.executable, "-S", "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == list(expected), done.stderr


@pytest.mark.parametrize("text", ["index-url = x", "[global\nx", "[global]\n[global]\n", b"\xff\xfe"])
def test_a_broken_file_is_named(tmp_path, text):
    path = tmp_path / "c"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=re.escape(str(path))):
        read_pip_config({"PIP_CONFIG_FILE": str(path), "HOME": str(tmp_path)})


def test_a_timeout_that_is_no_number_is_refused():
    with pytest.raises(UsageError, match="timeout is `soon`"):
        read_pip_config({"PIP_CONFIG_FILE": os.devnull, "PIP_TIMEOUT": "soon", "PIP_INDEX_URL": "https://x/"})


def test_the_process_environment_is_the_default(monkeypatch, tmp_path):
    isolate_pip(monkeypatch, tmp_path, PIP_INDEX_URL="https://mine/simple")
    assert read_pip_config().index_urls == ("https://mine/simple",)
