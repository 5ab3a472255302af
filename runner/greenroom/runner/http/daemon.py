"""The daemon over HTTP: is it alive, is it ready, what is it doing, why is something so; and stop it."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from greenroom import __version__
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.kernel.errors import KernelError
from greenroom.actors.limits import DURATION, Name
from greenroom.actors.scheduler.messages import AwaitReady
from greenroom.runner.actor_states import NotRunning
from greenroom.runner.http.bodies import checked, read_json
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import HttpRefusal, encoded, json_response, not_now
from greenroom.runner.http.port import TEXT, Request, Response
from greenroom.runner.proof import CHALLENGE, address_of

_READY_WITHIN = 2.0
"""Seconds within which the scheduler must answer."""


class StopBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /daemon/stop`. With a mistyped `keep_engines` they would end."""

    keep_engines: Annotated[float, Meta(ge=0, le=DURATION)] | None = None


class DaemonRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._one_at_a_time = asyncio.Lock()

    async def root(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        """One line, at the root and wherever clients may have their base URL."""
        return Response(b"Greenroom is running", content_type=TEXT)

    async def version(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        return json_response({"version": __version__})

    async def livez(self, request: Request) -> Response:
        """Says which daemon this is, and proves it to a client that sends a challenge. Asks no actor.

        503 once the actors have stopped themselves: only a new start helps then.
        """
        greenroom = self._context.greenroom
        failure = greenroom.failure
        fields = {
            "status": "ok" if failure is None else "failed",
            "instance_id": greenroom.instance_id,
            "pid": os.getpid(),
            "version": __version__,
            "home": str(greenroom.home),
        }
        challenge = request.headers.get(CHALLENGE)
        if challenge and not request.gone:
            fields["proof"] = greenroom.prove(challenge, address_of(request.local))
        return json_response(fields, status=200 if failure is None else 503)

    async def readyz(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        """200 once all actors have reported, while the scheduler answers and the data directory exists."""
        greenroom = self._context.greenroom
        if problem := greenroom.home_problem:
            return not_now(HttpRefusal(503, "data_directory_lost", problem), status="not ready")
        try:
            await greenroom.system.ask(AwaitReady(), timeout=_READY_WITHIN)
        except (KernelError, NotRunning) as error:
            return not_now(error, status="not ready")
        return json_response({"status": "ok"})

    async def jobs(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        running: list[Any] = list(self._context.greenroom.board.running().values())
        return encoded(running)

    async def stop(self, request: Request) -> Response:
        body = await read_json(request, StopBody)
        if self._context.stop is None:
            raise HttpRefusal(409, "not_a_daemon", "This Greenroom is embedded in another program.")
        self._context.stop(body.keep_engines)
        return json_response({"status": "stopping"}, status=202)

    async def why(self, request: Request) -> Response:
        """The answer of `greenroom why NAME`, from the journal this daemon writes: as JSON, or as text."""
        # Asked rarely, and more to import than most of a front context.
        from greenroom.runner.diagnosis.checkpoint import told
        from greenroom.runner.diagnosis.explain import Explanation, UnknownName, answer
        from greenroom.runner.diagnosis.history import History
        from greenroom.runner.http.live import live_facts
        from greenroom.runner.record.table import recorded_in

        greenroom = self._context.greenroom
        asked = request.params.get("name") or request.query.get("name", "")
        name = checked(asked, Name, "name") if asked else ""
        as_text = request.headers.get("Accept", "").startswith("text/plain")
        record = self._context.record
        live = await live_facts(self._context)
        running = {row.id: row for row in live.requests}

        def read() -> Explanation:
            # In a thread: what is new in the journal is read, which takes a second for 100,000 events.
            with recorded_in(record.path.parent, running) as recorded:

                def tell(history: History) -> Explanation:
                    history.hosts = greenroom.host_actors
                    return answer(
                        history,
                        name,
                        time.time(),
                        backends=live.verdicts or {},
                        recorded=recorded,
                        rows=recorded.latest,
                        live=live,
                    )

                journal = greenroom.system.journal
                if not isinstance(journal, SqliteJournal):
                    return tell(History(name).read(journal.read()))
                with JournalReader(journal.files.db) as reader:
                    return told(reader, name, tell)

        await record.written()
        try:
            async with self._one_at_a_time:
                found = await asyncio.to_thread(read)
        except UnknownName as error:
            raise HttpRefusal(404, "unknown_name", str(error), advice=error.advice, param="name") from None
        if as_text:
            return Response(f"{found.text(time.time())}\n".encode(), content_type=TEXT)
        return encoded(found)
