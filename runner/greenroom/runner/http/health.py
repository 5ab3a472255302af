"""Is it alive, is it ready, what is it doing, and stop it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from greenroom import __version__
from greenroom.actors.addresses import SCHEDULER
from greenroom.actors.kernel.errors import KernelError
from greenroom.actors.limits import DURATION
from greenroom.actors.scheduler.messages import AwaitReady
from greenroom.runner.daemon import NotRunning
from greenroom.runner.http.bodies import read_json
from greenroom.runner.http.door import Door
from greenroom.runner.http.errors import HttpRefusal, refusal_of
from greenroom.runner.proof import CHALLENGE, address_of

_READY_WITHIN = 2.0
"""Seconds within which the scheduler must answer."""

_encode = msgspec.json.Encoder().encode


class StopBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /daemon/stop`. With a mistyped `keep_engines` they would end."""

    keep_engines: Annotated[float, Meta(ge=0, le=DURATION)] | None = None


class Health:
    """The handlers."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def routes(self) -> Iterator[web.RouteDef]:
        """All of them."""
        yield web.get("/", self.root)
        yield web.get("/version", self.version)
        yield web.get("/livez", self.livez)
        yield web.get("/readyz", self.readyz)
        yield web.get("/jobs", self.jobs)
        yield web.post("/daemon/stop", self.stop)

    async def root(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        """A line for whoever looks with a browser."""
        return web.Response(text="Greenroom is running")

    async def version(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """Which Greenroom this is."""
        return web.json_response({"version": __version__})

    async def livez(self, request: web.Request) -> web.Response:
        """Says who it is, and proves it to a client that sends a challenge. Asks no actor.

        503 once the actors have stopped themselves: only a new start helps then.
        """
        backstage = self._door.backstage
        failure = backstage.failure
        fields = {
            "status": "ok" if failure is None else "failed",
            "instance_id": backstage.instance_id,
            "pid": os.getpid(),
            "version": __version__,
            "home": str(backstage.home),
        }
        challenge, transport = request.headers.get(CHALLENGE), request.transport
        if challenge and transport is not None:
            fields["proof"] = backstage.prove(challenge, address_of(transport.get_extra_info("sockname")))
        return web.json_response(fields, status=200 if failure is None else 503)

    async def readyz(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """Green once everybody has looked, while the scheduler answers and the data directory is there."""
        backstage = self._door.backstage
        if problem := backstage.home_problem:
            return _not_ready(HttpRefusal(503, "data_directory_lost", problem))
        try:
            await backstage.system.ask(SCHEDULER, AwaitReady(), timeout=_READY_WITHIN)
        except (KernelError, NotRunning) as error:
            return _not_ready(error)
        return web.json_response({"status": "ok"})

    async def jobs(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """The latest progress of every job that runs."""
        running: list[Any] = list(self._door.backstage.board.running().values())
        return web.Response(body=_encode(running), content_type="application/json")

    async def stop(self, request: web.Request) -> web.Response:
        """Begin an orderly stop."""
        body = await read_json(request, StopBody)
        if self._door.stop is None:
            raise HttpRefusal(409, "not_a_daemon", "This Greenroom is part of another program.")
        self._door.stop(body.keep_engines)
        return web.json_response({"status": "stopping"}, status=202)


def _not_ready(error: Exception) -> web.Response:
    refusal = refusal_of(error)
    body = {"status": "not ready", "error": {"message": refusal.sentence(), "code": refusal.code}}
    return web.json_response(body, status=503, headers={"Retry-After": "1"})
