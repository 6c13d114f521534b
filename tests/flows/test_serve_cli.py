"""`hearth serve` as a process: what it refuses, what it prints, how it ends."""

import hashlib
import json
import signal
import socket

import httpx
import pytest
from support.command import environment
from support.in_process import run_main
from support.serve_process import Process


def test_a_signal_ends_a_server_after_what_it_is_answering(tiny_folder, tmp_path):
    server = Process(tmp_path / "home", tiny_folder, "--name", "mine")
    assert server.names == "mine"
    body = {"model": "mine", "stream": True, "max_tokens": 450, "logit_bias": {"2": -100},
            "messages": [{"role": "user", "content": "secret words"}]}
    with httpx.stream("POST", server.url + "/v1/chat/completions", json=body, timeout=60) as reply:
        events = reply.iter_text()
        text = next(events)
        server.process.send_signal(signal.SIGTERM)
        text += "".join(events)
    assert text.endswith("data: [DONE]\n\n")
    assert server.process.wait(120) == 0
    server._reader.join()
    assert server.process.stdout.read() == ""
    record = json.loads(server.lines[-1])
    assert (record["status"], record["completion_tokens"], record["model"]) == (200, 450, "mine")
    assert "secret" not in "".join(server.lines)
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url + "/health")


def test_keys_come_from_a_file_and_ctrl_c_ends_quietly(tiny_folder, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"# who may ask\nalice {hashlib.sha256(b'open sesame').hexdigest()}\n")
    log = tmp_path / "sockets.log"
    server = Process(tmp_path / "home", tiny_folder, "--api-key-file", keys, "--host", "0.0.0.0", "--quiet",
                     socket_log=log)
    url = server.url.replace("0.0.0.0", "127.0.0.1") + "/v1/models"
    assert httpx.get(url).status_code == 401
    reply = httpx.get(url, headers={"Authorization": "Bearer open sesame"})
    assert [model["id"] for model in reply.json()["data"]] == [tiny_folder.name]
    assert server.end(signal.SIGINT) == 0
    assert len(server.lines) == 1, "--quiet has no log, and the end no words"
    opened = [line.rpartition("] ")[2] for line in log.read_text().splitlines()]
    assert opened.count("socket family=2") == 3, "one that listens, one for each request: none leaves"
    assert [line for line in opened if not line.startswith("socket ")] == ["socket.getaddrinfo 0.0.0.0"]


@pytest.fixture
def serve(capfd, tmp_path, monkeypatch):
    """Run the verb in this process on a model that is not there."""
    for name, value in environment(tmp_path / "home", HEARTH_OFFLINE="1").items():
        monkeypatch.setenv(name, value)
    return lambda *args: run_main(capfd, "serve", "/no/such/model", *args)


@pytest.mark.parametrize("args,words", [
    (("--host", "0.0.0.0"), "there are no keys"), (("--host", "::"), "there are no keys"),
    (("--adapter", "nothing"), "--adapter is `nothing`"),
    (("--adapter", "x=/no/such/folder"), "`/no/such/folder` holds no adapter"),
    (("--api-key-file", "/no/such/file"), "cannot be read"), (("--port", "0"), "`/no/such/model` does not"),
])
def test_what_cannot_be_served_is_refused_before_the_model_is_looked_for(serve, args, words):
    done = serve(*args)
    assert done.code in (2, 3) and words in done.err, done.err


@pytest.mark.parametrize("text", ["", "alice open-sesame\n", "alice\n", f"a {'0' * 64}\na {'1' * 64}\n"])
def test_a_file_without_good_keys_is_refused(serve, tmp_path, text):
    (tmp_path / "keys").write_text(text)
    done = serve("--api-key-file", tmp_path / "keys")
    assert done.code == 4 and "key" in done.err


def test_a_port_in_use_is_said_before_the_model_is_looked_for(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve("--port", port)
    assert done.code == 2 and f"port {port}" in done.err and "--port 0" in done.err
