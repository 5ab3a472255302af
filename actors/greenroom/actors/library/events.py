"""Events of the library, in `library`. Changing a field needs a new SCHEMA and an upcaster."""

from __future__ import annotations

from greenroom.actors.kernel.core import Event
from greenroom.actors.values import Caller, Failure, Model, WantedBy


class PullRequested(Event, frozen=True, kw_only=True):
    """A model was requested that is not in the store. Stored again if a stronger reason follows."""

    TAG = "pull_requested"
    job: str
    reference: str
    wanted_by: WantedBy = "explicit"
    force: bool = False
    """Even if it does not fit on the disk or cannot run on this machine."""
    caller: Caller = Caller()
    origin: str = ""
    """A path: the model is adopted from there."""
    copy: bool = False
    """Its files are copied from there if they cannot be shared with the store."""


class PullAttemptFailed(Event, frozen=True, kw_only=True):
    """An attempt failed and will be retried; what has arrived is kept."""

    TAG = "pull_attempt_failed"
    PROBLEM = True
    job: str
    attempt: int
    failure: Failure
    retry_at: float
    streak: int = 0
    """Attempts in a row that fetched nothing, including this one; 0 if it fetched something."""
    reached: bool = True
    """Whether the source has answered in any attempt so far."""


class ModelCommitted(Event, frozen=True, kw_only=True):
    """A model is in the store, complete and verified."""

    TAG = "model_committed"
    job: str
    model: Model
    seconds: float = 0.0
    fresh: bool = True
    """False if a pull found it already in the store."""


class PullFailed(Event, frozen=True, kw_only=True):
    """The pull failed for good. The next request begins another."""

    TAG = "pull_failed"
    PROBLEM = True
    job: str
    failure: Failure


class PullCancelled(Event, frozen=True, kw_only=True):
    """The pull was cancelled before it finished."""

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
    """Bytes; the registry already had the rest."""
    seconds: float = 0.0


class PushFailed(Event, frozen=True, kw_only=True):
    """A model could not be published under this reference."""

    TAG = "push_failed"
    PROBLEM = True
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
    damaged: bool = False
    """It was found damaged, as the reason says: its next pull repairs it."""
