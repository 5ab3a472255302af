"""What the saver does with engines that cannot go on from what they restore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from greenroom.actors.gates import GateBoard
from greenroom.actors.slot_choice import SlotChoice
from greenroom.actors.values import Engine, EngineSpec
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.conversations.costs import compat_of
from greenroom.runner.conversations.prompt_hashes import chain_of
from greenroom.runner.conversations.saver import ConversationSaver
from greenroom.runner.engines.slots import Restored, SlotFiles
from saved import kept, store_in

SPEC = EngineSpec(
    engine_id="e", backend="llama.cpp", installation_id="i", model_id="m", model_ref="m", slots=4
)
ENGINE = Engine(spec=SPEC, pid=1, state="ready", since=0.0, endpoint="/tmp/e.sock")
PARTS = ("rules", "first", "second")


class Slots(SlotFiles):
    """Slots of an engine that says it restored, whatever comes of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "socket", folder)

    def restore(self, slot: int, name: str, timeout: float) -> Restored:
        self.path(name).unlink()
        return Restored(300)


def saver_in(tmp_path: Path, no_restore: str) -> ConversationSaver:
    store = store_in(tmp_path)
    store.opened.set()
    compat = compat_of(SPEC, LlamaCpp().slot_layout(SPEC))
    hashes = chain_of(PARTS).hashes
    fields: dict[str, Any] = {"compat": compat, "chain": hashes, "tokens": 300, "seconds": 30.0}
    kept(store, tmp_path, "abc", **fields)
    found: dict[str, Engine] = {"e": ENGINE}
    backends = {"llama.cpp": LlamaCpp()}
    return ConversationSaver(
        tmp_path,
        store,
        GateBoard(),
        backends,
        found.get,
        lambda _: None,
        lambda *_: no_restore,
        find_files=lambda *_: Slots(tmp_path),
    )


def test_an_engine_that_goes_on_from_nothing_three_times_is_given_no_more(tmp_path: Path) -> None:
    saver = saver_in(tmp_path, "")
    for number in range(3):
        assert saver.costs.in_vain("m", "i") == ""
        restored = saver.restorer.restore(SlotChoice("e", 0, serial=number), PARTS, "user:1")
        assert restored is not None
        assert restored.tokens == 300
        saver.restorer.judge(restored, 0)
    assert saver.engines.restored_by("e").tokens == 900
    refused = saver.restorer.restore(SlotChoice("e", 0, serial=4), PARTS, "user:1")
    assert refused is not None
    assert (
        refused.why_not
        == saver.costs.in_vain("m", "i")
        == "the engine does not continue from what it restores"
    )
    assert saver.costs.in_vain("m", "another") == saver.costs.in_vain("another", "i") == ""


def test_an_installation_that_was_found_not_to_go_on_gets_nothing(tmp_path: Path) -> None:
    saver = saver_in(tmp_path, "its server has no slots")
    assert saver.restorer.restore(SlotChoice("e", 0), PARTS, "user:1") is None
    assert saver.engines.restored_by("e").times == 0
