"""What all routes of one front door share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from greenroom.actors.kernel.errors import KernelError, SystemFailed
from greenroom.actors.limits import NAME, is_line
from greenroom.actors.progress import request_job
from greenroom.actors.scheduler.messages import SCHEDULER
from greenroom.actors.scheduler.state import ModelConfigState, Quarantine, SchedulerState
from greenroom.actors.values import Engine, Model
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.abilities import Abilities
from greenroom.runner.http.admission import Callers, RequestIds, SentRequests
from greenroom.runner.http.aiohttp_adapter import Clients
from greenroom.runner.http.defaults import ModelDefaults
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.port import DEVICE_HEADER, EXPLAIN_HEADER, Request
from greenroom.runner.http.responses.store import ResponseStore
from greenroom.runner.http.suspects import Suspects
from greenroom.runner.http.upstream import Upstreams
from greenroom.runner.models.near_names import did_you_mean
from greenroom.runner.models.references import AmbiguousName, BadReference, shown
from greenroom.runner.record.recorder import Recorder

_NAMES = 1_000
"""Names that are remembered: clients use few, and hostile ones must not fill the memory."""
_REMEMBERED = 256
"""Characters of a name that is remembered; a longer one is looked up each time."""

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
        self.upstreams = Upstreams(self._live_endpoints)
        self.asides = Upstreams(self._live_endpoints)
        """For what engines tell of themselves: that they do is no sign that they work on requests."""
        self.sent_requests = SentRequests(greenroom.gates, self.engine, self.keep)
        self.suspects = Suspects(self.sent_requests.count)
        self.abilities = Abilities(greenroom, self.configs)
        self.defaults = ModelDefaults(greenroom.store)
        self.verdicts = {one.name: one.verdict for one in greenroom.facts}
        """Why this machine cannot run a backend; empty for those it can."""
        self._models: tuple[Model, ...] = ()
        self._named: dict[str, Model] = {}
        """What names stood for while the models were these."""
        self._tasks: set[asyncio.Task[None]] = set()

    def recorded(self, request: Request, ended: float) -> None:
        """Hand what is known of a request that has ended, by `time.perf_counter`, to its record."""
        note = request.note
        note.address = note.address or request.remote
        note.agent = note.agent or request.headers.get("User-Agent", "")
        note.refusal = request.refused
        note.caller = note.caller or self.callers.at_once(request)
        self.record.end(note, ended)

    def tell_device(self, request: Request, engine_id: str) -> None:
        """Answer a request that asks for it with where its model is computed."""
        if request.headers.get(EXPLAIN_HEADER) == "1":
            request.answer_headers[DEVICE_HEADER] = ascii(self.greenroom.where(engine_id))[1:-1]

    def model(self, name: str, param: str = "model") -> Model:
        """The model of that name. Raises HttpRefusal: 404 when there is none, 400 when it is no name.

        Raises SystemFailed when the actors have stopped themselves: which models there are is not known then.
        """
        failure = self.greenroom.failure
        if failure is not None:
            raise SystemFailed(str(failure)) from failure
        models = self.greenroom.models()
        if models != self._models:
            self._models, self._named = models, {}
        known = self._named.get(name)
        if known is not None:
            return known
        if not is_line(name):
            message = f"A model's name is one line of at most {NAME} printable characters."
            raise HttpRefusal(400, "bad_model_name", message, param=param)
        try:
            model = self.greenroom.find_model(name)
        except (BadReference, AmbiguousName) as error:
            raise HttpRefusal(400, "bad_model_name", str(error), param=param) from None
        if model is None:
            name = shown(name.strip())
            meant = did_you_mean(name, (tag for one in models for tag in listed_names(one)))
            found, pull = f'model "{name}" is not in the store', f"run: greenroom pull {name}"
            raise HttpRefusal(
                404,
                "model_not_found",
                f"{found}." if meant else f"{found}; {pull}",
                advice=f"{meant} Or {pull}" if meant else "",
                param=param,
                subject=name,
            )
        if len(name) <= _REMEMBERED and len(self._named) < _NAMES:
            self._named[name] = model
        return model

    def backend(self, name: str) -> str:
        """The name of a backend there is. Raises HttpRefusal: 404."""
        if name not in self.greenroom.backends:
            known = ", ".join(self.greenroom.backends)
            raise HttpRefusal(404, "backend_not_found", f"backend not found; known backends: {known}.")
        return name

    def backend_of(self, request: Request) -> str:
        """The backend that a request's path names; empty when it names none. Raises HttpRefusal: 404."""
        name = request.params.get("backend", "")
        return self.backend(name) if name else ""

    def configs(self) -> Mapping[str, ModelConfigState]:
        """How models are configured, by `config_key`; empty while the scheduler cannot tell."""
        state = self._scheduler()
        return state.configs if state is not None else {}

    def quarantines(self) -> tuple[Quarantine, ...]:
        """Models that an older version of a backend serves; empty while the scheduler cannot tell."""
        state = self._scheduler()
        return tuple(state.quarantines.values()) if state is not None else ()

    def _scheduler(self) -> SchedulerState | None:
        try:
            state: SchedulerState = self.greenroom.system.state(SCHEDULER)
        except KernelError:
            return None
        return state

    def engine(self, engine_id: str) -> Engine | None:
        """An engine there is, or was lately."""
        return next((one for one in self.greenroom.engines() if one.spec.engine_id == engine_id), None)

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
        self, work: Coroutine[Any, Any, None], then: Callable[[], None] | None = None
    ) -> asyncio.Task[None]:
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

    def _live_endpoints(self) -> set[str]:
        return {engine.endpoint for engine in self.greenroom.engines() if engine.state != "gone"}


def listed_names(model: Model) -> list[str]:
    """The names a model is listed by: its tags, but for those of files where it has others, else its id."""
    return [tag for tag in model.tags if not tag.startswith(("file:", "pypi:"))] or [shown_name(model)]


def shown_name(model: Model) -> str:
    """The name a model is listed by: a tag like a registry's where it has one, else any tag, else its id."""
    for tag in model.tags:
        if not tag.startswith(("file:", "pypi:")):
            return tag
    return model.tags[0] if model.tags else model.id
