"""Which process of this machine has the other end of a connection.

It takes a look at the open files of all processes, on a thread. Look-ups that arrive while one is running
share the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import psutil

from greenroom.actors.limits import ID, escaped
from greenroom.actors.values import Caller
from greenroom.runner.systems.processes import connections, plain


class Ends(NamedTuple):
    """The two ends of a connection, as the peer's process sees them: its own first."""

    own: tuple[str, int]
    other: tuple[str, int]


class Looks:
    """Look-ups of all connections at once: those asked for while one is running share the next one."""

    def __init__(self, look: Callable[[], Mapping[Ends, Caller]]) -> None:
        self._read = look
        self._look: asyncio.Task[Mapping[Ends, Caller]] | None = None
        self._next: asyncio.Task[Mapping[Ends, Caller]] | None = None

    async def find(self, ends: Ends) -> Caller | None:
        return (await asyncio.shield(self._begin())).get(ends)

    def _begin(self) -> asyncio.Task[Mapping[Ends, Caller]]:
        """A look-up that begins after this call: one that is under way may have passed this connection."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(asyncio.to_thread(self._read))
            return self._look
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._after(self._look))
        return self._next

    async def _after(self, look: asyncio.Task[Mapping[Ends, Caller]]) -> Mapping[Ends, Caller]:
        await asyncio.wait([look])
        self._look, self._next = asyncio.current_task(), None
        return await asyncio.to_thread(self._read)


async def within(seconds: float, look: Awaitable[Caller | None]) -> Caller | None:
    """What it finds; None if that takes longer or fails."""
    with contextlib.suppress(TimeoutError, psutil.Error, OSError):
        async with asyncio.timeout(seconds):
            return await look
    return None


def ends_of(peer: object, ours: object) -> Ends | None:
    """The ends of a connection from this machine, by its addresses; None for any other."""
    if not isinstance(peer, tuple) or not isinstance(ours, tuple) or not peer[1]:
        return None  # a proxy's word has no port
    ends = Ends((plain(peer[0]), peer[1]), (plain(ours[0]), ours[1]))
    return ends if ends.own[0] == ends.other[0] or ends.own[0] in ("127.0.0.1", "::1") else None


def among(ends: Ends, recent: tuple[tuple[int, Caller], ...]) -> Caller | None:
    """The one of these processes that has this end of a connection; the most recent is tried first."""
    for pid, caller in reversed(recent):
        try:
            is_its = any(one == ends for _, one in connections(pid))
        except psutil.Error:
            continue
        # A pid comes again: what has it now may be another program.
        if is_its and caller == process_caller(pid):
            return caller
    return None


def process_callers() -> Mapping[Ends, Caller]:
    """Which process has which end of a connection, as far as the system tells."""
    found: dict[Ends, Caller] = {}
    callers: dict[int, Caller] = {}
    for pid, ends in connections():
        if pid not in callers:
            callers[pid] = process_caller(pid)
        found[Ends(*ends)] = callers[pid]
    return found


def process_caller(pid: int) -> Caller:
    """A process as a caller. Reads what the system says of it."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            uid, name = process.uids().real, process.name()
    except psutil.Error:
        # It has ended since; its connection will be noticed to have, too.
        uid, name = -1, ""
    named = escaped(f"{name} (process {pid})" if name else f"process {pid}", ID)
    return Caller(kind="process", id=f"{uid}/{pid}", name=named)
