"""What the library stores, in `library`. A change of a field needs a new SCHEMA and an upcaster."""

from __future__ import annotations

from greenroom.actors.kernel.core import Event
from greenroom.actors.values import Caller, Failure, Model, WantedBy


class PullRequested(Event, frozen=True, kw_only=True):
    """Somebody wants a model that is not here; of a pull under way, for a stronger reason than before."""

    TAG = "pull_requested"
    job: str
    reference: str
    wanted_by: WantedBy = "explicit"
    force: bool = False
    """Also when it cannot fit on the disk or run on this machine."""
    caller: Caller = Caller()
    """Who asked."""


class PullAttemptFailed(Event, frozen=True, kw_only=True):
    """An attempt failed for a reason that may pass; what has arrived is kept."""

    TAG = "pull_attempt_failed"
    job: str
    attempt: int
    failure: Failure
    retry_at: float
    streak: int = 0
    """Attempts in a row that have brought nothing, this one included; 0 when it has."""
    reached: bool = True
    """Whether the source has answered in any attempt so far."""


class ModelCommitted(Event, frozen=True, kw_only=True):
    """A model lies in the store, whole and verified."""

    TAG = "model_committed"
    job: str
    model: Model
    seconds: float = 0.0
    fresh: bool = True
    """False when a pull found that it was here already."""


class PullFailed(Event, frozen=True, kw_only=True):
    """The pull has ended without a model."""

    TAG = "pull_failed"
    job: str
    failure: Failure


class PullCancelled(Event, frozen=True, kw_only=True):
    """The pull was ended on purpose."""

    TAG = "pull_cancelled"
    URGENT = True
    job: str
    reason: str


class ModelPushed(Event, frozen=True, kw_only=True):
    """A model is published under this reference."""

    TAG = "model_pushed"
    model_id: str
    reference: str
    sent: int = 0
    """Bytes; the registry had the others."""
    seconds: float = 0.0


class PushFailed(Event, frozen=True, kw_only=True):
    """A model could not be published."""

    TAG = "push_failed"
    model_id: str
    reference: str
    failure: Failure


class ModelTagged(Event, frozen=True, kw_only=True):
    """A model's tags are now these."""

    TAG = "model_tagged"
    model_id: str
    tags: tuple[str, ...]


class ModelRemoved(Event, frozen=True, kw_only=True):
    """A model is no longer in the store."""

    TAG = "model_removed"
    URGENT = True
    model_id: str
    reason: str
    freed: int = 0
