"""Versions and commit of the running code."""

import subprocess

from openhearth.cli.versions import find_commit, read_versions


def git(folder, *args):
    return subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *args],
                          check=True, capture_output=True, text=True).stdout.strip()


def test_commit_of_a_checkout_says_whether_files_differ(tmp_path):
    (tmp_path / "src" / "openhearth").mkdir(parents=True)
    (tmp_path / "file").write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert find_commit(tmp_path) == head
    (tmp_path / "file").write_text("2")
    assert find_commit(tmp_path) == f"{head}-dirty"


def test_somebody_elses_checkout_around_an_installed_package_does_not_count(tmp_path):
    git(tmp_path, "init", "-q")
    assert find_commit(tmp_path) is None
    assert find_commit(tmp_path / "none") is None


def test_versions_name_torch_without_importing_it():
    assert read_versions()["torch"].split(".")[0].isdigit()
