"""Why an engine ended, or never came to be: the word, the sentence, the numbers, the way out."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Sequence

import msgspec

from greenroom.actors.installer.events import InstallationRetiring
from greenroom.actors.scheduler.events import ConfigChanged, EvictionDecided, LoadAdmitted, LoadRefused
from greenroom.actors.scheduler.state import counts_against_model
from greenroom.actors.values import EngineExit
from greenroom.runner.diagnosis.explanation import Remedy, Words
from greenroom.runner.diagnosis.finding import ended
from greenroom.runner.diagnosis.history import Happening, History, of_type
from greenroom.runner.diagnosis.lives import Life
from greenroom.runner.diagnosis.sentences import short
from greenroom.runner.diagnosis.times import clock, moment
from greenroom.runner.units import format_duration, format_size

_MEMORY_WORDS = ("ran out of memory", "could not get the memory")
"""How the capsule says that it was the memory."""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """What ended something. The sentence is the second half of one: `it was unloaded …`."""

    cause: str
    sentence: str
    at: float
    numbers: dict[str, float] = {}
    also: tuple[str, ...] = ()
    steps: tuple[Happening, ...] = ()
    """Events of others that belong to the chain."""
    words: tuple[Words, ...] = ()
    remedies: tuple[Remedy, ...] = ()


def run(name: str) -> str:
    """The command that loads a model."""
    return f"greenroom run {shlex.quote(name)}"


def install(backend: str) -> str:
    """The command that installs a backend."""
    return f"greenroom install-runner --backend {backend}"


def of_eviction(event: EvictionDecided, at: float, history: History, now: float) -> Ending:
    """Somebody, or the clock, wanted it to end."""
    memory, idle = float(event.memory), event.idle_seconds
    numbers = {"memory": memory, "idle_seconds": idle}
    when = moment(at, now)
    again = Remedy(aim="To load it again", command=run(short(event.model_ref)))
    match event.reason:
        case "room":
            winner = short(event.in_favour_of)
            steps = _for_the_winner(event, at, history)
            return Ending(
                cause="room",
                at=at,
                sentence=(
                    f"it was unloaded at {when} to make room for {winner}, which needed "
                    f"{format_size(event.needed)} while {format_size(event.free)} were free. "
                    f"It held {format_size(event.memory)} and had been idle for {format_duration(idle)}."
                ),
                numbers={**numbers, "needed": float(event.needed), "free": float(event.free)},
                also=(*_still_held(event.in_favour_of, history), *_machine_was_short(event, steps)),
                steps=steps,
                remedies=(again, *_room_for_both(event, steps)),
            )
        case "idle":
            return Ending(
                cause="idle",
                at=at,
                sentence=(
                    f"it was unloaded at {when} because it had been idle for {format_duration(idle)}, "
                    f"which is as long as it is kept."
                ),
                numbers=numbers,
                remedies=(
                    again,
                    Remedy(
                        aim="To keep models longer",
                        command="greenroom stop && greenroom serve --keep-alive 30m",
                    ),
                ),
            )
        case "unload":
            return Ending(
                cause="unload",
                at=at,
                sentence=f"its unload was requested at {when}.",
                numbers=numbers,
                remedies=(again,),
            )
        case "removed":
            return Ending(
                cause="removed",
                at=at,
                sentence=f"it was unloaded at {when} because it was being removed from the store.",
                numbers=numbers,
            )
        case "retiring":
            return _of_retiring(event, at, history, now, numbers)
        case "reconfigured":
            return _of_reconfiguring(event, at, history, now, numbers)
        case "shutdown":
            return _of_shutdown(at, history, now, numbers, again)
        case reason:
            return Ending(
                cause=reason,
                at=at,
                sentence=f"it was ended at {when} ({reason}).",
                numbers=numbers,
                remedies=(again,),
            )


_GIVEN_UP = frozenset(
    {"engine_stalled", "engine_halted", "engine_unreachable", "engine_closed", "engine_garbled"}
)


def of_failure(life: Life, name: str, now: float) -> Ending:
    """It did not come up, or stopped working."""
    failed = life.failed
    assert failed is not None
    end = life.exit or EngineExit(at=life.failed_at, lost=life.lost is not None)
    summary = end.summary or failed.failure.message
    numbers: dict[str, float] = {}
    if end.code is not None:
        numbers["exit_code"] = float(end.code)
    if end.memory:
        numbers["memory"] = float(end.memory)
    if life.spec is not None:
        numbers["promised_to_it"] = float(life.spec.memory)
    if life.ready is not None and failed.was_ready:
        numbers["ready_seconds"] = round(life.failed_at - (life.adopted_at or life.ready_at), 3)
    when = moment(life.failed_at, now)
    if failed.failure.code == "engine_lost":
        cause, sentence = (
            "engine_lost",
            f"its engine was found gone at {when}: {_reason(life, failed.failure.message)}",
        )
    elif any(words in summary for words in _MEMORY_WORDS):
        cause, sentence = "out_of_memory", f"its engine ended at {when}. {summary}"
    elif failed.failure.code in _GIVEN_UP:
        cause, sentence = failed.failure.code.removeprefix("engine_"), f"its engine was given up at {when}"
        if "ready_seconds" in numbers:
            sentence += f", {format_duration(numbers['ready_seconds'])} after it was ready"
        sentence += f". {summary}"
    elif not counts_against_model(failed.failure) and failed.failure.blame:
        cause, sentence = failed.failure.code, f"it could not be loaded at {when}. {summary}"
    elif failed.was_ready:
        ready = format_duration(numbers.get("ready_seconds", 0.0))
        cause, sentence = "crashed", f"its engine ended at {when}, {ready} after it was ready. {summary}"
    else:
        cause, sentence = "load_failed", f"it could not be loaded at {when}. {summary}"
    if cause in ("crashed", "load_failed") and end.signal:
        sentence += "" if end.signal in sentence else f" It died of {end.signal}."
    words: tuple[Words, ...] = ()
    if life.words:
        words = (Words(of=f"Last lines of engine {life.engine_id}", lines=life.words),)
    return Ending(
        cause=cause,
        at=life.failed_at,
        sentence=ended(sentence),
        numbers=numbers,
        words=words,
        remedies=(
            Remedy(aim="To try again", command=run(name)),
            Remedy(aim="All it has said", command=f"greenroom logs {life.engine_id}"),
        ),
    )


def of_refusal(event: LoadRefused, at: float, name: str, now: float) -> Ending:
    """Requests for it are refused, and that is as far as it got."""
    numbers = {key: float(value) for key, value in event.numbers.items()}
    remedies = [Remedy(aim="To try again", command=run(name))]
    match event.code:
        case "does_not_fit" | "no_room":
            remedies = [
                Remedy(
                    aim="To let engines use more memory",
                    command=_budget(numbers.get("needed", 0) + numbers.get("pinned", 0)),
                )
            ]
            if event.code == "no_room":
                remedies.insert(0, Remedy(aim="To see who is pinned", command="greenroom ps"))
        case "backend_not_installed":
            backend = named_backend(event.message)
            if backend:
                others = [one for one in _OFFERED.findall(event.advice) if one != backend]
                chosen = [Remedy(aim=f"To install {one}", command=install(one)) for one in (backend, *others)]
                remedies = [*chosen, *remedies]
        case "unsupported_platform" | "unsupported_model":
            remedies = [Remedy(aim="What each backend can do here", command="greenroom backends")]
        case _:
            pass
    return Ending(
        cause=event.code,
        at=at,
        sentence=ended(f"requests for it are refused since {moment(at, now)}: {event.message}"),
        numbers=numbers,
        remedies=tuple(remedies),
    )


_OFFERED = re.compile(r"install-runner --backend ([a-z0-9.-]+)")


def named_backend(message: str) -> str:
    """The backend a refusal is about, which it names in its sentence only."""
    before, quote, rest = message.partition('backend "')
    if quote and not before:
        return rest.partition('"')[0]
    before, words, _ = message.partition(" could not be installed: ")
    return before if words and " " not in before else ""


def _for_the_winner(event: EvictionDecided, at: float, history: History) -> tuple[Happening, ...]:
    """What came of the load that the room was made for."""
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
    return tuple(chosen)


def _budget(size: float) -> str:
    """The command that starts a daemon which may promise so many bytes."""
    return f"greenroom stop && GREENROOM_MEMORY_BUDGET={math.ceil(size / 1e9)}GB greenroom serve"


def _machine_lacked_it(event: EvictionDecided, steps: Sequence[Happening]) -> bool:
    """Whether the machine's memory was short, and not the budget that was set for engines."""
    admitted = [one.event for one in steps if isinstance(one.event, LoadAdmitted)]
    return bool(admitted) and admitted[0].budget - admitted[0].promised >= event.memory


def _machine_was_short(event: EvictionDecided, steps: Sequence[Happening]) -> tuple[str, ...]:
    if not _machine_lacked_it(event, steps):
        return ()
    return ("The budget for engines would have done for both; the machine's memory was used otherwise.",)


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


def _of_retiring(
    event: EvictionDecided, at: float, history: History, now: float, numbers: dict[str, float]
) -> Ending:
    backend = event.backend
    about = list(history.backends.get(backend, ()))
    before = [
        (one, e)
        for one, e in of_type(about, InstallationRetiring)
        if one.at <= at + 1 and e.backend == backend
    ]
    reason = before[-1][1].reason if before else "it was to be removed"
    used = next((h.about.engine for h in about if h.about.engine == event.engine_id), "")
    steps = [before[-1][0]] if before else []
    steps += [one for one in about if used and one.record.type == "installation_removed" and one.at >= at][:1]
    usable = history.backend(backend).usable
    remedies = [Remedy(aim="To load it again", command=run(short(event.model_ref)))]
    if usable is None:
        remedies.insert(0, Remedy(aim=f"To install {backend} again", command=install(backend)))
    state = (
        f"{backend} {usable.version} is installed now."
        if usable is not None
        else f"{backend} is not installed now."
    )
    return Ending(
        cause="retiring",
        at=at,
        sentence=(
            f"it was unloaded at {moment(at, now)} because the installation of {backend} it ran on "
            f"was being removed: {ended(reason)}"
        ),
        numbers=numbers,
        also=(state,),
        steps=tuple(steps),
        remedies=tuple(remedies),
    )


def _of_reconfiguring(
    event: EvictionDecided, at: float, history: History, now: float, numbers: dict[str, float]
) -> Ending:
    changed = [
        (one, e) for one, e in of_type(history.events_of(event.model_id), ConfigChanged) if one.at <= at
    ]
    what = ""
    if changed:
        config = changed[-1][1]
        parts = []
        if config.context_size is not None:
            parts.append(f"a context of {config.context_size} tokens")
            numbers["context_size"] = float(config.context_size)
        elif "context_size" in config.reset:
            parts.append("its own context")
        if config.flags is not None:
            parts.append(f"the flags {' '.join(config.flags) or '(none)'}")
        elif "flags" in config.reset:
            parts.append("no flags")
        what = f" It has {' and '.join(parts)} from its next load on." if parts else ""
    return Ending(
        cause="reconfigured",
        at=at,
        sentence=f"its configuration was changed at {moment(at, now)}, and it ran with another one.{what}",
        numbers=numbers,
        remedies=(Remedy(aim="To load it again", command=run(short(event.model_ref))),),
    )


def _of_shutdown(at: float, history: History, now: float, numbers: dict[str, float], again: Remedy) -> Ending:
    stopped = [one for one in history.daemons if one.record.type == "daemon_stopped" and one.at >= at][:1]
    started = [one for one in history.daemons if one.record.type == "daemon_started" and one.at >= at][:1]
    also: tuple[str, ...] = ()
    if started:
        also = (
            f"Greenroom runs again since {clock(started[0].at, now)}; the model was not requested since.",
        )
    return Ending(
        cause="shutdown",
        at=at,
        sentence=f"Greenroom stopped at {moment(at, now)}, and its engines with it.",
        numbers=numbers,
        also=also,
        steps=tuple(stopped + started),
        remedies=(
            again,
            Remedy(aim="To stop and leave engines running", command="greenroom stop --keep-engines"),
        ),
    )


def attempts(lives: Iterable[Life], now: float) -> tuple[str, ...]:
    """Each failed load in a line."""
    return tuple(
        f"The load at {clock(life.began, now)} (engine {life.engine_id}) failed: "
        + ended(life.failed.failure.message)
        for life in lives
        if life.failed is not None
    )


def _reason(life: Life, otherwise: str) -> str:
    return life.lost.reason if life.lost is not None else otherwise
