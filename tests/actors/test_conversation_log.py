"""What became of conversations is stored as it was noted."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from greenroom.actors.conversation_log import (
    CONVERSATIONS,
    ConversationLog,
    ConversationsDropped,
    ConversationsRestored,
    ConversationsSaved,
)
from greenroom.actors.reports import Happened
from greenroom.actors.testing import given
from greenroom.runner.conversations.sums import EVERY, ConversationSums, Sum

ABOUT: dict[str, Any] = {"model_id": "m", "backend": "mlx", "count": 2, "tokens": 30, "seconds": 1.5}
SAVED = ConversationsSaved(engine="e", bytes=7, reason="room", **ABOUT)
RESTORED = ConversationsRestored(engine="e", **ABOUT)
DROPPED = ConversationsDropped(bytes=7, reason="space", **ABOUT)


def test_each_kind_is_stored_as_it_was_reported() -> None:
    case = given(ConversationLog())
    assert ConversationLog.address == CONVERSATIONS
    for event in (SAVED, RESTORED, DROPPED):
        case = case.when(Happened(event=event)).then(event)


def test_sums_are_sent_once_a_minute() -> None:
    sums, sent = ConversationSums(), list[Sum]()
    sums.send = sent.append
    for _ in range(2):
        sums.add(RESTORED)
    sums.flush(0.0)
    assert sent == [replace(RESTORED, count=4, tokens=60, seconds=3.0)]
    sums.add(RESTORED)
    sums.flush(EVERY - 1)
    assert len(sent) == 1
    sums.flush(EVERY)
    sums.flush(3 * EVERY)
    assert len(sent) == 2
    for _ in range(2):
        sums.add(DROPPED)
    sums.add(SAVED)
    sums.flush_all("another")
    assert len(sent) == 2
    sums.flush_all("e")
    assert sent[2:] == [SAVED]
    sums.flush_all()
    assert sent[3:] == [replace(DROPPED, count=4, tokens=60, seconds=3.0, bytes=14)]
