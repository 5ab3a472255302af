"""The library's durable state, how events make it, and its volatile state."""

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
    job: str
    reference: str
    wanted_by: WantedBy
    requested_at: float
    cause: str
    attempt: int = 1
    retry_at: float = 0.0
    """When this attempt may begin; 0 for the first one."""
    streak: int = 0
    """Attempts in a row that fetched nothing."""
    reached: bool = False
    """Whether the source has answered in an attempt."""
    force: bool = False
    origin: str = ""
    copy: bool = False


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
        return next((pull for pull in self.pulls.values() if pull.job == job), None)


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    force: bool
    asked_at: float
    """Monotonic second at which the scheduler was last asked to release it."""
    released: bool = False
    """Its files are being deleted."""


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    model_id: str
    waiting: int = 1
    ending: bool = False
    """It is being cancelled; no one waits for it."""


class LibraryVolatile(msgspec.Struct, frozen=True, kw_only=True):
    looked: bool = False
    looking_since: float = 0.0
    """Monotonic second at which an inspection was last requested."""
    pending: Mapping[str, Pull] = msgspec.field(default_factory=dict)
    """reference → pull that waits until the store has been inspected."""
    fetching: frozenset[tuple[str, int]] = frozenset()
    """(job, attempt) begun in this life."""
    due: Mapping[str, float] = msgspec.field(default_factory=dict)
    """job/attempt → monotonic second at which it is due, so that jumps of the wall clock do not matter."""
    waiting: Waiters = msgspec.field(default_factory=dict)
    """By reference."""
    tokens: Mapping[str, str] = msgspec.field(default_factory=dict)
    """job → bearer token; never stored."""
    asked_by: Mapping[str, str] = msgspec.field(default_factory=dict)
    """job → key of the caller that began it."""
    removing: Mapping[str, Removal] = msgspec.field(default_factory=dict)
    """By model id."""
    sending: Mapping[str, Sending] = msgspec.field(default_factory=dict)
    """Pushes under way, by reference."""
    unpublished: Mapping[str, str] = msgspec.field(default_factory=dict)
    """push key → code of the last failure, which is stored."""
    failures: Failures = Failures()
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
                origin=e.origin,
                copy=e.copy,
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
    """A tag belongs to one model: adding it to one takes it from another."""
    disjoint = frozenset(tags).isdisjoint
    for one in [one for one, model in models.items() if not disjoint(model.tags)]:
        kept = tuple(tag for tag in models[one].tags if tag not in tags)
        models[one] = replace(models[one], tags=kept)
