"""Why a model is not here."""

from __future__ import annotations

from collections.abc import Sequence

from greenroom.actors.library.events import (
    ModelRemoved,
    PullAttemptFailed,
    PullCancelled,
    PullFailed,
    PullRequested,
)
from greenroom.runner.diagnosis.explanation import Remedy
from greenroom.runner.diagnosis.finding import Finding, ended, tool_words
from greenroom.runner.diagnosis.history import Happening, latest, of_type
from greenroom.runner.diagnosis.story import Story
from greenroom.runner.diagnosis.times import moment
from greenroom.runner.models.references import familiar

_DECISIVE = (PullRequested, PullAttemptFailed, PullFailed, PullCancelled, ModelRemoved)


def why_not_here(story: Story) -> Finding:
    """What came of its last pull, or who removed it; a model that nobody has fetched has neither."""
    events = _library_events(story)
    last = next((one for one in reversed(events) if isinstance(one.event, _DECISIVE)), None)
    pull = Remedy(aim="To fetch it", command=f"greenroom pull {_fetched_as(events) or story.name}")
    if last is None:
        return Finding(
            state="not_here",
            cause="never_pulled",
            answer=f"{story.name} is not here and was never pulled.",
            steps=story.own[-6:],
            remedies=[pull],
        )
    job = last.about.job
    episode = [one for one in events if job and one.about.job == job]
    finding = _of(last, episode, story, pull)
    finding.steps = finding.steps or episode
    return finding


def _of(last: Happening, episode: Sequence[Happening], story: Story, pull: Remedy) -> Finding:
    name, now, at = story.name, story.now, moment(last.at, story.now)
    tried = sum(1 for _ in of_type(episode, PullAttemptFailed))
    match last.event:
        case ModelRemoved() as e:
            return Finding(
                state="not_here",
                cause="removed",
                answer=f"{name} is not here any more since {at}: {ended(e.reason)}",
                numbers={"freed": float(e.freed)},
                steps=[*[one for one in story.own if one.record.stream == "library"][-4:], last],
                remedies=[pull],
            )
        case PullFailed() as e:
            after = f" after {tried + 1} attempts" if tried else ""
            return Finding(
                state="not_here",
                cause=e.failure.code,
                answer=f"{name} is not here: its last pull failed at {at}{after}. {e.failure.sentence()}",
                numbers={"attempts": tried + 1.0},
                words=tool_words(e.failure.detail),
                remedies=[Remedy(aim="To try again", command=pull.command)],
            )
        case PullCancelled() as e:
            return Finding(
                state="not_here",
                cause="cancelled",
                answer=f"{name} is not here: its pull was ended at {at}: {ended(e.reason)}",
                remedies=[Remedy(aim="To fetch the rest", command=pull.command)],
            )
        case PullAttemptFailed() as e:
            many = (
                f"{e.attempt} attempts to fetch it have" if e.attempt > 1 else "one attempt to fetch it has"
            )
            return Finding(
                state="waiting_to_retry",
                cause=e.failure.code,
                answer=(
                    f"{name} is not here yet: {many} failed, the next one begins at "
                    f"{moment(e.retry_at, now)}. The last error: {e.failure.sentence()}"
                ),
                numbers={"attempts": float(e.attempt), "retry_at": e.retry_at},
                words=tool_words(e.failure.detail),
                remedies=[Remedy(aim="To wait for it", command=pull.command)],
            )
        case _:
            return Finding(
                state="pulling",
                cause="pulling",
                answer=f"{name} is being fetched since {at}.",
                numbers={"elapsed": round(now - last.at, 3)},
                remedies=[Remedy(aim="To wait for it", command=pull.command)],
            )


def _fetched_as(events: Sequence[Happening]) -> str:
    """What its last pull was asked for, as it is typed: a tag that somebody gave it later fetches nothing."""
    asked = latest(events, PullRequested)
    return familiar(asked[1].reference) if asked is not None else ""


def _library_events(story: Story) -> list[Happening]:
    """Of the model, and of every reference that ever meant it."""
    history = story.history
    found = [one for one in story.own if one.record.stream == "library"]
    for reference, events in history.pulls.items():
        if reference == story.id or history.subjects.names.get(reference) == story.id:
            found += events
    return [one for _, one in sorted({one.record.seq: one for one in found}.items())]
