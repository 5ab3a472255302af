"""Why an engine was started, and why it stopped or how it is."""

from __future__ import annotations

from greenroom.actors.scheduler.events import LoadAdmitted
from greenroom.runner.diagnosis import stop_reasons
from greenroom.runner.diagnosis.engine_history import EngineHistory, engines_in
from greenroom.runner.diagnosis.explanation import Explanation, Remedy, full_stop
from greenroom.runner.diagnosis.history import Happening, History
from greenroom.runner.diagnosis.names import shown_model
from greenroom.runner.diagnosis.times import clock, moment
from greenroom.runner.units import format_duration


def why_engine(engine_id: str, history: History, now: float) -> Explanation:
    """First what started it, then what became of it."""
    model = history.subjects.engine(engine_id)[0]
    engine = _engine(engine_id, model, history)
    name = shown_model(model, history) if model else "a model"
    cause, because = engine.wanted_by(name, history)
    on = f" on {engine.spec.backend}" if engine.spec is not None else ""
    found = Explanation(
        state=engine.state,
        cause=cause,
        answer=f"Engine {engine_id} was started{on} at {moment(engine.began, now)} because {because}.",
        steps=tuple(one.step for one in engine.happenings),
        remedies=(stop_reasons.log_of(engine_id),),
    )
    if engine.spec is not None:
        found.numbers["memory"] = float(engine.spec.memory)
    if engine.admitted is not None:
        found.numbers["promised"] = float(engine.admitted.reserved)
        found.numbers["budget"] = float(engine.admitted.budget)
    if engine.ready is not None:
        found.numbers["load_seconds"] = engine.ready.seconds
    if engine.chosen is not None and engine.chosen.reasons:
        found.also = (f"Why {engine.chosen.backend}: {'; '.join(engine.chosen.reasons)}.",)
    if engine.evicted is not None or engine.failed is not None:
        _tell_end(found, engine, name, history, now)
    else:
        _tell_state(found, engine, name, now)
    if engine.adopted_at or found.cause == "engine_lost":
        until = engine.failed_at or engine.adopted_at
        daemons = (one.step for one in history.daemons if engine.began <= one.at <= until + 1)
        found.steps = (*found.steps, *daemons)
    return found


def _tell_end(found: Explanation, engine: EngineHistory, name: str, history: History, now: float) -> None:
    if engine.evicted is not None:
        end = stop_reasons.of_eviction(
            engine.evicted, engine.evicted_at, history, now, cause=engine.evicted_by, subject=name
        )
    else:
        end = stop_reasons.of_failure(
            engine, name, now, daemons=history.daemons, subject=name, its_engine="The engine"
        )
    found.cause = end.cause
    found.answer += f" {end.answer}"
    found.numbers |= end.numbers
    found.also += end.also
    found.steps += end.steps
    found.words = end.words
    found.remedies += tuple(one for one in end.remedies if one not in found.remedies)


def _tell_state(found: Explanation, engine: EngineHistory, name: str, now: float) -> None:
    if engine.state == "ready":
        found.answer += f" It has been ready since {moment(engine.ready_at, now)}."
        if engine.adopted_at:
            found.cause = "adopted"
            at = clock(engine.adopted_at, now)
            found.answer += f" It outlived the daemon that started it; the next daemon re-adopted it at {at}."
        found.remedies += (Remedy(aim="To unload it", command=f"greenroom unload {name}"),)
    elif engine.state == "gone":
        found.cause = "ended"
        reason = engine.exit.summary if engine.exit is not None else engine.lost.reason if engine.lost else ""
        found.answer += (
            f" It stopped at {moment(engine.ended_at, now)}: {full_stop(reason or 'as requested')}"
        )
    else:
        found.cause = "loading" if engine.state != "stopping" else "stopping"
        elapsed = found.numbers["elapsed"] = round(now - engine.began, 3)
        after = format_duration(round(elapsed))
        what = "is still stopping" if engine.state == "stopping" else "is not ready"
        found.answer += f" After {after} it {what}{'' if engine.state == 'stopping' else ' yet'}."


def _engine(engine_id: str, model: str, history: History) -> EngineHistory:
    own = history.events_of_engine(engine_id)
    # The choice of its backend names no engine; it is stored just before the decision to load.
    before = {one.record.seq: one for one in history.events_of(model)}
    chosen: list[Happening] = [
        before[one.record.seq - 1]
        for one in own
        if isinstance(one.event, LoadAdmitted) and one.record.seq - 1 in before
    ]
    engines = [one for one in engines_in([*chosen, *own]) if one.engine_id == engine_id]
    return engines[0] if engines else EngineHistory(engine_id=engine_id)
