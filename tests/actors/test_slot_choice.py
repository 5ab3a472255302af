"""Which slot of an engine a prompt goes to, by what the slots have read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom.actors.gates import GateBoard
from greenroom.actors.slot_choice import SlotChoice, SlotContent, shared

RULES, HELLO, HI, MORE, OTHER = "rules", "hello", "hi", "more", "other"


class Board(GateBoard):
    def __init__(self, *, slots: int = 2, engines: Sequence[str] = ("e1",)) -> None:
        super().__init__(lambda: 1.0, lambda: 1.0)
        for engine in engines:
            self.open(engine, "m", "completion", "llama.cpp", f"/run/{engine}", slots)

    def asked(self, request: str, *prompt: object, key: str = "", slots: int = 1) -> SlotChoice | None:
        """A request that enters, and is given a slot."""
        assert self.enter("m", "completion", "", request, slots=slots, prompt=prompt) is not None
        return self.take_slot(request, prompt, lambda: (), key=key)

    def answered(self, request: str, *prompt: object, key: str = "") -> tuple[int, int]:
        """One that has left again: its slot, and what of its prompt that had read."""
        choice = self.asked(request, *prompt, key=key)
        assert choice is not None
        self.leave(request)
        return choice.number, choice.held


def test_a_conversation_goes_on_in_the_slot_that_has_read_it() -> None:
    board = Board(slots=3)
    assert board.answered("r1", RULES, HELLO) == (0, 0)
    assert board.answered("r2", RULES, OTHER) == (1, 0)
    assert board.answered("r3", RULES, HELLO, HI, MORE) == (0, 2)
    assert board.answered("r4", RULES, OTHER, HI, MORE) == (1, 2)
    assert board.answered("r5", RULES, HELLO, HI, MORE) == (0, 4)


def test_conversations_that_share_their_beginning_do_not_take_each_others_slot() -> None:
    board = Board(slots=2)
    board.answered("r1", RULES, HELLO)
    assert board.answered("r2", RULES, OTHER) == (1, 0)
    # A third one takes the slot used longest ago, of which it has the rules.
    choice = board.asked("r3", RULES, MORE)
    assert choice is not None
    assert (choice.number, choice.held) == (0, 1)
    assert choice.lost is not None
    assert choice.lost.parts == (RULES, HELLO)


def test_the_longest_beginning_counts_and_nothing_is_lost_of_it() -> None:
    board = Board(slots=2)
    board.answered("r1", RULES)
    board.asked("r2", RULES, HELLO)
    board.asked("r3", OTHER)
    board.leave("r3")
    board.leave("r2")
    choice = board.asked("r4", RULES, HELLO, HI, MORE)
    assert choice is not None
    assert (choice.number, choice.held, choice.lost) == (0, 2, None)


def test_a_request_that_has_not_chosen_yet_gives_way() -> None:
    board = Board(slots=2)
    board.answered("r1", HELLO)
    assert board.enter("m", "completion", "", "waits") is not None
    assert [slot.number for slot in board.slots("e1")] == [0]
    choice = board.asked("r2", HELLO, HI, MORE)
    assert choice is not None
    assert (choice.number, choice.held) == (0, 1)
    taken = {slot.request_id: slot.number for slot in board.slots("e1")}
    assert taken == {"r2": 0, "waits": 1}
    late = board.take_slot("waits", (OTHER,), lambda: ())
    assert late is not None
    assert late.number == 1


def test_a_slot_in_use_is_not_chosen_though_it_holds_the_conversation() -> None:
    board = Board(slots=2)
    first = board.asked("r1", HELLO)
    second = board.asked("r2", HELLO, HI, MORE)
    assert first is not None
    assert second is not None
    assert (first.number, second.number, second.held) == (0, 1, 0)
    assert board.contents("e1") == {}


def test_after_several_answers_at_once_nothing_is_known_of_free_slots() -> None:
    board = Board(slots=3)
    board.answered("r1", HELLO)
    assert board.asked("r2", OTHER, slots=2) is None
    board.leave("r2")
    assert board.contents("e1") == {}
    assert board.answered("r3", HELLO, HI, MORE) == (0, 0)


def test_what_an_engine_refuses_is_not_taken_for_read() -> None:
    board = Board()
    board.asked("r1", HELLO)
    board.forget("r1")
    board.leave("r1")
    assert board.contents("e1") == {}


def test_a_request_that_keeps_nothing_leaves_a_slot_that_holds_nothing() -> None:
    board = Board(slots=1)
    board.answered("r1", HELLO)
    board.enter("m", "completion", "", "r2")
    choice = board.take_slot("r2", (OTHER,), lambda: (), keeps=False)
    board.leave("r2")
    assert choice is not None
    assert choice.lost is not None
    assert board.contents("e1") == {}


def test_another_key_does_not_profit_from_a_slot() -> None:
    board = Board(slots=2)
    board.answered("r1", RULES, HELLO, key="key:ann")
    assert board.answered("r2", RULES, HELLO, HI, key="key:bob") == (1, 0)
    assert board.answered("r3", RULES, HELLO, HI, key="key:ann") == (0, 2)


def test_of_several_engines_the_one_that_has_read_most_is_entered() -> None:
    board = Board(engines=("e1", "e2"))
    prompts: dict[str, tuple[str, ...]] = {"r1": (RULES, HELLO), "r2": (RULES, OTHER)}
    for request, prompt in prompts.items():
        board.enter("m", "completion", "", request, prompt=prompt)
        board.take_slot(request, prompt, lambda: ())
        if request == "r1":
            board.hold(["e1"])
    board.leave("r1")
    board.leave("r2")
    board.hold([])
    for request, more, engine in (("r3", (RULES, OTHER, HI), "e2"), ("r4", (RULES, HELLO, HI), "e1")):
        place = board.enter("m", "completion", "", request, prompt=more)
        assert place is not None
        assert place.engine_id == engine


def test_what_an_earlier_daemon_knew_of_slots_is_compared_by_hashes() -> None:
    board = Board()
    board.learn("e1", {1: SlotContent((b"1", b"2"), hashed=True), 7: SlotContent((b"1",), hashed=True)})
    assert set(board.contents("e1")) == {1}
    board.enter("m", "completion", "", "r1")
    choice = board.take_slot("r1", (RULES, HELLO, HI), lambda: (b"1", b"2", b"3"))
    assert choice is not None
    assert (choice.number, choice.held, choice.lost) == (1, 2, None)
    board.leave("r1")
    assert board.contents("e1")[1].parts == (RULES, HELLO, HI)
    board.learn("e1", {1: SlotContent((b"9",), hashed=True)})
    assert board.contents("e1")[1].parts == (RULES, HELLO, HI)


def test_whose_a_slot_is_is_noted_only_while_it_holds_that_request() -> None:
    board = Board(slots=1)
    first = board.asked("r1", HELLO)
    board.leave("r1")
    second = board.asked("r2", OTHER)
    board.leave("r2")
    assert first is not None
    assert second is not None
    board.own(first, "user:1", lambda: (4, 1))
    assert board.contents("e1")[0].owner == ""
    board.own(second, "user:2", lambda: (4, 1))
    assert board.contents("e1")[0].owner == "user:2"


def test_an_engine_without_a_limit_chooses_itself() -> None:
    board = Board(slots=0)
    assert board.asked("r1", HELLO) is None


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [((), (), 0), ((1,), (), 0), ((1, 2), (1, 2, 3), 2), ((1, 2, 3), (1, 9, 3), 1), ((1, 2), (1, 2), 2)],
)
def test_shared_parts_are_counted_from_the_first(
    one: tuple[int, ...], other: tuple[int, ...], count: int
) -> None:
    assert shared(one, other) == shared(other, one) == count


Turn = tuple[int, int, bool]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3), st.booleans()), max_size=30), st.integers(1, 3)
)
def test_no_two_requests_have_one_slot_and_none_is_said_to_hold_more_than_it_read(
    turns: list[Turn], slots: int
) -> None:
    board = Board(slots=slots)
    read: dict[int, list[str]] = {}
    inside: dict[str, int] = {}
    for number, (chat, length, stays) in enumerate(turns):
        request, prompt = f"r{number}", tuple(f"{chat}.{at}" for at in range(length))
        if board.enter("m", "completion", "", request, prompt=prompt) is None:
            board.hold([])
            leaves = next(iter(inside))
            del inside[leaves]
            board.leave(leaves)
            continue
        choice = board.take_slot(request, prompt, lambda: ())
        assert choice is not None
        assert choice.number not in inside.values()
        assert choice.held == shared(read.get(choice.number, ()), prompt)
        read[choice.number] = list(prompt)
        inside[request] = choice.number
        if not stays:
            del inside[request]
            board.leave(request)
        assert {slot.request_id: slot.number for slot in board.slots("e1")} == inside
