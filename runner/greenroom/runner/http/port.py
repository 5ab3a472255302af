"""What handlers see of a request and its client, whichever server carries them.

A server is attached by an adapter: it subclasses `Request` and `Stream`, and mounts the table of `Route`s.
"""

from __future__ import annotations

import ipaddress
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from multidict import CIMultiDict

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.limits import escaped
from greenroom.runner.record.row import Note

if TYPE_CHECKING:
    from greenroom.runner.http.idempotency import KeyedCommand

REQUEST_ID = "X-Request-Id"
IGNORED_HEADER = "X-Greenroom-Ignored"
"""Names of fields and parameters of the request that have no meaning here."""
EXPLAIN_HEADER = "X-Greenroom-Explain"
"""With `1` a request asks where its model is computed."""
DEVICE_HEADER = "X-Greenroom-Device"
"""The answer to that: `28/37 on RTX 4070`, `processor`."""
JSON = "application/json"
EVENT_STREAM = "text/event-stream"
TEXT = "text/plain; charset=utf-8"
_SHOWN = 20
"""Ignored names that are listed."""


class BodyBroken(Exception):
    """The request's body was cut off or is badly encoded."""


class Response:
    __slots__ = ("body", "close", "headers", "status")

    def __init__(
        self,
        body: bytes = b"",
        *,
        status: int = 200,
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        """With `close` no more of the request is read, and its connection ends."""
        self.body = body
        self.status = status
        self.close = close
        self.headers: CIMultiDict[str] = CIMultiDict(headers or {})
        if content_type:
            self.headers["Content-Type"] = content_type

    @property
    def content_type(self) -> str:
        """Without its parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0]


class Stream(ABC):
    """An answer whose head has been sent and whose body follows in pieces."""

    status: int
    content_type: str

    @property
    @abstractmethod
    def keeps_up(self) -> bool:
        """The client takes what it is sent, so `push` may be used."""

    @abstractmethod
    def push(self, data: bytes) -> None:
        """Write without waiting; only while the client keeps up, and never nothing."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Write, and wait until the client has taken enough. Raises ConnectionError when it has left."""

    @abstractmethod
    async def end(self) -> None:
        """Send the end of the body. Raises ConnectionError when the client has left."""


AnyResponse = Response | Stream


class Request(ABC):
    method: str
    path: str
    """Decoded, without the query; with the prefix under which the front door is mounted."""
    target: str
    """As it was sent."""
    query_string: str
    headers: Mapping[str, str]
    """Case does not matter in names; `items` lists repeated ones."""
    params: Mapping[str, str]
    """What stands in place of the variables of the route's pattern."""
    backend = ""
    """The backend that the path names, which is binding; empty when it names none."""
    route: Route | None = None
    """None when no route has this path and method."""
    allowed: tuple[str, ...] = ()
    """Methods that the path has, when it is only the method that fits no route."""

    # Notes of the front door, for what comes after in the same request.
    id = ""
    answer_headers: dict[str, str]
    """Headers that every answer to this request carries; empty at first."""
    known_body: bytes | None = None
    """The body, when it was read before its handler was called."""
    served = 0
    """The status of an answer that was sent whole: a client that hangs up then has not left early."""
    keyed: KeyedCommand | None = None
    """Set when the request has an `Idempotency-Key`."""
    ignored: tuple[str, ...] = ()
    refused: Refusal | None = None
    """Why the client got an error, once it was told."""
    note: Note
    """For the record of requests."""

    def ignore(self, names: Iterable[str]) -> None:
        """Names in the request that have no meaning here; the answer lists them in a header."""
        self.ignored = tuple(dict.fromkeys((*self.ignored, *names)))
        shown = [escaped(name, 60).encode("ascii", "backslashreplace").decode() for name in self.ignored]
        more = f", and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        if shown:
            self.answer_headers[IGNORED_HEADER] = ", ".join(shown[:_SHOWN]) + more

    # what was sent

    @property
    @abstractmethod
    def query(self) -> Mapping[str, str]:
        """The parameters after the `?`, decoded."""

    @property
    @abstractmethod
    def content_length(self) -> int | None:
        """Bytes that the body will have, when the client has said so."""

    @abstractmethod
    def body_now(self) -> bytes | None:
        """The whole body when it has arrived already, which is the usual case; else None. Ask once."""

    @abstractmethod
    async def read(self) -> bytes:
        """The next piece of the body; empty at its end. Raises BodyBroken."""

    # the client

    @property
    @abstractmethod
    def gone(self) -> bool:
        """The client has disconnected."""

    @property
    @abstractmethod
    def connection(self) -> object | None:
        """What stands for the connection; it can be referenced weakly. None once it is closed."""

    @property
    @abstractmethod
    def peer(self) -> object:
        """The client's address as its socket tells it: for TCP a tuple that begins with host and port."""

    @property
    @abstractmethod
    def local(self) -> object:
        """Our own address on this connection, likewise."""

    @property
    @abstractmethod
    def remote(self) -> str:
        """The client's host; empty when it has none."""

    @property
    def is_local(self) -> bool:
        """Whether the client is on this machine."""
        if not isinstance(self.peer, tuple):
            return True  # a unix socket
        try:
            return ipaddress.ip_address(self.remote.partition("%")[0]).is_loopback
        except ValueError:
            return False

    @abstractmethod
    def unread(self) -> int:
        """Bytes handed over for this client that it has not taken yet."""

    # the answer

    @abstractmethod
    async def start(
        self, *, status: int = 200, headers: Mapping[str, str] | None = None, length: int | None = None
    ) -> Stream:
        """Send the head of an answer. Raises ConnectionError when the client has left."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection once what was written has been sent."""

    @abstractmethod
    def abort(self) -> None:
        """Cut the connection."""


Handler = Callable[[Request], Awaitable[AnyResponse]]


@dataclass(frozen=True)
class Route:
    method: str
    pattern: str
    """`{name}` stands for one segment of the path, `{name:.+}` for one or more."""
    handler: Handler
    query: frozenset[str] | None = frozenset()
    """The parameters it knows; None when the query is not looked at."""
    strict: bool = False
    """A parameter that is not known is refused; otherwise it is ignored, and a header says so."""

    @property
    def path(self) -> str:
        """The pattern as people write it, without the expressions of its variables."""
        return self.pattern.replace(":.+}", "}")
