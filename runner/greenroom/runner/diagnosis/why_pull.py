"""Why a model is not in the store."""

from __future__ import annotations

from collections.abc import Sequence

from greenroom.actors.library.events import (
    ModelRemoved,
    PullAttemptFailed,
    PullCancelled,
    PullFailed,
    PullRequested,
)
from greenroom.runner.diagnosis.explanation import Explanation, Remedy, tool_output
from greenroom.runner.diagnosis.history import Happening, latest, of_type
from greenroom.runner.diagnosis.model_history import ModelHistory
from greenroom.runner.diagnosis.stop_reasons import DISK
from greenroom.runner.diagnosis.times import moment
from greenroom.runner.models.references import familiar
from greenroom.runner.units import format_size

_DECISIVE = (PullRequested, PullAttemptFailed, PullFailed, PullCancelled, ModelRemoved)


def why_not_here(model: ModelHistory) -> Explanation:
    """What became of its last pull, or why it was removed."""
    events = _library_events(model)
    last = next((one for one in reversed(events) if isinstance(one.event, _DECISIVE)), None)
    asked = latest(events, PullRequested)
    pull = _command(asked[1] if asked is not None else None, model.name)
    if last is None:
        return Explanation(
            state="not_here",
            cause="never_pulled",
            answer=f"{model.name} is not in the store and has never been pulled.",
            steps=tuple(one.step for one in model.own[-6:]),
            remedies=(Remedy(aim="To pull it", command=pull),),
        )
    job = last.about.job
    episode = [one for one in events if job and one.about.job == job]
    found = _of(last, episode, model, pull)
    found.steps = found.steps or tuple(one.step for one in episode)
    return found


def _of(last: Happening, episode: Sequence[Happening], model: ModelHistory, pull: str) -> Explanation:
    name, now, at = model.name, model.now, moment(last.at, model.now)
    tried = sum(1 for _ in of_type(episode, PullAttemptFailed))
    match last.event:
        case ModelRemoved() as e:
            before = [one for one in model.own if one.record.stream == "library"][-4:]
            return Explanation(
                state="not_here",
                cause="removed",
                answer=f"{name} was in the store until {at}, {_how(last, model)}.{_freed(e)}",
                numbers={"freed": float(e.freed)},
                steps=tuple(one.step for one in (*before, last)),
                remedies=(Remedy(aim="To pull it again", command=pull),),
            )
        case PullFailed() as e:
            after = f" after {tried + 1} attempts" if tried else ""
            return Explanation(
                state="not_here",
                cause=e.failure.code,
                answer=(
                    f"{name} is not in the store: {_what(episode, 'its last pull')}"
                    f"{_of_request(episode, model)} failed at {at}{after}. {e.failure.sentence()}"
                    f"{_before(last, model)}"
                ),
                numbers={"attempts": tried + 1.0},
                words=tool_output(e.failure.detail),
                remedies=(
                    Remedy(aim="To try again", command=pull),
                    *([DISK] * (e.failure.code == "no_space")),
                ),
            )
        case PullCancelled() as e:
            return Explanation(
                state="not_here",
                cause="cancelled",
                answer=(
                    f"{name} is not in the store: {_what(episode, 'its pull')} was cancelled at {at}"
                    f"{_cancelled_by(e, last, model)}.{_before(last, model)}"
                ),
                remedies=(Remedy(aim="To pull the rest", command=pull),),
            )
        case PullAttemptFailed() as e:
            if e.retry_at <= now:
                return _retrying(e, model, pull)
            many = f"{e.attempt} attempts to pull it have" if e.attempt > 1 else "one attempt to pull it has"
            return Explanation(
                state="waiting_to_retry",
                cause=e.failure.code,
                answer=(
                    f"{name} is not in the store yet: {many} failed; retrying at {moment(e.retry_at, now)}. "
                    f"The last error: {e.failure.sentence()}{_before(last, model)}"
                ),
                numbers={"attempts": float(e.attempt), "retry_at": e.retry_at},
                words=tool_output(e.failure.detail),
                remedies=(Remedy(aim="To wait for it", command=pull),),
            )
        case _:
            return Explanation(
                state="pulling",
                cause="pulling",
                answer=f"Greenroom has been {_doing(last, name)} since {at}{_for_request(last, model)}."
                f"{_before(last, model)}",
                numbers={"elapsed": round(now - last.at, 3)},
                remedies=(Remedy(aim="To wait for it", command=pull),),
            )


def _retrying(failed: PullAttemptFailed, model: ModelHistory, pull: str) -> Explanation:
    """The attempt that followed a failed one is under way."""
    return Explanation(
        state="pulling",
        cause=failed.failure.code,
        answer=(
            f"{model.name} is not in the store yet: attempt {failed.attempt + 1} to pull it has been running "
            f"since {moment(failed.retry_at, model.now)}. The one before it failed: "
            f"{failed.failure.sentence()}"
        ),
        numbers={"attempts": float(failed.attempt), "elapsed": round(model.now - failed.retry_at, 3)},
        words=tool_output(failed.failure.detail),
        remedies=(Remedy(aim="To wait for it", command=pull),),
    )


def _how(removed: Happening, model: ModelHistory) -> str:
    """How it went: by which request, by damage, or by itself."""
    event = removed.event
    assert isinstance(event, ModelRemoved)
    who, reason = model.history.who(removed.record.cause), event.reason.rstrip(".")
    if event.damaged:
        reason = reason.rpartition(" is damaged: ")[2]
        return f"when {who} found it damaged: {reason}" if who else f"when it was found damaged: {reason}"
    return f"when {who} removed it" if who else f"when it was removed: {reason}"


def _freed(removed: ModelRemoved) -> str:
    return f" That freed {format_size(removed.freed)}." if removed.freed else ""


def _cancelled_by(cancelled: PullCancelled, happening: Happening, model: ModelHistory) -> str:
    who = model.history.who(happening.record.cause)
    return f" by {who}" if who else f": {cancelled.reason.rstrip('.')}"


def _of_request(episode: Sequence[Happening], model: ModelHistory) -> str:
    """Which request had asked for a pull."""
    asked = latest(episode, PullRequested)
    who = model.history.who(asked[0].record.cause, asked[1].caller) if asked is not None else ""
    return f", for {who}," if who else ""


def _doing(asked: Happening, name: str) -> str:
    assert isinstance(asked.event, PullRequested)
    return f"adopting {name} from {asked.event.origin}" if asked.event.origin else f"pulling {name}"


def _for_request(asked: Happening, model: ModelHistory) -> str:
    assert isinstance(asked.event, PullRequested)
    who = model.history.who(asked.record.cause, asked.event.caller)
    return f", for {who}" if who else ""


def _before(last: Happening, model: ModelHistory) -> str:
    """A sentence, after a space: since when it has not been here, and why, if it ever was."""
    removed = [
        one
        for one in _library_events(model)
        if isinstance(one.event, ModelRemoved) and one.record.seq < last.record.seq
    ]
    if not removed:
        return ""
    return f" It was in the store until {moment(removed[-1].at, model.now)}, {_how(removed[-1], model)}."


def _command(asked: PullRequested | None, name: str) -> str:
    """What brings it, by the name its last pull was for: a tag it was given later cannot be pulled."""
    if asked is None:
        return f"greenroom pull {name}"
    verb = "adopt" if asked.origin else "pull"
    return f"greenroom {verb} {familiar(asked.reference)}"


def _what(episode: Sequence[Happening], otherwise: str) -> str:
    """What a job is, as the subject of a sentence: a pull, or an adoption from another program."""
    asked = latest(episode, PullRequested)
    origin = asked[1].origin if asked is not None else ""
    return f"its adoption from {origin}" if origin else otherwise


def adopted_from(model: ModelHistory, job: str) -> str:
    """The path from which a job adopted it; empty if it did not."""
    asked = [one for _, one in of_type(_library_events(model), PullRequested) if job and one.job == job]
    return asked[-1].origin if asked else ""


def _library_events(model: ModelHistory) -> list[Happening]:
    """Of the model, and of every reference that ever meant it."""
    history = model.history
    found = [one for one in model.own if one.record.stream == "library"]
    for reference, events in history.pulls.items():
        if reference == model.id or history.subjects.names.get(reference) == model.id:
            found += events
    return [one for _, one in sorted({one.record.seq: one for one in found}.items())]
