"""Commands of the library, their replies, and the puller's reports that are not events."""

from __future__ import annotations

from typing import Annotated

from greenroom.actors.kernel.core import Address, Command, R_co
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.limits import Context, Id, Ids, Line, Many, Name, Names, Reason, Secret, Whole
from greenroom.actors.scheduler.messages import SchedulerCommand
from greenroom.actors.values import Caller, Cancelled, Fact, Model, WantedBy

LIBRARY = Address("library")


class LibraryCommand(Command[R_co], frozen=True, kw_only=True):
    ACTOR = LIBRARY


class Pulled(Fact, frozen=True, kw_only=True):
    """The reply to `Pull`: the model, which is in the store."""

    model: Model
    fresh: bool
    """False if nothing had to be fetched."""


class Pull(LibraryCommand[Pulled], frozen=True, kw_only=True):
    """Have a model in the store: `Pulled`. Joins a pull of the same reference."""

    REPEATABLE = True
    SECRETS = ("token",)
    reference: Name
    """Canonical."""
    wanted_by: WantedBy = "explicit"
    token: Secret = ""
    """A bearer token for the source; never stored."""
    force: bool = False
    """Even if it does not fit on the disk or cannot run on this machine."""
    origin: Name = ""
    """Adopt it from this path, where another program keeps it, instead of from what the reference names."""
    copy: bool = False
    """Copy its files from there if they cannot be shared with the store."""
    waiter: Id = ""
    """A unique name of the client that waits."""
    caller: Caller = Caller()


class CancelPull(LibraryCommand[Cancelled], frozen=True, kw_only=True):
    """End a pull: `Cancelled`."""

    reference: Name
    reason: Line = "requested by the user"
    leave: bool = False
    """Only if no one else waits for it."""
    waiter: Id = ""
    """See `Pull.waiter`."""


class LeavePull(LibraryCommand[None], frozen=True, kw_only=True):
    """A client that waited has disconnected: the pull goes on, but no longer for that client."""

    reference: Name
    waiter: Id


class Tagged(Fact, frozen=True, kw_only=True):
    """The reply to `TagModel`."""

    tags: Names


class Removed(Fact, frozen=True, kw_only=True):
    """The reply to `RemoveModel`."""

    untagged: Names
    deleted: Ids
    freed: Whole = 0


class RemoveModel(LibraryCommand[Tagged | Removed], frozen=True, kw_only=True):
    """Remove a model from the store: `Removed`. Its idle engines end; one that is in use refuses (409)."""

    REPEATABLE = True
    model_id: Id
    tag: Name = ""
    """Remove only this tag, and the model if it was the last."""
    all_tags: bool = False
    """Even if it has several tags."""
    force: bool = False
    """Even if it has several tags or is in use; requests being served go on."""


class TagModel(LibraryCommand[Tagged], frozen=True, kw_only=True):
    """Give a model another tag, taking it from whichever model had it: `Tagged`."""

    REPEATABLE = True
    model_id: Id
    tag: Name


class ModelNoted(Fact, frozen=True, kw_only=True):
    model: Model | None = None


class RepackageModel(LibraryCommand[ModelNoted], frozen=True, kw_only=True):
    """Store a model again with another configuration, under a tag: `ModelNoted`. Files are shared."""

    REPEATABLE = True
    model_id: Id
    tag: Name
    context_size: Context | None = None
    """Tokens it is loaded with by default; None leaves that unchanged."""


class NoteModel(LibraryCommand[ModelNoted], frozen=True, kw_only=True):
    """A model was added to the store by other means than a pull: `ModelNoted`."""

    model: Model


class NoteDamage(LibraryCommand[ModelNoted], frozen=True, kw_only=True):
    """A model was found damaged and no longer counts as stored: `ModelNoted`."""

    model_id: Id
    reason: Reason


class Pruned(Fact, frozen=True, kw_only=True):
    freed: Whole
    """Bytes."""


class Prune(LibraryCommand[Pruned], frozen=True, kw_only=True):
    """Remove what no model needs, including interrupted downloads: `Pruned`."""

    REPEATABLE = True


class Pushed(Fact, frozen=True, kw_only=True):
    reference: Name
    model_id: Id
    sent: Whole
    """Bytes that had to be sent; the registry already had the rest."""


class Push(LibraryCommand[Pushed], frozen=True, kw_only=True):
    """Publish a model under a reference: `Pushed`. Joins a push to the same reference."""

    REPEATABLE = True
    SECRETS = ("token",)
    model_id: Id
    reference: Name
    """Canonical."""
    token: Secret = ""
    """A bearer token for the registry; never stored."""


class CancelPush(LibraryCommand[Cancelled], frozen=True, kw_only=True):
    """Stop waiting for a push; it ends if no one else waits: `Cancelled`."""

    reference: Name
    model_id: Line = ""
    """Only a push of this model; empty for any."""


class Release(SchedulerCommand[None], frozen=True, kw_only=True):
    """Library → scheduler: release a model that is to be removed. Answered with `Released`."""

    model_id: Id
    force: bool = False


class Released(LibraryCommand[None], frozen=True, kw_only=True):
    """Scheduler → library: the model's engines are ending; or the refusal, if it is in use."""

    model_id: Id
    refusal: Refusal | None = None


class ModelsSeen(LibraryCommand[None], frozen=True, kw_only=True):
    """Report: the contents of the store."""

    models: Annotated[tuple[Model, ...], Many]
    running: Names = ()
    """Jobs of the pulls in progress, which a rebuilt library does not know about."""
    recovered: bool = False
    """The store's index was lost and rebuilt, without some of the models' tags."""


class ModelList(SchedulerCommand[None], frozen=True, kw_only=True):
    """Library → scheduler: all models."""

    models: Annotated[tuple[Model, ...], Many]
    version: Whole
