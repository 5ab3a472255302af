"""Which slots are saved, when, and for which reason."""

from __future__ import annotations

import threading
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import pytest

from greenroom.runner.conversations import costs, files
from greenroom.runner.conversations import saver as module
from saver_stage import ASKED, OTHER, READ, RULES, SAID, Stage
from waiting import until


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
    monkeypatch.setattr(costs, "LOSS_BOUND", 0.01)
    stage.answered("r1", *READ)
    stage.before_loss(stage.enters("r2", {}, OTHER), "r2")
    assert not stage.slots.names


def test_an_engine_with_another_request_is_not_held_up(tmp_path: Path) -> None:
    stage = Stage(tmp_path, slots=2)
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
    others = set(threading.enumerate())  # of other tests
    stage.answered("r1", *READ)
    stage.before_end("e")
    (entry,) = stage.store.entries()
    (tmp_path / "conversations" / f"{entry.id}.bin").write_bytes(b"damage")
    for other in (("m", READ, "user:2"), ("n", READ, "user:1"), ("m", ({}, OTHER), "user:1")):
        stage.look_ahead(*other)
        until(lambda: "conversations" not in {one.name for one in set(threading.enumerate()) - others})
        assert stage.store.entries()
    stage.look_ahead("m", (*READ, SAID, ASKED), "user:1")
    until(lambda: not stage.store.entries())


CUT = (None, None)
"""The counts of a request whose client has left."""


def test_of_a_prompt_whose_client_left_only_what_was_read_is_kept(stage: Stage) -> None:
    more = {"role": "user", "content": "be kind " * 4_000}
    stage.knows(1_000.0)
    stage.answered("r1", *READ, more, counted=CUT)
    stage.slots.tokens = 1_500
    stage.before_end("e")
    (entry,) = stage.store.entries()
    assert len(entry.chain) == len(READ)
    assert entry.tokens == 1_500
    assert stage.gates.contents("e"), "a retry would not go to the slot that has read it"
    # The same, cut again, has nothing new.
    stage.answered("r2", *READ, more, counted=CUT)
    stage.before_end("e")
    assert stage.store.entries() == [entry]


def test_a_cut_prompt_takes_the_place_of_nothing_longer(stage: Stage) -> None:
    stage.answered("r1", *READ)
    stage.before_end("e")
    (entry,) = stage.store.entries()
    stage.answered("r2", *READ, SAID, RULES, counted=CUT)
    stage.slots.tokens = 300
    stage.before_end("e")
    assert stage.store.entries() == [entry]


def test_nothing_is_kept_of_a_prompt_of_which_little_was_read(stage: Stage, tmp_path: Path) -> None:
    stage.answered("r1", *READ, counted=CUT)
    stage.slots.tokens = 100
    stage.before_end("e")
    assert not stage.store.entries()
    assert not (tmp_path / stage.slots.names[0]).exists()


def test_an_end_waits_no_longer_than_the_bound_and_what_was_written_is_kept_later(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "END_BOUND", 0.2)
    slow, checked = Event(), files.checksum

    def checksum(path: Path) -> tuple[int, str]:
        assert slow.wait(10)
        return checked(path)

    monkeypatch.setattr(files, "checksum", checksum)
    stage.answered("r1", *READ)
    stage.before_end("e")
    assert not stage.store.entries(), "the end did wait for the disk"
    slow.set()
    until(lambda: stage.reasons() == ["stopping"])


def test_an_end_waits_no_longer_than_the_bound_for_another_that_is_being_saved(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "END_BOUND", 0.2)
    slow = Event()
    stage.slots.during = lambda: slow.wait(10)
    stage.answered("r1", *READ)
    for _ in range(2):
        stage.before_end("e")
    assert len(stage.slots.names) == 1
    slow.set()
    until(lambda: stage.reasons() == ["stopping"])


def test_what_is_saved_too_late_for_the_request_that_waited_is_not_kept(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the slot may hold what the request has made of it."""
    monkeypatch.setattr(module, "LOSS_BOUND", 0.2)
    slow = Event()
    stage.slots.during = lambda: slow.wait(10)
    stage.answered("r1", *READ)
    stage.before_loss(stage.enters("r2", {}, OTHER), "r2")
    slow.set()
    until(lambda: not (tmp_path / stage.slots.names[0]).exists())
    assert not stage.store.entries()
