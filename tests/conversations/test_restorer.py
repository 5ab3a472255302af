"""What a request's slot is given of its prompt: by another slot of the engine, or by the disk."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from greenroom.runner.conversations import files
from saver_stage import ASKED, OTHER, READ, RULES, SAID, Stage
from waiting import until


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, slots=3)


def test_a_new_conversation_gets_what_another_slot_has_read_of_its_prompt(
    stage: Stage, tmp_path: Path
) -> None:
    stage.answered("r1", *READ)
    asked: tuple[object, ...] = ({}, RULES, OTHER)
    choice = stage.enters("r2", *asked)
    assert (choice.number, choice.held) == (1, 0)
    found = stage.restores(choice, *asked)
    assert found is not None
    assert found.why() == "when another slot of the engine had read it"
    assert 700 < found.tokens < 790
    assert stage.slots.restored == [1]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []
    assert not stage.store.entries()


@pytest.mark.parametrize(
    ("owner", "tokens"),
    [
        ("user:2", 790),  # another caller's
        ("user:1", None),  # it may not have read it to the end
        ("user:1", 40),  # read in a moment
    ],
)
def test_a_slot_is_given_nothing_of_a_stranger_and_nothing_of_little_use(
    stage: Stage, owner: str, tokens: int | None
) -> None:
    stage.answered("r1", *READ, owner=owner, counted=(tokens, 10))
    choice = stage.enters("r2", {}, RULES, OTHER)
    assert choice.source is not None
    assert stage.restores(choice, {}, RULES, OTHER) is None
    assert not stage.slots.names


def test_a_slot_that_another_request_has_taken_meanwhile_gives_nothing(stage: Stage) -> None:
    stage.answered("r1", *READ)
    choice = stage.enters("r2", {}, RULES, OTHER)
    stage.slots.during = lambda: stage.answered("r3", *READ, SAID, ASKED)
    assert stage.restores(choice, {}, RULES, OTHER) is None
    assert not stage.slots.restored


def test_a_busy_slot_is_not_asked(stage: Stage) -> None:
    stage.enters("r1", *READ)
    assert stage.enters("r2", {}, RULES, OTHER).source is None


def test_the_disk_is_asked_where_it_has_more(stage: Stage) -> None:
    stage.answered("r1", *READ)
    stage.before_end("e")
    stage.gates.forget_content("e", stage.gates.contents("e")[0].serial)
    stage.answered("r2", {}, RULES, OTHER)
    prompt = (*READ, SAID, ASKED)
    choice = stage.enters("r3", *prompt)
    assert choice.source is not None
    found = stage.restores(choice, *prompt)
    assert found is not None
    assert found.reason == "stopping"


def test_engines_that_cannot_go_back_to_a_part_get_no_parts_any_more(stage: Stage) -> None:
    stage.answered("r1", *READ)
    for number in range(3):
        prompt: tuple[object, ...] = ({}, RULES, {"role": "user", "content": str(number)})
        choice = stage.enters(f"other {number}", *prompt)
        found = stage.restores(choice, *prompt)
        assert found is not None
        stage.restorer.judge(found, 0)
        stage.gates.leave(f"other {number}")
        stage.gates.forget_content("e", choice.serial)
    assert stage.restores(stage.enters("last", {}, RULES, OTHER), {}, RULES, OTHER) is None
    assert stage.costs.in_vain("m", "i") == ""


def test_a_request_waits_no_longer_for_the_disk_than_reading_takes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.answered("r1", *READ)
    stage.costs.of(stage.costs.compat(stage.engine.spec)).reads = 2_500.0
    stage.before_end("e")
    (entry,) = stage.store.entries()
    assert 0.25 < entry.seconds < 0.4
    stage.gates.forget_content("e", stage.gates.contents("e")[0].serial)
    slow = Event()
    monkeypatch.setattr(files, "checksum", lambda _: (slow.wait(10), "")[:2])
    found = stage.restores(stage.enters("r2", *READ), *READ)
    assert found is not None
    assert found.why() == "the disk takes longer than reading it again"
    assert stage.store.fails() == "the disk has just failed"
    again = stage.restores(stage.enters("r3", *READ), *READ)
    assert again is not None
    assert again.why() == "the disk has just failed"
    slow.set()
    until(lambda: not list(stage.slots.folder.glob("r*")))


def test_a_prompt_that_begins_like_nothing_kept_is_known_at_once_to_be_new(stage: Stage) -> None:
    tools: tuple[object, ...] = ({"tools": ["whales " * 400]}, RULES, ASKED)
    for number, prompt in enumerate((READ, tools)):
        stage.answered(f"r{number}", *prompt)
        stage.before_end("e")
        stage.gates.forget_content("e", stage.gates.contents("e")[0].serial)
    other = {"role": "system", "content": "sing " * 400}

    def is_new(*prompt: object, owner: str = "user:1") -> bool:
        choice = stage.enters("r2", *prompt, owner=owner)
        stage.gates.leave("r2")
        stage.gates.forget_content("e", choice.serial)
        return stage.restorer.is_new(choice, prompt, owner)

    assert is_new({}, other, ASKED)
    assert is_new({"tools": ["songs"]}, other)
    assert is_new(*READ, owner="user:2")
    assert not is_new({}, RULES, OTHER)
    assert not is_new(*tools[:1], other)
    stage.store.drop()
    assert not is_new(*READ), "why it is gone is still told"
