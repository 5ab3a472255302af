"""What the journal says of models and pulls, how events make it, and what the library sees beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from greenroom.actors.kernel.core import Stored
from greenroom.actors.library.events import (
    ModelCommitted,
    ModelRemoved,
    ModelTagged,
    PullAttemptFailed,
    PullCancelled,
    PullFailed,
    PullRequested,
)
from greenroom.actors.library.failures import Failures
from greenroom.actors.library.messages import Pull
from greenroom.actors.values import Model, WantedBy
from greenroom.actors.waiters import Waiters


class PullState(msgspec.Struct, frozen=True, kw_only=True):
    """One pull under way."""

    job: str
    reference: str
    wanted_by: WantedBy
    requested_at: float
    cause: str
    attempt: int = 1
    retry_at: float = 0.0
    """When this attempt may begin; 0 for the first one, which begins at once."""
    streak: int = 0
    """Attempts in a row that have brought nothing."""
    reached: bool = False
    """The source has answered in an attempt."""
    force: bool = False


class LibraryState(msgspec.Struct, frozen=True, kw_only=True):
    """Models by id, pulls by reference."""

    models: Mapping[str, Model] = msgspec.field(default_factory=dict)
    pulls: Mapping[str, PullState] = msgspec.field(default_factory=dict)
    jobs: int = 0
    version: int = 0

    def tagged(self, tag: str) -> Model | None:
        """The model that has this canonical tag."""
        return next((model for model in self.models.values() if tag in model.tags), None)

    def pull_of(self, job: str) -> PullState | None:
        """The pull with this job id."""
        return next((pull for pull in self.pulls.values() if pull.job == job), None)


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is being removed."""

    force: bool
    asked_at: float
    """Monotonic second at which the scheduler was last asked to let go of it."""
    released: bool = False
    """The scheduler has; its files are being deleted."""


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """A push that is under way."""

    model_id: str
    waiting: int = 1
    ending: bool = False
    """It has been told to end; nothing waits for it."""


class LibraryVolatile(msgspec.Struct, frozen=True, kw_only=True):
    """What this life knows and the journal does not."""

    looked: bool = False
    looking_since: float = 0.0
    """Monotonic second of the last wish to look."""
    pending: Mapping[str, Pull] = msgspec.field(default_factory=dict)
    """reference → what is asked of it until the store has been looked at."""
    fetching: frozenset[tuple[str, int]] = frozenset()
    """(job, attempt) begun in this life."""
    due: Mapping[str, float] = msgspec.field(default_factory=dict)
    """job/attempt → monotonic second of the next attempt; immune to a wall clock that jumps."""
    waiting: Waiters = msgspec.field(default_factory=dict)
    """By reference."""
    tokens: Mapping[str, str] = msgspec.field(default_factory=dict)
    """job → bearer token; never stored."""
    asked_by: Mapping[str, str] = msgspec.field(default_factory=dict)
    """job → who began it."""
    removing: Mapping[str, Removal] = msgspec.field(default_factory=dict)
    """By model id."""
    sending: Mapping[str, Sending] = msgspec.field(default_factory=dict)
    """By reference: the push to it that is under way."""
    unpublished: Mapping[str, str] = msgspec.field(default_factory=dict)
    """reference and model → the code that its last push has failed with, and that is stored."""
    failures: Failures = Failures()
    """Pulls that failed recently."""
    told: int = -1
    told_at: float = 0.0


def apply(state: LibraryState, stored: Stored[Any]) -> LibraryState:
    models, pulls = dict(state.models), dict(state.pulls)
    jobs = state.jobs
    match stored.event:
        case PullRequested() as e if e.reference in pulls and pulls[e.reference].job == e.job:
            pulls[e.reference] = replace(pulls[e.reference], wanted_by=e.wanted_by, force=e.force)
        case PullRequested() as e:
            pulls[e.reference] = PullState(
                job=e.job,
                reference=e.reference,
                wanted_by=e.wanted_by,
                requested_at=stored.at,
                cause=stored.id,
                force=e.force,
            )
            jobs += 1
        case PullAttemptFailed() as e:
            pulls = {
                reference: replace(
                    pull, attempt=e.attempt + 1, retry_at=e.retry_at, streak=e.streak, reached=e.reached
                )
                if pull.job == e.job
                else pull
                for reference, pull in pulls.items()
            }
        case ModelCommitted() as e:
            pulls = {reference: pull for reference, pull in pulls.items() if pull.job != e.job}
            _apply_tags(models, e.model.tags)
            models[e.model.id] = e.model
        case PullFailed() | PullCancelled() as e:
            pulls = {reference: pull for reference, pull in pulls.items() if pull.job != e.job}
        case ModelTagged() as e if e.model_id in models:
            _apply_tags(models, e.tags)
            models[e.model_id] = replace(models[e.model_id], tags=e.tags)
        case ModelRemoved() as e:
            models.pop(e.model_id, None)
    return LibraryState(models=models, pulls=pulls, jobs=jobs, version=state.version + 1)


def _apply_tags(models: dict[str, Model], tags: Sequence[str]) -> None:
    """A tag is on one model only: whoever gets it takes it from whoever had it."""
    disjoint = frozenset(tags).isdisjoint
    for one in [one for one, model in models.items() if not disjoint(model.tags)]:
        kept = tuple(tag for tag in models[one].tags if tag not in tags)
        models[one] = replace(models[one], tags=kept)
