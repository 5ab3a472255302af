"""Commands that may come twice: what became of those that carried an `Idempotency-Key`.

A client that does not know whether its command arrived sends it again with the same key. The first one is
carried out. One that arrives meanwhile may wait for the first one's answer; a later one gets the same answer,
even from the next daemon. A key that arrives with another command is refused.

A command interrupted by the end of the daemon is carried out again: the job it requested goes on, and the
second request joins it. Only digests of keys and commands are stored. The last keys are kept, for a day.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from greenroom.actors.bounded_maps import remembered
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Address,
    Answer,
    Command,
    Decision,
    Event,
    Later,
    NotUnderstood,
    R_co,
    Recovered,
    SingleStream,
    Stored,
    refuse,
)
from greenroom.actors.limits import Id, Kept, Name, Real, Whole
from greenroom.actors.values import Fact

IDEMPOTENCY = Address("idempotency")

REMEMBERED = 1000
"""Keys."""
REMEMBERED_FOR = 86_400.0
"""Seconds."""
NEWEST = 64


_NOTHING = refuse(
    "no_outcome",
    "The first command with this Idempotency-Key ended without an outcome.",
    advice="Send it again.",
    kind="unavailable",
    retry_after=1.0,
)


class CommandKeyed(Event, frozen=True, kw_only=True):
    """A command with an Idempotency-Key is being carried out."""

    TAG = "command_keyed"
    key: str
    """SHA-256 of the key."""
    command: str
    """SHA-256 of method, path and body."""
    name: str
    """Method and path."""


class CommandAnswered(Event, frozen=True, kw_only=True):
    """The answer that repetitions of the command get."""

    TAG = "command_answered"
    key: str
    status: int
    content_type: str = ""
    body: str = ""
    location: str = ""


class IdempotencyCommand(Command[R_co], frozen=True, kw_only=True):
    ACTOR = IDEMPOTENCY


class Outcome(Fact, frozen=True, kw_only=True):
    """The answer to a command, as it is sent."""

    status: Whole
    content_type: Id = ""
    body: Kept = ""
    location: Name = ""
    retry_after: Real = 0.0
    """Seconds; only for a passing one."""
    passing: bool = False
    """It only says that this was a bad moment: an answer for clients already waiting, not for later ones."""


class Begun(Fact, frozen=True, kw_only=True):
    """The caller is to carry it out."""


class UnderWay(Fact, frozen=True, kw_only=True):
    """It is being carried out for another caller: see `AwaitKeyed`."""


class BeginKeyed(IdempotencyCommand[Begun | UnderWay | Outcome], frozen=True, kw_only=True):
    """Ask to carry out a command: `Begun`, `UnderWay`, or its `Outcome` if that was done before."""

    key: Id
    """Digest of the key."""
    command: Id
    """Digest of the command."""
    name: Name
    """Method and path, for people."""


class AwaitKeyed(IdempotencyCommand[Outcome], frozen=True, kw_only=True):
    """Wait for a command that is being carried out: its `Outcome`."""

    key: Id


class Noted(Fact, frozen=True, kw_only=True):
    """The outcome is stored."""


class EndKeyed(IdempotencyCommand[Noted], frozen=True, kw_only=True):
    """How a command ended: `Noted`. Without an outcome, or with a passing one, the next is carried out."""

    key: Id
    outcome: Outcome | None = None


class Keyed(msgspec.Struct, frozen=True, kw_only=True):
    command: str
    at: float
    outcome: Outcome | None = None


class IdempotencyState(msgspec.Struct, frozen=True, kw_only=True):
    """The remembered keys, by digest, oldest first.

    Each event makes a new state, so the few keys that change often are kept apart: copying a thousand keys
    for each of a hundred thousand events would take minutes at every start.
    """

    older: Mapping[str, Keyed] = msgspec.field(default_factory=dict)
    newest: Mapping[str, Keyed] = msgspec.field(default_factory=dict)
    """At most `NEWEST`; takes precedence over `older`."""

    @property
    def keys(self) -> Mapping[str, Keyed]:
        older = {key: one for key, one in self.older.items() if key not in self.newest}
        return dict(list({**older, **self.newest}.items())[-REMEMBERED:])

    def get(self, key: str) -> Keyed | None:
        return self.newest.get(key) or self.older.get(key)


class IdempotencyVolatile(msgspec.Struct, frozen=True, kw_only=True):
    """Keys whose command is being carried out in this life."""

    under_way: frozenset[str] = frozenset()


class Idempotency(SingleStream[IdempotencyState]):
    address = IDEMPOTENCY
    event_types = (CommandKeyed, CommandAnswered)

    def initial(self) -> IdempotencyState:
        return IdempotencyState()

    def initial_volatile(self) -> IdempotencyVolatile:
        return IdempotencyVolatile()

    def apply(self, state: IdempotencyState, stored: Stored[Any]) -> IdempotencyState:
        event = stored.event
        match event:
            case CommandKeyed():
                keyed = Keyed(command=event.command, at=stored.at)
            case CommandAnswered() if (old := state.get(event.key)) is not None:
                outcome = Outcome(
                    status=event.status,
                    content_type=event.content_type,
                    body=event.body,
                    location=event.location,
                )
                keyed = replace(old, outcome=outcome)
            case _:
                return state
        newest = remembered(state.newest, event.key, keyed, NEWEST)
        if len(newest) < NEWEST:
            return IdempotencyState(older=state.older, newest=newest)
        full = IdempotencyState(older=state.older, newest=newest)
        older = {key: one for key, one in full.keys.items() if stored.at - one.at < REMEMBERED_FOR}
        return IdempotencyState(older=older)

    def decide(
        self, state: IdempotencyState, command: Command[Any], now: Moment, volatile: IdempotencyVolatile
    ) -> Decision[IdempotencyVolatile]:
        match command:
            case BeginKeyed():
                return self._begin(state, command, now, volatile)
            case AwaitKeyed():
                return self._await(state, command, volatile)
            case EndKeyed():
                return self._end(state, command, volatile)
            case Recovered():
                return Decision()
            case _:
                raise NotUnderstood(self.address, command)

    def _begin(
        self, state: IdempotencyState, ask: BeginKeyed, now: Moment, volatile: IdempotencyVolatile
    ) -> Decision[IdempotencyVolatile]:
        """Decide on a command with a key.

        1. The key has been used for another command: refused.
        2. The command has been answered: the same answer.
        3. It is being carried out: the caller may wait for the answer.
        4. It is new, or the daemon ended in the middle: the caller is to carry it out.
        """
        known = state.get(ask.key)
        if known is not None and ask.key not in volatile.under_way and now.wall - known.at >= REMEMBERED_FOR:
            known = None
        if known is not None and known.command != ask.command:  # 1
            return Decision(
                reply=refuse(
                    "idempotency_key_reused",
                    "This Idempotency-Key was already used for another command.",
                    advice="Use a new key for each command; reuse a key only to repeat the same command.",
                    kind="conflict",
                )
            )
        if known is not None and known.outcome is not None:  # 2
            return Decision(reply=ask.replied(known.outcome))
        if ask.key in volatile.under_way:  # 3
            return Decision(reply=ask.replied(UnderWay()))
        keyed = CommandKeyed(key=ask.key, command=ask.command, name=ask.name)
        return Decision(  # 4
            events=() if known is not None else (keyed,),
            reply=ask.replied(Begun()),
            volatile=IdempotencyVolatile(under_way=volatile.under_way | {ask.key}),
        )

    def _await(
        self, state: IdempotencyState, ask: AwaitKeyed, volatile: IdempotencyVolatile
    ) -> Decision[IdempotencyVolatile]:
        if ask.key in volatile.under_way:
            return Decision(reply=Later(ask.key))
        known = state.get(ask.key)
        outcome = known.outcome if known is not None else None
        return Decision(reply=ask.replied(outcome) if outcome is not None else _NOTHING)

    def _end(
        self, state: IdempotencyState, report: EndKeyed, volatile: IdempotencyVolatile
    ) -> Decision[IdempotencyVolatile]:
        left = IdempotencyVolatile(under_way=volatile.under_way - {report.key})
        if report.outcome is None:
            return Decision(
                effects=(Answer(key=report.key, outcome=_NOTHING),),
                reply=report.replied(Noted()),
                volatile=left,
            )
        outcome = report.outcome
        events: tuple[Event, ...] = ()
        if state.get(report.key) is not None and not outcome.passing:
            answered = CommandAnswered(
                key=report.key,
                status=outcome.status,
                content_type=outcome.content_type,
                body=outcome.body,
                location=outcome.location,
            )
            events = (answered,)
        answer = Answer(key=report.key, outcome=outcome)
        return Decision(events=events, effects=(answer,), reply=report.replied(Noted()), volatile=left)
