"""All current problems: the answer to `why` without a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from greenroom.actors.daemon_log import DaemonStarted
from greenroom.actors.library.events import ModelCommitted, PullAttemptFailed, PullCancelled, PullFailed
from greenroom.actors.scheduler.events import LoadFailed, LoadRefused
from greenroom.actors.scheduler.state import OVER_MEMORY
from greenroom.runner.diagnosis import why_daemon
from greenroom.runner.diagnosis.explanation import Explanation, Remedy, counted, full_stop
from greenroom.runner.diagnosis.history import Happening, History, latest
from greenroom.runner.diagnosis.live import Live
from greenroom.runner.diagnosis.lost_devices import lost
from greenroom.runner.diagnosis.model_history import ModelHistory
from greenroom.runner.diagnosis.names import shown_model
from greenroom.runner.diagnosis.sentences import short
from greenroom.runner.diagnosis.times import clock, moment
from greenroom.runner.diagnosis.why_memory import place_of
from greenroom.runner.diagnosis.why_remote import remote_troubles
from greenroom.runner.models.references import AmbiguousName, BadReference, familiar, find_model
from greenroom.runner.units import format_size

_DAY = 86_400.0
"""What failed longer ago is shown only under its own name."""
_SHOWN = 10
"""Troubles that are shown."""


class Trouble(NamedTuple):
    sentence: str
    asked: str = ""
    """The name whose `why` says more."""
    kind: str = ""


def why_overview(history: History, now: float, verdicts: Mapping[str, str], live: Live | None) -> Explanation:
    """Whether the daemon runs, then every current problem."""
    found = why_daemon.present(history, now, live)
    troubles = [
        *_damage(history),
        *_queue(live),
        *_backends(history, now),
        *(Trouble(one, name, "remote") for name, one in remote_troubles(history, live)),
        *_models(history, now, verdicts),
        *_pulls(history, now, live),
        *_warm(history),
        *_memory(history, live),
        *(Trouble(one, "daemon", "device") for one in why_daemon.devices(history)),
    ]
    if ours := why_daemon.parked(history):
        troubles.append(
            Trouble(f"{counted(ours, 'command')} failed because of a bug in Greenroom.", "daemon", "bug")
        )
    found.steps = ()
    found.numbers = {"troubles": float(len(troubles))}
    is_up = found.state == "running"
    if troubles:
        found.answer += f" {counted(len(troubles), 'problem')}:"
        found.state = "unwell" if is_up else found.state
        found.cause = troubles[0].kind if is_up else found.cause
    elif is_up:
        found.state, found.cause = "well", "none"
        found.answer += f" All is well: {_loaded(history)}."
    if len(troubles) > _SHOWN:
        more = f"And {counted(len(troubles) - _SHOWN, 'more')}: see greenroom log --problems."
        troubles = [*troubles[:_SHOWN], Trouble(more)]
    found.also += tuple(f"- {one.sentence}" for one in troubles)
    asked = dict.fromkeys(one.asked for one in troubles if one.asked)
    about = tuple(Remedy(aim=f"About {one}", command=f"greenroom why {one}") for one in asked)
    found.remedies = (*(found.remedies if not is_up else ()), *about)
    return found


def _loaded(history: History) -> str:
    loads = history.scheduler.loads.values()
    if not loads:
        return "no model is loaded, and nothing is queued"
    names = dict.fromkeys(shown_model(one.spec.model_id, history) for one in loads)
    reserved = format_size(sum(one.spec.memory for one in loads))
    which = ", ".join(names) if len(names) < 4 else counted(len(names), "model")
    return f"{which} {'is' if len(names) == 1 else 'are'} loaded ({reserved} reserved), and nothing is queued"


def _damage(history: History) -> Iterator[Trouble]:
    yield from (Trouble(full_stop(one), "", "journal") for one in history.notices)


def _queue(live: Live | None) -> Iterator[Trouble]:
    queue = live.queue if live is not None else ()
    if live is not None and queue:
        verb = "request is queued" if len(queue) == 1 else "requests are queued"
        yield Trouble(f"{len(queue)} {verb}. {place_of(queue[0], live)}", "queue", "queue")


def _backends(history: History, now: float) -> Iterator[Trouble]:
    for name, state in history.installer.backends.items():
        job, failure = state.job, state.failure
        broken = next((one for one in state.installations.values() if one.broken), None)
        if state.unread:
            yield Trouble(
                f"{name}: its installations cannot be read: {full_stop(state.unread)}", name, "unread"
            )
        elif job is not None and job.failure is not None and job.retry_at > now:
            yield Trouble(
                f"{name} is not installed yet: retrying at {moment(job.retry_at, now)}. "
                f"{job.failure.sentence()}",
                name,
                "waiting_to_retry",
            )
        elif state.usable is None and job is None and failure is not None:
            yield Trouble(f"{name} could not be installed: {failure.sentence()}", name, failure.code)
        elif state.usable is None and broken is not None and not broken.managed:
            said = f"{name}, which is configured in config.toml, cannot be used: {full_stop(broken.broken)}"
            yield Trouble(said, name, "broken")
        elif state.usable is None and broken is not None:
            yield Trouble(f"{name} {broken.version} is damaged: {full_stop(broken.broken)}", name, "broken")
        elif state.usable is not None and failure is not None and job is None:
            at = f"{name} {state.usable.version} works, but the last attempt to install another one failed: "
            yield Trouble(f"{at}{failure.sentence()}", name, failure.code)


def _models(history: History, now: float, verdicts: Mapping[str, str]) -> Iterator[Trouble]:
    loaded = {one.spec.model_id for one in history.scheduler.loads.values()}
    for model_id in history.library.models:
        model = ModelHistory(model_id, history, now, verdicts)
        for one in model.quarantines():
            yield Trouble(
                f"{model.name} is quarantined on {one.backend} {one.version}, and {one.back_to_version} "
                f"serves it: {full_stop(one.reason)}",
                model.name,
                "quarantined",
            )
        breaker = model.breaker()
        last = next(reversed(model.own_of_type(LoadRefused, LoadFailed)), None)
        if breaker is not None and breaker.until > now:
            until = clock(breaker.until, now)
            yield Trouble(
                f"{model.name} has failed {breaker.failures} times in a row, and is not loaded again before "
                f"{until}: {full_stop(breaker.reason)}",
                model.name,
                "breaker_open",
            )
        elif last is not None and model_id not in loaded and now - last.at <= _DAY:
            yield from _last_trouble(model, last, now)


def _last_trouble(model: ModelHistory, last: Happening, now: float) -> Iterator[Trouble]:
    """The last refusal or failure, unless the model was loaded well since."""
    if any(one.ready is not None and one.ready_at > last.at for one in model.engines):
        return
    at = clock(last.at, now)
    match last.event:
        case LoadRefused() as e:
            yield Trouble(f"{model.name} was refused at {at}: {full_stop(e.message)}", model.name, e.code)
        case LoadFailed() as e if (loss := _lost(model, e.engine_id)) is not None:
            yield Trouble(f"{model.name} is not loaded: {loss}", model.name, "device_lost")
        case LoadFailed(failure=failure, was_ready=True):
            how = "exceeded its memory limit" if failure.code == OVER_MEMORY else "stopped working"
            yield Trouble(
                f"The engine of {model.name} {how} at {at}: {full_stop(failure.message)}",
                model.name,
                failure.code,
            )
        case LoadFailed(failure=failure):
            yield Trouble(
                f"{model.name} could not be loaded at {at}: {full_stop(failure.message)}",
                model.name,
                failure.code,
            )


def _lost(model: ModelHistory, engine_id: str) -> str | None:
    """How the device of an engine went away, if that ended it."""
    engine = model.engine(engine_id)
    loss = lost(engine, model.history.daemons, model.now) if engine is not None else None
    return loss.sentence if loss is not None else None


def _pulls(history: History, now: float, live: Live | None) -> Iterator[Trouble]:
    for reference, events in history.pulls.items():
        name, last = short(reference), events[-1]
        match last.event:
            case PullAttemptFailed() as e if reference in history.library.pulls:
                running = live.progress(f"pull/{reference}") if live is not None else ""
                then = f"attempt {e.attempt + 1} is running" if e.retry_at <= now else ""
                then = running or then or f"retrying at {moment(e.retry_at, now)}"
                yield Trouble(
                    f"The pull of {name} has failed {counted(e.attempt, 'time')}; {then}. "
                    f"{e.failure.sentence()}",
                    name,
                    "waiting_to_retry",
                )
            case PullFailed(failure=failure) if now - last.at <= _DAY and not _pulled_since(last, history):
                yield Trouble(
                    f"The pull of {name} failed at {clock(last.at, now)}: {failure.sentence()}",
                    name,
                    failure.code,
                )
            case PullCancelled() if now - last.at <= _DAY and history.library.tagged(reference) is None:
                yield Trouble(
                    f"The pull of {name} was cancelled at {clock(last.at, now)}.", name, "cancelled"
                )
            case _:
                pass


def _warm(history: History) -> Iterator[Trouble]:
    """Models that are to be loaded at the start and are not in the store, such as mistyped names."""
    started = latest(history.daemons, DaemonStarted)
    known = {familiar(tag) for model in history.library.models.values() for tag in model.tags}
    for setting in started[1].settings if started is not None else ():
        for name in setting.value.split(", ") if setting.name == "warm" else ():
            try:
                is_here = find_model(name, history.library.models.values()) is not None
            except (AmbiguousName, BadReference):
                is_here = False
            if not is_here:
                near = difflib.get_close_matches(name, known, 1)
                hint = f" Did you mean {near[0]}?" if near else f" To pull it: greenroom pull {name}"
                yield Trouble(
                    f"{name}, which is to be loaded whenever the daemon starts (warm, {setting.origin}), is "
                    f"not in the store.{hint}",
                    name,
                    "warm",
                )


def _pulled_since(failed: Happening, history: History) -> bool:
    """Whether another tag of the same repository has been pulled since a pull failed."""
    repositories = {_repository(one) for one in failed.about.references}
    return any(
        isinstance(events[-1].event, ModelCommitted)
        and events[-1].record.seq > failed.record.seq
        and _repository(reference) in repositories
        for reference, events in history.pulls.items()
    )


def _repository(reference: str) -> str:
    """A stored reference without its tag."""
    repository, _, tag = reference.rpartition(":")
    return reference if "/" in tag else repository


def _memory(history: History, live: Live | None) -> Iterator[Trouble]:
    ledger = live.ledger if live is not None else None
    for one in ledger.engines if ledger is not None else ():
        if one.measured is not None and one.measured > one.reserved:
            name = shown_model(history.subjects.engine(one.engine_id)[0], history) or one.engine_id
            yield Trouble(
                f"{name} uses {format_size(one.measured)} and has only {format_size(one.reserved)} reserved.",
                "memory",
                "over_memory",
            )
