"""What became of conversations, in sums: saved, restored, and dropped from the disk."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

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
from greenroom.actors.reports import Happened

CONVERSATIONS = Address("conversations")


class ConversationsSaved(Event, frozen=True, kw_only=True):
    """What an engine had read of conversations was saved on the disk."""

    TAG = "conversations_saved"
    model_id: str
    backend: str
    engine: str
    count: int
    tokens: int
    bytes: int
    seconds: float
    """That reading the tokens takes."""
    reason: str
    """`idle`, or why its engine ended."""


class ConversationsRestored(Event, frozen=True, kw_only=True):
    """An engine was given back what had been saved; stored at most once a minute, in sum."""

    TAG = "conversations_restored"
    model_id: str
    backend: str
    engine: str
    count: int
    tokens: int
    seconds: float
    """That reading the tokens would have taken."""


class ConversationsDropped(Event, frozen=True, kw_only=True):
    """Saved conversations were removed from the disk; stored at most once a minute, in sum."""

    TAG = "conversations_dropped"
    model_id: str
    backend: str
    count: int
    tokens: int
    bytes: int
    seconds: float
    """That reading the tokens takes."""
    reason: str
    """`expired`, `space`, `damaged`, or `removed`."""


class ConversationsFailed(Event, frozen=True, kw_only=True):
    """Saved conversations could not be read or written; stored at most once a minute, as a total."""

    TAG = "conversations_failed"
    PROBLEM = True
    count: int
    reason: str
    """The operating system's error."""


class ConversationsState(msgspec.Struct, frozen=True):
    saved: int = 0
    restored: int = 0
    dropped: int = 0


_EVENTS = (ConversationsSaved, ConversationsRestored, ConversationsDropped, ConversationsFailed)


class ConversationLog(SingleStream[ConversationsState]):
    address = CONVERSATIONS
    event_types = _EVENTS

    def initial(self) -> ConversationsState:
        return ConversationsState()

    def apply(self, state: ConversationsState, stored: Stored[Any]) -> ConversationsState:
        match stored.event:
            case ConversationsSaved(count=count):
                return replace(state, saved=state.saved + count)
            case ConversationsRestored(count=count):
                return replace(state, restored=state.restored + count)
            case ConversationsDropped(count=count):
                return replace(state, dropped=state.dropped + count)
            case _:
                return state

    def decide(
        self, _state: ConversationsState, command: Command[Any], _now: Moment, _volatile: None
    ) -> Decision[None]:
        match command:
            case Happened(event=event) if isinstance(event, _EVENTS):
                return Decision(events=(event,))
            case Recovered():
                return Decision()
            case _:
                raise NotUnderstood(self.address, command)
