"""The verbs under `/engines` about engines: which run, what each holds, which requests wait, and unloading.

Errors are one line of text, as in Docker Model Runner's contract.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from greenroom.actors.gates import GateReading, Slot
from greenroom.actors.installer.messages import BackendStatus
from greenroom.actors.kernel.errors import KernelError
from greenroom.actors.limits import BackendName, Names
from greenroom.actors.progress import install_job
from greenroom.actors.scheduler.messages import EngineAccount, LedgerReading, ReadLedger, Unload
from greenroom.actors.scheduler.state import ModelConfigState, config_key
from greenroom.actors.values import Engine
from greenroom.runner.backends.device_users import described
from greenroom.runner.daemon import Greenroom
from greenroom.runner.diagnosis.sentences import short
from greenroom.runner.http.bodies import is_true, read_json
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import encoded, json_response, not_now
from greenroom.runner.http.go_duration import go_duration
from greenroom.runner.http.port import Request, Response
from greenroom.runner.http.progress_stream import sentence_of
from greenroom.runner.models.references import AmbiguousName, BadReference, shown
from greenroom.runner.placement_text import shortfall, where
from greenroom.runner.remotes.reading import RemoteReading


class UnloadBody(msgspec.Struct):
    """`POST /engines/unload`."""

    all: bool = False
    backend: BackendName = ""
    models: Names | None = ()
    force: bool = False
    """Also models in use, once their requests are done."""


class Engines:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def status(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        """Every backend in a few words. `Running` means installed and usable, as the contract has it."""
        greenroom = self._context.greenroom
        told = {one.name: self._words(one) for one in greenroom.statuses()}
        return json_response(told | {one.name: _words_of_remote(one.now) for one in greenroom.remotes})

    async def remotes(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        """Remote backends: whether each answers, and which models it has."""
        return encoded(remote_readings(self._context.greenroom))

    async def unload(self, request: Request) -> Response:
        """End idle engines. A model that is not in the store, or in use, is no error: the answer names it."""
        greenroom = self._context.greenroom
        body = await read_json(request, UnloadBody)
        models, unknown = [], []
        if body.backend in {one.name for one in greenroom.remotes}:
            self._context.backend(body.backend)  # which refuses it
        for name in body.models or ():
            greenroom.see_that_it_is_ours(name, "models")
            try:
                model = greenroom.find_model(name)
            except (BadReference, AmbiguousName):
                model = None
            if model is None:
                unknown.append(shown(name))
            else:
                models.append(model.id)
        if body.models and not models:
            # With no model left, the scheduler would take it for a wish about the whole backend.
            return json_response({"unloaded_runners": 0, "ending": [], "in_use": [], "unknown": unknown})
        unload = Unload(all=body.all, backend=body.backend, model_ids=tuple(models), force=body.force)
        unloaded = await greenroom.system.ask(unload, cause=request.id)
        return json_response(
            {
                "unloaded_runners": unloaded.engines,
                "ending": unloaded.ending,
                "in_use": unloaded.busy,
                "unknown": unknown,
            }
        )

    async def ps(self, request: Request) -> Response:
        """Every engine that is not gone; with `?all=true` the last that are gone too, and how they ended."""
        greenroom = self._context.greenroom
        everything = is_true(request, "all")
        readings, now = greenroom.gates.readings(), greenroom.system.clock.now().monotonic
        configs = self._context.greenroom.configs()
        try:
            ledger = await self._ledger()
            accounts = {one.engine_id: one for one in ledger.engines}
        except KernelError:
            # What is known without the scheduler is all the more useful while it does not answer.
            accounts = {}
        return json_response(
            [
                _row(
                    engine,
                    readings.get(engine.spec.engine_id),
                    configs,
                    accounts,
                    now,
                    greenroom.gates.slots(engine.spec.engine_id),
                    greenroom.device_names(),
                )
                | _conversations(greenroom, engine)
                for engine in greenroom.engines()
                if everything or engine.state != "gone"
            ]
        )

    async def devices(self, request: Request) -> Response:
        """The machine's graphics devices as last read; with `?refresh=true`, everything is asked again."""
        greenroom = self._context.greenroom
        graphics = greenroom.devices.graphics
        if is_true(request, "refresh"):
            # In a thread: drivers may take seconds.
            graphics = await asyncio.to_thread(greenroom.devices.look, software=True)
        return json_response(described(graphics, greenroom.device_users(graphics)))

    async def ledger(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        """How much memory there is, what is reserved for which engine, and which requests wait."""
        try:
            return json_response(msgspec.to_builtins(await self._ledger()))
        except KernelError as error:
            return not_now(error)

    async def queue(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        """Requests that have no engine yet: place, how long each has waited, and for what."""
        board = self._context.greenroom.board
        try:
            waiting = (await self._ledger()).queue
        except KernelError as error:
            return not_now(error)
        rows = []
        for one in waiting:
            followed = board.latest(one.follows) if one.follows else None
            detail = sentence_of(followed) if followed is not None else ""
            rows.append({**msgspec.to_builtins(one), "progress": detail})
        return json_response(rows)

    async def _ledger(self) -> LedgerReading:
        reading: LedgerReading = await self._context.greenroom.system.ask(
            ReadLedger(), timeout=_ANSWER_WITHIN
        )
        return reading

    def _words(self, status: BackendStatus) -> str:
        match status.state:
            case "installed":
                version = status.current.version if status.current is not None else ""
                if not version:
                    return "Running: version unknown"
                away = [one for one in self._context.greenroom.quarantines() if one.backend == status.name]
                notes = [f"{short(one.model_ref)} stays on {one.back_to_version}" for one in away]
                if status.failure is not None and status.failure.code == "configured_broken":
                    notes.append(f"the one named in the config cannot be used: greenroom why {status.name}")
                elif status.failure is not None and not status.job:
                    notes.append(f"the last attempt at another failed: greenroom why {status.name}")
                elif status.tried:
                    names = ", ".join(status.tried)
                    notes.append(f"{names} could not be installed: greenroom why {status.name}")
                if status.offered:
                    notes.append(f"{status.offered} would be better: greenroom backends")
                noted = f" ({', '.join(notes)})" if notes else ""
                return f"Running: {status.name} {version}{noted}"
            case "installing" | "waiting_to_retry":
                progress = self._context.greenroom.board.latest(install_job(status.name))
                if progress is not None:
                    return f"Installing: {sentence_of(progress)}"
                if status.state == "waiting_to_retry" and status.failure is not None:
                    return f"Installing: trying again after: {status.failure.message}"
                return "Installing"
            case "broken" | "failed":
                return f"Error: {status.failure.message}" if status.failure is not None else "Error"
            case "retiring":
                return "Not Installed: being removed"
        verdict = self._context.verdicts.get(status.name, "")
        return f"Not Installed: {verdict}" if verdict else "Not Installed"


def remote_readings(greenroom: Greenroom) -> list[RemoteReading]:
    """Every remote backend as it is now, with the requests that it has from us."""
    gates = greenroom.gates.readings()
    return [
        msgspec.structs.replace(one.now, inside=gates[one.name].inside if one.name in gates else 0)
        for one in greenroom.remotes
    ]


def _words_of_remote(reading: RemoteReading) -> str:
    count = len(reading.models)
    match reading.state:
        case "answers":
            return f"Running: {count} model{'' if count == 1 else 's'} at {reading.url}"
        case "silent" if reading.failure is not None:
            return f"Error: {reading.failure.message}"
    return f"Unknown: {reading.url} has not answered yet"


_NEVER = "0001-01-01T00:00:00Z"
"""Go's zero time: what `last_used` is while an engine is in use or loading."""
_ANSWER_WITHIN = 2.0
"""Seconds after which `ps` tells what it knows without the scheduler."""


def _row(
    engine: Engine,
    reading: GateReading | None,
    configs: Mapping[str, ModelConfigState],
    accounts: Mapping[str, EngineAccount],
    now: float,
    taken: Sequence[Slot],
    names: Mapping[str, str],
) -> dict[str, Any]:
    """The contract's fields, then ours."""
    spec = engine.spec
    inside = reading.inside if reading is not None else 0
    loading = engine.state == "starting"
    row: dict[str, Any] = {
        "backend_name": spec.backend,
        "model_name": spec.model_ref,
        "mode": spec.mode,
        "last_used": _NEVER if inside or loading or reading is None else _wall(now - reading.idle_since),
    }
    if inside:
        row["in_use"] = True
    if loading:
        row["loading"] = True
    config = configs.get(config_key(spec.model_id, spec.mode))
    if config is not None and config.keep_alive is not None:
        row["keep_alive"] = go_duration(config.keep_alive)
    account = accounts.get(spec.engine_id)
    row |= {
        "pid": engine.pid,
        "state": engine.state,
        "since": engine.since,
        "engine_id": spec.engine_id,
        "memory": account.reserved if account is not None else spec.memory,
        "measured": account.measured if account is not None else None,
        "peak": account.peak if account is not None else None,
        "device": spec.device,
        "device_memory": account.device_reserved if account is not None else spec.device_memory,
        "device_measured": account.device_measured if account is not None else None,
        "layers": spec.layers,
        "placement": [
            {**msgspec.to_builtins(one), "name": names.get(one.device, "")} for one in spec.placement
        ],
        "loaded": msgspec.to_builtins(engine.loaded),
        "where": where(engine, names),
        "shortfall": shortfall(engine, names),
        "inside": inside,
        "slots": spec.slots,
        "slots_used": reading.used if reading is not None else 0,
        "slots_taken": [
            {"number": one.number, "request_id": one.request_id, "caller": str(one.caller)} for one in taken
        ],
        "context_size": account.context_size if account is not None else spec.context_size,
        "prompt_cache": spec.prompt_cache,
        "promises": [{**msgspec.to_builtins(one), "total": one.total} for one in spec.reservations],
        "queue": account.queue if account is not None else 0,
        "served": reading.served if reading is not None else 0,
        "idle_seconds": account.idle_seconds if account is not None else None,
        "expires_in": account.expires_in if account is not None else None,
        "stays": go_duration(account.keep_alive) if account is not None else None,
        "installation": spec.installation_id,
        "cause": account.cause if account is not None else engine.cause,
    }
    if engine.fault:
        row["fault"] = engine.fault
    if engine.exit is not None:
        row["exit"] = msgspec.to_builtins(engine.exit)
    return row


def _conversations(greenroom: Greenroom, engine: Engine) -> dict[str, Any]:
    """What its slots have read, where Greenroom knows that."""
    engine_id, backend = engine.spec.engine_id, greenroom.backends.get(engine.spec.backend)
    knows = backend is not None and backend.conversations == "slots" and engine.spec.mode == "completion"
    held = len(greenroom.gates.contents(engine_id)) + len(greenroom.gates.slots(engine_id))
    return {
        "conversations": held if knows else None,
        "restored_tokens": greenroom.conversation_saver.engines.restored_by(engine_id).tokens,
    }


def _wall(seconds_ago: float) -> str:
    moment = time.time() - max(0.0, seconds_ago)
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
