"""Who sends a request: the local process at the other end of the connection, or else the address.

A request that finds a free slot is recorded under its address, which costs nothing. The process is looked up
only for requests that have to queue, because there callers take turns. Lookups that arrive while one is
running share the next one.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import psutil

from greenroom.actors.limits import ID, escaped
from greenroom.actors.values import Caller
from greenroom.runner.http.port import Request

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

    def at_once(self, request: Request, user: str = "") -> Caller:
        """What is known without looking. `user` is the client's own word, and divides the caller's share."""
        connection = request.connection
        known = self._known.get(connection) if connection is not None else None
        share = _share(request, user)
        if known is None:
            address = request.remote
            return Caller(kind="address" if address else "", id=address, name=address, share=share)
        return Caller(kind=known.kind, id=known.id, name=known.name, share=share)

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
    here, there = connection.laddr, connection.raddr
    if not here or not there:
        return None
    return _Ends((_plain(here.ip), here.port), (_plain(there.ip), there.port))


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
