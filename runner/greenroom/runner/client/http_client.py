"""Requests to one Greenroom over HTTP/1.1: JSON, and lines of JSON or of events as they come."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from greenroom.runner.client.errors import RequestRefused, Unreachable
from greenroom.runner.proof import CHALLENGE, address_of, is_proof, make_challenge

SOCKET = "unix:"
"""Before the path of a socket, as the address of a server that listens there."""
_LINE_LIMIT = 65_536
_HEADER_LIMIT = 100
_PROOF_WITHIN = 10.0
_PROOF_LIMIT = 65_536


class NobodyThere(Exception):
    """No connection could be made."""


class NotHttp(Exception):
    """The server does not speak HTTP."""


class NotTrusted(Exception):
    """The server does not speak TLS, or its certificate is not trusted; the text says which."""


class BrokenOff(Exception):
    """The connection ended before the answer did."""


class NotProven(Exception):
    """The server does not know the secret of our data directory."""


class DaemonRequest:
    """A request that was sent and whose answer has begun: its headers have arrived, its body can be read.

    One request a connection, after the proof: closing in the middle of an answer is how it is called off.
    """

    def __init__(
        self,
        url: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        content: Iterable[bytes] = (),
        timeout: float | None = None,
        secret: bytes = b"",
    ) -> None:
        """Send the request and wait for the answer's head.

        `content` is a body in pieces, whose `Content-Length` is among the headers.
        `timeout` is how many seconds of silence are borne, while connecting too; None bears any.
        With a `secret`, the server must first prove on this connection that it knows it; otherwise nothing of
        the request is sent.
        Raises NobodyThere, NotTrusted, NotHttp, BrokenOff, NotProven, and TimeoutError if the server sends
        nothing.
        """
        self.status = 0
        self.reason = ""
        self.headers: Mapping[str, str] = {}
        """By lower-case name."""
        self._left: int | None = None
        """Bytes of the body, or of its current chunk, that are still to come; None means until the end."""
        self._chunked = False
        self._over = False
        self._socket = _connect(url, timeout)
        self._reader = self._socket.makefile("rb")
        try:
            try:
                if secret:
                    self._demand_proof(url, secret, timeout)
                self._socket.sendall(_request(url, method, path, headers, body))
                self._send(content)
                self._read_head()
                self._over = self._over or method == "HEAD"
            except ConnectionError as error:
                raise BrokenOff(_reason(error)) from error
        except BaseException:
            self.close()
            raise

    @property
    def peer(self) -> str:
        """The address at the other end, as `host:port`."""
        return address_of(self._socket.getpeername())

    def _demand_proof(self, url: str, secret: bytes, timeout: float | None) -> None:
        challenge = make_challenge()
        self._socket.settimeout(min(timeout or _PROOF_WITHIN, _PROOF_WITHIN))
        headers = {"Accept": "application/json", CHALLENGE: challenge, "Connection": "keep-alive"}
        self._socket.sendall(_request(url, "GET", "/livez", headers, None))
        self._read_head()
        try:
            fields = json.loads(self.read(_PROOF_LIMIT))
        except ValueError:
            fields = None
        answer = fields.get("proof") if isinstance(fields, dict) else None
        if not is_proof(answer, secret, challenge, self.peer):
            raise NotProven
        self._socket.settimeout(timeout)
        self._left, self._chunked, self._over = None, False, False

    def _send(self, content: Iterable[bytes]) -> None:
        try:
            for piece in content:
                self._socket.sendall(piece)
        except ConnectionError:
            # A server that refuses early answers without reading the rest.
            return

    def close(self) -> None:
        """End the connection. Idempotent."""
        self._reader.close()
        self._socket.close()

    def readline(self) -> bytes:
        """The next line with its end; what is left at the end of the body; empty after that."""
        found: list[bytes] = []
        while self._is_more():
            part = self._reader.readline(-1 if self._left is None else self._left)
            self._account(part)
            found.append(part)
            if part.endswith(b"\n"):
                break
        return b"".join(found)

    def read(self, limit: int = 2**28) -> bytes:
        """The rest of the body, or its beginning when that is longer than the limit."""
        found: list[bytes] = []
        while limit > 0 and self._is_more():
            part = self._reader.read(limit if self._left is None else min(limit, self._left))
            self._account(part)
            limit -= len(part)
            found.append(part)
        return b"".join(found)

    def _account(self, part: bytes) -> None:
        if not part:
            if self._left is not None:
                raise BrokenOff("the connection was closed")
            self._over = True
        elif self._left is not None:
            self._left -= len(part)
            if self._left == 0 and not self._chunked:
                self._over = True

    def _is_more(self) -> bool:
        """Whether the body goes on; in a chunked one, go on to the next chunk when this one is used up."""
        if self._over or not self._chunked or self._left:
            return not self._over
        if self._left == 0:
            self._line()
        size = self._line().partition(b";")[0].strip()
        try:
            self._left = int(size, 16)
        except ValueError:
            raise BrokenOff("a chunk has no size") from None
        self._over = self._left == 0
        return not self._over

    def _read_head(self) -> None:
        while True:
            version, _, rest = self._line(NotHttp).decode("latin-1").partition(" ")
            code, _, self.reason = rest.partition(" ")
            if not version.startswith("HTTP/1.") or not code.isdigit():
                raise NotHttp(f"it says {version[:40]!r}")
            self.status = int(code)
            self.headers = self._headers()
            if self.status != 100:
                break
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        length = self.headers.get("content-length", "")
        if not self._chunked and length.isdigit():
            self._left = int(length)
        self._over = self.status in (204, 304) or (self._left == 0 and not self._chunked)

    def _headers(self) -> Mapping[str, str]:
        headers: dict[str, str] = {}
        for _ in range(_HEADER_LIMIT):
            line = self._line().decode("latin-1")
            if not line:
                return headers
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        raise NotHttp("its headers never end")

    def _line(self, otherwise: type[Exception] = BrokenOff) -> bytes:
        line = self._reader.readline(_LINE_LIMIT)
        if not line:
            raise BrokenOff("the connection was closed")
        if not line.endswith(b"\n"):
            raise otherwise("a line never ends")
        return line.rstrip(b"\r\n")


def _connect(url: str, timeout: float | None) -> socket.socket:
    if url.startswith(SOCKET):
        return _connect_locally(url.removeprefix(SOCKET), timeout)
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    # As bytes, or the codec for international names is imported for 127.0.0.1.
    name: Any = host.encode("ascii") if host.isascii() else host
    try:
        connection = socket.create_connection((name, parts.port or (443 if secure else 80)), timeout)
        if not secure:
            return connection
        import ssl

        try:
            return ssl.create_default_context().wrap_socket(connection, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            connection.close()
            raise NotTrusted(f"a server whose certificate is not trusted: {error.verify_message}") from error
        except ssl.SSLError as error:
            connection.close()
            raise NotTrusted("a program that does not speak TLS") from error
        except BaseException:
            connection.close()
            raise
    except OSError as error:
        raise NobodyThere(_reason(error)) from error


def _connect_locally(path: str, timeout: float | None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise NobodyThere(_reason(error)) from error
    return connection


def _request(url: str, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    parts = urlsplit(url)
    below, host = ("", "localhost") if url.startswith(SOCKET) else (parts.path.rstrip("/"), parts.netloc)
    lines = [f"{method} {below}{path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    lines += ["", ""] if "Connection" in headers else ["Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1", "replace") + (body or b"")


def _reason(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return error.strerror or str(error) or type(error).__name__


_TIMEOUT = 30.0
"""Seconds for answers that need no waiting; what may take long is asked with a longer one, or none."""


class DaemonResponse:
    def __init__(self, url: str, exchange: DaemonRequest) -> None:
        self.status = exchange.status
        self.headers = exchange.headers
        """By lower-case name."""
        self._url = url
        self._exchange = exchange

    def lines(self) -> Iterator[str]:
        """Each line as it comes, without its end, empty ones too."""
        while True:
            try:
                line = self._exchange.readline()
            except (BrokenOff, OSError) as error:
                raise Unreachable(self._url, _broken(error)) from error
            if not line:
                return
            yield line.decode("utf-8", "replace").rstrip("\r\n")

    def objects(self) -> Iterator[dict[str, Any]]:
        """Each line that is a JSON object."""
        for line in self.lines():
            if line.strip():
                with contextlib.suppress(ValueError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        yield value

    def read(self, limit: int = 2**28) -> bytes:
        """The rest, but not more than so many bytes; nothing at the end."""
        try:
            return self._exchange.read(limit)
        except (BrokenOff, OSError) as error:
            raise Unreachable(
                self._url, f"closed the connection in the middle of its answer ({error})"
            ) from error


class HttpClient:
    """One daemon's address. Each request has a connection of its own, so threads may share a client."""

    def __init__(self, url: str, secret: bytes = b"") -> None:
        """With the secret of a data directory, only the daemon that knows it is ever sent anything."""
        self.url = url
        self._secret = secret

    def get(self, path: str, *, timeout: float | None = _TIMEOUT) -> Any:
        """The JSON at a path. Raises RequestRefused or Unreachable."""
        with self.open("GET", path, timeout=timeout) as answer:
            return self._json(path, answer)

    def post(self, path: str, body: Any = None, *, timeout: float | None = _TIMEOUT) -> Any:
        """Send JSON; the JSON that comes back, None if nothing. Raises RequestRefused or Unreachable."""
        with self.open("POST", path, body, timeout=timeout) as answer:
            return self._json(path, answer)

    def delete(self, path: str, *, timeout: float | None = _TIMEOUT) -> Any:
        """Remove something; returns what `post` does. Raises RequestRefused or Unreachable."""
        with self.open("DELETE", path, timeout=timeout) as answer:
            return self._json(path, answer)

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content: Iterable[bytes] = (),
        accept: str = "application/json",
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Iterator[DaemonResponse]:
        """Ask, and read the answer as it comes; leaving ends the connection, and with it the request.

        Args:
            method: the HTTP method.
            path: with a leading slash, quoted where needed.
            body: sent as JSON, unless None.
            content: sent as it is, with a `Content-Length` and `Content-Type` in `headers`.
            accept: the kind of answer that is wanted.
            headers: further ones.
            timeout: seconds of silence that are borne; None bears any.

        Raises:
            RequestRefused: the status is none of 2xx.
            Unreachable: the daemon does not answer, or the connection broke off.
        """
        sent = {"Accept": accept, "User-Agent": "greenroom-cli", **(headers or {})}
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        try:
            exchange = DaemonRequest(
                self.url,
                method,
                path,
                headers=sent,
                body=payload,
                content=content,
                timeout=timeout,
                secret=self._secret,
            )
        except NotProven as error:
            raise Unreachable(
                self.url, "is gone and another program answers there; nothing was sent"
            ) from error
        except TimeoutError as error:
            raise Unreachable(self.url, f"did not answer {method} {path} within {timeout:g}s") from error
        except (NobodyThere, NotTrusted, NotHttp, BrokenOff, OSError) as error:
            raise Unreachable(self.url, f"does not answer ({error})") from error
        with contextlib.closing(exchange):
            answer = DaemonResponse(self.url, exchange)
            if not 200 <= exchange.status < 300:
                raise _refused(exchange, answer.read())
            yield answer

    def _json(self, path: str, answer: DaemonResponse) -> Any:
        content = answer.read()
        if not content.strip():
            return None
        try:
            return json.loads(content)
        except ValueError as error:
            raise Unreachable(self.url, f"answered {path} with something that is not JSON") from error


def _broken(error: Exception) -> str:
    return f"closed the connection in the middle of its answer ({error})"


def path_of(*parts: str) -> str:
    """A path out of segments; slashes inside model names stay, as the routes want them."""
    return "/" + "/".join(quote(part, safe="/:@") for part in parts)


def _refused(exchange: DaemonRequest, content: bytes) -> RequestRefused:
    status = exchange.status
    text = content.decode("utf-8", "replace").strip()
    try:
        fields = json.loads(text)["error"]
        if isinstance(fields, str):  # as Ollama has it
            return RequestRefused(status, {}, fields)
        message = str(fields["message"])
        return RequestRefused(status, fields, message, str(fields.get("advice") or ""))
    except (ValueError, TypeError, KeyError):
        # The verbs under /engines and /models answer in plain text, as the contract has it.
        return RequestRefused(status, {}, text or f"The daemon answered {status} {exchange.reason}.")
