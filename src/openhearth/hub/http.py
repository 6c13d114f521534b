"""One HTTP client for all sources: verified TLS, proxies, careful redirects, retries, plain errors.

Certificates: an explicit bundle, else REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, else the system's (SSL_CERT_FILE
and SSL_CERT_DIR are read by OpenSSL itself). Proxies: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY.
Headers of a request go to the origin of its address only; a redirect to another scheme, host or port
loses them, and one from https to http is refused.

Does not: open a socket while `config.is_offline`, keep cookies, or send anything about this machine.
"""

from __future__ import annotations

import base64
import email.utils
import os
import random
import re
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from openhearth.config import Config
from openhearth.errors import AccessDenied, HearthError, ModelNotFound, NetworkError, Offline, UsageError

RETRY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 8


@dataclass(frozen=True)
class Patience:
    """How long to try one request.

    Waits double from first_wait_s; a server that asks for more than max_wait_s gets no further try.
    is_hasty: a connection that times out is not tried again.
    """

    num_tries: int
    first_wait_s: float
    max_wait_s: float
    connect_s: float
    read_s: float
    is_hasty: bool = False

    def wait_s(self, num_failures: int, asked_s: float | None) -> float | None:
        """Return the seconds until the next try, or None to give up."""
        if num_failures >= self.num_tries or (asked_s or 0) > self.max_wait_s:
            return None
        doubled = self.first_wait_s * 2 ** (num_failures - 1) * random.uniform(0.8, 1.2)
        return asked_s if asked_s is not None else min(doubled, self.max_wait_s)


LISTING = Patience(num_tries=3, first_wait_s=0.2, max_wait_s=10, connect_s=4, read_s=20, is_hasty=True)
TRANSFER = Patience(num_tries=8, first_wait_s=0.25, max_wait_s=120, connect_s=10, read_s=30)


@dataclass(eq=False)
class Answer:
    """A response whose body is not read yet; url is where it came from after redirects."""

    status: int
    headers: Mapping[str, str]
    url: str
    raw: Any

    def close(self) -> None:
        """Drop the body and its connection."""
        self.raw.close()


def origin(url: str) -> tuple[str, str, int]:
    """Return (scheme, host, port) of an address; what a token or a header is bound to."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise UsageError(f"{url.rpartition('@')[2][:200]!a} is no address", why=str(error)) from None
    return scheme, host, port or {"http": 80, "https": 443}.get(scheme, 0)


def join(base: str, target: str) -> str:
    """Return the address that a page or a redirect at base names. Raises: NetworkError when malformed."""
    try:
        address = urljoin(base, target)
        origin(address)
        return address
    except (ValueError, UsageError):
        raise NetworkError(f"`{redact(base)}` names the malformed address {target[:200]!a}") from None


def redact(url: str) -> str:
    """Return an address without credentials, query and fragment, for messages."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def is_loopback(url: str) -> bool:
    """Return whether an address names this machine."""
    host = origin(url)[1]
    return host in {"localhost", "::1"} or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def split_auth(url: str) -> tuple[str, dict[str, str]]:
    """Return the address without `user:password@`, and the Authorization header that says the same."""
    parts = urlsplit(url)
    userinfo, has_auth, place = parts.netloc.rpartition("@")
    if not has_auth:
        return url, {}
    user, _, password = userinfo.partition(":")
    return urlunsplit(parts._replace(netloc=place)), basic_auth(unquote(user), unquote(password))


def basic_auth(user: str, password: str) -> dict[str, str]:
    """Return the Authorization header of RFC 7617."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def etag_of(answer: Answer) -> str | None:
    """Return the strong validator of an answer, without quotes; None when it has none."""
    etag = answer.headers.get("ETag", "")
    return etag.strip('"') if etag and not etag.startswith("W/") else None


class Client:
    """Connections of one listing or one transfer; safe to use from several threads.

    ca_bundle, proxy: override the environment. trusted_hosts: hosts (or host:port) whose certificate is
    not checked, as pip's `trusted-host` asks. timeout_s: read timeout instead of the patience's own.
    """

    def __init__(self, config: Config, *, ca_bundle: str | None = None, proxy: str | None = None,
                 trusted_hosts: Iterable[str] = (), num_connections: int = 4,
                 timeout_s: float | None = None) -> None:
        self._is_offline = config.is_offline
        self._ca_bundle = ca_bundle
        self._proxy = proxy
        self._trusted_hosts = frozenset(host.lower() for host in trusted_hosts)
        self._num_connections = num_connections
        self._timeout_s = timeout_s
        self._pools: dict[tuple[str | None, bool], Any] = {}
        self._lock = threading.Lock()

    def open(self, url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None,
             patience: Patience = LISTING, stop: threading.Event | None = None,
             is_following: bool = True) -> Answer:
        """Send a request and return its answer, whatever the status, with the body unread.

        is_following: False returns a redirect itself, for the headers on it.
        Statuses in RETRY_STATUSES and failed connections are tried again, as `patience` says; `stop`
        ends the waiting. Raises: Offline; NetworkError after the last try, for a bad certificate, or
        for a redirect that is not followed.
        """
        import urllib3

        if self._is_offline:
            raise Offline(f"HEARTH_OFFLINE is set and this needs `{redact(url)}`",
                          hint="HEARTH_OFFLINE=0, or use a model that `hearth list` shows")
        num_failures = 0
        while True:
            asked_s, may_retry = None, True
            try:
                answer = self._follow(method, url, dict(headers or {}), patience, is_following)
                if answer.status not in RETRY_STATUSES:
                    return answer
                asked_s, reason = _asked_wait_s(answer.headers), f"it answered {answer.status}"
                answer.close()
            except urllib3.exceptions.HTTPError as error:
                is_slow = (isinstance(error, urllib3.exceptions.ConnectTimeoutError)
                           and not isinstance(error, urllib3.exceptions.NewConnectionError))
                may_retry = not _is_certificate(error) and not (patience.is_hasty and is_slow)
                reason = describe(error)
            num_failures += 1
            wait_s = patience.wait_s(num_failures, asked_s) if may_retry else None
            if wait_s is None or (stop or threading.Event()).wait(wait_s):
                raise _unreachable(url, reason, num_failures, asked_s)

    def read(self, url: str, *, max_bytes: int,
             headers: Mapping[str, str] | None = None) -> tuple[Answer, bytes]:
        """GET a small document and return its answer and whole body (decompressed).

        Raises: as `open`, and NetworkError when the body is longer than max_bytes or breaks off twice.
        """
        import urllib3

        for attempt in (1, 2):
            answer = self.open(url, headers=headers)
            try:
                body = answer.raw.read(max_bytes + 1, decode_content=True)
            except urllib3.exceptions.HTTPError as error:
                if attempt == 2:
                    raise _unreachable(url, describe(error), attempt, None) from None
                continue
            finally:
                answer.close()
            if len(body) > max_bytes:
                raise NetworkError(f"`{redact(url)}` answered more than {max_bytes} bytes",
                                   why="a listing is expected to be smaller")
            return answer, body
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close idle connections."""
        for pool in self._pools.values():
            pool.clear()

    def _follow(self, method: str, url: str, headers: dict[str, str], patience: Patience,
                is_following: bool) -> Answer:
        import urllib3

        timeout = urllib3.Timeout(connect=patience.connect_s, read=self._timeout_s or patience.read_s)
        headers.setdefault("User-Agent", "openhearth")
        headers.setdefault("Accept-Encoding", "identity")
        first = url
        for _ in range(_MAX_REDIRECTS):
            raw = self._pool(url).urlopen(method, url, headers=headers, redirect=False, retries=False,
                                          preload_content=False, decode_content=False, timeout=timeout)
            target = raw.headers.get("Location")
            if raw.status not in _REDIRECTS or not target or not is_following:
                return Answer(raw.status, raw.headers, url, raw)
            raw.close()
            target = join(url, target)
            scheme = urlsplit(target).scheme.lower()
            if scheme not in {"http", "https"} or (scheme == "http" and origin(url)[0] == "https"):
                raise NetworkError(f"`{redact(url)}` redirects to `{redact(target)}`",
                                   why=f"a redirect from {origin(url)[0]} to {scheme} is not followed")
            if origin(target) != origin(url):
                headers = {name: value for name, value in headers.items()
                           if name.lower() in {"user-agent", "accept", "accept-encoding", "range"}}
            url = target
        raise NetworkError(f"`{redact(first)}` redirects more than {_MAX_REDIRECTS} times")

    def _pool(self, url: str) -> Any:
        """Return the connection pool for an address: direct or through a proxy, checked or trusted."""
        import urllib3

        scheme, host, port = origin(url)
        proxy = self._proxy or _environment_proxy(scheme, host, port)
        is_trusted = host in self._trusted_hosts or f"{host}:{port}" in self._trusted_hosts
        with self._lock:
            if (proxy, is_trusted) not in self._pools:
                context = _tls_context(self._ca_bundle, is_trusted)
                settings = {"num_pools": 8, "maxsize": self._num_connections + 1, "ssl_context": context}
                if proxy is None:
                    pool = urllib3.PoolManager(**settings)
                else:
                    place, auth = split_auth(proxy if "://" in proxy else f"http://{proxy}")
                    if urlsplit(place).scheme not in {"http", "https"}:
                        raise UsageError(f"the proxy `{redact(place)}` is no http or https address",
                                         hint="HTTPS_PROXY=http://host:port")
                    header = {"Proxy-Authorization": auth["Authorization"]} if auth else None
                    pool = urllib3.ProxyManager(place, proxy_headers=header, **settings)
                self._pools[proxy, is_trusted] = pool
            return self._pools[proxy, is_trusted]


def error_of(answer: Answer, what: str) -> HearthError:
    """Return the error that an answer of 400 or more means; closes the answer.

    what: names the thing asked for in messages. Reads `X-Error-Code` and `X-Error-Message` of the
    Hub's HTTP API.
    """
    answer.close()
    code, message = answer.headers.get("X-Error-Code", ""), answer.headers.get("X-Error-Message", "")[:300]
    place = redact(answer.url)
    why = "\n".join(line for line in (message, f"{place} answered {answer.status}") if line)
    if code == "GatedRepo":
        return AccessDenied(f"{what} is gated: its owner wants terms accepted first", why=why,
                            hint="accept them on the model's page, then HF_TOKEN=hf_... in the environment")
    if code == "RevisionNotFound":
        return ModelNotFound(f"{what}: no such revision", why=why,
                             hint="leave `@revision` out for the newest")
    if code == "EntryNotFound":
        return ModelNotFound(f"{what}: no such file", why=why,
                             hint="leave `:file` out, or add --dry-run to see the files")
    if code == "RepoNotFound":
        return ModelNotFound(f"{what}: no such repository, or it is private", why=why,
                             hint="check the name; a private one needs an HF_TOKEN that may read it")
    if answer.status in {401, 403, 407}:
        return AccessDenied(f"{what}: access denied", why=why,
                            hint="HF_TOKEN=hf_... (hub) or credentials of the index that may read it")
    if answer.status in {404, 410}:
        return ModelNotFound(f"{what} is not there", why=why)
    return NetworkError(f"{what}: the server answered {answer.status}", why=why)


def describe(error: Exception) -> str:
    """Return one line that says what a urllib3 error was, without object reprs."""
    text = str(error.__cause__ or error.__context__ or error)
    text = re.sub(r"<[^<>]*object at 0x[0-9a-f]+>:?\s*|^\w+\([^)]*\):\s*", "", text).strip()
    return text[:300] or type(error).__name__


def _unreachable(url: str, reason: str, num_tries: int, asked_s: float | None) -> NetworkError:
    why = f"{reason} ({num_tries} {'try' if num_tries == 1 else 'tries'})"
    if asked_s is not None and asked_s > 1:
        why += f"\nit asks to wait {asked_s:.0f} s"
    hint = "check the connection and the proxy settings"
    if "CERTIFICATE" in reason.upper():
        hint = "SSL_CERT_FILE=/path/to/the/certificates.pem when a company proxy signs with its own"
    return NetworkError(f"`{redact(url)}` could not be reached", why=why, hint=hint)


def _is_certificate(error: Exception) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """Return the wait a server asks for: `Retry-After` (RFC 9110) or the `t=` of a `RateLimit` header."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        limit = re.search(r"r=0\b.*?\bt=(\d{1,6})", headers.get("RateLimit", ""))
        return float(limit.group(1)) if limit else None


def _environment_proxy(scheme: str, host: str, port: int) -> str | None:
    proxies: dict[str, str] = urllib.request.getproxies_environment()
    is_bypassed: Callable[[str], Any] = urllib.request.proxy_bypass_environment
    if is_bypassed(host) or is_bypassed(f"{host}:{port}"):
        return None
    return proxies.get(scheme) or proxies.get("all")


def _tls_context(ca_bundle: str | None, is_trusted: bool) -> ssl.SSLContext:
    bundle = ca_bundle or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    try:
        if bundle and os.path.isdir(bundle):
            context = ssl.create_default_context(capath=bundle)
        else:
            context = ssl.create_default_context(cafile=bundle or None)
    except OSError as error:
        raise UsageError(f"the certificates `{bundle}` cannot be read", why=str(error),
                         hint="set REQUESTS_CA_BUNDLE or SSL_CERT_FILE to a PEM file") from None
    if is_trusted:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
