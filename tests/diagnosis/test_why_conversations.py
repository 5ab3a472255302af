"""`log` and `why MODEL` say what became of a model's conversations."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from greenroom.actors.conversation_log import ConversationsDropped, ConversationsRestored, ConversationsSaved
from greenroom.actors.journal.port import Record
from greenroom.actors.kernel.core import Event
from greenroom.runner.diagnosis.sentences import Narrator

ABOUT: dict[str, Any] = {"backend": "llama.cpp", "count": 2, "tokens": 4_279, "seconds": 43.0}
SAVED = ConversationsSaved(model_id="m", engine="e", bytes=98_700_000, reason="keep_alive", **ABOUT)
RESTORED = ConversationsRestored(model_id="m", engine="e", **ABOUT)
DROPPED = ConversationsDropped(model_id="m", bytes=98_700_000, reason="space", **ABOUT)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (SAVED, "Saved 2 conversations of 4,279 tokens with model m (98.7 MB) when its keep-alive ended."),
        (RESTORED, "Restored 2 conversations of 4,279 tokens with model m: 43s of reading saved."),
        (
            DROPPED,
            "Dropped 2 conversations of 4,279 tokens with model m (98.7 MB): others are worth more.",
        ),
    ],
)
def test_each_has_a_sentence(event: Event, said: str) -> None:
    data = msgspec.json.encode(event).decode()
    record = Record(
        seq=1, at=0.0, stream="conversations", version=1, type=type(event).TAG, schema=1, cause="", data=data
    )
    assert Narrator().tell(record) == said


def test_why_says_how_many_were_saved_and_what_that_was_good_for(script: Any) -> None:
    script.daemon()
    script.install("llama.cpp", "1.0")
    model = script.model()
    script.load()
    quiet = script.why("smollm2").also
    assert not any("conversations" in one for one in quiet)
    about = {**ABOUT, "model_id": model, "engine": "e"}
    script.add(ConversationsSaved(bytes=98_700_000, reason="idle", **about))
    assert "saved 2 times lately; none restored." in script.why("smollm2").also[-1]
    script.add(ConversationsRestored(**about))
    found = script.why("smollm2")
    assert found.state == "loaded"
    assert "4,279 tokens were restored, which saved 43s of reading." in found.also[-1]
