"""HTTP for package indexes, with the user's certificates, proxies and credentials, and readable failures."""

from __future__ import annotations

import base64
import netrc as _netrc
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import IO, Any, NamedTuple, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    HTTPError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry, Timeout

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.sources import PackageSources, redact, without_credentials
from greenroom.runner.threads import Flag, TookTooLong, bounded
from greenroom.runner.user_home import expanded

_CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""For the response head, redirects included."""
PAGE_SECONDS = 120.0
PAGE_BYTES = 64 * 2**20
"""Unpacked; pages of projects with ten thousand files have a fifth of it."""
_PIECE = 64 * 1024
_AGENT = "greenroom (package installer)"
_ADVICE = "Check the network; pip's and uv's own index and proxy settings are used."
# No retries here: the caller decides about them, where they are seen and counted.
_ONCE = Retry(total=None, connect=0, read=0, status=0, other=0, redirect=8, raise_on_status=False)

NOT_HERE = frozenset({404, 410})
"""Statuses by which an index says that it has no such page or file."""


T = TypeVar("T")


class Fetched(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str]
    url: str
    """After redirects."""


class Web:
    """HTTP with the transport of `PackageSources`; thread-safe.

    No call outlasts a bound, whatever a server sends and however slowly, but one that sends a file.
    """

    def __init__(self, sources: PackageSources, *, advice: str = _ADVICE, cancel: Flag | None = None) -> None:
        """`advice` is for servers that do not answer; `cancel` ends every call with JobCancelled when set."""
        self._sources = sources
        self._advice = advice
        self._cancel = cancel
        self._pools: dict[tuple[str, bool], urllib3.PoolManager] = {}
        self._guard = threading.Lock()
        self._reached = False
        self._netrc: _netrc.netrc | None = None
        if sources.netrc is not None:
            try:
                self._netrc = _netrc.netrc(sources.netrc.value)
            except (OSError, _netrc.NetrcParseError):
                self._netrc = None  # pip and uv ignore it too

    def open(
        self, url: str, *, headers: Mapping[str, str] | None = None, method: str = "GET"
    ) -> BaseHTTPResponse:
        """Send a request and return the response unread, with any status but a refusal.

        Raises:
            JobFailed: No response, or a refusal (401, 403, 407, 429, 5xx).
        """
        response = self.send(url, headers=headers, method=method)
        if response.status in NOT_HERE or response.status < 400 or response.status == 416:
            return response
        response.close()
        raise _refused(without_credentials(url), response.status)

    def send(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        body: bytes | IO[bytes] | None = None,
        anonymous: bool = False,
    ) -> BaseHTTPResponse:
        """Send a request and return the response unread, with any status.

        Redirects are followed; credentials are not sent to another host.

        Args:
            anonymous: Leave out the credentials in package settings and ~/.netrc.

        Raises:
            JobFailed: No response.
            JobCancelled: `cancel` was set.
        """
        seconds = None if body is not None and not isinstance(body, bytes) else ANSWER_SECONDS

        def exchange() -> BaseHTTPResponse:
            return self._send(url, headers, method, body, anonymous=anonymous)

        return self._within(url, seconds, exchange, drop=lambda response: response.close())

    def fetch(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        body: bytes | None = None,
        anonymous: bool = False,
        limit: int = PAGE_BYTES,
    ) -> Fetched:
        """Send a request and read the whole, small response, with any status.

        Args:
            limit: Maximum bytes; one more is returned of larger responses.

        Raises:
            JobFailed: No response in time.
            JobCancelled: `cancel` was set.
        """

        def exchange() -> Fetched:
            response = self._send(url, headers, method, body, anonymous=anonymous)
            try:
                data = _whole(response, limit)
            except (HTTPError, OSError) as error:
                raise self.failure(url, error) from error
            finally:
                response.close()
            return Fetched(response.status, data, response.headers, response.geturl() or url)

        return self._within(url, PAGE_SECONDS, exchange)

    def _within(
        self,
        url: str,
        seconds: float | None,
        call: Callable[[], T],
        drop: Callable[[T], object] | None = None,
    ) -> T:
        exchange = _Exchange()
        try:
            return bounded(
                lambda: exchange.carry_out(call),
                name=f"http-{urlsplit(url).hostname}",
                seconds=seconds,
                cancel=self._cancel,
                drop=drop,
                left=exchange.end,
            )
        except TookTooLong:
            assert seconds is not None, "a timeout needs a bound"
            raise self._slow(url, seconds) from None

    def _send(
        self,
        url: str,
        headers: Mapping[str, str] | None,
        method: str,
        body: bytes | IO[bytes] | None,
        *,
        anonymous: bool,
    ) -> BaseHTTPResponse:
        sent = {
            "User-Agent": _AGENT,
            "Accept-Encoding": "identity",
            **({} if anonymous else self._credentials(url)),
            **(headers or {}),
        }
        bare = without_credentials(url)
        try:
            response = self._pool(bare).request(
                method,
                bare,
                body=body,
                headers=sent,
                preload_content=False,
                retries=_ONCE,
                timeout=self._timeout(),
            )
        except (HTTPError, OSError, ValueError) as error:
            raise self.failure(url, error) from error
        self._reached = True
        return response

    def read(self, url: str, *, accept: str) -> tuple[str, str, str] | None:
        """Text, media type and final URL of a page; None if there is no such page.

        Raises:
            JobFailed: No response, a refusal, or one that is too large.
            JobCancelled: `cancel` was set.
        """
        found = self.fetch(url, headers={"Accept": accept, "Accept-Encoding": "gzip"})
        if found.status in NOT_HERE:
            return None
        if found.status >= 400 and found.status != 416:
            raise _refused(without_credentials(url), found.status)
        if len(found.body) > PAGE_BYTES:
            raise JobFailed.permanent(
                "bad_answer",
                f"{urlsplit(url).hostname} sent more than {PAGE_BYTES / 1e6:.0f} MB for one page.",
                advice="Check the index address in pip's or uv's settings.",
                detail=redact(url),
            )
        media = found.headers.get("Content-Type", "text/html").split(";")[0].strip().lower()
        return found.body.decode("utf-8", "replace"), media, urljoin(url, found.url)

    def size(self, url: str) -> int:
        """Bytes of the file behind a URL; 0 if its server gives none."""
        response = self.open(url, method="HEAD")
        response.release_conn()
        length = response.headers.get("Content-Length", "")
        return int(length) if response.status == 200 and length.isdecimal() and len(length) < 19 else 0

    def failure(self, url: str, error: Exception) -> JobFailed:
        failed = self._failure(url, error)
        failed.reached = self._reached
        return failed

    def _failure(self, url: str, error: Exception) -> JobFailed:
        host = urlsplit(url).hostname or redact(url)
        cause: object = error
        if isinstance(error, MaxRetryError) and error.reason is not None:
            cause = error.reason
        detail = self._sources.redact(f"{redact(url)}: {type(cause).__name__}: {cause}")
        if isinstance(cause, ProxyError):
            return JobFailed.transient(
                "unreachable",
                f"The proxy on the way to {host} did not answer.",
                advice="Check the proxy in pip's settings or in HTTPS_PROXY.",
                detail=detail,
            )
        if isinstance(cause, SSLError | ssl.SSLError) and "CERTIFICATE" in str(cause).upper():
            return JobFailed.permanent(
                "untrusted_certificate",
                f"The certificate of {host} is not trusted by this machine.",
                advice="If a proxy answers for it, name its CA file in SSL_CERT_FILE or pip's `cert`.",
                detail=detail,
            )
        if isinstance(cause, NameResolutionError):
            sentence = f"{host} could not be found: its name does not resolve."
        elif isinstance(cause, NewConnectionError):
            sentence = f"{host} could not be reached."
        elif isinstance(cause, ReadTimeoutError | TimeoutError):
            sentence = f"{host} sent nothing for {self._sources.timeout_seconds:.0f}s."
        else:
            sentence = f"The connection to {host} was interrupted."
        return JobFailed.transient("unreachable", sentence, advice=self._advice, detail=detail)

    def _slow(self, url: str, seconds: float) -> JobFailed:
        failed = JobFailed.transient(
            "unreachable",
            f"{urlsplit(url).hostname} did not finish its answer within {seconds:.0f}s.",
            advice=self._advice,
            detail=redact(url),
        )
        failed.reached = self._reached
        return failed

    def _timeout(self) -> Timeout:
        seconds = self._sources.timeout_seconds
        return Timeout(connect=min(_CONNECT_SECONDS, seconds), read=seconds)

    def _credentials(self, url: str) -> dict[str, str]:
        parts = urlsplit(url)
        pair: tuple[str, str] | None = None
        if parts.username or parts.password:
            pair = (unquote(parts.username or ""), unquote(parts.password or ""))
        elif (indexed := self._index_credentials(parts.hostname or "", parts.port)) is not None:
            pair = indexed
        elif self._netrc is not None and (entry := self._netrc.authenticators(parts.hostname or "")):
            pair = (entry[0] or "", entry[2] or "")
        if pair is None:
            return {}
        return {"Authorization": "Basic " + base64.b64encode(":".join(pair).encode()).decode()}

    def _index_credentials(self, host: str, port: int | None) -> tuple[str, str] | None:
        """Files on an index's host need the same credentials as its pages."""
        for setting in (self._sources.index, *self._sources.extra_indexes):
            parts = urlsplit(setting.value)
            if (parts.hostname, parts.port) == (host, port) and (parts.username or parts.password):
                return unquote(parts.username or ""), unquote(parts.password or "")
        return None

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        host = parts.hostname or ""
        trusted = {setting.value for setting in self._sources.trusted_hosts}
        checked = not ({host, f"{host}:{parts.port}"} & trusted)
        proxy = self._proxy(parts.scheme, host, parts.port)
        with self._guard:
            key = (proxy or "", checked)
            if key not in self._pools:
                self._pools[key] = self._make_pool(proxy, checked=checked)
            return self._pools[key]

    def _proxy(self, scheme: str, host: str, port: int | None) -> str | None:
        variables = {s.origin.lower().removesuffix("_proxy"): s.value for s in self._sources.proxies}
        address = f"{host}:{port}" if port else host
        if urllib.request.proxy_bypass_environment(address, variables):  # type: ignore[attr-defined]
            return None
        if self._sources.proxy is not None:
            return self._sources.proxy.value
        return variables.get(scheme) or variables.get("all")

    def _make_pool(self, proxy: str | None, *, checked: bool) -> urllib3.PoolManager:
        context = self._context() if checked else _unchecked()
        if proxy is None:
            return _watched(urllib3.PoolManager(maxsize=16, block=False, ssl_context=context))
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        parts = urlsplit(proxy)
        headers = {}
        if parts.username:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers = urllib3.make_headers(proxy_basic_auth=pair)
        return _watched(
            urllib3.ProxyManager(
                without_credentials(proxy),
                proxy_headers=headers,
                maxsize=16,
                block=False,
                ssl_context=context,
            )
        )

    def _context(self) -> ssl.SSLContext:
        bundle = self._sources.ca_bundle
        context: ssl.SSLContext
        if bundle is None:
            import truststore

            # The system's store: Python's OpenSSL finds none on a Mac, and users add their CA there.
            context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        else:
            path = expanded(bundle.value)
            context = ssl.create_default_context(
                cafile=None if path.is_dir() else str(path), capath=str(path) if path.is_dir() else None
            )
        if self._sources.client_certificate is not None:
            context.load_cert_chain(self._sources.client_certificate.value)
        return context


def _whole(response: BaseHTTPResponse, limit: int) -> bytes:
    """The body, unpacked, up to one byte more than the limit."""
    data = bytearray()
    while len(data) <= limit and (piece := response.read(_PIECE, decode_content=True)):
        data += piece
    return bytes(data[: limit + 1])


def _watched(manager: urllib3.PoolManager) -> urllib3.PoolManager:
    manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return manager


def _unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return context


def _refused(url: str, status: int) -> JobFailed:
    host = urlsplit(url).hostname or url
    detail = f"{redact(url)}: HTTP status {status}"
    if status in (401, 403, 407):
        return JobFailed.permanent(
            "unauthorized",
            f"{host} refused our credentials (HTTP status {status}).",
            advice="Check the user and password of the index in pip's or uv's settings, or in ~/.netrc.",
            detail=detail,
        )
    if status == 429 or status >= 500:
        return JobFailed.transient(
            "unreachable",
            f"{host} has a problem (HTTP status {status}).",
            advice="Try again later.",
            detail=detail,
        )
    return JobFailed.permanent(
        "refused_by_index",
        f"{host} refused the request (HTTP status {status}).",
        advice="Check the index address in pip's or uv's settings.",
        detail=detail,
    )


_here = threading.local()


class _Exchange:
    """One request and its response. `end` unblocks it from another thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._ended = False
        self._socket: socket.socket | None = None

    def carry_out(self, call: Callable[[], T]) -> T:
        """Make the call; connections it uses on this thread belong to this exchange."""
        _here.exchange = self
        try:
            return call()
        finally:
            _here.exchange = None
            with self._guard:
                self._socket = None

    def uses(self, found: socket.socket | None) -> None:
        """The connection that `end` shuts down: a response without a length takes it from its connection."""
        with self._guard:
            self._socket = found
            ended = self._ended
        if ended:
            raise TimeoutError("this answer is no longer needed")

    def end(self) -> None:
        """Wake the waiting reader. A connection still being opened is left alone."""
        with self._guard:
            self._ended = True
            found = self._socket
        if found is not None:
            with suppress(OSError, ValueError):
                # The plain socket's method: TLS would first send its closing alert, and may
                # be busy in another thread.
                socket.socket.shutdown(found, socket.SHUT_RDWR)


class _Watched:
    """A connection that tells its exchange which socket it uses."""

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._told()

    def request(self, *arguments: Any, **named: Any) -> None:
        self._told()
        super().request(*arguments, **named)  # type: ignore[misc]

    def _told(self) -> None:
        exchange = getattr(_here, "exchange", None)
        if exchange is not None:
            found = self.sock  # type: ignore[attr-defined]
            exchange.uses(found if isinstance(found, socket.socket) else None)


class _Http(_Watched, HTTPConnection):
    pass


class _Https(_Watched, HTTPSConnection):
    pass


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http  # pyright: ignore[reportAssignmentType]


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https  # pyright: ignore[reportAssignmentType]
