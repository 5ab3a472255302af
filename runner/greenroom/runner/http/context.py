"""What all routes of one front door share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from greenroom.actors.progress import request_job
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.admission import Callers, SentRequests
from greenroom.runner.http.aiohttp_adapter import Clients
from greenroom.runner.http.defaults import ModelDefaults
from greenroom.runner.http.engine_requests import Abilities, RequestIds
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.remote_connections import RemotePools
from greenroom.runner.http.responses.store import ResponseStore
from greenroom.runner.http.suspects import Suspects
from greenroom.runner.http.upstream import Upstreams
from greenroom.runner.record.recorder import Recorder

_log = logging.getLogger(__name__)

Stop = Callable[[float | None], None]
"""Stops the daemon in order; the argument is for how many seconds its engines are kept (None: not)."""


class Context:
    """The runner behind one front door, the clients it serves, and its connections to engines."""

    def __init__(self, greenroom: Greenroom, stop: Stop | None = None) -> None:
        """`stop` is called by `POST /daemon/stop`; without it that route says that the host has to stop."""
        self.greenroom = greenroom
        self.stop = stop
        self.clients = Clients()
        self.ids = RequestIds()
        self.callers = Callers()
        self.responses = ResponseStore(greenroom.home, life=greenroom.life)
        settings = greenroom.settings
        self.record = Recorder(greenroom.home, keep_for=settings.record_for, rows=settings.record_rows)
        self.upstreams = Upstreams(greenroom.live_endpoints)
        self.asides = Upstreams(greenroom.live_endpoints)
        """For what engines tell of themselves: that they do is no sign that they work on requests."""
        self.remote_pools = RemotePools(greenroom.gates.last_byte)
        self.elsewhere: Callable[[str], Callable[..., Any] | None] | None = None
        """By a model's name, what serves its requests if no engine of ours does; None: ours serve all."""
        self.sent_requests = SentRequests(greenroom.gates, greenroom.engine, self.keep)
        self.suspects = Suspects(self.sent_requests.count)
        self.abilities = Abilities(greenroom)
        self.defaults = ModelDefaults(greenroom.store)
        self.verdicts = {one.name: one.verdict for one in greenroom.facts}
        """Why this machine cannot run a backend; empty for those it can."""
        self._tasks: set[asyncio.Task[object]] = set()

    def backend(self, name: str) -> str:
        """The name of a backend there is. Raises HttpRefusal: 404, or 409 for a remote one."""
        if (remote := self.greenroom.remotes.get(name)) is not None:
            raise HttpRefusal(
                409,
                "not_ours",
                f"{name} is a remote backend ({remote.settings.url}): Greenroom neither installs nor "
                "removes it.",
                advice=f"Its models are called {name}/MODEL. To stop using it, remove [backends.{name}] "
                "from config.toml.",
                subject=name,
            )
        if name not in self.greenroom.backends:
            known = ", ".join(self.greenroom.backends)
            raise HttpRefusal(404, "backend_not_found", f"backend not found; known backends: {known}.")
        return name

    def wanted(self, engine_id: str) -> str:
        """What waits for a slot in this engine, in words; empty when nothing does."""
        if self.greenroom.gates.is_wanted(engine_id):
            return "others wait for its engine"
        reading = self.greenroom.gates.readings().get(engine_id)
        if reading is not None and not reading.open:
            return "its engine is being stopped"
        waiting = any(job.startswith(request_job("")) for job in self.greenroom.board.running())
        return "another request waits" if waiting else ""

    def keep(
        self, work: Coroutine[Any, Any, object], then: Callable[[], None] | None = None
    ) -> asyncio.Task[object]:
        """Run something in the background, and call `then` at its end, whatever it is.

        It may be cancelled before it has begun, when the front door closes; a `finally` in it would not run.
        """
        task = asyncio.get_running_loop().create_task(work)
        # A loop keeps only weak references to its tasks.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if then is not None:
            task.add_done_callback(lambda _: then())
        return task

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.responses.close()
        await self.record.close()
        self.clients.close()
        self.upstreams.close()
        self.asides.close()
        self.remote_pools.close()
