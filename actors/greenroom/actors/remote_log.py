"""Whether the remote backends answer: stored when that changes, so that `why` can report it.

`runner/remotes/` decides when to check them; this actor stores the results. A daemon checks all of them again
after its start, so the first answer is always stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Address,
    Command,
    Decision,
    Event,
    NotUnderstood,
    Recovered,
    SingleStream,
    Stored,
)
from greenroom.actors.limits import BackendName, Id, Name, Whole
from greenroom.actors.values import Fact, Failure

REMOTES = Address("remotes")
NAMED = 20
"""Models that an event names."""


class NoteRemote(Command[None], frozen=True, kw_only=True):
    """Record what a backend answered, or why it did not. Idempotent."""

    ACTOR = REMOTES
    REPEATABLE = True
    backend: BackendName
    url: Name
    life: Id
    """The daemon that checked it."""
    models: Annotated[tuple[Name, ...], Meta(max_length=NAMED)] = ()
    """The first of its models."""
    count: Whole = 0
    """All of them."""
    failure: Failure | None = None
    """Why it cannot be used; None if it answers."""


class RemoteAnswered(Event, frozen=True, kw_only=True):
    """A remote backend answers, after a failure or for the first time since the daemon started."""

    TAG = "remote_answered"
    backend: str
    url: str
    life: str
    models: tuple[str, ...] = ()
    """The first of its models, by their own names."""
    count: int = 0
    """All of them."""


class RemoteFailed(Event, frozen=True, kw_only=True):
    """A remote backend cannot be used: it does not answer, or its answer is wrong."""

    TAG = "remote_failed"
    PROBLEM = True
    backend: str
    url: str
    life: str
    failure: Failure


class RemoteState(Fact, frozen=True, kw_only=True):
    """A backend as of its last change."""

    url: str
    life: str
    since: float
    count: int = 0
    failure: Failure | None = None


class RemotesState(msgspec.Struct, frozen=True):
    backends: Mapping[str, RemoteState] = msgspec.field(default_factory=dict)


class RemoteLog(SingleStream[RemotesState]):
    address = REMOTES
    event_types = (RemoteAnswered, RemoteFailed)

    def initial(self) -> RemotesState:
        return RemotesState()

    def apply(self, state: RemotesState, stored: Stored[Any]) -> RemotesState:
        match stored.event:
            case RemoteAnswered() as e:
                now = RemoteState(url=e.url, life=e.life, since=stored.at, count=e.count)
            case RemoteFailed() as e:
                now = RemoteState(url=e.url, life=e.life, since=stored.at, failure=e.failure)
            case _:
                return state
        return RemotesState({**state.backends, e.backend: now})

    def decide(
        self, state: RemotesState, command: Command[Any], _now: Moment, _volatile: None
    ) -> Decision[None]:
        match command:
            case NoteRemote() as c:
                return Decision(events=_events(state.backends.get(c.backend), c))
            case Recovered():
                return Decision()
            case _:
                raise NotUnderstood(self.address, command)


def _events(known: RemoteState | None, c: NoteRemote) -> tuple[Event, ...]:
    code = c.failure.code if c.failure is not None else ""
    was = known.failure.code if known is not None and known.failure is not None else ""
    if known is not None and (known.url, known.life, was) == (c.url, c.life, code):
        return ()
    if c.failure is not None:
        return (RemoteFailed(backend=c.backend, url=c.url, life=c.life, failure=c.failure),)
    return (RemoteAnswered(backend=c.backend, url=c.url, life=c.life, models=c.models, count=c.count),)
