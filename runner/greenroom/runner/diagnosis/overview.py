"""A replayed state on one screen, and what an event changed in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from greenroom.actors.daemon_log import DaemonState
from greenroom.actors.engine_runner.core import RunnerState
from greenroom.actors.idempotency import IdempotencyState
from greenroom.actors.installer.state import BackendInstallState, InstallerState
from greenroom.actors.library.state import LibraryState
from greenroom.actors.scheduler.state import SchedulerState
from greenroom.actors.values import Engine, Model
from greenroom.runner.diagnosis.explanation import counted
from greenroom.runner.diagnosis.replay import Snapshot, changes
from greenroom.runner.diagnosis.sentences import short
from greenroom.runner.diagnosis.times import clock, precise
from greenroom.runner.units import format_duration, format_size

_LONGEST = 200
"""Characters of one value in a change."""


def overview(snapshot: Snapshot) -> str:
    """The state after an event, by owner. Times are relative to that event."""
    record = snapshot.record
    if record is None:
        return "The journal is empty before the first event."
    head = f"After event {record.seq}, {record.id} ({record.type}), stored at {precise(record.at)}:"
    sections: list[str] = [head]
    for address, state in snapshot.states.items():
        rows = list(_rows(state, record.at))
        title = str(address)
        if rows:
            sections.append("\n".join([title, *(f"  {row}" for row in rows)]))
    if snapshot.dormant:
        streams = ", ".join(f"{name} ({version})" for name, version in snapshot.dormant.items())
        sections.append(f"Streams of other programs, with their last version: {streams}")
    return "\n\n".join(sections)


def told_changes(before: Snapshot, after: Snapshot) -> Iterator[str]:
    """A line for each value that differs."""
    for path, (old, new) in changes(before, after).items():
        if old is None:
            yield f"+ {path} = {_value(new)}"
        elif new is None:
            yield f"- {path} (was {_value(old)})"
        else:
            yield f"~ {path} = {_value(new)} (was {_value(old)})"


def _rows(state: Any, at: float) -> Iterator[str]:
    match state:
        case DaemonState():
            runs = f"running as process {state.running_pid}" if state.running_pid else "not running"
            yield f"{runs}; start {state.starts}"
        case InstallerState():
            yield from _installer(state, at)
        case IdempotencyState():
            if state.keys:
                yield f"{counted(len(state.keys), 'command')} with an Idempotency-Key"
        case LibraryState():
            yield from _library(state, at)
        case SchedulerState():
            yield from _scheduler(state, at)
        case RunnerState():
            yield from (_engine(engine, at) for engine in state.engines.values())
        case _:
            yield str(state)


def _installer(state: InstallerState, at: float) -> Iterator[str]:
    for name, backend in state.backends.items():
        yield f"{name}: {_backend(backend, at)}"
        for one in backend.installations.values():
            marks = [mark for mark, so in _marks(backend, one.id, one.broken) if so]
            facts = ", ".join([f"{one.variant} {one.version}".strip(), format_size(one.size), *marks])
            yield f"  {one.id} ({facts})"


def _marks(backend: BackendInstallState, one: str, broken: str) -> list[tuple[str, bool]]:
    return [
        ("in use for new engines", backend.current == one),
        ("to be removed", one in backend.retiring),
        (f"broken: {broken}", bool(broken)),
    ]


def _backend(backend: BackendInstallState, at: float) -> str:
    job = backend.job
    wanted = " (uninstalled)" if backend.wanted is False else ""
    if job is not None:
        since = format_duration(round(at - job.requested_at))
        waits = f", retrying at {clock(job.retry_at, at)}" if job.retry_at > at else ""
        return f"job {job.id} ({job.wanted_by}) for {since}, attempt {job.attempt}{waits}"
    if backend.usable is not None:
        return f"installed, {backend.usable.version}"
    if backend.failure is not None:
        return f"failed: {backend.failure.message}{wanted}"
    return f"not installed{wanted}"


def _library(state: LibraryState, at: float) -> Iterator[str]:
    for model in state.models.values():
        yield _model(model)
    for pull in state.pulls.values():
        since = format_duration(round(at - pull.requested_at))
        waits = f", retrying at {clock(pull.retry_at, at)}" if pull.retry_at > at else ""
        yield f"pull {pull.job} of {short(pull.reference)} for {since}, attempt {pull.attempt}{waits}"


def _model(model: Model) -> str:
    names = ", ".join(short(tag) for tag in model.tags) or "no name"
    facts = ", ".join(one for one in (model.format, model.quantization, format_size(model.size)) if one)
    return f"{names}: {model.id[7:19]} ({facts})"


def _scheduler(state: SchedulerState, at: float) -> Iterator[str]:
    if state.loads:
        reserved = sum(load.spec.memory for load in state.loads.values())
        yield f"{format_size(reserved)} reserved for {counted(len(state.loads), 'engine')}"
    for load in state.loads.values():
        spec = load.spec
        since = format_duration(round(at - load.admitted_at))
        yield (
            f"load {spec.engine_id}: {short(spec.model_ref)} on {spec.backend} ({spec.mode}), "
            f"{format_size(spec.memory)}, for {since}, by {load.cause}"
        )
    for key, config in state.configs.items():
        parts = [f"{name} {value}" for name, value in _set_values(config)]
        yield f"configured {_short_key(key)}: {', '.join(parts) or 'the defaults'}"
    for key, breaker in state.breakers.items():
        until = f", not retried before {clock(breaker.until, at)}" if breaker.until else ""
        yield f"{_short_key(key)} failed {counted(breaker.failures, 'time')}{until}: {breaker.reason}"
    for one in state.quarantines.values():
        yield (
            f"{short(one.model_ref)} is quarantined on {one.backend} {one.version} and served by "
            f"{one.back_to_version}, since {clock(one.since, at)}: {one.reason}"
        )
    for key, codes in state.refusals.items():
        yield f"refused {_short_key(key)} since its last load: {', '.join(codes)}"


def _engine(engine: Engine, at: float) -> str:
    since = format_duration(round(at - engine.since))
    pid = f", process {engine.pid}" if engine.pid else ""
    end = f": {engine.exit.summary}" if engine.exit is not None and engine.exit.summary else ""
    return f"{engine.spec.engine_id} ({short(engine.spec.model_ref)}): {engine.state} for {since}{pid}{end}"


def _set_values(config: Any) -> list[tuple[str, Any]]:
    named = [(name, getattr(config, name)) for name in ("context_size", "flags", "keep_alive")]
    return [(name, value) for name, value in named if value is not None]


def _short_key(key: str) -> str:
    """`sha256:<64 hex>|completion` with as much of the id as people see elsewhere."""
    model, bar, rest = key.partition("|")
    return f"{model.removeprefix('sha256:')[:12]}{bar}{rest}"


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
