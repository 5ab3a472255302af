"""The verbs under `/engines`: what backends and engines there are, and what to do with them.

Errors are one line of text, as in Docker Model Runner's contract.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web
from greenroom.actors.facts import Engine, Mode
from greenroom.actors.gates import GateReading
from greenroom.actors.kernel.errors import KernelError
from greenroom.actors.messages import SCHEDULER, BackendStatus, Configure, Unload
from greenroom.actors.progress import install_job
from greenroom.actors.scheduler_state import ModelConfigState, SchedulerState, config_key
from greenroom.runner.backends.flags import refusal
from greenroom.runner.http.bodies import read_json
from greenroom.runner.http.door import Door, shown_name
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.go_text import go_duration, parse_go_duration
from greenroom.runner.http.progress_stream import sentence_of
from greenroom.runner.models.references import AmbiguousName, BadReference

_NEVER = "0001-01-01T00:00:00Z"
"""Go's zero time: what `last_used` is while an engine is in use or loading."""
_DEFAULT_BACKEND = "llama.cpp"
_MODES: tuple[Mode, ...] = ("completion", "embedding", "reranking")


class UnloadBody(msgspec.Struct):
    """`POST /engines/unload`."""

    all: bool = False
    backend: str = ""
    models: tuple[str, ...] = ()


class ConfigureBody(msgspec.Struct, rename="kebab"):
    """`POST /engines/_configure`; what is absent stays as it is."""

    model: str = ""
    mode: Mode | None = None
    context_size: int | None = None
    runtime_flags: tuple[str, ...] = ()
    raw_runtime_flags: str = ""
    keep_alive: str | None = msgspec.field(name="keep_alive", default=None)


class Engines:
    """The handlers."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def routes(self) -> Iterator[web.RouteDef]:
        """All of them."""
        yield web.get("/engines/status", self.status)
        yield web.get("/engines/ps", self.ps)
        yield web.get("/engines/df", self.df)
        yield web.post("/engines/unload", self.unload)
        for prefix in ("/engines", "/engines/{backend}"):
            yield web.post(f"{prefix}/_configure", self.configure)
            yield web.get(f"{prefix}/_configure", self.configurations)

    async def status(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        """Every backend in a few words. `Running` means installed and usable, as the contract has it."""
        return web.json_response({one.name: self._words(one) for one in self._door.backstage.statuses()})

    async def ps(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        """Every engine that is not gone."""
        backstage = self._door.backstage
        readings = backstage.gates.readings()
        configs = _configs(self._door)
        return web.json_response(
            [
                _running(engine, readings.get(engine.spec.engine_id), configs)
                for engine in backstage.engines()
                if engine.state != "gone"
            ]
        )

    async def df(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        """Bytes on disk."""
        backstage = self._door.backstage
        backends = {one.name: sum(i.size for i in one.installations) for one in backstage.statuses()}
        return web.json_response(
            {
                "models_disk_usage": sum(model.size for model in backstage.models() if not model.in_place),
                "default_backend_disk_usage": backends.get(_DEFAULT_BACKEND, 0),
                "backends_disk_usage": backends,
            }
        )

    async def unload(self, request: web.Request) -> web.Response:
        """End idle engines. Models that are not here are no error."""
        backstage = self._door.backstage
        body = await read_json(request, backstage.settings.max_body, UnloadBody)
        models = []
        for name in body.models:
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
        unloaded = await backstage.system.ask(SCHEDULER, unload)
        return web.json_response({"unloaded_runners": unloaded.engines})

    async def configure(self, request: web.Request) -> web.Response:
        """Change how a model is loaded, then load it in the background."""
        door = self._door
        backend = request.match_info.get("backend", "")
        if backend:
            door.backend(backend)
        body = await read_json(request, door.backstage.settings.max_body, ConfigureBody)
        if not body.model:
            raise HttpRefusal(400, "invalid_request", "invalid request: model is required")
        model = door.model(body.model)
        flags = _flags(body)
        if flags:
            readers = [one for one in door.backstage.backends.values() if model.format in one.formats]
            reasons = [
                refusal(flags, one.allowed_flags, one.name) for one in readers if backend in ("", one.name)
            ]
            if all(reasons):
                reason = reasons[0] if reasons else f"no backend of that name reads {model.format}"
                raise HttpRefusal(500, "flag_refused", reason)
        default: Mode = "embedding" if flags and "--embeddings" in flags else "completion"
        configure = Configure(
            model_id=model.id,
            model_ref=body.model,
            mode=body.mode or default,
            context_size=body.context_size,
            flags=flags,
            keep_alive=_keep_alive(body.keep_alive),
        )
        await door.backstage.system.ask(SCHEDULER, configure)
        door.preload(model, body.model, configure.mode, backend)
        return web.Response(status=202)

    async def configurations(self, request: web.Request) -> web.Response:
        """What was configured, for one model or for all that are here."""
        backstage = self._door.backstage
        configs = _configs(self._door)
        wanted = request.query.get("model", "")
        models = [self._door.model(wanted)] if wanted else list(backstage.models())
        entries = []
        for model in models:
            for mode in _MODES:
                config = configs.get(config_key(model.id, mode))
                if config is not None:
                    entries.append(
                        {
                            "Backend": request.match_info.get("backend", _DEFAULT_BACKEND),
                            "Model": shown_name(model),
                            "ModelID": model.id,
                            "Mode": mode,
                            "Config": _config(config),
                        }
                    )
        return web.json_response(entries)

    def _words(self, status: BackendStatus) -> str:
        match status.state:
            case "installed":
                version = status.current.version if status.current is not None else ""
                return f"Running: {status.name} {version}" if version else "Running: version unknown"
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
        backend = self._door.backstage.backends.get(status.name)
        verdict = backend.verdict(self._door.platform) if backend is not None else ""
        return f"Not Installed: {verdict}" if verdict else "Not Installed"


def _running(
    engine: Engine, reading: GateReading | None, configs: dict[str, ModelConfigState]
) -> dict[str, Any]:
    spec = engine.spec
    inside = reading.inside if reading is not None else 0
    loading = engine.state == "starting"
    row: dict[str, Any] = {
        "backend_name": spec.backend,
        "model_name": spec.model_ref,
        "mode": spec.mode,
        "last_used": _NEVER if inside or loading or reading is None else _wall(reading.idle_since),
    }
    if inside:
        row["in_use"] = True
    if loading:
        row["loading"] = True
    config = configs.get(config_key(spec.model_id, spec.mode))
    if config is not None and config.keep_alive is not None:
        row["keep_alive"] = go_duration(config.keep_alive)
    return row | {
        "pid": engine.pid,
        "state": engine.state,
        "engine_id": spec.engine_id,
        "memory": spec.memory,
        "installation": spec.installation_id,
    }


def _wall(monotonic: float) -> str:
    moment = time.time() - max(0.0, time.monotonic() - monotonic)
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


def _configs(door: Door) -> dict[str, ModelConfigState]:
    try:
        state: SchedulerState = door.backstage.system.state(SCHEDULER)
    except KernelError:
        return {}
    return dict(state.configs)


def _config(config: ModelConfigState) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if config.context_size is not None:
        fields["context-size"] = config.context_size
    if config.flags:
        fields["runtime-flags"] = list(config.flags)
    if config.keep_alive is not None:
        fields["keep_alive"] = go_duration(config.keep_alive)
    return fields


def _flags(body: ConfigureBody) -> tuple[str, ...] | None:
    if body.runtime_flags:
        return body.runtime_flags
    if not body.raw_runtime_flags:
        return None
    try:
        return tuple(shlex.split(body.raw_runtime_flags))
    except ValueError as error:
        raise HttpRefusal(500, "flag_refused", f"invalid runtime flags: {error}") from None


def _keep_alive(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_go_duration(text)
    except ValueError as error:
        raise HttpRefusal(400, "invalid_request", f"invalid request: {error}") from None
