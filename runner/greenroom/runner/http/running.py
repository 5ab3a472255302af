"""`GET /engines/ps`, `/engines/queue`, `/engines/ledger`: what runs, who waits, and what each holds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from greenroom.actors.addresses import SCHEDULER
from greenroom.actors.gates import GateReading, Slot
from greenroom.actors.kernel.errors import KernelError
from greenroom.actors.scheduler.messages import EngineAccount, LedgerReading, ReadLedger
from greenroom.actors.scheduler.state import ModelConfigState, config_key
from greenroom.actors.values import Engine
from greenroom.runner.http.door import Door
from greenroom.runner.http.errors import refusal_of
from greenroom.runner.http.go_text import go_duration
from greenroom.runner.http.progress_stream import sentence_of
from greenroom.runner.http.queries import is_true

_NEVER = "0001-01-01T00:00:00Z"
"""Go's zero time: what `last_used` is while an engine is in use or loading."""
_ANSWER_WITHIN = 2.0
"""Seconds after which `ps` tells what it knows without the scheduler."""


class Running:
    """The handlers."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def ps(self, request: web.Request) -> web.Response:
        """Every engine that is not gone; with `?all=true` the last that are gone too, and how they ended."""
        backstage = self._door.backstage
        everything = is_true(request, "all")
        readings, now = backstage.gates.readings(), backstage.system.clock.now().monotonic
        configs = self._door.configs()
        try:
            ledger = await self._ledger()
            accounts = {one.engine_id: one for one in ledger.engines}
        except KernelError:
            # What is known without the scheduler is worth the more while it does not answer.
            accounts = {}
        return web.json_response(
            [
                _row(
                    engine,
                    readings.get(engine.spec.engine_id),
                    configs,
                    accounts,
                    now,
                    backstage.gates.slots(engine.spec.engine_id),
                )
                for engine in backstage.engines()
                if everything or engine.state != "gone"
            ]
        )

    async def ledger(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        """What memory there is, what is promised to whom, and who waits."""
        try:
            return web.json_response(msgspec.to_builtins(await self._ledger()))
        except KernelError as error:
            return _not_now(error)

    async def queue(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        """Requests that have no engine yet: place, how long each has waited, and for what."""
        board = self._door.backstage.board
        try:
            waiting = (await self._ledger()).queue
        except KernelError as error:
            return _not_now(error)
        rows = []
        for one in waiting:
            followed = board.latest(one.follows) if one.follows else None
            detail = sentence_of(followed) if followed is not None else ""
            rows.append({**msgspec.to_builtins(one), "progress": detail})
        return web.json_response(rows)

    async def _ledger(self) -> LedgerReading:
        reading: LedgerReading = await self._door.backstage.system.ask(
            SCHEDULER, ReadLedger(), timeout=_ANSWER_WITHIN
        )
        return reading


def _not_now(error: KernelError) -> web.Response:
    refusal = refusal_of(error)
    body = {"error": {"message": refusal.sentence(), "code": refusal.code}}
    return web.json_response(body, status=503, headers={"Retry-After": "1"})


def _row(
    engine: Engine,
    reading: GateReading | None,
    configs: Mapping[str, ModelConfigState],
    accounts: Mapping[str, EngineAccount],
    now: float,
    taken: Sequence[Slot],
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
        "memory": account.promised if account is not None else spec.memory,
        "measured": account.measured if account is not None else None,
        "peak": account.peak if account is not None else None,
        "device": spec.device,
        "device_memory": account.device_promised if account is not None else spec.device_memory,
        "device_measured": account.device_measured if account is not None else None,
        "inside": inside,
        "slots": spec.slots,
        "slots_used": reading.used if reading is not None else 0,
        "slots_taken": [
            {"number": one.number, "request_id": one.request_id, "caller": str(one.caller)} for one in taken
        ],
        "context_size": account.context_size if account is not None else spec.context_size,
        "prompt_cache": spec.prompt_cache,
        "promises": [{**msgspec.to_builtins(one), "total": one.total} for one in spec.promises],
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


def _wall(seconds_ago: float) -> str:
    moment = time.time() - max(0.0, seconds_ago)
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
