"""`hearth keys` and `hearth usage`, and what `hearth serve` refuses before it loads anything."""

import csv
import io
import json
import socket
import subprocess
import sys
import time

import pytest
from support.command import environment
from support.in_process import run_main

from openhearth.accounts import KeyStore, Usage, UsageStore
from openhearth.accounts.usage import Place
from openhearth.cli.times import read_time, show_time
from openhearth.errors import UsageError


@pytest.fixture
def hearth(capfd, tmp_path, monkeypatch):
    """Run verbs in this process on an empty store."""
    for name, value in environment(tmp_path, HEARTH_OFFLINE="1").items():
        monkeypatch.setenv(name, value)
    return lambda *args: run_main(capfd, *args)


def test_a_key_is_shown_once_alone_on_stdout_and_works(hearth, tmp_path):
    done = hearth("keys", "create", "alice", "--role", "admin", "--tokens-per-day", 500, "--expires", "30d")
    assert done.code == 0 and len(done.out.split()) == 1
    assert "500 tokens a day" in done.err and done.out.strip() not in done.err
    key = KeyStore(tmp_path).keys().find(done.out.strip())
    assert (key.name, key.role, key.limits.tokens_per_day) == ("alice", "admin", 500)
    assert abs(key.expires_at - time.time() - 30 * 86400) < 60
    listed = hearth("keys", "list")
    assert "alice" in listed.out and "500 tokens a day" in listed.out and key.sha256 not in listed.out
    assert hearth("keys", "revoke", "alice").code == 0
    assert json.loads(hearth("keys", "list", "--json").out)[0]["state"] == "revoked"
    again = json.loads(hearth("keys", "create", "alice", "--json").out)
    assert KeyStore(tmp_path).keys().find(again["key"]).role == "user"


@pytest.mark.parametrize("args,code,words", [
    (("create",), 2, "takes a name"), (("create", "a b"), 2, "expected 1 to 64"),
    (("create", "a", "--expires", "soon"), 2, "--expires 30d"),
    (("create", "a", "--tokens-total", "0"), 2, "1 or more"),
    (("revoke", "nobody"), 3, "no key `nobody`"), (("list", "a"), 2, "takes no name"),
    (("revoke", "a", "--tokens-total", "5"), 2, "create it again"),
    (("create", "a", "--expires", "2020-01-01"), 2, "expired already"),
])
def test_what_makes_no_sense_is_refused(hearth, args, code, words):
    done = hearth("keys", *args)
    assert done.code == code and words in done.err, done.err


def test_usage_is_summed_by_span_and_leaves_as_csv(hearth, tmp_path):
    hour = 1_796_000_400
    assert "nothing was used" in hearth("usage").err
    UsageStore(tmp_path).add({Place("alice", hour, "m"): Usage(2, 1, 30, 10, 5),
                              Place("alice", hour + 3600, "m"): Usage(1, 0, 3, 0, 1),
                              Place("bob", hour, ""): Usage(1, 1)})
    rows = list(csv.DictReader(io.StringIO(hearth("usage", "--csv").out)))
    assert rows[0] == {"key": "alice", "model": "m", "requests": "3", "errors": "1", "prompt_tokens": "33",
                       "cached_tokens": "10", "completion_tokens": "6"}
    by_hour = json.loads(hearth("usage", "--json", "--by", "hour", "--key", "alice").out)
    assert [(row["hour"], row["requests"]) for row in by_hour] == [("2026-11-30T01:00Z", 2),
                                                                   ("2026-11-30T02:00Z", 1)]
    since = hearth("usage", "--csv", "--since", "2026-11-30T01:30", "--key", "alice").out
    assert since.splitlines()[1] == "alice,m,1,0,3,0,1"
    table = hearth("usage", "--by", "day").out
    assert "COMPLETION TOKENS" in table and "2026-11-30  bob    -" in table
    assert hearth("usage", "--csv", "--json").code == 2


@pytest.mark.parametrize("text,expected", [("90m", 5400), ("12h", 43200), ("2d", 172800), ("1w", 604800)])
def test_spans_lie_ahead_or_behind(text, expected):
    assert read_time("--x", text, now=10**9, sign=1) == 10**9 + expected
    assert read_time("--x", text, now=10**9, sign=-1) == 10**9 - expected


def test_dates_are_utc_unless_they_say_otherwise():
    assert show_time(read_time("--x", "2027-01-31", now=0, sign=1)) == "2027-01-31 00:00"
    assert show_time(read_time("--x", "2027-01-31T10:00+02:00", now=0, sign=1)) == "2027-01-31 08:00"
    for text in ("", "30", "30y", "d", "yesterday", "9999999d", "2027-13-01"):
        with pytest.raises(UsageError, match="--x is"):
            read_time("--x", text, now=0, sign=1)


@pytest.mark.parametrize("args,words", [
    (("--keys", "--api-key-file", "x"), "exclude each other"), (("--tls-cert", "x"), "go together"),
    (("--tls-cert", "x", "--tls-key", "y"), "`x` is no file"), (("--cors", "example.org"), "--cors is"),
    (("--cors", "*"), "--cors is"), (("--cors", "https://a.example/path"), "--cors is"),
    (("--host", "0.0.0.0"), "there are no keys"), (("--api-key-file", "/no/such/file"), "cannot be read"),
])
def test_a_server_that_may_not_run_is_refused_with_a_hint(hearth, args, words):
    done = hearth("serve", "/no/such/model", *args)
    assert done.code == 2 and words in done.err and "hint:" in done.err, done.err


@pytest.mark.parametrize("case", ["host", "port", "keys"])
def test_such_refusals_do_not_load_torch(tmp_path, case):
    code = ("import sys\nfrom openhearth.cli import main\n"
            "try:\n    main(sys.argv[1:])\n"
            "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        args = {"host": ("--host", "0.0.0.0"), "port": ("--port", str(taken.getsockname()[1])),
                "keys": ("--api-key-file", "/no/such/file")}[case]
        done = subprocess.run([sys.executable, "-c", code, "serve", *args], text=True, capture_output=True,
                              env=environment(tmp_path, HEARTH_OFFLINE="1"), timeout=60)
    assert done.stdout == "2 False\n", done.stderr
