"""What became of conversations is stored as it was noted."""

from __future__ import annotations

from typing import Any

from greenroom.actors.conversation_log import (
    CONVERSATIONS,
    ConversationLog,
    ConversationsDropped,
    ConversationsRestored,
    ConversationsSaved,
    NoteConversations,
)
from greenroom.actors.testing import given
from greenroom.runner.conversations.sums import EVERY, ConversationSums

ABOUT: dict[str, Any] = {"model_id": "m", "backend": "mlx", "count": 2, "tokens": 30, "seconds": 1.5}


def test_each_kind_has_its_event() -> None:
    case = given(ConversationLog())
    case = case.when(NoteConversations(what="saved", engine="e", bytes=7, reason="idle", **ABOUT))
    case = case.then(ConversationsSaved(engine="e", bytes=7, reason="idle", **ABOUT))
    case = case.when(NoteConversations(what="restored", engine="e", **ABOUT))
    case = case.then(ConversationsRestored(engine="e", **ABOUT))
    case = case.when(NoteConversations(what="dropped", bytes=7, reason="space", **ABOUT))
    case.then(ConversationsDropped(bytes=7, reason="space", **ABOUT))
    assert ConversationLog.address == CONVERSATIONS


def test_sums_are_sent_once_a_minute() -> None:
    sums, sent = ConversationSums(), list[NoteConversations]()
    sums.send = sent.append
    for _ in range(2):
        sums.add("restored", "m", "mlx", tokens=10, seconds=0.5, engine="e")
    sums.flush(0.0)
    assert [(one.count, one.tokens, one.seconds) for one in sent] == [(2, 20, 1.0)]
    sums.add("restored", "m", "mlx", tokens=10, seconds=0.5, engine="e")
    sums.flush(EVERY - 1)
    assert len(sent) == 1
    sums.flush(EVERY)
    sums.flush(3 * EVERY)
    assert len(sent) == 2
    sums.add("dropped", "m", "mlx", tokens=10, seconds=0.5, reason="space")
    sums.add("saved", "m", "mlx", tokens=10, seconds=0.5, engine="e", reason="room")
    sums.flush_all("another")
    assert len(sent) == 2
    sums.flush_all("e")
    assert [(one.what, one.reason) for one in sent[2:]] == [("saved", "room")]
    sums.flush_all()
    assert (sent[-1].what, sent[-1].reason) == ("dropped", "space")
