"""Which slots are saved, when, and for which reason."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom.actors.gates import GateBoard
from greenroom.actors.slot_choice import SlotChoice
from greenroom.actors.values import Engine, EngineSpec
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.conversations import costs as module
from greenroom.runner.conversations.saver import ConversationSaver
from greenroom.runner.engines.slots import Restored, Saved, SlotFailure, SlotFiles
from saved import store_in
from waiting import until

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
        self.during: Callable[[], None] = lambda: None

    def save(self, slot: int, name: str, timeout: float) -> Saved | SlotFailure:
        self.names.append(name)
        path = self.folder / name
        path.write_bytes(b"x" * 1_000 * self.tokens)
        self.during()
        return Saved(self.tokens, 1_000 * self.tokens, path)

    def restore(self, slot: int, name: str, timeout: float) -> Restored | SlotFailure:
        (self.folder / name).unlink()
        return Restored(self.tokens)


class Stage(ConversationSaver):
    """A saver with one engine of one slot."""

    def __init__(self, folder: Path, evicted: tuple[str, str] | None = None) -> None:
        self.slots = Slots(folder)
        self.gates = GateBoard()
        self.gates.open("e", "m", "completion", "llama.cpp", "/socket", 1)
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

    def knows(self, per_token: float) -> None:
        """How many bytes of a file are a token."""
        self.costs.of(self.costs.compat(SPEC)).per_token = per_token

    def enters(self, request: str, *prompt: object, owner: str = "user:1") -> SlotChoice:
        assert self.gates.enter("m", "completion", "", request) is not None
        choice = self.gates.take_slot(request, prompt, lambda: ())
        assert choice is not None
        self.gates.own(choice, owner, lambda: (790, 10))
        return choice

    def answered(self, request: str, *prompt: object, **more: Any) -> None:
        self.enters(request, *prompt, **more)
        self.gates.leave(request)

    def reasons(self) -> Sequence[str]:
        return [one.reason for one in self.store.entries()]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_what_reading_again_would_cost_more_is_saved_before_the_end_with_its_reason(tmp_path: Path) -> None:
    stage = Stage(tmp_path, evicted=("room", "gemma3"))
    stage.answered("r1", *READ)
    stage.before_end("e")
    (entry,) = stage.store.entries()
    assert (entry.reason, entry.cause, entry.tokens, entry.owner) == ("room", "gemma3", 800, "user:1")
    stage.before_end("e")
    assert len(stage.slots.names) == 1


def test_a_keep_alive_that_ends_is_not_called_idle(tmp_path: Path) -> None:
    stage = Stage(tmp_path, evicted=("idle", ""))
    stage.answered("r1", *READ)
    stage.before_end("e")
    assert stage.reasons() == ["keep_alive"]


def test_a_short_prompt_is_not_worth_a_file(stage: Stage) -> None:
    stage.answered("r1", {}, ASKED)
    stage.before_end("e")
    assert not stage.slots.names


def test_nobodys_prompt_is_not_saved(stage: Stage) -> None:
    stage.answered("r1", *READ, owner="")
    stage.before_end("e")
    assert not stage.slots.names


def test_files_that_take_longer_than_reading_are_not_written_again(stage: Stage) -> None:
    # 800 tokens are read in 2.7 s; the disk writes and reads a gigabyte in 10.
    stage.knows(1_250_000.0)
    stage.answered("r1", *READ)
    stage.before_end("e")
    assert not stage.slots.names


def test_an_engine_that_has_failed_is_not_asked(stage: Stage) -> None:
    stage.answered("r1", *READ)
    stage.engine = msgspec.structs.replace(stage.engine, fault="it hangs")
    stage.before_end("e")
    assert not stage.slots.names


def test_what_is_about_to_be_overwritten_is_saved_first(stage: Stage) -> None:
    stage.answered("r1", *READ)
    choice = stage.enters("r2", {}, OTHER)
    stage.before_loss(choice, "r2")
    assert stage.reasons() == ["overwritten"]
    assert stage.gates.inside("e") == {"r2"}


@pytest.mark.parametrize(
    ("read", "asked"),
    [
        (({}, RULES, ASKED), ({}, OTHER)),  # a single question
        (READ, (*READ, SAID, ASKED)),  # nothing is lost
        (READ, (*READ[:-1], OTHER)),  # only the last question is
    ],
)
def test_what_nobody_may_want_again_delays_no_request(stage: Stage, read: Any, asked: Any) -> None:
    stage.answered("r1", *read)
    stage.before_loss(stage.enters("r2", *asked), "r2")
    assert not stage.slots.names


def test_a_file_that_takes_longer_than_the_bound_delays_no_request(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.knows(10_000.0)
    monkeypatch.setattr(module, "LOSS_BOUND", 0.01)
    stage.answered("r1", *READ)
    stage.before_loss(stage.enters("r2", {}, OTHER), "r2")
    assert not stage.slots.names


def test_an_engine_with_another_request_is_not_held_up(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.gates.remove("e")
    stage.gates.open("e", "m", "completion", "llama.cpp", "/socket", 2)
    stage.answered("r1", *READ)
    stage.enters("r2", {}, ASKED)
    choice = stage.enters("r3", {}, OTHER)
    assert choice.lost is not None
    stage.before_loss(choice, "r3")
    assert not stage.slots.names


def test_nothing_is_kept_if_the_request_leaves_the_slot_meanwhile(stage: Stage, tmp_path: Path) -> None:
    stage.answered("r1", *READ)
    choice = stage.enters("r2", {}, OTHER)
    stage.slots.during = lambda: stage.gates.leave("r2")
    stage.before_loss(choice, "r2")
    assert stage.slots.names
    assert not stage.store.entries()
    assert not (tmp_path / stage.slots.names[0]).exists()


@pytest.mark.parametrize("tokens", [2, 900])
def test_a_slot_that_holds_something_else_is_neither_kept_nor_gone_on_from(stage: Stage, tokens: int) -> None:
    stage.answered("r1", *READ)
    stage.slots.tokens = tokens
    stage.before_end("e")
    assert stage.slots.names
    assert not stage.store.entries()
    assert stage.enters("r2", *READ).held == 0


@pytest.mark.parametrize("tokens", [789, 800, 801])
def test_a_prompt_with_all_or_none_of_its_answer_is_kept(stage: Stage, tokens: int) -> None:
    stage.answered("r1", *READ)
    stage.slots.tokens = tokens
    stage.before_end("e")
    assert [one.tokens for one in stage.store.entries()] == [tokens]


def test_the_file_that_a_waiting_request_may_need_is_checked_ahead(stage: Stage, tmp_path: Path) -> None:
    stage.answered("r1", *READ)
    stage.before_end("e")
    (entry,) = stage.store.entries()
    (tmp_path / "conversations" / f"{entry.id}.bin").write_bytes(b"damage")
    for other in (("m", READ, "user:2"), ("n", READ, "user:1"), ("m", ({}, OTHER), "user:1")):
        stage.look_ahead(*other)
        until(lambda: "conversations" not in {thread.name for thread in threading.enumerate()})
        assert stage.store.entries()
    stage.look_ahead("m", (*READ, SAID, ASKED), "user:1")
    until(lambda: not stage.store.entries())
