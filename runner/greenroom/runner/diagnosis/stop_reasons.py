"""Why an engine stopped, or never started: the word, the sentence, the numbers, the way out.

The sentences have `subject` as their subject: `it` after `smollm2 is not loaded:`, or the model's name.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence

from greenroom.actors.installer.events import (
    InstallationActivated,
    InstallationCommitted,
    InstallationRetiring,
    InstallRequested,
)
from greenroom.actors.scheduler.events import EvictionDecided, KeepAliveWished, LoadAdmitted, LoadRefused
from greenroom.actors.scheduler.state import OVER_MEMORY, counts_against_model
from greenroom.actors.values import EngineExit
from greenroom.runner.diagnosis.configured import changes, last_change
from greenroom.runner.diagnosis.engine_history import EngineHistory
from greenroom.runner.diagnosis.explanation import Explanation, Remedy, Words, full_stop
from greenroom.runner.diagnosis.history import Happening, History, of_type
from greenroom.runner.diagnosis.lost_devices import lost
from greenroom.runner.diagnosis.old_journals import missing_backends, ran_out_of_memory
from greenroom.runner.diagnosis.sentences import short
from greenroom.runner.diagnosis.times import clock, moment
from greenroom.runner.units import format_duration, format_size

_IN_USE = (InstallationCommitted, InstallationActivated)
_GIVEN_UP = frozenset(
    {
        *("engine_stalled", "engine_halted", "engine_unreachable", "engine_closed", "engine_garbled"),
        "engine_abandoned",
    }
)


DISK = Remedy(aim="To see what models take of the disk", command="greenroom df")


def run(name: str) -> str:
    """The command that loads a model."""
    return f"greenroom run {shlex.quote(name)}"


def install(backend: str) -> str:
    return f"greenroom install-runner --backend {backend}"


def of_eviction(
    event: EvictionDecided, at: float, history: History, now: float, *, cause: str = "", subject: str = "it"
) -> Explanation:
    """`cause`: the event's own."""
    idle, when, who = format_duration(event.idle_seconds), moment(at, now), history.who(cause)
    found = Explanation(
        cause=event.reason,
        numbers={"memory": float(event.memory), "idle_seconds": event.idle_seconds},
        remedies=(Remedy(aim="To load it again", command=run(short(event.model_ref))),),
    )
    match event.reason:
        case "room":
            steps = _load_it_made_room_for(event, at, history)
            asked = f"{who} asked for and which " if who else ""
            found.answer = (
                f"{subject} was evicted at {when} to make room for {short(event.in_favour_of)}, which {asked}"
                f"needed {format_size(event.needed)} when {format_size(event.free)} was free. "
                f"It held {format_size(event.memory)} and had been idle for {idle}."
                f"{_pin_taken(event, history, now)}"
            )
            found.numbers |= {"needed": float(event.needed), "free": float(event.free)}
            found.also = (*_still_held(event.in_favour_of, history), *_machine_was_short(event, steps))
            found.steps = tuple(one.step for one in steps)
            found.remedies += _room_for_both(event, steps)
        case "idle":
            _tell_idle(
                found, event, history, now, f"{subject} was unloaded at {when} after being idle for {idle}"
            )
        case "unload":
            found.answer = f"{subject} was unloaded at {when} {f'by {who}' if who else 'on request'}."
        case "removed":
            removed_it = f"{who} removed it" if who else "it was being removed"
            found.answer = f"{subject} was unloaded at {when} because {removed_it} from the store."
            found.remedies = ()
        case "retiring":
            _tell_retiring(found, event, at, history, f"{subject} was unloaded at {when}")
        case "superseded":
            taken = "another variant of its backend is in use now"
            if installed := _installed_before(event.backend, at, history):
                taken = f"{installed}, which is in use now"
            found.answer = (
                f"{subject} was unloaded at {when}, idle, because {taken}: the next request loads it there."
            )
            found.remedies = ()
        case "moved":
            lie = f"{event.on_devices} of its {event.layers} layers" if event.layers else "it"
            found.answer = (
                f"{subject} was unloaded at {when}, idle, to be loaded again, because {lie} would lie on "
                f"graphics devices now: {format_size(event.needed)} is needed there and "
                f"{format_size(event.free)} free."
            )
        case "reconfigured":
            _tell_reconfigured(found, event, at, history, f"{subject} was unloaded at {when}")
        case "larger_context":
            who = who or "a request"
            found.answer = f"{subject} was unloaded at {when} because {who} asked for a larger context."
        case "shutdown":
            _tell_shutdown(found, at, history, now, subject)
        case reason:
            found.answer = f"{subject} was unloaded at {when} ({reason})."
    return found


def of_failure(
    engine: EngineHistory,
    name: str,
    now: float,
    *,
    daemons: Iterable[Happening] = (),
    subject: str = "it",
    its_engine: str = "its engine",
) -> Explanation:
    """Why an engine did not start, or stopped working. `daemons`: what the daemon noticed meanwhile."""
    failed = engine.failed
    assert failed is not None
    failure = failed.failure
    end = engine.exit or EngineExit(at=engine.failed_at, lost=engine.lost is not None)
    summary = end.summary or failure.message
    numbers: dict[str, float] = {}
    if end.code is not None:
        numbers["exit_code"] = float(end.code)
    if end.memory:
        numbers["memory"] = float(end.memory)
    if engine.spec is not None:
        numbers["promised_to_it"] = float(engine.spec.memory)
    if engine.ready is not None and failed.was_ready:
        numbers["ready_seconds"] = round(engine.failed_at - (engine.adopted_at or engine.ready_at), 3)
    when = moment(engine.failed_at, now)
    after = ""
    if "ready_seconds" in numbers:
        after = f", {format_duration(numbers['ready_seconds'])} after it was ready"
    if failure.code == "engine_lost":
        reason = engine.lost.reason if engine.lost is not None else failure.message
        cause, answer = "engine_lost", f"{its_engine} was found missing at {when}: {reason}"
    elif ran_out_of_memory(end, failure):
        cause, answer = "out_of_memory", f"{its_engine} stopped at {when}. {summary}"
    elif failure.code == OVER_MEMORY:
        cause = failure.code
        used = summary.removeprefix("The engine was stopped: ")
        answer = f"{its_engine} was stopped for using too much memory at {when}{after}: {used}"
    elif failure.code in _GIVEN_UP:
        cause = failure.code.removeprefix("engine_")
        answer = f"{its_engine} failed at {when}{after} and was stopped. {summary}"
    elif not counts_against_model(failure) and failure.blame:
        # The daemon that notes the end of an engine it has not seen ready was started after that.
        was_ready = failed.was_ready or engine.ready is not None
        ended = f"{its_engine} ended" if was_ready else f"{subject} could not be loaded"
        cause, answer = failure.code, f"{ended} at {when}{after}. {summary}"
    elif failed.was_ready or engine.ready is not None:
        how = "ended" if end.expected else "was killed" if end.signal == "SIGKILL" else "crashed"
        cause, answer = "crashed", f"{its_engine} {how} at {when}{after}. {summary}"
    else:
        cause, answer = "load_failed", f"{subject} could not be loaded at {when}. {summary}"
    loss = lost(engine, daemons, now)
    if loss is not None:
        cause, answer = "device_lost", f"{loss.sentence} {answer[:1].upper()}{answer[1:]}"
    if cause in ("crashed", "load_failed") and end.signal and end.signal not in summary:
        answer = f"{full_stop(answer)} It was killed by {end.signal}."
    words = Words(of=f"Last lines of engine {engine.engine_id}", lines=engine.words)
    return Explanation(
        cause=cause,
        answer=full_stop(answer),
        numbers=numbers,
        words=(words,) if words.lines else (),
        steps=(loss.happening.step,) if loss is not None and loss.happening is not None else (),
        remedies=(
            *([Remedy(aim="To see what is wrong with devices", command="greenroom devices")] * bool(loss)),
            Remedy(aim="To try again", command=run(name)),
            *([_more_memory()] * (cause == OVER_MEMORY)),
            *([DISK] * (failure.code == "no_space")),
            log_of(engine.engine_id),
        ),
    )


def log_of(engine_id: str) -> Remedy:
    return Remedy(aim="To read its log", command=f"greenroom logs {engine_id}")


def of_refusal(event: LoadRefused, at: float, name: str, now: float) -> Explanation:
    """Why requests for a model are refused."""
    numbers = {key: float(value) for key, value in event.numbers.items()}
    remedies = [Remedy(aim="To try again", command=run(name))]
    match event.code:
        case "does_not_fit" | "no_room":
            size = numbers.get("needed", 0) + numbers.get("pinned", 0)
            remedies = [Remedy(aim="To let engines use more memory", command=_budget(size))]
            if event.code == "no_room":
                remedies.insert(0, Remedy(aim="To see which models are pinned", command="greenroom ps"))
        case "backend_not_installed":
            missing = missing_backends(event)
            remedies = [
                *(Remedy(aim=f"To install {one}", command=install(one)) for one in missing),
                *remedies,
            ]
        case "backend_broken":
            aim = "Once the backend is repaired"
            remedies.insert(0, Remedy(aim=aim, command="greenroom backends verify"))
        case "unsupported_platform" | "unsupported_model":
            remedies = [Remedy(aim="To see what each backend can do here", command="greenroom backends")]
        case _:
            pass
    return Explanation(
        cause=event.code,
        answer=full_stop(f"requests for it have been refused since {moment(at, now)}: {event.message}"),
        numbers=numbers,
        remedies=tuple(remedies),
    )


def attempts(engines: Iterable[EngineHistory], now: float) -> tuple[str, ...]:
    """A line for each failed load."""
    return tuple(
        (
            f"Engine {one.engine_id}, which had been ready, failed at {clock(one.failed_at, now)}: "
            if one.failed.was_ready
            else f"The load at {clock(one.began, now)} (engine {one.engine_id}) failed: "
        )
        + full_stop(one.failed.failure.message)
        for one in engines
        if one.failed is not None
    )


# evictions


def _load_it_made_room_for(event: EvictionDecided, at: float, history: History) -> list[Happening]:
    """What became of the load that needed the memory."""
    model = history.subjects.names.get(event.in_favour_of, "")
    chosen: list[Happening] = []
    for one in history.events_of(model):
        if one.at < at or one.record.type not in ("load_admitted", "engine_ready", "load_failed"):
            continue
        if history.subjects.engine(one.about.engine)[0] != model:
            continue
        if any(one.record.type == other.record.type for other in chosen):
            break
        chosen.append(one)
    return chosen


def _budget(size: float) -> str:
    """The command that starts a daemon that may reserve so many bytes."""
    return f"greenroom stop && GREENROOM_MEMORY_BUDGET={math.ceil(size / 1e9)}GB greenroom serve"


def _more_memory() -> Remedy:
    """The command that starts a daemon whose engines may exceed what is reserved for them by more."""
    aim = "If it needs that much, to let engines take more"
    return Remedy(aim=aim, command="greenroom stop && GREENROOM_ENGINE_MEMORY_LIMIT=3 greenroom serve")


def _machine_lacked_it(event: EvictionDecided, steps: Sequence[Happening]) -> bool:
    """Whether the machine was short of memory, rather than the budget for engines."""
    admitted = [one.event for one in steps if isinstance(one.event, LoadAdmitted)]
    return bool(admitted) and admitted[0].budget - admitted[0].reserved >= event.memory


def _machine_was_short(event: EvictionDecided, steps: Sequence[Happening]) -> tuple[str, ...]:
    if not _machine_lacked_it(event, steps):
        return ()
    return ("The memory budget had room for both, but other programs were using the machine's memory.",)


def _room_for_both(event: EvictionDecided, steps: Sequence[Happening]) -> tuple[Remedy, ...]:
    if _machine_lacked_it(event, steps):
        return ()
    return (Remedy(aim="To have room for both", command=_budget(event.needed + event.memory)),)


def _still_held(reference: str, history: History) -> tuple[str, ...]:
    model = history.subjects.names.get(reference, "")
    held = sum(load.spec.memory for load in history.scheduler.loads.values() if load.spec.model_id == model)
    if not model or not held:
        return ()
    return (f"{short(reference)} holds {format_size(held)} now.",)


def _tell_idle(
    found: Explanation, event: EvictionDecided, history: History, now: float, unloaded: str
) -> None:
    """Whose keep-alive it was: a request's, the model's own, or the daemon's."""
    name = shlex.quote(short(event.model_ref))
    set_by = last_change(history, event.model_id, history.mode_of(event.engine_id), "keep_alive")
    if who := history.who(event.kept_by):
        kept = format_duration(event.keep_alive or 0.0)
        found.answer = (
            f"{unloaded}, because {who} had set its keep-alive to {kept}.{_pin_taken(event, history, now)}"
        )
        keep = Remedy(aim="To keep it longer", command=f"greenroom run {name} --keep-alive 30m")
    elif set_by is not None and set_by.event.keep_alive == event.keep_alive:
        at = clock(set_by.happening.at, now)
        found.answer = f"{unloaded}, the keep-alive that {set_by.who(history)} configured at {at}."
        keep = Remedy(aim="To keep it longer", command=f"greenroom configure {name} --keep-alive 30m")
    else:
        whose = "its keep-alive" if event.keep_alive is None else "the keep-alive of this daemon"
        found.answer = f"{unloaded}, which is {whose}."
        serve = "greenroom stop && greenroom serve --keep-alive 30m"
        keep = Remedy(aim="To keep models longer", command=serve)
    found.remedies += (keep,)


def _pin_taken(event: EvictionDecided, history: History, now: float) -> str:
    """A sentence, after a space, about the request that took its pin away."""
    wishes = [
        (one, wish)
        for one, wish in of_type(history.events_of(event.model_id), KeepAliveWished)
        if wish.engine_id == event.engine_id
    ]
    if not wishes or wishes[-1][1].keep_alive < 0:
        return ""
    last, wish = wishes[-1]
    until = f" It had been pinned until {clock(last.at, now)}"
    if last.record.cause == event.kept_by:
        return f"{until}."
    who = history.who(last.record.cause)
    if not who:
        mode = history.mode_of(event.engine_id)
        change = last_change(history, event.model_id, mode, "keep_alive", before=last.record.seq)
        who = change.who(history) if change is not None else "a request"
    return f"{until}, when {who} set its keep-alive to {format_duration(wish.keep_alive)}."


def _installed_before(backend: str, at: float, history: History) -> str:
    """`request r-… installed toy cuda 1.0`, if that is what changed the backend before a moment."""
    about = [one for one in history.backends.get(backend, ()) if one.at <= at]
    committed = [one.installation for _, one in of_type(about, InstallationCommitted)]
    last = next((one for one in reversed(about) if isinstance(one.event, _IN_USE)), None)
    made = committed[-1] if committed else None
    if last is None or made is None:
        return ""
    if isinstance(last.event, InstallationActivated) and last.event.installation_id != made.id:
        return ""
    job = [one.job for _, one in of_type(about, InstallationCommitted)][-1]
    asked = [(one, e) for one, e in of_type(about, InstallRequested) if e.job == job]
    who = history.who(asked[-1][0].record.cause, asked[-1][1].caller) if asked else ""
    variant = f"{made.variant} " if made.variant else ""
    return f"{who} installed {backend} {variant}{made.version}" if who else ""


def _tell_retiring(
    found: Explanation, event: EvictionDecided, at: float, history: History, unloaded: str
) -> None:
    backend = event.backend
    about = list(history.backends.get(backend, ()))
    before = [
        (one, e)
        for one, e in of_type(about, InstallationRetiring)
        if one.at <= at + 1 and e.backend == backend
    ]
    reason = before[-1][1].reason if before else "it was to be removed"
    used = any(one.about.engine == event.engine_id for one in about)
    steps = [before[-1][0]] if before else []
    steps += [one for one in about if used and one.record.type == "installation_removed" and one.at >= at][:1]
    usable = history.backend(backend).usable
    if usable is None:
        again = Remedy(aim=f"To install {backend} again", command=install(backend))
        found.remedies = (again, *found.remedies)
    version = f" {usable.version}" if usable is not None else ""
    found.also = (f"{backend}{version} is {'' if usable is not None else 'not '}installed now.",)
    found.steps = tuple(one.step for one in steps)
    found.answer = (
        f"{unloaded} because the installation of {backend} it ran on was being removed: {full_stop(reason)}"
    )


def _tell_reconfigured(
    found: Explanation, event: EvictionDecided, at: float, history: History, unloaded: str
) -> None:
    mode = history.mode_of(event.engine_id)
    changed = [one for one in changes(history, event.model_id, mode) if one.happening.at <= at]
    if not changed:
        found.answer = f"{unloaded} because its configuration had changed."
        return
    change = changed[-1]
    found.answer = f"{unloaded} because {change.who(history)} configured {change.told()} for its next load."
    if change.event.context_size is not None:
        found.numbers["context_size"] = float(change.event.context_size)


def _tell_shutdown(found: Explanation, at: float, history: History, now: float, subject: str) -> None:
    later = [one for one in history.daemons if one.at >= at]
    stopped = [one for one in later if one.record.type == "daemon_stopped"][:1]
    started = [one for one in later if one.record.type == "daemon_started"][:1]
    if started:
        since = clock(started[0].at, now)
        found.also = (f"Greenroom has been running again since {since}, without a request for the model.",)
    found.answer = f"{subject} was unloaded when Greenroom stopped at {moment(at, now)}."
    found.steps = tuple(one.step for one in (*stopped, *started))
    keep = Remedy(aim="To stop and leave engines running", command="greenroom stop --keep-engines")
    found.remedies += (keep,)
