"""The clients: who they are, whether they are still connected, and whether they read.

aiohttp cancels the handler of a client that has left only with `handler_cancellation`, which is off by
default and not ours to set in a host's application. So one timer looks at the connections of all requests
under way, fifty times a second while there are any, and cancels those whose client has left.

The caller of a request is the local process at the other end of the connection, or else the address. One
that finds a free slot is recorded under its address, which costs nothing. The process is looked up only for
requests that have to queue, because there callers take turns. Look-ups that arrive while one is running share
the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import psutil

from greenroom.actors.limits import ID, escaped
from greenroom.actors.values import Caller
from greenroom.runner.http.port import AnyResponse, Handler, Request, Response, Stream

_log = logging.getLogger(__name__)

LEFT = 499
"""The status in the access log of a request whose client has left."""

_INTERVAL = 0.02
"""Seconds; well below the tenth of a second within which an engine must stop generating."""
_READ_LOOK = 1.0
"""Seconds between two looks at what a client has read, or a quarter of the patience where that is less."""


@dataclass(eq=False, slots=True)
class _Served:
    request: Request
    task: asyncio.Task[object]
    left: bool = False
    """The client has left, and the task was cancelled for it."""
    dismissed: bool = False
    """The front door closes, and the task was cancelled for it."""
    endless: Stream | None = None
    """The answer, where it has no end of its own."""


class Clients:
    """The clients that one front door serves. Lives in one event loop."""

    def __init__(self) -> None:
        self._inside: set[_Served] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._none_left: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._inside)

    async def attend(
        self,
        request: Request,
        serve: Callable[[], Awaitable[AnyResponse]],
        farewell: Callable[[], Awaitable[AnyResponse]] | None = None,
    ) -> AnyResponse:
        """Serve a request for as long as its client stays.

        When the front door closes, `serve` is cancelled too, and `farewell` makes the last answer.
        """
        task = asyncio.current_task()
        assert task is not None
        served = _Served(request, task)
        self._inside.add(served)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._look)
        try:
            return await serve()
        except asyncio.CancelledError:
            if not (served.left or served.dismissed) or task.uncancel() > 0:
                raise  # cancelled from elsewhere, perhaps as well
            if served.left or request.served:
                return Response(status=request.served or LEFT)
            if (endless := served.endless) is not None:
                farewell = partial(_ended, endless)
            if farewell is None:
                return Response(status=LEFT)
            with contextlib.suppress(ConnectionError):  # the client may leave at the same moment
                return await farewell()
            return Response(status=LEFT)
        except ConnectionError:
            # A write found the connection closed before the timer did.
            if not request.gone:
                raise
            return Response(status=request.served or LEFT)
        finally:
            self._inside.discard(served)
            if not self._inside and self._none_left is not None:
                self._none_left.set()

    def attended(self, handler: Handler) -> Handler:
        """The handler, cancelled when its client leaves or the front door closes."""
        return lambda request: self.attend(request, lambda: handler(request))

    def goes_on(self, request: Request, answer: Stream) -> None:
        """The answer has no end of its own: when the daemon stops, it ends at once, and in order."""
        for served in self._inside:
            if served.request is request:
                served.endless = answer

    async def empty(self, within: float) -> bool:
        """Wait until no request is under way, at most `within` seconds; whether it is so."""
        self._dismiss(served for served in self._inside if served.endless is not None)
        if self._inside:
            self._none_left = asyncio.Event()
            try:
                async with asyncio.timeout(within):
                    await self._none_left.wait()
            except TimeoutError:
                return False
            finally:
                self._none_left = None
        return True

    def dismiss(self) -> None:
        """End every request with a sentence: the front door closes."""
        self._dismiss(self._inside)

    def _dismiss(self, those: Iterable[_Served]) -> None:
        for served in tuple(those):
            if not served.left and not served.dismissed:
                served.dismissed = True
                served.task.cancel()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        for served in tuple(self._inside):
            if not served.left and not served.dismissed and served.request.gone:
                served.left = True
                served.task.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_INTERVAL, self._look) if self._inside else None


async def _ended(stream: Stream) -> Stream:
    await stream.end()
    return stream


class ReadWatch:
    """Cuts off a client that does not read its answer, once other requests wait for its slot."""

    def __init__(self, request: Request, patience: float, wanted: Callable[[], str]) -> None:
        """`patience` are seconds without a byte taken; 0 is without end.

        `wanted` says who waits for the slot, in words; empty when no request does.
        """
        self._request = request
        self._patience = patience
        self._wanted = wanted
        self._timer: asyncio.TimerHandle | None = None
        self._taken = 0
        self._since = 0.0
        self.sent = 0
        """Bytes written to the client so far; the writer adds to it."""

    def begin(self) -> None:
        if self._patience > 0:
            loop = asyncio.get_running_loop()
            self._since = loop.time()
            self._timer = loop.call_later(self._every(), self._look)

    def end(self) -> None:
        """Look no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _every(self) -> float:
        return min(_READ_LOOK, self._patience / 4)

    def _look(self) -> None:
        request = self._request
        if request.gone:
            return
        loop = asyncio.get_running_loop()
        unread = request.unread()
        taken = self.sent - unread
        if unread == 0 or taken > self._taken:
            self._taken, self._since = taken, loop.time()
        idle = loop.time() - self._since
        if idle >= self._patience and (who := self._wanted()):
            request.note.fault = "cut"
            _log.warning(
                "%s was disconnected: its client read nothing for %.0f s while %s", request.id, idle, who
            )
            request.abort()
            return
        self._timer = loop.call_later(self._every(), self._look)


# who they are

_RECENT = 8
"""Processes that are looked at before all others are."""
_LOOK_WITHIN = 2.0
"""Seconds after which a connection is filed under its address: many open files make this slow."""


class _Ends(NamedTuple):
    """The two ends of a connection, as the peer's process sees them: its own first."""

    own: tuple[str, int]
    other: tuple[str, int]


class Callers:
    """The callers of one front context. Lives in one event loop."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[object, Caller] = weakref.WeakKeyDictionary()
        self._recent: dict[int, Caller] = {}
        """The last few callers that are processes, by pid."""
        self._look: asyncio.Task[Mapping[_Ends, Caller]] | None = None
        self._next: asyncio.Task[Mapping[_Ends, Caller]] | None = None

    def __len__(self) -> int:
        """Connections whose process has been looked up."""
        return len(self._known)

    def at_once(self, request: Request, user: str = "") -> Caller:
        """What is known without looking. `user` is the client's own word, and divides the caller's share."""
        connection = request.connection
        known = self._known.get(connection) if connection is not None else None
        share = _share(request, user)
        if known is None:
            address = request.remote
            return Caller(kind="address" if address else "", id=address, name=address, share=share)
        return Caller(kind=known.kind, id=known.id, name=known.name, share=share)

    def goes_on(self, request: Request, connection: object) -> None:
        """What is known of a request's caller holds for this connection too, which is none of a socket."""
        known = self._known.get(request.connection) if request.connection is not None else None
        if known is not None:
            self._known[connection] = known

    async def looked_up(self, request: Request, user: str = "") -> Caller:
        """The same, once the process behind a connection from this machine has been looked up."""
        connection = request.connection
        ends = _ends(request) if connection is not None and connection not in self._known else None
        if connection is None or ends is None:
            return self.at_once(request, user)
        try:
            async with asyncio.timeout(_LOOK_WITHIN):
                # Most clients have asked before, each time on another connection.
                found = await asyncio.to_thread(_among, ends, tuple(self._recent.items()))
                if found is None:
                    found = (await asyncio.shield(self._begin())).get(ends)
        except (TimeoutError, psutil.Error, OSError):
            # It stays filed under its address: fairness is coarser, and nothing else depends on it.
            found = None
        if found is not None:
            self._known[connection] = found
            self._note(found)
        return self.at_once(request, user)

    def _note(self, caller: Caller) -> None:
        pid = int(caller.id.rpartition("/")[2])
        self._recent.pop(pid, None)
        self._recent = dict([*self._recent.items()][-(_RECENT - 1) :])
        self._recent[pid] = caller

    def _begin(self) -> asyncio.Task[Mapping[_Ends, Caller]]:
        """A look-up that begins after this call: one that is under way may have passed this connection."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(asyncio.to_thread(_processes))
            return self._look
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._after(self._look))
        return self._next

    async def _after(self, look: asyncio.Task[Mapping[_Ends, Caller]]) -> Mapping[_Ends, Caller]:
        await asyncio.wait([look])
        self._look, self._next = asyncio.current_task(), None
        return await asyncio.to_thread(_processes)


def is_local(request: Request) -> bool:
    """Whether the client is on this machine."""
    if not isinstance(request.peer, tuple):
        return True  # a unix socket
    try:
        return ipaddress.ip_address(request.remote.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _share(request: Request, user: str) -> str:
    if user:
        return escaped(f"user {user}", ID)
    peer = request.peer
    return str(peer[1]) if isinstance(peer, tuple) and len(peer) > 1 else ""


def _ends(request: Request) -> _Ends | None:
    """The ends of a connection from this machine; None for any other."""
    peer, here = request.peer, request.local
    if not isinstance(peer, tuple) or not isinstance(here, tuple):
        return None
    ends = _Ends((_plain(peer[0]), peer[1]), (_plain(here[0]), here[1]))
    return ends if ends.own[0] == ends.other[0] or ends.own[0] in ("127.0.0.1", "::1") else None


def _plain(address: str) -> str:
    """An IPv4 address as such, also where the socket is one for IPv6."""
    return address.removeprefix("::ffff:")


def _among(ends: _Ends, recent: tuple[tuple[int, Caller], ...]) -> Caller | None:
    """The one of these processes that has this end of a connection; the most recent is tried first."""
    for pid, caller in reversed(recent):
        try:
            connections = psutil.Process(pid).net_connections("tcp")
        except psutil.Error:
            continue
        # A pid comes again: what has it now may be another program.
        if ends in {_ends_of(one) for one in connections} and caller == _caller(pid):
            return caller
    return None


def _processes() -> Mapping[_Ends, Caller]:
    """Which process has which end of a connection, as far as the system tells."""
    found: dict[_Ends, Caller] = {}
    callers: dict[int, Caller] = {}
    for one in psutil.net_connections("tcp"):
        if not one.pid:
            continue
        if one.pid not in callers:
            callers[one.pid] = _caller(one.pid)
        if (ends := _ends_of(one)) is not None:
            found[ends] = callers[one.pid]
    return found


def _ends_of(connection: Any) -> _Ends | None:
    own, other = connection.laddr, connection.raddr
    if not (own and other):
        return None
    return _Ends((_plain(own.ip), own.port), (_plain(other.ip), other.port))


def _caller(pid: int) -> Caller:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            uid, name = process.uids().real, process.name()
    except psutil.Error:
        # It has ended since; its connection will be noticed to have, too.
        uid, name = -1, ""
    named = escaped(f"{name} (process {pid})" if name else f"process {pid}", ID)
    return Caller(kind="process", id=f"{uid}/{pid}", name=named)
