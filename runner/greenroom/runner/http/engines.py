"""The verbs under `/engines`: what backends and engines there are, and what to do with them.

Errors are one line of text, as in Docker Model Runner's contract.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from aiohttp import web

from greenroom.actors.addresses import SCHEDULER
from greenroom.actors.installer.messages import BackendStatus
from greenroom.actors.limits import BackendName, Names
from greenroom.actors.progress import install_job
from greenroom.actors.scheduler.messages import Unload
from greenroom.runner.diagnosis.sentences import short
from greenroom.runner.http.bodies import read_json
from greenroom.runner.http.configuring import Configuring
from greenroom.runner.http.door import Door
from greenroom.runner.http.headers import request_id_of
from greenroom.runner.http.progress_stream import sentence_of
from greenroom.runner.http.running import Running
from greenroom.runner.models.references import AmbiguousName, BadReference


class UnloadBody(msgspec.Struct):
    """`POST /engines/unload`."""

    all: bool = False
    backend: BackendName = ""
    models: Names | None = ()


class Engines:
    """The handlers."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def routes(self) -> Iterator[web.RouteDef]:
        """All of them."""
        yield web.get("/engines/status", self.status)
        running = Running(self._door)
        yield web.get("/engines/ps", running.ps)
        yield web.get("/engines/ledger", running.ledger)
        yield web.get("/engines/queue", running.queue)
        yield web.post("/engines/unload", self.unload)
        configuring = Configuring(self._door)
        for prefix in ("/engines", "/engines/{backend}"):
            yield web.post(f"{prefix}/_configure", configuring.configure)
            yield web.get(f"{prefix}/_configure", configuring.configurations)

    async def status(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        """Every backend in a few words. `Running` means installed and usable, as the contract has it."""
        return web.json_response({one.name: self._words(one) for one in self._door.backstage.statuses()})

    async def unload(self, request: web.Request) -> web.Response:
        """End idle engines. Models that are not here are no error."""
        backstage = self._door.backstage
        body = await read_json(request, UnloadBody)
        models = []
        for name in body.models or ():
            try:
                model = backstage.find_model(name)
            except (BadReference, AmbiguousName):
                continue
            if model is not None:
                models.append(model.id)
        if body.models and not models:
            # With no model left, the scheduler would take it for a wish about the whole backend.
            return web.json_response({"unloaded_runners": 0})
        unload = Unload(all=body.all, backend=body.backend, model_ids=tuple(models))
        unloaded = await backstage.system.ask(SCHEDULER, unload, cause=request_id_of(request))
        return web.json_response({"unloaded_runners": unloaded.engines})

    def _words(self, status: BackendStatus) -> str:
        match status.state:
            case "installed":
                version = status.current.version if status.current is not None else ""
                if not version:
                    return "Running: version unknown"
                away = [one for one in self._door.quarantines() if one.backend == status.name]
                notes = [f"{short(one.model_ref)} stays on {one.back_to_version}" for one in away]
                if status.failure is not None and status.failure.code == "configured_broken":
                    notes.append(f"the one named in the config cannot be used: greenroom why {status.name}")
                elif status.failure is not None and not status.job:
                    notes.append(f"the last attempt at another failed: greenroom why {status.name}")
                noted = f" ({', '.join(notes)})" if notes else ""
                return f"Running: {status.name} {version}{noted}"
            case "installing" | "waiting_to_retry":
                progress = self._door.backstage.board.latest(install_job(status.name))
                if progress is not None:
                    return f"Installing: {sentence_of(progress)}"
                if status.state == "waiting_to_retry" and status.failure is not None:
                    return f"Installing: trying again after: {status.failure.message}"
                return "Installing"
            case "broken" | "failed":
                return f"Error: {status.failure.message}" if status.failure is not None else "Error"
            case "retiring":
                return "Not Installed: being removed"
        verdict = self._door.verdicts.get(status.name, "")
        return f"Not Installed: {verdict}" if verdict else "Not Installed"
