"""Adds what the running daemon says to an answer from the journal."""

from __future__ import annotations

from collections.abc import Iterator

from greenroom.actors.progress import install_job, pull_job
from greenroom.actors.scheduler.messages import QueueEntry
from greenroom.runner.diagnosis.explanation import Explanation, counted, full_stop
from greenroom.runner.diagnosis.history import History
from greenroom.runner.diagnosis.live import Live
from greenroom.runner.diagnosis.names import Meaning, shown_model
from greenroom.runner.diagnosis.why_memory import holders, place_of
from greenroom.runner.models.references import AmbiguousName, BadReference, find_model
from greenroom.runner.record.row import Row
from greenroom.runner.units import format_duration

_NAMED = 4
"""Requests inside an engine that are named."""


def add_live(found: Explanation, meaning: Meaning, history: History, live: Live) -> None:
    """Puts live facts first: a place in the queue replaces the answer; other facts follow it."""
    told: list[str] = []
    loads = history.scheduler.loads.values()
    match meaning.kind:
        case "model":
            engines = [one.spec.engine_id for one in loads if one.spec.model_id == meaning.id]
            references = {tag for tag, one in history.subjects.names.items() if one == meaning.id} or {
                meaning.id
            }
            _tell_waiting(found, meaning.id, references, bool(engines), history, live)
            told = [sentence for one in engines for sentence in _inside(found, one, live)]
            busy = next((one for one in engines if (account := live.account(one)) and account.queue), "")
            if busy and told:  # while it loads, requests wait and none is inside
                name = shown_model(meaning.id, history)
                found.cause, told[0], found.answer = "busy", found.answer, told[0].replace("It", name, 1)
                waited = max(
                    (one.waited for one in live.queue if _asked_for(one, history) == meaning.id), default=0
                )
                if waited >= 1:
                    found.answer += f" The first of these has waited {format_duration(round(waited))}."
            for reference in references:
                if progress := live.progress(pull_job(reference)):
                    told.append(f"Its pull: {full_stop(progress)}")
        case "engine":
            told = list(_inside(found, meaning.id, live))
        case "backend":
            if progress := live.progress(install_job(meaning.id)):
                told = [f"Its installation: {full_stop(progress)}"]
            waiting = [one for one in live.queue if one.follows == install_job(meaning.id)]
            if waiting:
                told.append(
                    f"{counted(len(waiting), 'request')} waiting for it. {place_of(waiting[0], live)}"
                )
            specs = (one.spec for one in loads if one.spec.backend == meaning.id)
            for spec in specs:
                told += list(_inside(found, spec.engine_id, live, shown_model(spec.model_id, history)))[:1]
        case "request":
            entry = next((one for one in live.queue if one.request_id == meaning.id), None)
            if entry is not None:
                found.answer = place_of(entry, live)
                told = list(holders(history, live))
                wanted = _asked_for(entry, history)
                mine = [one.spec.engine_id for one in loads if one.spec.model_id == wanted]
                told += [line for one in mine for line in _inside(found, one, live, "Its engine")]
                found.numbers["place"] = float(entry.place)
            row = next((one for one in live.requests if one.id == meaning.id), None)
            if row is not None and row.engine:
                told += list(_inside(found, row.engine, live, "Its engine", asking=meaning.id))
        case "job":
            keys = (install_job(name) for name in history.jobs[meaning.id][-1].about.backends)
            pulls = (pull_job(name) for name in history.jobs[meaning.id][-1].about.references)
            told = [full_stop(one) for key in (*keys, *pulls) if (one := live.progress(key))]
        case _:
            return
    found.also = (*told, *found.also)


def _tell_waiting(
    found: Explanation, model_id: str, references: set[str], loaded: bool, history: History, live: Live
) -> None:
    """A model that requests wait for, while it is not loaded: that is its state, whatever happened before."""
    waiting = [
        one for one in live.queue if one.model_ref in references or _asked_for(one, history) == model_id
    ]
    if not waiting:
        return
    first = waiting[0]
    numbers = {"waiting": float(len(waiting)), "place": float(first.place), "waited": round(first.waited, 3)}
    found.numbers |= numbers
    if loaded:
        found.also = (place_of(first, live), *found.also)
        return
    before = full_stop(found.answer)
    found.state, found.cause = "queued", first.phase or "waiting"
    found.answer = f"{shown_model(model_id, history)} is not loaded yet. {place_of(first, live)}"
    found.also = (*holders(history, live), f"Before that: {before}", *found.also)


def _asked_for(entry: QueueEntry, history: History) -> str:
    """The id of the model that a waiting request named, however it did."""
    try:
        model = find_model(entry.model_ref, history.library.models.values())
    except (BadReference, AmbiguousName):
        model = None
    return model.id if model is not None else history.subjects.names.get(entry.model_ref, "")


def _inside(
    found: Explanation, engine_id: str, live: Live, subject: str = "It", asking: str = ""
) -> Iterator[str]:
    """How many requests an engine answers, how fast, and how many wait for it."""
    account, rows = live.account(engine_id), live.inside(engine_id)
    if account is None:
        return
    number = account.inside or len(rows)
    slots = f" in {counted(account.slots, 'slot')}" if account.slots else ""
    found.numbers |= {"inside": float(number), "slots": float(account.slots), "queued": float(account.queue)}
    if number:
        waits = f", {counted(account.queue, 'request')} queued for it" if account.queue else ""
        yield f"{subject} is answering {counted(number, 'request')}{slots}{waits}{_speeds(found, rows)}."
        others = [_row(one) for one in rows if one.id != asking]
        if others:
            more = f", and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
            yield f"Inside: {'; '.join(others[:_NAMED])}{more}."
    elif account.idle_seconds is not None:
        until = ""
        if account.expires_in is not None:
            left = format_duration(max(1, round(account.expires_in)))
            until = f" and will be unloaded in {left} without a request"
        yield f"{subject} has been idle for {format_duration(round(account.idle_seconds))}{until}."


def _speeds(found: Explanation, rows: tuple[Row, ...]) -> str:
    speeds = [one.tokens_per_second for one in rows if one.tokens_per_second]
    if not speeds:
        return ""
    mean = found.numbers["tokens_per_second"] = round(sum(speeds) / len(speeds), 1)
    return f", {mean:.1f} tokens a second{' each' if len(speeds) > 1 else ''}"


def _row(row: Row) -> str:
    tokens = f", {row.tokens_out} tokens" if row.tokens_out else ""
    return (
        f"{row.id} from {row.caller or 'an unknown client'} for {format_duration(round(row.seconds))}{tokens}"
    )
