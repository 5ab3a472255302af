"""Requests to one Greenroom over HTTP/1.1: JSON, and lines of JSON or of events as they come."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from greenroom.runner.client.errors import NOT_UNDERSTOOD, RequestRefused, Unreachable
from greenroom.runner.client.wire import (
    PIECE,
    SOCKET,
    AnswerReader,
    BrokenOff,
    NotHttp,
    Reading,
    request_bytes,
)
from greenroom.runner.proof import CHALLENGE, address_of, is_proof, make_challenge

T = TypeVar("T")

PROOF_WITHIN = 10.0
"""Seconds for the proof."""
PROOF_LIMIT = 65_536
"""Bytes of the proof."""


class NobodyThere(Exception):
    """No connection could be made."""


class NotTrusted(Exception):
    """The server does not speak TLS, or its certificate is not trusted; the text says which."""


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
        connection: socket.socket | None = None,
    ) -> None:
        """Send the request and wait for the answer's head.

        `content` is a body in pieces, whose `Content-Length` is among the headers.
        `timeout` is how many seconds of silence are borne, while connecting too; None bears any.
        `connection` is used in place of one to `url`.
        With a `secret`, the server must first prove on this connection that it knows it; otherwise nothing of
        the request is sent.
        Raises NobodyThere, NotTrusted, NotHttp, BrokenOff, NotProven, and TimeoutError if the server sends
        nothing.
        """
        self._answer = AnswerReader()
        self._pid = os.getpid()
        self._socket = connect_to(url, timeout) if connection is None else connection
        try:
            try:
                if secret:
                    self._demand_proof(url, secret, timeout)
                self._socket.settimeout(timeout)
                self._socket.sendall(request_bytes(url, method, path, headers, body))
                self._send(content)
                self._run(self._answer.head(method))
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
        within = min(timeout or PROOF_WITHIN, PROOF_WITHIN)
        self._socket.settimeout(within)
        try:
            self._socket.sendall(proof_request(url, challenge))
            self._run(self._answer.head("GET"))
            check_proof(self.read(PROOF_LIMIT), secret, challenge, self.peer)
        except (OSError, BrokenOff) as error:
            # Nothing of the request was sent.
            raise NobodyThere(unproven(error, within)) from error

    def _send(self, content: Iterable[bytes]) -> None:
        try:
            for piece in content:
                self._socket.sendall(piece)
        except ConnectionError:
            # A server that refuses early answers without reading the rest.
            return

    def close(self) -> None:
        """End the connection, also if a process that was forked meanwhile has it too. Idempotent."""
        if self._pid == os.getpid():
            self.interrupt()
        self._socket.close()

    def interrupt(self) -> None:
        """End it from another thread: one that waits for the answer gets its end."""
        with contextlib.suppress(OSError):
            # That of a TLS socket would also take its TLS from the thread that reads.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def reason(self) -> str:
        return self._answer.reason

    @property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name."""
        return self._answer.headers

    def readline(self) -> bytes:
        """The next line with its end; what is left at the end of the body; empty after that."""
        return self._run(self._answer.line())

    def read(self, limit: int = 2**28) -> bytes:
        """The rest of the body, or its beginning when that is longer than the limit."""
        return self._run(self._answer.rest(limit))

    def _run(self, reading: Reading[T]) -> T:
        try:
            next(reading)
            while True:
                reading.send(self._socket.recv(PIECE))
        except StopIteration as done:
            result: T = done.value
            return result


def unproven(error: Exception, within: float) -> str:
    """Why there is no proof, from what asking for it has raised."""
    if isinstance(error, TimeoutError):
        return f"nothing came within {within:g}s"
    return _reason(error) if isinstance(error, OSError) else str(error)


def proof_request(url: str, challenge: str) -> bytes:
    """Asks the server at `url` to prove that it knows the secret of our data directory."""
    headers = {"Accept": "application/json", CHALLENGE: challenge, "Connection": "keep-alive"}
    return request_bytes(url, "GET", "/livez", headers)


def check_proof(content: bytes, secret: bytes, challenge: str, peer: str) -> None:
    """Raise NotProven unless the answer to `proof_request` proves it, for a server reached at `peer`."""
    try:
        fields = json.loads(content)
    except ValueError:
        fields = None
    answer = fields.get("proof") if isinstance(fields, dict) else None
    if not is_proof(answer, secret, challenge, peer):
        raise NotProven


def connect_to(url: str, timeout: float | None) -> socket.socket:
    """Connect to the server at `url`. Raises NobodyThere, NotTrusted, TimeoutError."""
    if url.startswith(SOCKET):
        return _connect_locally(url.removeprefix(SOCKET), timeout)
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    # As bytes, or the codec for international names is imported for 127.0.0.1.
    name: Any = host.encode("ascii") if host.isascii() else host
    try:
        connection = socket.create_connection((name, parts.port or (443 if secure else 80)), timeout)
        keep_watch(connection)
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


def keep_watch(connection: socket.socket) -> None:
    """Have the system notice within minutes that the machine at the other end is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 60),
        ("TCP_KEEPALIVE", 60),
        ("TCP_KEEPINTVL", 15),
        ("TCP_KEEPCNT", 4),
    ):
        if hasattr(socket, name):  # the second is macOS's name of the first
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _connect_locally(path: str, timeout: float | None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise NobodyThere(_reason(error)) from error
    return connection


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

    def interrupt(self) -> None:
        """End the answer from another thread."""
        self._exchange.interrupt()

    def lines(self) -> Iterator[str]:
        """Each line as it comes, without its end, empty ones too."""
        while True:
            try:
                line = self._exchange.readline()
            except (BrokenOff, OSError) as error:
                raise Unreachable(self._url, broken(error)) from error
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

    def __init__(
        self, url: str, secret: bytes = b"", dial: Callable[[], socket.socket] | None = None
    ) -> None:
        """With the secret of a data directory, only the daemon that knows it is ever sent anything.

        `dial` makes the connections, instead of one to `url` each.
        """
        self.url = url
        self.secret = secret
        self.dial = dial

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
        sent, payload = prepared(body, accept, headers)
        try:
            exchange = DaemonRequest(
                self.url,
                method,
                path,
                headers=sent,
                body=payload,
                content=content,
                timeout=timeout,
                secret=self.secret,
                connection=self.dial() if self.dial is not None else None,
            )
        except (NobodyThere, NotTrusted, NotHttp, NotProven, BrokenOff, OSError) as error:
            raise unreachable(self.url, error, f"{method} {path}", timeout) from error
        with contextlib.closing(exchange):
            answer = DaemonResponse(self.url, exchange)
            if not 200 <= exchange.status < 300:
                raise refused(exchange.status, exchange.reason, answer.read())
            yield answer

    def _json(self, path: str, answer: DaemonResponse) -> Any:
        content = answer.read()
        if not content.strip():
            return None
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Unreachable(self.url, f"answered {path} with something that is not JSON") from error


def broken(error: Exception) -> str:
    """That the answer was not whole, in words."""
    return f"closed the connection in the middle of its answer ({error})"


def path_of(*parts: str) -> str:
    """A path out of segments; slashes inside model names stay, as the routes want them."""
    return "/" + "/".join(quote(part, safe="/:@") for part in parts)


def prepared(
    body: Any, accept: str, headers: Mapping[str, str] | None = None
) -> tuple[dict[str, str], bytes | None]:
    """The headers of a request, and its body as bytes."""
    sent = {"Accept": accept, "User-Agent": "greenroom-cli", **(headers or {})}
    if body is None:
        return sent, None
    return {**sent, "Content-Type": "application/json"}, _encoded(body)


def _encoded(body: Any) -> bytes:
    """Raises TypeError or ValueError with the name of the field that JSON cannot hold."""
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError):
        for name, value in body.items() if isinstance(body, dict) else ():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name} cannot be sent as JSON: {error}") from None
        raise


def unreachable(url: str, error: Exception, request: str, timeout: float | None) -> Unreachable:
    """Why a request was not answered, from what connecting or reading has raised."""
    if isinstance(error, NotProven):
        reason = "is gone and another program answers there; nothing was sent"
        return Unreachable(url, reason, sent=False)
    if isinstance(error, TimeoutError):
        return Unreachable(url, f"did not answer {request} within {timeout or PROOF_WITHIN:g}s")
    return Unreachable(url, f"does not answer ({error})", sent=not isinstance(error, NobodyThere))


def refused(status: int, reason: str, content: bytes) -> RequestRefused:
    """What an answer with another status than 2xx says."""
    text = content.decode("utf-8", "replace").strip()
    try:
        fields = json.loads(text)["error"]
        if isinstance(fields, str):  # as Ollama has it
            return RequestRefused(status, {}, fields)
        message = str(fields["message"])
        return RequestRefused(status, fields, message, str(fields.get("advice") or ""))
    except NOT_UNDERSTOOD:
        # The verbs under /engines and /models answer in plain text, as the contract has it.
        return RequestRefused(status, {}, text or f"The daemon answered {status} {reason}.")
