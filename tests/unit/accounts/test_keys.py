"""Keys: made, found, revoked, expired; from the store and from a file."""

import hashlib
import os
import sqlite3
import stat
import time

import pytest

from openhearth.accounts import Key, KeyLimits, Keys, KeyStore, path_of, read_keys
from openhearth.accounts.keys import hash_secret, make_secret
from openhearth.errors import BadFile, ModelNotFound, UsageError


def test_the_hash_of_a_key_is_its_sha256_and_no_two_keys_are_alike():
    assert hash_secret("abc") == hashlib.sha256(b"abc").hexdigest()
    made = {make_secret() for _ in range(100)}
    assert len(made) == 100 and all(one.startswith("hearth_") and len(one) == 50 for one in made)


def test_a_key_is_found_by_its_secret_alone_and_kept_as_a_hash(tmp_path):
    store = KeyStore(tmp_path)
    secret = store.create("alice", role="admin", limits=KeyLimits(tokens_per_day=5))
    keys = KeyStore(tmp_path).keys()
    found = keys.find(secret)
    assert (found.name, found.role, found.limits.tokens_per_day) == ("alice", "admin", 5)
    for wrong in ("", secret[:-1], secret + "x", hash_secret(secret), "alice", "\ud800"):
        assert keys.find(wrong) is None
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in stored and hash_secret(secret).encode() in stored
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())


def test_what_another_process_changes_is_seen_at_the_next_look(tmp_path):
    server, other = KeyStore(tmp_path).keys(), KeyStore(tmp_path)
    secret = other.create("alice")
    key = server.find(secret)
    assert key is not None and server.still_good(key)
    other.revoke("alice")
    assert server.find(secret) is None and not server.still_good(key)
    again = other.create("alice")
    assert server.find(again).name == "alice" and server.find(secret) is None
    assert not server.still_good(key), "a new key of the name does not revive the old one"


def test_a_key_ends_when_it_expires(tmp_path):
    now = int(time.time())
    assert Key("a", "", expires_at=now + 5).state(now) == "good"
    assert Key("a", "", expires_at=now + 5).state(now + 5) == "expired"
    keys = Keys([Key("a", hash_secret("x"), expires_at=now - 1), Key("b", hash_secret("y"))])
    assert keys.find("x") is None and keys.find("y").name == "b"
    with pytest.raises(UsageError, match="expired already"):
        KeyStore(tmp_path).create("a", expires_at=now - 1)


@pytest.mark.parametrize("name", ["", "a b", "a\n", "a/b", "x" * 65, "\u00e9"])
def test_names_that_could_mean_something_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="name"):
        KeyStore(tmp_path).create(name)


def test_a_name_has_one_good_key_and_limits_are_numbers_above_zero(tmp_path):
    store = KeyStore(tmp_path)
    store.create("alice")
    with pytest.raises(UsageError, match="already"):
        store.create("alice")
    with pytest.raises(UsageError, match="tokens_total"):
        store.create("bob", limits=KeyLimits(tokens_total=0))
    with pytest.raises(ModelNotFound):
        store.revoke("carol")
    first = store.revoke("alice").revoked_at
    assert store.revoke("alice").revoked_at == first
    assert [key.name for key in store.list()] == ["alice"]


def test_a_file_that_is_no_database_or_of_another_version_is_refused(tmp_path):
    path_of(tmp_path).write_bytes(b"not a database" * 100)
    with pytest.raises(BadFile):
        KeyStore(tmp_path)
    later = tmp_path / "later"
    KeyStore(later).close()
    with sqlite3.connect(path_of(later)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(BadFile, match="version 99"):
        KeyStore(later)


def test_a_key_file_is_read_again_when_it_changes_and_a_broken_one_changes_nothing(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\nalice {hash_secret('a')}\nboss {hash_secret('b')} admin\n")
    keys = read_keys(path)
    assert (keys.find("a").role, keys.find("b").role) == ("user", "admin")
    path.write_text("alice open-sesame\n")
    assert keys.find("a") is not None and isinstance(keys.problem, BadFile)
    path.write_text(f"carol {hash_secret('c')}\n")
    os.utime(path, ns=(1, 1))
    assert keys.find("a") is None and keys.find("c").name == "carol" and keys.problem is None
    path.unlink()
    assert keys.find("c") is not None and isinstance(keys.problem, UsageError)


@pytest.mark.parametrize("line", ["alice", "alice open-sesame", f"alice {'0' * 64} king", f"a b {'0' * 64}"])
def test_a_line_that_is_no_key_is_refused_with_its_number(tmp_path, line):
    (tmp_path / "keys").write_text(f"good {'1' * 64}\n{line}\n")
    with pytest.raises(BadFile, match="line 2"):
        read_keys(tmp_path / "keys")
