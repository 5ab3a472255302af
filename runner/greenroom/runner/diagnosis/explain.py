"""`why`: from a journal and a name to the chain of events that led to the present."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from greenroom.actors.journal.port import Record
from greenroom.runner.diagnosis.aliases import told_under
from greenroom.runner.diagnosis.explanation import FIRST, LAST, Explanation, Step
from greenroom.runner.diagnosis.history import History
from greenroom.runner.diagnosis.last_time import add_last_time
from greenroom.runner.diagnosis.live import Live
from greenroom.runner.diagnosis.live_facts import add_live
from greenroom.runner.diagnosis.model_history import ModelHistory
from greenroom.runner.diagnosis.names import Meaning, UnknownName, asked_tag, meaning_of, shown_model
from greenroom.runner.diagnosis.recorded_request import Recorded, named
from greenroom.runner.diagnosis.sentences import Narrator
from greenroom.runner.diagnosis.times import clock
from greenroom.runner.diagnosis.why_backend import WhyBackend
from greenroom.runner.diagnosis.why_clients import names_of_clients, why_requests
from greenroom.runner.diagnosis.why_daemon import present, why_daemon
from greenroom.runner.diagnosis.why_devices import why_devices
from greenroom.runner.diagnosis.why_engine import why_engine
from greenroom.runner.diagnosis.why_event import why_event, why_job
from greenroom.runner.diagnosis.why_memory import why_memory, why_queue
from greenroom.runner.diagnosis.why_model import why_model
from greenroom.runner.diagnosis.why_overview import why_overview
from greenroom.runner.diagnosis.why_remote import why_remote
from greenroom.runner.diagnosis.why_request import why_request
from greenroom.runner.record.row import ID, Row
from greenroom.runner.units import format_duration

__all__ = ["Explanation", "UnknownName", "explain"]

_NONE: Mapping[str, str] = {}
_LIVES = frozenset("loaded loading installing waiting_to_retry pulling retiring ready starting".split())
"""States that no daemon keeps up once it is gone."""
Rows = Callable[[], Sequence[Row]]
"""The latest rows of the record of requests."""


def _none_recorded(_: str) -> Row | None:
    return None


def _no_rows() -> Sequence[Row]:
    return ()


def explain(
    records: Iterable[Record],
    name: str,
    now: float,
    *,
    backends: Mapping[str, str] = _NONE,
    recorded: Recorded = _none_recorded,
    rows: Rows = _no_rows,
    live: Live | None = None,
) -> Explanation:
    """Why a model, backend, engine or request is as it is. A pure function of the events.

    Args:
        records: a journal from its first event on. Damage ends it, with a notice in the answer.
        name: what is asked about, by any name that `names` knows; empty for all that is not well.
        now: wall-clock second that `5m ago` and `in 5m` are counted from.
        backends: those this Greenroom knows, with why this machine cannot run them (empty: it can). Leave it
            out for a journal of another machine.
        recorded: finds a request in the record of requests; leave it out where there is none.
        rows: the latest requests in that record.
        live: what the daemon of this journal says, or that it does not run; None if that is not known.

    Raises:
        UnknownName: with similar names, or what to do.
    """
    history = History(name).read(records)
    return answer(history, name, now, backends=backends, recorded=recorded, rows=rows, live=live)


def answer(
    history: History,
    name: str,
    now: float,
    *,
    backends: Mapping[str, str] = _NONE,
    recorded: Recorded = _none_recorded,
    rows: Rows = _no_rows,
    live: Live | None = None,
) -> Explanation:
    """Like `explain`, of a history that is read already; it must have been read for an engine's name."""
    history.recorded = recorded
    meaning = meaning_of(name, history, backends, lambda: names_of_clients(rows()))
    match meaning.kind:
        case "request":
            found = why_request(meaning.id, history, now, recorded(meaning.id))
        case "requests" | "client":
            found = why_requests(rows(), now, meaning.id)
        case "queue":
            found = why_queue(history, live)
        case "memory":
            found = why_memory(history, live)
        case "devices":
            found = why_devices(history)
        case "event":
            found = why_event(meaning.id, history, now, recorded)
        case "overview":
            found = why_overview(history, now, backends, live)
        case _:
            found = _find(meaning, name, history, now, backends, live)
            found.also += _behind(found, history, recorded, now)
    if live is not None and not live.running and found.state in _LIVES and history.daemon.running_pid:
        # It was killed: nothing has stored what became of this.
        found.answer = f"{present(history, now, live).answer} Until then: {found.answer}"
    if live is not None and live.running:
        add_live(found, meaning, history, live)
    found.name = shown_model(meaning.id, history, meaning.asked) if meaning.kind == "model" else meaning.id
    found.kind, found.id = meaning.kind, meaning.id
    found.steps, found.left_out = _worded(found.steps, history)
    found.as_of = history.last.at if history.last is not None else 0.0
    found.notices = tuple(history.notices)
    if found.as_of > now + 1:
        ahead = format_duration(found.as_of - now)
        notice = f"The last event is {ahead} ahead of this machine's clock, so the times are wrong."
        found.notices = (*found.notices, notice)
    return found


def _find(
    meaning: Meaning,
    question: str,
    history: History,
    now: float,
    backends: Mapping[str, str],
    live: Live | None,
) -> Explanation:
    match meaning.kind:
        case "model":
            model = ModelHistory(meaning.id, history, now, backends, meaning.asked)
            found = why_model(model)
            add_last_time(found, question, model)
            if told := told_under(asked_tag(meaning.asked, history), history, now):
                found.answer = f"{told} {found.answer}"
            return found
        case "backend" if meaning.id in history.remotes:
            return why_remote(meaning.id, meaning.asked, history, now, live)
        case "backend":
            return WhyBackend(meaning.id, history, now, backends).find()
        case "engine":
            return why_engine(meaning.id, history, now)
        case "daemon":
            return why_daemon(history, now, live)
        case "job":
            return why_job(meaning.id, history, now)
    raise AssertionError(meaning.kind)


def _behind(found: Explanation, history: History, recorded: Recorded, now: float) -> tuple[str, ...]:
    """A sentence about the latest event that a request caused, unless the answer has named another."""
    caused = sorted((one for one in found.steps if ID.fullmatch(one.cause)), key=lambda one: one.seq)
    if history.told:
        return ()
    row = recorded(caused[-1].cause) if caused else None
    return (
        (f"The event of {clock(caused[-1].at, now)} was caused by {named(row)}.",) if row is not None else ()
    )


def _worded(steps: Iterable[Step], history: History) -> tuple[tuple[Step, ...], int]:
    """The steps in order, each once and as a sentence, and how many of the middle were left out."""
    wanted = {one.seq: one for one in steps}
    told = {seq: history.happening(seq) for seq in wanted}
    # The narrator reads the events around them, too: many events name only a job or an engine.
    told |= history.around(told.values())
    narrator = Narrator(history.hosts)
    worded: list[Step] = []
    for seq in sorted(told):
        text = narrator.tell(told[seq].record)
        if seq in wanted:
            worded.append(msgspec.structs.replace(wanted[seq], text=text))
    if len(worded) <= FIRST + LAST:
        return tuple(worded), 0
    return (*worded[:FIRST], *worded[-LAST:]), len(worded) - FIRST - LAST
