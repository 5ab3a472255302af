"""What the library is asked and told, what it answers, and what the puller reports beside events."""

from __future__ import annotations

from typing import Annotated

from greenroom.actors.kernel.core import Address, Command, R_co
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.limits import Context, Id, Ids, Line, Many, Name, Names, Reason, Secret, Whole
from greenroom.actors.scheduler.messages import SchedulerCommand
from greenroom.actors.values import Caller, Cancelled, Fact, Model, WantedBy

LIBRARY = Address("library")


class LibraryCommand(Command[R_co], frozen=True, kw_only=True):
    """What the library is asked or told."""

    ACTOR = LIBRARY


class Pulled(Fact, frozen=True, kw_only=True):
    """It is here."""

    model: Model
    fresh: bool
    """False when nothing had to be fetched."""


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
    """Also when it cannot fit on the disk or run on this machine."""
    waiter: Id = ""
    """Who waits, by a name nobody else has."""
    caller: Caller = Caller()
    """Who asks."""


class CancelPull(LibraryCommand[Cancelled], frozen=True, kw_only=True):
    """End a pull: `Cancelled`."""

    reference: Name
    reason: Line = "requested by the user"
    leave: bool = False
    """Only if nobody else waits for it."""
    waiter: Id = ""
    """Who leaves."""


class LeavePull(LibraryCommand[None], frozen=True, kw_only=True):
    """A waiter has gone without a word: nothing ends for it, but he is not waited for either."""

    reference: Name
    waiter: Id


class Tagged(Fact, frozen=True, kw_only=True):
    """The model's tags."""

    tags: Names


class Removed(Fact, frozen=True, kw_only=True):
    """What went."""

    untagged: Names
    deleted: Ids
    freed: Whole = 0


class RemoveModel(LibraryCommand[Tagged | Removed], frozen=True, kw_only=True):
    """Remove a model from the store: `Removed`. Its idle engines end; one that is in use refuses (409)."""

    REPEATABLE = True
    model_id: Id
    tag: Name = ""
    """Remove this tag only, and the model when it was the last."""
    all_tags: bool = False
    """Also when it has several tags."""
    force: bool = False
    """Also when it has several tags or is in use; requests that are being served go on."""


class TagModel(LibraryCommand[Tagged], frozen=True, kw_only=True):
    """Give a model another tag, taking it from whichever model had it: `Tagged`."""

    REPEATABLE = True
    model_id: Id
    tag: Name


class ModelNoted(Fact, frozen=True, kw_only=True):
    """The library knows."""

    model: Model | None = None


class RepackageModel(LibraryCommand[ModelNoted], frozen=True, kw_only=True):
    """Store a model once more with another configuration, under a tag: `ModelNoted`. Files are shared."""

    REPEATABLE = True
    model_id: Id
    tag: Name
    context_size: Context | None = None
    """Tokens it is loaded with from then on unless somebody says otherwise; None leaves it."""


class NoteModel(LibraryCommand[ModelNoted], frozen=True, kw_only=True):
    """A model has come into the store by another way than a pull: `ModelNoted`."""

    model: Model


class NoteDamage(LibraryCommand[ModelNoted], frozen=True, kw_only=True):
    """A model was found not to be what it was when it arrived; it is here no more: `ModelNoted`."""

    model_id: Id
    reason: Reason


class Pruned(Fact, frozen=True, kw_only=True):
    """What that has freed, in bytes."""

    freed: Whole


class Prune(LibraryCommand[Pruned], frozen=True, kw_only=True):
    """Remove what no model needs, downloads that broke off too: `Pruned`."""

    REPEATABLE = True


class Pushed(Fact, frozen=True, kw_only=True):
    """It is published."""

    reference: Name
    model_id: Id
    sent: Whole
    """Bytes that had to be sent; the registry had the others."""


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
    """Wait no longer for a push; it ends when nobody else waits: `Cancelled`."""

    reference: Name
    model_id: Line = ""
    """Of which model; empty for whichever is on its way there."""


class Release(SchedulerCommand[None], frozen=True, kw_only=True):
    """Library → scheduler: let go of a model that is to be removed. Answered with `Released`."""

    model_id: Id
    force: bool = False


class Released(LibraryCommand[None], frozen=True, kw_only=True):
    """Scheduler → library: its engines are told to end, or why that would disturb somebody."""

    model_id: Id
    refusal: Refusal | None = None


class ModelsSeen(LibraryCommand[None], frozen=True, kw_only=True):
    """Report: what lies in the store."""

    models: Annotated[tuple[Model, ...], Many]
    running: Names = ()
    """Jobs of the pulls under way meanwhile: what a library that was rebuilt has begun."""
    recovered: bool = False
    """The store's index was lost and built again, without some names that the models had."""


class ModelList(SchedulerCommand[None], frozen=True, kw_only=True):
    """Library → scheduler: all models."""

    models: Annotated[tuple[Model, ...], Many]
    version: Whole
