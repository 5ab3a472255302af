"""What an actor is made of: a pure core. `executor.py` runs it.

    decide(state, command, now, volatile) -> Decision   what is to happen: no clock, no I/O, no logging
    apply(state, stored) -> state                       total; cannot refuse; the only maker of durable state
    react(state, stored) -> effects                     for new events only, never in replay
    settle(state, now, volatile) -> Decision            what follows from the state as it stands

For each decision, the events are persisted as one batch and applied, the effects are begun, and the caller
gets its reply. After each command, and on a tick, `settle` is called until it has no more events, so what to
do next is derived from the state (see `steps.py`).
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar, Generic, NamedTuple, NewType, Protocol, TypeVar

import msgspec

from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.errors import ErrorKind, Refusal


class Upcast(Protocol):
    """Turns the raw fields of one schema version into those of the next."""

    def __call__(self, fields: dict[str, Any], /) -> dict[str, Any]:
        """Return the fields as the next version has them."""
        ...


Upcasters = Mapping[int, Upcast]


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that has happened. Tag and schema are stored beside it, so both are part of the format."""

    TAG: ClassVar[str]
    SCHEMA: ClassVar[int] = 1
    URGENT: ClassVar[bool] = False
    """True for what must be recorded even on a full disk: that something has stopped."""
    PROBLEM: ClassVar[bool] = False
    """True if the event reports a problem."""
    UPCASTERS: ClassVar[Upcasters] = {}
    """From each older schema version, how its raw fields become those of the next."""

    @property
    def is_urgent(self) -> bool:
        """Whether this one must be recorded even on a full disk; an event may know better than its type."""
        return self.URGENT

    @property
    def is_problem(self) -> bool:
        """Whether the event reports a problem; may depend on its fields."""
        return self.PROBLEM


class Address(NamedTuple):
    """How an actor is found; it stays the same when the actor is rebuilt."""

    name: str

    def __str__(self) -> str:
        return self.name


R_co = TypeVar("R_co", covariant=True)
Answered = NewType("Answered", object)
"""A reply that was checked against its command's type; see `Command.replied`."""


class Command(msgspec.Struct, Generic[R_co], frozen=True, kw_only=True, omit_defaults=True):
    """What an actor is asked or told. `R_co` is the type of its reply, None for what is only told."""

    ACTOR: ClassVar[Address]
    """The actor that handles it. Commands without one are sent to an address."""
    SECRETS: ClassVar[tuple[str, ...]] = ()
    """Text fields, such as a token, that must never be stored, not even of a command that failed."""
    REPEATABLE: ClassVar[bool] = False
    """Asking twice does what asking once does: when the actor is rebuilt, an ask that waits is repeated
    instead of failed. (One that was answered `Later` without events or effects always is.)"""

    @property
    def actor(self) -> Address:
        """Where it goes. Raises TypeError for a command that has to be sent to an address."""
        address: Address | None = getattr(self, "ACTOR", None)
        if address is None:
            raise TypeError(f"{type(self).__name__} does not say which actor handles it")
        return address

    def replied(self, reply: R_co) -> Answered:  # type: ignore[misc] # pyright: ignore[reportGeneralTypeIssues]
        """The reply, for a `Decision`: this is where its type is checked."""
        return Answered(reply)

    def withdrawn(self) -> Command[Any] | None:
        """The command that takes this one back when its answer cannot be used; None when none has to."""
        return None

    @property
    def is_leased(self) -> bool:
        """Whether the command is withdrawn with the last reference to its answer.

        The answer's type must allow weak references.
        """
        return False


class Recovered(Command[None], frozen=True, kw_only=True):
    """The first command of every life: the state is replayed, now look at the world."""


E_co = TypeVar("E_co", bound=Event, covariant=True)


class Stored(NamedTuple, Generic[E_co]):
    """An event with what the journal knows of it."""

    event: E_co
    id: str
    """`stream/version`."""
    at: float
    cause: str


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """Something to do now. The actor's effect handler does it and reports back with a command."""


class Tell(Effect, frozen=True, kw_only=True):
    """Send a command to an actor of this system."""

    command: Command[Any]
    to: Address | None = None
    """None for the actor that handles the command."""
    cause: str = ""
    """Overrides what made the effect necessary, when the reason is an event of an earlier decision."""

    @property
    def address(self) -> Address:
        return self.command.actor if self.to is None else self.to


class Answer(Effect, frozen=True, kw_only=True):
    """Answer all asks that were answered `Later(key)`."""

    key: str
    outcome: Any
    """A reply, or a `Refusal`."""


class Later(msgspec.Struct, frozen=True):
    """No answer yet: it comes with an `Answer` of the same key."""

    key: str


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """An exception that was limited to what it was about. It is stored as `command_parked`."""

    doing: str
    """What was being done, such as `serve a request`."""
    about: str
    """Id of what it happened to, such as a request or an event; empty when there is none."""
    error: str
    """Type and message, in one line."""
    traceback: str
    place: str
    """File and line that raised."""


def fault(error: BaseException, *, doing: str, about: str = "") -> Fault:
    """Describe an exception that was caught where it could do no harm."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return Fault(
        doing=doing,
        about=about,
        # Unlike `str`, these never raise.
        error=traceback.format_exception_only(error)[-1].strip(),
        traceback="".join(traceback.format_exception(error)),
        place=f"{last[0].filename}:{last[0].lineno}" if last else "",
    )


V = TypeVar("V")
S = TypeVar("S")


class Decision(msgspec.Struct, Generic[V], frozen=True, kw_only=True):
    """What a core answers a command with: events, effects, a reply. All may be absent."""

    events: tuple[Event, ...] = ()
    """Stored as one batch, all or none."""
    reply: Answered | Refusal | Later | None = None
    """By the command's `replied`; or a `Refusal`, or `Later`."""
    effects: tuple[Effect, ...] = ()
    """What needs no event because it may be lost or repeated: sending, answering, looking."""
    volatile: V | None = None
    """The new volatile state; None leaves it as it is. Taken over only once the events are stored."""
    cause: str = ""
    """Overrides the message's own cause: a report belongs to the intent it fulfils."""
    wake_at: float | None = None
    """Monotonic second at which time alone changes what follows. Read from `settle` only."""
    if_not_stored: Decision[V] | None = None
    """What holds instead, without events, when these cannot be stored. Read from `settle` and from decisions
    on a `tell`, which have no caller to refuse. (Asks that wait for an `Answer` of such a decision are
    refused without it.)"""
    faults: tuple[Fault, ...] = ()
    """What was left out because it raised; the decision is right for everything else."""


class Core(Protocol[S, V]):
    """The pure part of an actor. `S` is its durable state, `V` the volatile one; both immutable."""

    @property
    def address(self) -> Address:
        """Where commands for it go."""
        ...

    @property
    def event_types(self) -> Sequence[type[Event]]:
        """Every event it stores or has ever stored."""
        ...

    def claims(self, stream: str, /) -> bool:
        """True for the streams it owns."""
        ...

    def stream_of(self, event: Event, /) -> str:
        """The stream an event of its own belongs to."""
        ...

    def initial(self) -> S:
        """The durable state before the first event."""
        ...

    def initial_volatile(self) -> V:
        """The volatile state at the start of each life."""
        ...

    def decide(self, state: S, command: Command[Any], now: Moment, volatile: V, /) -> Decision[V]:
        """Turn a command into events, a reply and effects."""
        ...

    def apply(self, state: S, stored: Stored[Any], /) -> S:
        """Fold one event into the state."""
        ...

    def react(self, state: S, stored: Stored[Any], /) -> Sequence[Effect]:
        """What a new event makes necessary; `state` has it already."""
        ...

    def settle(self, state: S, now: Moment, volatile: V, /) -> Decision[V]:
        """What follows from state, desired against observed."""
        ...


class SingleStream(Generic[S]):
    """A base class for cores with one event stream, named like the address.

    Subclasses define `address`, `event_types`, `initial`, `decide` and `apply`, and the rest as needed.
    """

    address: Address
    event_types: Sequence[type[Event]] = ()

    def claims(self, stream: str) -> bool:
        return stream == self.address.name

    def stream_of(self, event: Event) -> str:  # noqa: ARG002 - there is only one
        return self.address.name

    def initial_volatile(self) -> Any:
        return None

    def react(self, state: S, stored: Stored[Any]) -> Sequence[Effect]:  # noqa: ARG002
        return ()

    def settle(self, state: S, now: Moment, volatile: Any) -> Decision[Any]:  # noqa: ARG002
        return Decision()


def events_of(module: ModuleType) -> tuple[type[Event], ...]:
    """The event types that a module defines, for `event_types`."""
    defined = (one for one in vars(module).values() if getattr(one, "__module__", "") == module.__name__)
    return tuple(one for one in defined if isinstance(one, type) and issubclass(one, Event))


class EffectHandler(Protocol):
    """Carries out an actor's own effects. Must not block: long work goes to a thread of its own."""

    def perform(self, effect: Effect, cause: str) -> None:
        """Begin. `cause` is the id of the event that made it necessary, or of the message's own cause."""


class NoEffectHandler:
    """For actors whose only effects are `Tell` and `Answer`."""

    def perform(self, effect: Effect, cause: str) -> None:
        raise TypeError(f"there is no effect handler for {type(effect).__name__} (caused by {cause})")


class NotUnderstood(TypeError):
    """Raised by `decide` for a command that is not this actor's: the ask is refused, no more."""

    def __init__(self, address: Address, command: Command[Any]) -> None:
        super().__init__(f"{address} does not know the command {type(command).__name__}")


def refuse(
    code: str,
    message: str,
    *,
    kind: ErrorKind = "invalid",
    advice: str = "",
    retry_after: float = 0.0,
    numbers: dict[str, float] | None = None,
    subject: str = "",
) -> Refusal:
    """A refusal, readable at the place where it is decided."""
    return Refusal(
        code=code,
        message=message,
        kind=kind,
        advice=advice,
        retry_after=retry_after,
        numbers=numbers or {},
        subject=subject,
    )


def not_storable() -> Refusal:
    """The refusal for an ask whose answer would need an event while the journal takes none."""
    return refuse(
        "journal_full",
        "This cannot be started because the journal cannot be written.",
        advice="Free space on the disk that holds the journal, then try again.",
        kind="exhausted",
    )
