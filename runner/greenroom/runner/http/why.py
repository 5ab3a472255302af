"""`GET /why/{name}`: why a model, backend, engine or request is as it is, as JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import msgspec
from aiohttp import web

from greenroom.actors.limits import Name
from greenroom.runner.http.bodies import checked
from greenroom.runner.http.door import Door
from greenroom.runner.http.errors import HttpRefusal

_encode = msgspec.json.Encoder().encode


class Why:
    """The handler."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._one_at_a_time = asyncio.Lock()

    def routes(self) -> Iterator[web.RouteDef]:
        """One of them. Names of models have slashes in them."""
        yield web.get("/why/{name:.+}", self.why)

    async def why(self, request: web.Request) -> web.Response:
        """The same answer as `greenroom why NAME --json`, from the journal this daemon writes."""
        # Asked rarely, and more to import than most of a front door.
        from greenroom.runner.diagnosis.explain import Explanation, UnknownName, explain

        backstage = self._door.backstage
        name = checked(request.match_info["name"], Name, "name")
        known = self._door.verdicts

        def read() -> Explanation:
            # In a thread: the whole journal is read, which takes a second for a million events.
            return explain(backstage.system.journal.read(), name, time.time(), backends=known)

        try:
            async with self._one_at_a_time:
                found = await asyncio.to_thread(read)
        except UnknownName as error:
            raise HttpRefusal(404, "unknown_name", str(error), param="name") from None
        return web.Response(body=_encode(found), content_type="application/json")
