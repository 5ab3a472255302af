"""What a daemon that was killed leaves in the folders of engines that go on."""

from __future__ import annotations

from pathlib import Path

from greenroom.actors.gates import GateBoard
from greenroom.runner.conversations.saver import ConversationSaver
from greenroom.runner.conversations.store import ConversationStore


def test_a_file_that_a_killed_daemon_was_saving_is_removed(tmp_path: Path) -> None:
    slots = tmp_path / "engines" / "1-1" / "slots"
    slots.mkdir(parents=True)
    (slots / "notes.json").write_text("{}")
    (slots / "s99").write_text("what was said")
    store = ConversationStore(tmp_path / "conversations", lambda: 1_000_000)
    saver = ConversationSaver(
        tmp_path, store, GateBoard(), {}, lambda _: None, lambda _: None, lambda *_: None
    )
    saver.start()
    saver.close()
    assert [one.name for one in slots.iterdir()] == ["notes.json"]
