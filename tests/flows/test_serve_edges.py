"""Connections that keep a server waiting, forged lines, TLS, and pages of other origins."""

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from support.serving import serving
from support.tiny import build_llama

from openhearth.errors import UsageError
from openhearth.listening import Tls
from openhearth.server import Limits, Patience

CHAT = "/v1/chat/completions"
PEM = Path(__file__).parents[1] / "support" / "tls"
PAGE = "https://chat.example.org"


def body(**settings):
    return {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 5, **settings}


def never_ending(**settings):
    return body(max_tokens=8000, logit_bias={"2": -100}, stream=True, **settings)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    """A server that waits for nobody longer than half a second."""
    folder = tmp_path_factory.mktemp("hasty")
    build_llama(folder / "tiny", max_position_embeddings=8192)
    with serving(folder / "tiny", folder / "home", origins=(PAGE,), limits=Limits(body_s=0.5),
                 patience=Patience(head_s=0.5, read_s=0.5)) as server:
        yield server


def connect(server, **settings):
    host, port = httpx.URL(server.url).host, httpx.URL(server.url).port
    connection = socket.socket()
    for name, value in settings.items():
        connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    connection.settimeout(60)
    connection.connect((host, port))
    return connection


def request_of(value, path=CHAT, extra=b""):
    content = json.dumps(value).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n".encode()
            + extra + b"\r\n" + content)


def read_to_end(connection):
    """Return what comes until the other side closes."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def drip(connection, part, seconds):
    """Send a part again and again, and return after how many seconds the other side had enough."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            connection.sendall(part)
        except OSError:
            break
        time.sleep(0.05)
    return time.monotonic() - started


@pytest.mark.parametrize("first", [b"", b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n"])
def test_a_connection_that_brings_no_whole_head_is_closed(hasty, first):
    started = time.monotonic()
    with connect(hasty) as connection:
        connection.sendall(first)
        found = read_to_end(connection)
    assert found == b"" and 0.3 < time.monotonic() - started < 60


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nHost: localhost\r\n",
                                   b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\n"])
def test_a_head_that_drips_is_not_waited_for(hasty, first):
    with connect(hasty) as connection:
        connection.sendall(first)
        assert drip(connection, b"X-A: b\r\n", 120) < 60


def test_a_body_that_drips_ends_the_connection_with_its_refusal(hasty):
    with connect(hasty) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                           b"Content-Length: 5000\r\n\r\n{")
        assert drip(connection, b" ", 120) < 60
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_nobody_waits_for_is_not_read_for_ever(hasty):
    with connect(hasty) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 500000\r\n\r\n")
        assert drip(connection, b" ", 120) < 60
        assert connection.recv(100).startswith(b"HTTP/1.1 403 ")


def test_a_client_that_does_not_read_is_let_go_and_its_pages_are_free(hasty):
    before = hasty.engine.stats().num_drawn_tokens
    with connect(hasty, SO_RCVBUF=2048) as connection:
        connection.sendall(request_of(never_ending(n=16, logprobs=True, top_logprobs=20)))
        assert connection.recv(20).startswith(b"HTTP/1.1 200 ")
        hasty.wait_idle()
        assert hasty.engine.stats().num_drawn_tokens - before < 16 * 8000 / 2
        deadline = time.monotonic() + 120
        while not hasty.log or not hasty.log[-1].get("client_left"):
            assert time.monotonic() < deadline, hasty.log[-1]
            time.sleep(0.05)


def test_a_client_that_reads_slowly_gets_its_whole_answer(hasty):
    before = hasty.engine.stats().num_drawn_tokens
    with connect(hasty, SO_RCVBUF=4096) as connection:
        connection.sendall(request_of(body(max_tokens=300, logit_bias={"2": -100}, stream=True, logprobs=True,
                                           top_logprobs=20), extra=b"Connection: close\r\n"))
        while hasty.engine.stats().num_drawn_tokens == before:
            time.sleep(0.01)
        found, started = b"", time.monotonic()
        hasty.wait_idle(120)
        while part := connection.recv(16384):
            found += part
            time.sleep(0.05)
    assert time.monotonic() - started > 1, "longer than this server waits for a head"
    assert len(found) > 300_000 and b"data: [DONE]\n\n" in found
    hasty.wait_idle()


def test_a_connection_may_rest_between_two_requests(hasty):
    with connect(hasty) as connection:
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            found = b""
            while b'{"status":"ok"}' not in found:
                part = connection.recv(4096)
                assert part, found
                found += part
            time.sleep(1)


@pytest.mark.parametrize("head", [
    b"GET /health\r\nHost: a", b"GET /a b HTTP/1.1", b"GET / HTTP/9.9", b"\x00\x01\x02",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"x" * 2_000_000,
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1",
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2",
])
def test_what_is_no_http_is_refused_and_nothing_breaks(hasty, head):
    with connect(hasty) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(head + b"\r\n\r\n")
        found = read_to_end(connection)
    assert not found or found.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 ")), found
    assert httpx.get(hasty.url + "/health").status_code == 200


def test_nothing_that_a_client_sends_begins_a_line_of_a_header_or_of_the_log(hasty):
    forged = "\r\nSet-Cookie: a=b\r\n\r\n{\"status\": 200}\n"
    path = "/v1/models/" + "%0d%0aSet-Cookie:%20a=b%0a%1b[31m%e2%80%a8"
    for given in (b"x\x0by", b"id\twith\ttabs", "\u00e9".encode()):
        with connect(hasty) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode()
                               + b"x-request-id: " + given + b"\r\n\r\n")
            found = read_to_end(connection)
        head = found.partition(b"\r\n\r\n")[0]
        assert b"set-cookie" not in head.lower() and given not in head
    reply = httpx.post(hasty.url + CHAT, json=body(model=forged, user=forged))
    assert reply.status_code == 404 and "set-cookie" not in reply.headers
    for record in hasty.log:
        line = json.dumps(record)
        assert line.isascii() and not any(ord(one) < 32 for one in line)


def test_pages_of_a_named_origin_may_ask_and_no_others(hasty):
    asked = {"Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang"}
    allowed = httpx.options(hasty.url + CHAT, headers={"Origin": PAGE, **asked})
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == PAGE
    assert "x-stainless-lang" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in allowed.headers
    reply = httpx.post(hasty.url + CHAT, json=body(), headers={"Origin": PAGE})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "x-request-id" in reply.headers["access-control-expose-headers"]
    for other in ("https://evil.example", PAGE + ".evil.example", "null", PAGE.replace("https", "http")):
        refused = httpx.options(hasty.url + CHAT, headers={"Origin": other, **asked})
        assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
        reply = httpx.post(hasty.url + CHAT, json=body(), headers={"Origin": other})
        assert reply.status_code == 403 and "access-control-allow-origin" not in reply.headers


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_a_certificate_makes_it_https(tiny_folder, tmp_path):
    tls = Tls(PEM / "cert.pem", PEM / "key.pem")
    with serving(tiny_folder, tmp_path, tls=tls) as server:
        assert server.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=PEM / "cert.pem")
        url = server.url.replace("127.0.0.1", "localhost")
        with httpx.Client(verify=trusting) as client:
            assert client.post(url + CHAT, json=body()).json()["usage"]["completion_tokens"] > 0
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http") + "/health")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.HTTPError):
            httpx.get(url + "/health", verify=old)


def test_a_renewed_certificate_is_taken_and_a_broken_one_is_not(tmp_path):
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    shutil.copy(PEM / "cert.pem", chain)
    shutil.copy(PEM / "key.pem", key)
    tls = Tls(chain, key)
    assert shown_by(tls) == ssl.PEM_cert_to_DER_cert(chain.read_text())
    chain.write_text("half")
    with pytest.raises(UsageError):
        tls.refresh()
    tls.refresh()
    assert shown_by(tls) == ssl.PEM_cert_to_DER_cert((PEM / "cert.pem").read_text())
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                    "-nodes", "-subj", "/CN=renewed", "-keyout", key, "-out", chain], check=True,
                   capture_output=True)
    tls.refresh()
    assert shown_by(tls) == ssl.PEM_cert_to_DER_cert(chain.read_text())


def shown_by(tls):
    """Return the certificate that a client is shown."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (client.wrap_bio(to_client, to_server),
             tls.context.wrap_bio(to_server, to_client, server_side=True))
    for side in sides * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return sides[0].getpeercert(binary_form=True)


def test_files_that_are_no_certificate_are_refused(tmp_path):
    (tmp_path / "no").write_text("nothing")
    for certificate, key in ((tmp_path / "missing", PEM / "key.pem"), (tmp_path / "no", PEM / "key.pem"),
                             (PEM / "cert.pem", PEM / "cert.pem")):
        with pytest.raises(UsageError):
            Tls(certificate, key)
