"""What became of a request: from its row in the record, and from the events that it caused."""

from __future__ import annotations

from greenroom.actors.daemon_log import DaemonStarted
from greenroom.actors.installer.events import (
    InstallationCommitted,
    InstallationRetiring,
    InstallCancelled,
    InstallFailed,
    InstallNotNeeded,
    InstallRequested,
)
from greenroom.actors.library.events import (
    ModelCommitted,
    ModelRemoved,
    ModelTagged,
    PullCancelled,
    PullFailed,
    PullRequested,
)
from greenroom.actors.scheduler.events import (
    BackendChosen,
    ConfigChanged,
    EvictionDecided,
    KeepAliveWished,
    LoadAdmitted,
    LoadRefused,
)
from greenroom.runner.diagnosis import stop_reasons
from greenroom.runner.diagnosis.aliases import tag_change
from greenroom.runner.diagnosis.configured import changes
from greenroom.runner.diagnosis.engine_history import EngineHistory, engines_in
from greenroom.runner.diagnosis.explanation import (
    Explanation,
    Remedy,
    counted,
    full_stop,
    listed,
    tool_output,
)
from greenroom.runner.diagnosis.history import Happening, History, latest, of_type
from greenroom.runner.diagnosis.names import UnknownName, shown_model
from greenroom.runner.diagnosis.recorded_request import of_row
from greenroom.runner.diagnosis.sentences import Narrator, short
from greenroom.runner.diagnosis.times import moment
from greenroom.runner.models.references import shown
from greenroom.runner.record.row import Row
from greenroom.runner.units import format_duration, format_size

_TOLD_ELSEWHERE = (
    *(PullRequested, InstallRequested, BackendChosen, LoadAdmitted, LoadRefused),
    EvictionDecided,
)
_BY_COMMAND = frozenset({"unload", "larger_context", "reconfigured", "removed"})
"""Why engines end for a request itself, and not to make room for it."""
_TOLD = 3
"""Changes that the answer tells; all are among the steps."""


def why_request(request: str, history: History, now: float, row: Row | None = None) -> Explanation:
    """What became of it, if that was recorded; then what was installed, pulled, evicted and loaded for it.

    Raises UnknownName.
    """
    caused = history.caused_by(request)
    if not caused and row is None:
        raise UnknownName(
            request,
            (),
            f"Nothing is known of request {shown(request)}: it is not in the record of requests, and no "
            "event was caused by it. Reads that succeed are not recorded.",
        )
    found = of_row(row, now) if row is not None else Explanation(state="served")
    ended, words = (found.state, found.cause), found.remedies
    if caused and row is None:
        found.answer = f"Request {request} first took effect at {moment(caused[0].at, now)}."
        later = next((one for one in history.daemons if one.record.seq > caused[0].record.seq), None)
        if later is not None and isinstance(later.event, DaemonStarted):
            found.answer += " Its end is not recorded: the daemon that it was sent to was killed or crashed."
    found.steps = tuple(one.step for one in caused)
    _tell_changes(found, caused, history)
    _tell_jobs(found, caused, history)
    _tell_evictions(found, caused)
    admitted = latest(caused, LoadAdmitted)
    if admitted is not None:
        _tell_load(found, admitted[1], history, now)
    refused = latest(caused, LoadRefused)
    if refused is not None:
        event = refused[1]
        refusal = stop_reasons.of_refusal(event, refused[0].at, shown_model(event.model_id, history), now)
        found.state, found.cause, found.remedies = "refused", refusal.cause, refusal.remedies
        found.numbers |= refusal.numbers
        if row is None:
            found.answer += f" It was refused at {moment(refused[0].at, now)}: {event.message}"
    if row is not None:
        # How it ended is known, whatever became of what it began.
        found.state, found.cause = ended
        found.remedies = (*words, *(one for one in found.remedies if one not in words))
        unloaded = any(isinstance(one.event, EvictionDecided) for one in caused)
        if row.path.endswith("/unload") and row.outcome == "whole" and not unloaded:
            found.answer += " It unloaded nothing."
        if (remote := history.remotes.get(row.backend)) is not None:
            found.also += (f"It was sent to the remote backend {row.backend} at {remote.url}.",)
            about = Remedy(aim=f"About {row.backend}", command=f"greenroom why {row.backend}")
            found.remedies = (*(one for one in found.remedies if one.command != about.command), about)
        if row.outcome == "died":
            _tell_death(found, row, history, now)
    elif not found.cause:
        found.cause = caused[-1].record.type
        found.answer += " Its effects are listed below."
    return found


def _tell_changes(found: Explanation, caused: list[Happening], history: History) -> None:
    """What it changed at once: models unloaded, named, removed or configured."""
    ended = [
        one.event
        for one in caused
        if isinstance(one.event, EvictionDecided) and one.event.reason in _BY_COMMAND
    ]
    names = listed(dict.fromkeys(short(one.model_ref) for one in ended)) if ended else ""
    told = [f"It unloaded {names}."] if ended else []
    told += dict.fromkeys(sentence for one in caused if (sentence := _changed(one, history)))
    if told:
        more = f" And {counted(len(told) - _TOLD, 'more event')}." if len(told) > _TOLD else ""
        found.answer += f" {' '.join(told[:_TOLD])}{more}"


def _changed(one: Happening, history: History) -> str:
    """What it did, in a sentence; empty for what stands elsewhere or only follows from it."""
    match one.event:
        case KeepAliveWished() as e if e.keep_alive < 0:
            return f"It pinned {short(e.model_ref)}."
        case KeepAliveWished() as e:
            kept = format_duration(e.keep_alive)
            return f"It unpinned {short(e.model_ref)}: its keep-alive is now {kept}."
        case ConfigChanged() as e:
            mine = [it for it in changes(history, e.model_id, e.mode) if it.happening is one]
            return f"It configured {short(e.model_ref)}{f' with {mine[0].told()}' if mine else ''}."
        case ModelTagged() as e:
            return tag_change(one, e, history)
        case ModelRemoved() as e:
            freed = f", which freed {format_size(e.freed)}" if e.freed else ""
            return f"It removed {shown_model(e.model_id, history)} from the store{freed}."
        case PullCancelled():
            references = one.about.references
            return f"It cancelled the pull of {short(references[-1]) if references else 'a model'}."
        case InstallationRetiring(unwanted=True) as e:
            return f"It uninstalled {e.backend}."
        case InstallCancelled() as e:
            return f"It cancelled the installation of {e.backend}."
        case _ if isinstance(one.event, _TOLD_ELSEWHERE):
            return ""
        case _:
            return full_stop(Narrator(history.hosts).tell(one.record))


def _tell_death(found: Explanation, row: Row, history: History, now: float) -> None:
    """How its engine ended."""
    events = [one for one in history.events_of(row.model_id) if one.about.engine == row.engine]
    engine = next(iter(engines_in(events)), None)
    found.remedies = (Remedy(aim="To see its engine", command=f"greenroom why {row.engine}"), *found.remedies)
    if engine is None or engine.failed is None:
        return
    found.steps += tuple(one.step for one in events)
    name = shown_model(row.model_id, history)
    failure = stop_reasons.of_failure(engine, name, now, daemons=history.daemons, its_engine="Its engine")
    found.cause, found.words = failure.cause, failure.words
    found.also = (failure.answer, *failure.also)


def _tell_jobs(found: Explanation, caused: list[Happening], history: History) -> None:
    for _, install in of_type(caused, InstallRequested):
        about = [one for one in history.backends.get(install.backend, ()) if one.about.job == install.job]
        found.answer += f" It made Greenroom install {install.backend}"
        _tell_job(found, about, "installing", install.backend)
    for _, pull in of_type(caused, PullRequested):
        about = [one for one in history.pulls.get(pull.reference, ()) if one.about.job == pull.job]
        did = f"adopt {short(pull.reference)} from {pull.origin}" if pull.origin else ""
        found.answer += f" It made Greenroom {did or f'pull {short(pull.reference)}'}"
        _tell_job(found, about, "pulling", short(pull.reference))


def _tell_job(found: Explanation, about: list[Happening], doing: str, name: str) -> None:
    """The state of a job that the request started; what it was refused for is not repeated."""
    refused = found.state == "refused"
    found.steps += tuple(one.step for one in about)
    found.remedies = (Remedy(aim="To see its state", command=f"greenroom why {name}"),)
    match about[-1].event if about else None:
        case InstallationCommitted() | InstallNotNeeded() | ModelCommitted():
            found.state, found.cause = "served", doing
            found.answer += ", which succeeded."
        case InstallFailed(failure=failure) | PullFailed(failure=failure):
            found.answer += ", which failed." if refused else f", which failed: {failure.sentence()}"
            found.state, found.cause, found.words = "failed", failure.code, tool_output(failure.detail)
        case InstallCancelled(reason=reason) | PullCancelled(reason=reason):
            found.state, found.cause = "failed", "cancelled"
            found.answer += f", which was cancelled: {full_stop(reason)}"
        case _:
            found.state, found.cause = "waiting", doing
            found.answer += ", which is still in progress."


def _tell_evictions(found: Explanation, caused: list[Happening]) -> None:
    for _, event in of_type(caused, EvictionDecided):
        if event.reason != "room":
            continue
        found.state, found.cause = "waiting", "room"
        found.answer += (
            f" {short(event.model_ref)} was evicted to make room for it: {format_size(event.needed)} was "
            f"needed and {format_size(event.free)} free; it held {format_size(event.memory)} and had been "
            f"idle for {format_duration(event.idle_seconds)}."
        )
        found.numbers |= {
            "needed": float(event.needed),
            "free": float(event.free),
            "idle_seconds": event.idle_seconds,
        }


def _tell_load(found: Explanation, admitted: LoadAdmitted, history: History, now: float) -> None:
    spec = admitted.spec
    name = shown_model(spec.model_id, history)
    events = [one for one in history.events_of(spec.model_id) if one.about.engine == spec.engine_id]
    engine = next(iter(engines_in(events)), EngineHistory(engine_id=spec.engine_id))
    found.steps += tuple(one.step for one in events)
    found.numbers |= {
        "memory": float(spec.memory),
        "promised": float(admitted.reserved),
        "budget": float(admitted.budget),
    }
    found.answer += f" It made Greenroom load {name} on {spec.backend} as engine {spec.engine_id}"
    aim = "To see the state of that engine"
    found.remedies = (Remedy(aim=aim, command=f"greenroom why {spec.engine_id}"),)
    if engine.ready is not None:
        found.state, found.cause = "served", "loaded"
        found.numbers["load_seconds"] = engine.ready.seconds
        found.answer += f", which took {format_duration(engine.ready.seconds)}."
    elif engine.failed is not None:
        failure = stop_reasons.of_failure(engine, name, now, daemons=history.daemons)
        found.cause, found.words = failure.cause, failure.words
        found.numbers |= failure.numbers
        # What it was refused says why.
        why = "" if found.state == "refused" else f": {engine.failed.failure.message}"
        found.state = "failed"
        found.answer += full_stop(f", which failed{why}")
    else:
        found.state, found.cause = "waiting", "loading"
        found.answer += ", which is not ready yet."
