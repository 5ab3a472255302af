"""A saver of conversations with one engine, whose slots are made of data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from greenroom.actors.gates import GateBoard
from greenroom.actors.slot_choice import SlotChoice
from greenroom.actors.values import Engine, EngineSpec
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.conversations.restoration import Restoration
from greenroom.runner.conversations.saver import ConversationSaver
from greenroom.runner.engines.slots import Restored, Saved, SlotFailure, SlotFiles
from saved import store_in

SPEC = EngineSpec(
    engine_id="e", backend="llama.cpp", installation_id="i", model_id="m", model_ref="m", slots=1
)
RULES = {"role": "system", "content": "be kind " * 400}
"""Some 800 tokens."""
ASKED = {"role": "user", "content": "why?"}
SAID = {"role": "assistant", "content": "because"}
OTHER = {"role": "user", "content": "what is new?"}
READ: tuple[object, ...] = ({}, RULES, ASKED, SAID, ASKED)
"""A conversation that has gone on."""


class Slots(SlotFiles):
    """Those of an engine whose files have 1,000 bytes a token."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "socket", folder)
        self.folder = folder
        self.tokens = 800
        self.names: list[str] = []
        self.restored: list[int] = []
        """The slots."""
        self.during: Callable[[], object] = lambda: None

    def save(self, slot: int, name: str, timeout: float) -> Saved | SlotFailure:
        self.names.append(name)
        path = self.folder / name
        path.write_bytes(b"x" * 1_000 * self.tokens)
        self.during()
        return Saved(self.tokens, 1_000 * self.tokens, path)

    def restore(self, slot: int, name: str, timeout: float) -> Restored | SlotFailure:
        (self.folder / name).unlink()
        self.restored.append(slot)
        return Restored(self.tokens)


class Stage(ConversationSaver):
    """A saver with one engine, of one slot unless stated."""

    def __init__(self, folder: Path, evicted: tuple[str, str] | None = None, slots: int = 1) -> None:
        self.slots = Slots(folder)
        self.gates = GateBoard()
        self.gates.open("e", "m", "completion", "llama.cpp", "/socket", slots)
        self.engine = Engine(spec=SPEC, state="ready", since=1.0, endpoint="/socket", pid=1)
        super().__init__(
            folder,
            store_in(folder),
            self.gates,
            {"llama.cpp": LlamaCpp()},
            lambda _: self.engine,
            lambda _: evicted,
            lambda *_: "",
            find_files=lambda *_: self.slots,
        )
        self.store.opened.set()

    def restores(self, choice: SlotChoice, *prompt: object, owner: str = "user:1") -> Restoration | None:
        return self.restorer.restore(choice, prompt, owner)

    def knows(self, per_token: float) -> None:
        """How many bytes of a file are a token."""
        self.costs.of(self.costs.compat(SPEC)).per_token = per_token

    def enters(
        self, request: str, *prompt: object, owner: str = "user:1", counted: Any = (790, 10)
    ) -> SlotChoice:
        assert self.gates.enter("m", "completion", "", request) is not None
        choice = self.gates.take_slot(request, prompt, lambda: ())
        assert choice is not None
        self.gates.own(choice, owner, lambda: counted)
        return choice

    def answered(self, request: str, *prompt: object, **more: Any) -> None:
        self.enters(request, *prompt, **more)
        self.gates.leave(request)

    def reasons(self) -> Sequence[str]:
        return [one.reason for one in self.store.entries()]
