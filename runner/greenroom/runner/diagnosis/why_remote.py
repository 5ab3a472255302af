"""Why a remote backend, or one of its models, can be used or not."""

from __future__ import annotations

from collections.abc import Iterator

from greenroom.actors.remote_log import RemoteAnswered, RemoteFailed
from greenroom.runner.diagnosis.explanation import Explanation, Remedy, counted
from greenroom.runner.diagnosis.history import History
from greenroom.runner.diagnosis.live import Live
from greenroom.runner.diagnosis.times import clock, moment
from greenroom.runner.remotes.reading import RemoteReading, clause
from greenroom.runner.units import format_duration

_STEPS = 8
"""The number of its latest changes to show."""
_NAMED = 10
"""The number of its models to name."""


def why_remote(name: str, asked: str, history: History, now: float, live: Live | None) -> Explanation:
    """According to the running daemon; without one, according to what the last daemon stored.

    `asked` is the whole name of a model, where the question was about one.
    """
    known = history.remotes[name]
    reading = live.remote(name) if live is not None else None
    events = [
        one for one in history.backends.get(name, ()) if isinstance(one.event, RemoteAnswered | RemoteFailed)
    ]
    found = Explanation(
        steps=tuple(one.step for one in events[-_STEPS:]),
        also=(f"{name} is a remote backend: Greenroom neither starts nor stops it.",),
        remedies=(Remedy(aim="To see all backends", command="greenroom backends"),),
    )
    if reading is not None:
        _tell_now(found, reading, now)
    elif live is not None and live.running:
        found.state, found.cause = "absent", "not_declared"
        found.answer = f"{name} is no longer in the settings; its URL was {known.url}."
    else:
        was = "answered" if known.failure is None else f"could not be used: {clause(known.failure)}"
        found.state, found.cause = "unknown", "not_running"
        found.answer = f"When that last changed, at {moment(known.since, now)}, {name} ({known.url}) {was}."
    own = asked.partition("/")[2]
    if own and reading is not None and reading.state == "answers":
        _tell_model(found, own, asked, reading)
    return found


def remote_troubles(history: History, live: Live | None) -> Iterator[tuple[str, str]]:
    """Name and sentence of each that cannot be used."""
    for one in live.remotes if live is not None else ():
        if one.failure is not None and one.name in history.remotes:
            yield one.name, f"{one.name} cannot be used at {one.url}: {clause(one.failure)}."


def _tell_now(found: Explanation, reading: RemoteReading, now: float) -> None:
    name, url, count = reading.name, reading.url, len(reading.models)
    found.numbers = {"models": float(count), "slots": float(reading.slots), "inside": float(reading.inside)}
    again = f"The next check is in {format_duration(max(1, round(reading.next_in)))}."
    if reading.state == "answers":
        found.state, found.cause = "answers", "asked"
        found.answer = (
            f"{name} has answered at {url} since {moment(reading.since, now)}; {counted(count, 'model')}."
        )
        if reading.models:
            named = ", ".join(f"{name}/{one}" for one in reading.models[:_NAMED])
            more = f", and {count - _NAMED} more" if count > _NAMED else ""
            found.also = (f"Its models: {named}{more}.", *found.also)
        inside = counted(reading.inside, "request")
        found.also = (f"It has {inside} from this daemon, at most {reading.slots} at once.", *found.also)
    elif reading.failure is not None:
        found.state, found.cause = "silent", reading.failure.code
        is_silent = reading.failure.code in ("unreachable", "too_slow")
        verb = "has not answered" if is_silent else "could not be used"
        at = f"at {url} since {clock(reading.since, now)}"
        found.answer = f"{name} {verb} {at}: {clause(reading.failure)}. {again}"
        if reading.failure.advice:
            found.also = (reading.failure.advice, *found.also)
    else:
        found.state, found.cause = "unknown", "asked"
        found.answer = f"{name} has not answered yet at {url}. {again}"


def _tell_model(found: Explanation, own: str, asked: str, reading: RemoteReading) -> None:
    if own in reading.models or f"{own}:latest" in reading.models:
        found.state = "served"
        found.answer = f"{asked} is served by {reading.name}. {found.answer}"
    else:
        found.state, found.cause = "refused", "model_not_listed"
        found.answer = f"{reading.name} lists no model {own}. {found.answer}"
