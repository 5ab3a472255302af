"""Why an engine was started, and why it ended or how it is."""

from __future__ import annotations

from greenroom.actors.scheduler.events import LoadAdmitted
from greenroom.runner.diagnosis import endings
from greenroom.runner.diagnosis.explanation import Remedy
from greenroom.runner.diagnosis.finding import Finding, ended
from greenroom.runner.diagnosis.history import Happening, History
from greenroom.runner.diagnosis.lives import Life, lives_in
from greenroom.runner.diagnosis.names import shown_model
from greenroom.runner.diagnosis.times import clock, moment
from greenroom.runner.diagnosis.why_loaded import who_wanted
from greenroom.runner.units import format_duration


def why_engine(engine_id: str, history: History, now: float) -> Finding:
    """First what made it be, then what became of it."""
    model = history.subjects.engine(engine_id)[0]
    life = _life(engine_id, model, history)
    name = shown_model(model, history) if model else "a model"
    cause, because = who_wanted(life, name)
    on = f" on {life.spec.backend}" if life.spec is not None else ""
    finding = Finding(
        state=life.state,
        cause=cause,
        answer=f"Engine {engine_id} was started{on} at {moment(life.began, now)} because {because}.",
        numbers={},
        steps=list(life.happenings),
        remedies=[Remedy(aim="All it has said", command=f"greenroom logs {engine_id}")],
    )
    if life.spec is not None:
        finding.numbers["memory"] = float(life.spec.memory)
    if life.admitted is not None:
        finding.numbers["promised"] = float(life.admitted.promised)
        finding.numbers["budget"] = float(life.admitted.budget)
    if life.ready is not None:
        finding.numbers["load_seconds"] = life.ready.seconds
    if life.chosen is not None and life.chosen.reasons:
        finding.also = [f"{life.chosen.backend} was chosen because: {'; '.join(life.chosen.reasons)}."]
    if life.evicted is not None or life.failed is not None:
        _tell_end(finding, life, name, history, now)
    else:
        _tell_state(finding, life, name, now)
    if life.adopted_at or finding.cause == "engine_lost":
        until = life.failed_at or life.adopted_at
        daemons = [one for one in history.daemons if life.began <= one.at <= until + 1]
        finding.steps = [*finding.steps, *daemons]
    return finding


def _tell_end(finding: Finding, life: Life, name: str, history: History, now: float) -> None:
    if life.evicted is not None:
        ending = endings.of_eviction(life.evicted, life.evicted_at, history, now)
        sentence = ending.sentence.replace("it was unloaded", f"{name} was unloaded", 1)
    else:
        ending = endings.of_failure(life, name, now)
        sentence = ending.sentence.replace("its engine", "it", 1).replace("it could", f"{name} could", 1)
    finding.cause = ending.cause
    finding.answer += f" {sentence[:1].upper()}{sentence[1:]}"
    finding.numbers |= ending.numbers
    finding.also = [*finding.also, *ending.also]
    finding.steps = [*finding.steps, *ending.steps]
    finding.words = ending.words
    finding.remedies = [*finding.remedies, *(one for one in ending.remedies if "logs" not in one.command)]


def _tell_state(finding: Finding, life: Life, name: str, now: float) -> None:
    if life.state == "ready":
        finding.answer += f" It is ready since {moment(life.ready_at, now)}."
        if life.adopted_at:
            finding.cause = "adopted"
            finding.answer += (
                f" It has outlived the daemon that started it and was taken over at "
                f"{clock(life.adopted_at, now)}."
            )
        end = Remedy(aim="To end it", command=f"greenroom unload {name}")
        finding.remedies = [*finding.remedies, end]
    elif life.state == "gone":
        finding.cause = "ended"
        reason = (
            life.exit.summary if life.exit is not None else life.lost.reason if life.lost is not None else ""
        )
        finding.answer += f" It ended at {moment(life.ended_at, now)}: {ended(reason or 'it was asked to')}"
    else:
        finding.cause = "loading" if life.state != "stopping" else "stopping"
        finding.numbers["elapsed"] = round(now - life.began, 3)
        what = "is ending" if life.state == "stopping" else "is not ready yet"
        finding.answer += f" It {what}, {format_duration(round(now - life.began))} later."


def _life(engine_id: str, model: str, history: History) -> Life:
    own = history.named.get(engine_id, [])
    # The choice of its backend names no engine; it stands just before the decision to load.
    before = {one.record.seq: one for one in history.events_of(model)}
    chosen: list[Happening] = [
        before[one.record.seq - 1]
        for one in own
        if isinstance(one.event, LoadAdmitted) and one.record.seq - 1 in before
    ]
    lives = [one for one in lives_in([*chosen, *own]) if one.engine_id == engine_id]
    return lives[0] if lives else Life(engine_id=engine_id)
