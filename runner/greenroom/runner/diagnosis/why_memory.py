"""Who holds the memory, and who waits in the queue: as the daemon says, or as far as the journal goes."""

from __future__ import annotations

from collections.abc import Iterator

from greenroom.actors.scheduler.events import LoadAdmitted
from greenroom.actors.scheduler.messages import LedgerReading, QueueEntry
from greenroom.runner.diagnosis.explanation import Explanation, Remedy, counted, full_stop
from greenroom.runner.diagnosis.history import History
from greenroom.runner.diagnosis.live import Live
from greenroom.runner.diagnosis.names import shown_model
from greenroom.runner.diagnosis.sentences import short
from greenroom.runner.units import format_duration, format_size

_SHOWN = 8
"""Requests of the queue."""
_NAMED = 4
"""Requests inside an engine that are named."""
_PS = Remedy(aim="To see engines and queue", command="greenroom ps")


def why_queue(history: History, live: Live | None) -> Explanation:
    """Each request's place, and what it waits for."""
    if live is None or live.ledger is None:
        advice = (live.advice,) if live is not None and live.advice else ()
        return Explanation(
            state="unknown", cause="not_stored", answer=_unknown("who waits", live), also=advice
        )
    queue, numbers = live.queue, {"waiting": float(len(live.queue))}
    if not queue:
        return Explanation(
            state="empty", cause="none", answer="No request is queued.", numbers=numbers, remedies=(_PS,)
        )
    first = queue[0]
    verb = "request is queued" if len(queue) == 1 else "requests are queued"
    return Explanation(
        state="waiting",
        cause=first.phase or "waiting",
        answer=f"{len(queue)} {verb}. {place_of(first, live)}",
        numbers=numbers | {"waited": round(first.waited, 3), "left": round(first.left, 3)},
        also=(*holders(history, live), *(place_of(one, live) for one in queue[1:_SHOWN])),
        remedies=(Remedy(aim="About the first", command=f"greenroom why {first.request_id}"), _PS),
    )


def place_of(entry: QueueEntry, live: Live) -> str:
    """`Request r-… to poet from curl is number 1 in the queue after 7s: waiting for memory: …`"""
    waits = entry.message or "it has just arrived"
    progress = live.progress(entry.follows) if entry.follows else ""
    after = f": {progress}" if progress and progress not in waits else ""
    caller = f" from {entry.caller}" if entry.caller else ""
    nth = f"number {entry.place} in the queue" if entry.place else "in the queue"
    return full_stop(
        f"Request {entry.request_id} to {short(entry.model_ref)}{caller} is {nth} after "
        f"{format_duration(round(entry.waited))}: {waits}{after}"
    )


def holders(history: History, live: Live) -> Iterator[str]:
    """Who holds the memory for which requests wait."""
    ledger = live.ledger
    if ledger is None or not any(one.phase == "waiting_for_memory" for one in live.queue):
        return
    for one in ledger.engines:
        name = shown_model(history.subjects.engine(one.engine_id)[0], history) or f"Engine {one.engine_id}"
        inside = [row.id for row in live.inside(one.engine_id)]
        busy = f" and answers {', '.join(inside[:_NAMED])}" if inside else ""
        yield f"{name} holds {format_size(one.reserved)}{busy}."


def why_memory(history: History, live: Live | None) -> Explanation:
    """What is reserved for which engine, and what is free."""
    ledger = live.ledger if live is not None else None
    loads = history.scheduler.loads.values()
    remedies = (Remedy(aim="To see it in full", command="greenroom memory"), _PS)
    if ledger is not None:
        holders = counted(len(ledger.engines), "engine") if ledger.engines else "no engine"
        return Explanation(
            state="known",
            cause="reserved",
            answer=(
                f"{format_size(ledger.reserved)} of {format_size(ledger.budget)} is reserved for "
                f"{holders}, and {format_size(ledger.free)} is free.{_short_of(ledger)}"
            ),
            numbers={
                "reserved": float(ledger.reserved),
                "budget": float(ledger.budget),
                "free": float(ledger.free),
                "available": float(ledger.available),
            },
            also=tuple(_held(history, ledger)),
            remedies=remedies,
        )
    if live is not None and not live.running:
        return Explanation(
            state="none",
            cause="not_running",
            answer="Greenroom is not running, so it holds no memory but that of engines it has left running.",
            remedies=remedies,
        )
    last = max(
        (one for model in history.models if (one := history.latest_of(model, LoadAdmitted)) is not None),
        key=lambda one: one[0].record.seq,
        default=None,
    )
    reserved = sum(one.spec.memory for one in loads)
    of = f" of {format_size(last[1].budget)}" if last is not None else ""
    return Explanation(
        state="unknown",
        cause="not_stored",
        answer=(
            f"{format_size(reserved)}{of} was reserved for {counted(len(loads), 'engine')} when the last "
            f"event was stored. {_unknown('what is free', live)}"
        ),
        numbers={"reserved": float(reserved)} | ({"budget": float(last[1].budget)} if last else {}),
        also=tuple(
            f"{shown_model(one.spec.model_id, history)}: {format_size(one.spec.memory)}." for one in loads
        ),
    )


def _short_of(ledger: LedgerReading) -> str:
    """Why less is free than is not reserved."""
    if ledger.budget - ledger.reserved <= ledger.free:
        return ""
    return f" Other programs use the rest: {format_size(ledger.available)} is free on this machine."


def _held(history: History, ledger: LedgerReading) -> Iterator[str]:
    for one in ledger.engines:
        name = shown_model(history.subjects.engine(one.engine_id)[0], history) or "a model"
        used = f", uses {format_size(one.measured)}" if one.measured is not None else ""
        over = " It uses more than is reserved." if (one.measured or 0) > one.reserved else ""
        pinned = ", pinned" if one.keep_alive < 0 else ""
        busy = f", {counted(one.inside, 'request')} inside" if one.inside else ""
        yield f"{name} holds {format_size(one.reserved)}{used}{pinned}{busy} (engine {one.engine_id}).{over}"
    for device in ledger.devices:
        yield (
            f"{device.name}: {format_size(device.reserved)} of {format_size(device.budget)} is reserved, "
            f"{format_size(device.free)} free."
        )


def _unknown(what: str, live: Live | None) -> str:
    """Why a running daemon alone could tell."""
    if live is None:
        return f"The journal does not say {what}: only its running daemon knows."
    if not live.running:
        return "Greenroom is not running, so nothing is queued."
    return f"{live.silence or 'Its scheduler does not answer.'} So Greenroom cannot say {what}."
