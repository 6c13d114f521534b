"""The HTTP client: certificates, proxies, retries, messages."""

import socket
import time

import pytest
from support.hub_server import CERTIFICATE, HubServer
from support.transfers import config_for, isolate_pip

from openhearth.errors import AccessDenied, ModelNotFound, NetworkError, Offline, UsageError
from openhearth.hub.http import Client, error_of, is_loopback, origin, redact, split_auth
from openhearth.hub.records import Ref
from openhearth.hub.sources import https


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    isolate_pip(monkeypatch, tmp_path)


@pytest.fixture
def server():
    with HubServer() as server:
        server.add_file("/x", b"hello")
        yield server


@pytest.fixture
def tls_server():
    with HubServer(is_tls=True) as server:
        server.add_file("/x", b"hello")
        yield server


def get(server, tmp_path, path="/x", **settings):
    client = Client(config_for(server, tmp_path), **settings)
    return client.read(server.url + path, max_bytes=100)[1]


def test_an_unknown_certificate_is_refused_at_once_with_the_setting_that_helps(tls_server, tmp_path):
    with pytest.raises(NetworkError, match=r"(?i)certificate") as caught:
        get(tls_server, tmp_path)
    assert "SSL_CERT_FILE" in caught.value.hint and "(1 try)" in caught.value.why


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_come_from_the_environment(tls_server, tmp_path, monkeypatch, name):
    for other in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(CERTIFICATE))
    assert get(tls_server, tmp_path) == b"hello"


def test_a_bundle_and_a_trusted_host_are_taken_from_the_caller(tls_server, tmp_path):
    assert get(tls_server, tmp_path, ca_bundle=str(CERTIFICATE)) == b"hello"
    assert get(tls_server, tmp_path, trusted_hosts=["127.0.0.1"]) == b"hello"
    with pytest.raises(NetworkError):
        get(tls_server, tmp_path, trusted_hosts=["127.0.0.2"])


def test_a_missing_bundle_is_named(tls_server, tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.pem"):
        get(tls_server, tmp_path, ca_bundle=str(tmp_path / "nowhere.pem"))


def test_a_redirect_from_https_to_http_is_refused(tls_server, server, tmp_path):
    tls_server.faults.redirect_to = server.url + "/x"
    with pytest.raises(NetworkError, match="from https to http is not followed"):
        get(tls_server, tmp_path, ca_bundle=str(CERTIFICATE))
    assert server.requests == []


def test_a_redirect_to_another_origin_loses_all_headers(server, tmp_path):
    with HubServer() as other:
        other.add_file("/y", b"there")
        server.faults.redirect_to = other.url + "/y"
        client = Client(config_for(server, tmp_path))
        answer, body = client.read(server.url + "/x", max_bytes=100,
                                   headers={"Authorization": "Bearer s", "X-Key": "s", "Cookie": "s"})
        assert body == b"there" and answer.url == other.url + "/y"
        sent, = other.headers_of("/y")
        assert not {"authorization", "x-key", "cookie"} & set(sent)


def test_proxies_come_from_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url.replace("http://", "http://me:pa%40ss@"))
    client = Client(config_for(server, tmp_path))
    assert client.read("http://models.invalid/x", max_bytes=100)[1] == b"hello"
    _, path, headers = server.requests[-1]
    assert path == "http://models.invalid/x"
    assert headers["proxy-authorization"] == "Basic bWU6cGFAc3M="
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert get(server, tmp_path) == b"hello"
    assert server.requests[-1][1] == "/x" and "proxy-authorization" not in server.requests[-1][2]


def test_a_source_that_is_down_costs_seconds(server, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        start = time.monotonic()
        with pytest.raises(NetworkError, match=r"could not be reached\n.*refused.*\(3 tries\)"):
            Client(config_for(server, tmp_path)).open(url)
        assert time.monotonic() - start < 60


def test_a_name_that_does_not_resolve_is_a_plain_message(server, tmp_path):
    with pytest.raises(NetworkError) as caught:
        Client(config_for(server, tmp_path)).open("http://no-such-host.invalid/x")
    assert "object at 0x" not in str(caught.value) and "no-such-host.invalid" in str(caught.value)


def test_a_listing_that_is_too_long_is_refused(server, tmp_path):
    server.add_file("/big", b"x" * 101)
    with pytest.raises(NetworkError, match="more than 100 bytes"):
        get(server, tmp_path, "/big")


def test_a_broken_listing_is_read_again(server, tmp_path):
    server.faults.drop_after, server.faults.num_drops = 2, 1
    assert get(server, tmp_path) == b"hello"


def test_offline_names_the_address(server, tmp_path):
    with pytest.raises(Offline, match=server.url + "/x"):
        Client(config_for(server, tmp_path, HEARTH_OFFLINE="1")).open(server.url + "/x?secret=1")
    assert server.requests == []


@pytest.mark.parametrize("code,kind", [("RepoNotFound", ModelNotFound), ("RevisionNotFound", ModelNotFound),
                                       ("EntryNotFound", ModelNotFound), ("GatedRepo", AccessDenied)])
def test_the_error_code_of_a_hub_decides_the_class(server, tmp_path, code, kind):
    class Raw:
        def close(self):
            self.is_closed = True

    from openhearth.hub.http import Answer

    raw = Raw()
    headers = {"X-Error-Code": code, "X-Error-Message": "said so"}
    error = error_of(Answer(401, headers, server.url + "/x?k=1", raw), "`m`")
    assert type(error) is kind and "said so" in error.why and "k=1" not in str(error) and raw.is_closed


def test_addresses_are_taken_apart():
    assert origin("HTTPS://Host/x") == ("https", "host", 443) and origin("http://h:81") == ("http", "h", 81)
    assert redact("https://u:p@h:1/a?b=c#d") == "https://h:1/a"
    assert split_auth("https://u:p%3A@h/a") == ("https://h/a", {"Authorization": "Basic dTpwOg=="})
    assert split_auth("https://h/a@b") == ("https://h/a@b", {})
    assert is_loopback("http://127.0.0.1:9/x") and is_loopback("http://localhost") and is_loopback("http://[::1]/")
    assert not is_loopback("http://127.0.0.1.evil.example/") and not is_loopback("http://h/127.0.0.1")


# -- the https source


def listed(server, tmp_path, location, **env):
    return https.list_files(Ref("https", location), config_for(server, tmp_path, **env))


@pytest.mark.parametrize("has_head", [True, False])
def test_https_lists_one_file_with_its_size(server, tmp_path, has_head):
    server.faults.has_head = has_head
    server.add_file("/a/m%20v.gguf".replace("%20", " "), b"12345")
    listing = listed(server, tmp_path, server.url + "/a/m%20v.gguf?download=true")
    remote, = listing.files
    assert (remote.path, remote.size, remote.sha256) == ("m v.gguf", 5, None)
    assert listing.source == server.url + "/a/m%20v.gguf?download=true"


def test_https_takes_a_hash_and_credentials_from_the_address(server, tmp_path):
    server.add_file("/m.gguf", b"12345")
    location = server.url.replace("//", "//user:pw@") + "/m.gguf#sha256=" + "A" * 64
    listing = listed(server, tmp_path, location)
    remote, = listing.files
    assert remote.sha256 == "a" * 64 and remote.headers == {"Authorization": "Basic dXNlcjpwdw=="}
    assert "pw" not in listing.source and "pw" not in remote.url
    assert server.requests[-1][2]["authorization"] == "Basic dXNlcjpwdw=="


@pytest.mark.parametrize("location", ["http://models.example/m.gguf", "ftp://127.0.0.1/m", "file:///etc/passwd"])
def test_https_is_https_except_on_this_machine(server, tmp_path, location):
    with pytest.raises(UsageError, match="not an https address"):
        listed(server, tmp_path, location)


@pytest.mark.parametrize("location", ["https://[bad", "https://h:99999/m", "https://h:x/m"])
def test_what_is_no_address_is_refused(server, tmp_path, location):
    with pytest.raises(UsageError, match="is no address"):
        listed(server, tmp_path, location)


def test_https_refuses_what_is_missing_a_pickle_or_offline(server, tmp_path):
    from openhearth.errors import UnsafeFile

    with pytest.raises(ModelNotFound):
        listed(server, tmp_path, server.url + "/none.gguf")
    with pytest.raises(UnsafeFile, match="is a pickle"):
        listed(server, tmp_path, server.url + "/pytorch_model.bin")
    with pytest.raises(UsageError, match="sha256="):
        listed(server, tmp_path, server.url + "/x#md5=1")
    before = len(server.requests)
    with pytest.raises(Offline):
        listed(server, tmp_path, server.url + "/x", HEARTH_OFFLINE="1")
    assert len(server.requests) == before
