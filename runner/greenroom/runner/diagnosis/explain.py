"""`why`: from a journal and a name to the causal chain that led to the present."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from greenroom.actors.journal.port import Record
from greenroom.runner.diagnosis.explanation import Explanation
from greenroom.runner.diagnosis.finding import Finding, tell
from greenroom.runner.diagnosis.history import History
from greenroom.runner.diagnosis.names import Meaning, UnknownName, meaning_of, shown_model
from greenroom.runner.diagnosis.story import Story
from greenroom.runner.diagnosis.why_backend import WhyBackend
from greenroom.runner.diagnosis.why_daemon import why_daemon
from greenroom.runner.diagnosis.why_engine import why_engine
from greenroom.runner.diagnosis.why_model import why_model
from greenroom.runner.diagnosis.why_request import why_request
from greenroom.runner.units import format_duration

__all__ = ["Explanation", "UnknownName", "explain"]

_NONE: Mapping[str, str] = {}


def explain(
    records: Iterable[Record], name: str, now: float, *, backends: Mapping[str, str] = _NONE
) -> Explanation:
    """Why a model, backend, engine or request is as it is. A pure function of the events.

    Args:
        records: a journal from its first event on. Damage ends it, with a notice in the answer.
        name: what people call it: a model by any of its names, a backend, an engine or the beginning of its
            id, a request, or `daemon`.
        now: wall-clock second that `5m ago` and `until` are reckoned from.
        backends: those this Greenroom knows, with why this machine cannot run them (empty: it can). For a
            journal of another machine leave it out.

    Raises:
        UnknownName: with names that are near.
    """
    return answer(History(name.strip()).read(records), name, now, backends=backends)


def answer(history: History, name: str, now: float, *, backends: Mapping[str, str] = _NONE) -> Explanation:
    """Like `explain`, of a history that is read already; an engine must be what it was read for."""
    meaning = meaning_of(name, history, backends)
    found = _find(meaning, history, now, backends)
    steps, left_out = tell(found.steps, history)
    as_of = history.last.at if history.last is not None else 0.0
    notices = list(history.notices)
    if as_of > now + 1:
        ahead = format_duration(as_of - now)
        notices.append(f"The last event is {ahead} ahead of this machine's clock, so times are off.")
    return Explanation(
        name=shown_model(meaning.id, history) if meaning.kind == "model" else meaning.id,
        kind=meaning.kind,
        id=meaning.id,
        state=found.state,
        cause=found.cause,
        answer=found.answer,
        numbers=found.numbers,
        also=tuple(found.also),
        steps=steps,
        left_out=left_out,
        words=found.words,
        remedies=tuple(found.remedies),
        notices=tuple(notices),
        as_of=as_of,
    )


def _find(meaning: Meaning, history: History, now: float, backends: Mapping[str, str]) -> Finding:
    match meaning.kind:
        case "model":
            return why_model(Story(meaning.id, history, now, backends))
        case "backend":
            return WhyBackend(meaning.id, history, now, backends).find()
        case "engine":
            return why_engine(meaning.id, history, now)
        case "request":
            return why_request(meaning.id, history, now)
        case "daemon":
            return why_daemon(history, now)
