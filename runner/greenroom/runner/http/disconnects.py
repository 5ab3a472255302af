"""Clients that leave, and clients that stay and do not read.

aiohttp cancels the handler of a client that has left only with `handler_cancellation`, which is off by
default and not ours to set in a host's application. So one timer looks at the connections of all requests
under way, fifty times a second while there are any, and cancels those whose client has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from greenroom.actors.gates import GateBoard
from greenroom.actors.values import Engine
from greenroom.runner.engines.processes import groups, wants_to_work
from greenroom.runner.http.port import AnyResponse, Request, Response

_log = logging.getLogger(__name__)

LEFT = 499
"""The status in the access log of a request whose client has left."""

_INTERVAL = 0.02
"""Seconds; well below the tenth of a second within which an engine must stop generating."""
_LONGEST = 30.0
"""Seconds a slot is kept at most after its client has left: batches last two."""
_PAUSE = 0.015
_STILL = 2
"""Looks in a row that must find an engine still: between two tokens it is so for a moment."""
_LOOK = 1.0
"""Seconds between two looks at what a client has read, or a quarter of the patience where that is less."""


class _Served:
    """One request under way."""

    __slots__ = ("dismissed", "left", "request", "task")

    def __init__(self, request: Request, task: asyncio.Task[object]) -> None:
        self.request = request
        self.task = task
        self.left = False
        """The client has left, and the task was cancelled for it."""
        self.dismissed = False
        """The front door closes, and the task was cancelled for it."""


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
            if served.left or farewell is None or request.served:
                return Response(status=request.served or LEFT)
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

    async def empty(self, within: float) -> bool:
        """Wait until no request is under way, at most `within` seconds; whether it is so."""
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
        for served in tuple(self._inside):
            if not served.left and not served.dismissed:
                served.dismissed = True
                served.task.cancel()

    def close(self) -> None:
        """Stop looking."""
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


class Lingering:
    """Keeps a slot taken until the engine has stopped working for a client that left.

    Engines notice a closed connection only between two batches, up to seconds later. If the slot were free
    by then, an engine that is still busy would look idle and might be ended or given to others. So a request
    that leaves early and is the last one inside keeps its slot until the engine is still. One for a front
    door; lives in one event loop.
    """

    def __init__(self, gates: GateBoard, engine: Callable[[str], Engine | None]) -> None:
        """`engine` finds an engine by its id."""
        self._gates = gates
        self._engine = engine
        self._left: dict[str, float] = {}
        """When each engine was last left early, by the loop's time."""

    def note(self, engine_id: str) -> None:
        """A client has left before its answer was complete."""
        now = asyncio.get_running_loop().time()
        self._left = {one: at for one, at in self._left.items() if at > now - _LONGEST}
        self._left[engine_id] = now

    def may_work(self, engine_id: str, request_id: str) -> bool:
        """Whether the engine may be working for no client at all once this request has left."""
        return engine_id in self._left and self._gates.inside(engine_id) <= {request_id}

    async def until_still(self, engine_id: str, request_id: str) -> None:
        """Wait until the engine is still, or others are inside, who make it busy anyway."""
        loop = asyncio.get_running_loop()
        end, still = loop.time() + _LONGEST, 0
        while still < _STILL and loop.time() < end and self.may_work(engine_id, request_id):
            engine = self._engine(engine_id)
            if engine is None or engine.state == "gone" or not engine.pid:
                break
            still = 0 if await asyncio.to_thread(_works, engine.pid) else still + 1
            await asyncio.sleep(_PAUSE)
        if still >= _STILL:
            self._left.pop(engine_id, None)


def _works(pid: int) -> bool:
    return wants_to_work(groups([pid])[pid])


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
        """Look from now on."""
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
        return min(_LOOK, self._patience / 4)

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
            _log.warning("%s is cut off: its client read nothing for %.0f s while %s", request.id, idle, who)
            request.abort()
            return
        self._timer = loop.call_later(self._every(), self._look)
