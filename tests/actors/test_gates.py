"""Gates: who is inside which engine."""

from __future__ import annotations

import threading

import pytest

from greenroom.actors.gates import GateBoard, Place


class Board(GateBoard):
    """A board whose clock a test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        super().__init__(monotonic=lambda: self.now)
        self.emptied: list[str] = []
        self.on_empty = self.emptied.append

    def opened(self, engine_id: str, model_id: str = "m", backend: str = "mlx") -> None:
        self.open(engine_id, model_id, "completion", backend, f"/run/{engine_id}")


@pytest.fixture
def board() -> Board:
    return Board()


def test_an_open_gate_lets_a_request_in_and_out(board: Board) -> None:
    board.opened("e1")
    assert board.enter("m", "completion", "", "r1") == Place("e1", "mlx", "/run/e1")
    assert board.readings()["e1"].inside == 1
    board.now = 105.0
    board.leave("r1")
    reading = board.readings()["e1"]
    assert (reading.inside, reading.idle_since, reading.served) == (0, 105.0, 1)


def test_a_gate_is_idle_from_the_moment_it_is_opened(board: Board) -> None:
    board.opened("e1")
    assert board.readings()["e1"].idle_since == 100.0


def test_only_the_model_the_mode_and_the_backend_asked_for_match(board: Board) -> None:
    board.opened("e1")
    assert board.enter("other", "completion", "", "r1") is None
    assert board.enter("m", "embedding", "", "r1") is None
    assert board.enter("m", "completion", "vllm", "r1") is None
    assert board.enter("m", "completion", "mlx", "r1") is not None


def test_a_closed_gate_admits_no_request_and_keeps_those_inside(board: Board) -> None:
    board.opened("e1")
    board.enter("m", "completion", "", "r1")
    board.close("e1")
    assert board.enter("m", "completion", "", "r2") is None
    assert not board.reserve("e1", "r3")
    assert board.inside("e1") == {"r1"}


def test_a_gate_that_is_opened_again_is_the_same_gate(board: Board) -> None:
    board.opened("e1")
    board.enter("m", "completion", "", "r1")
    board.close("e1")
    board.opened("e1")
    assert board.readings()["e1"].open
    assert board.inside("e1") == {"r1"}


def test_leaving_is_idempotent_and_never_fails(board: Board) -> None:
    board.opened("e1")
    board.enter("m", "completion", "", "r1")
    for _ in range(3):
        board.leave("r1")
    board.leave("unknown")
    assert board.readings()["e1"].served == 1
    assert board.emptied == ["e1"]


def test_the_last_request_to_leave_is_reported(board: Board) -> None:
    board.opened("e1")
    board.enter("m", "completion", "", "r1")
    board.enter("m", "completion", "", "r2")
    board.leave("r1")
    assert not board.emptied
    board.leave("r2")
    assert board.emptied == ["e1"]


def test_a_request_that_leaves_between_the_schedulers_look_and_its_hold_is_reported(board: Board) -> None:
    freed: list[str] = []
    board.on_freed = freed.append
    board.open("e1", "m", "completion", "mlx", "/run/e1", slots=2)
    for request in ("r1", "r2"):
        board.enter("m", "completion", "", request)
    board.leave("r1")
    assert not freed
    board.hold(["e1"])
    assert freed == ["e1"]
    board.hold(["e1"])
    assert freed == ["e1"], (
        "reported again, the system would never come to rest while a request waits for both"
    )


def test_a_granted_request_has_a_reserved_place(board: Board) -> None:
    board.opened("e1")
    assert board.reserve("e1", "r1")
    assert board.inside("e1") == {"r1"}
    assert not board.reserve("e2", "r1")


def test_a_request_has_one_place_only(board: Board) -> None:
    board.opened("e1", "m")
    board.opened("e2", "n")
    board.reserve("e1", "r1")
    board.reserve("e2", "r1")
    assert (board.inside("e1"), board.inside("e2")) == (frozenset[str](), frozenset({"r1"}))
    board.leave("r1")
    assert not board.inside("e2")


def test_an_engine_that_is_gone_takes_its_requests_with_it(board: Board) -> None:
    board.opened("e1")
    board.opened("e2", "n")
    board.enter("m", "completion", "", "r1")
    board.keep(["e2"])
    assert list(board.readings()) == ["e2"]
    board.leave("r1")
    assert not board.emptied


def test_no_request_is_lost_or_counted_twice_when_many_threads_come_and_go() -> None:
    board = GateBoard()
    board.open("e1", "m", "completion", "mlx", "/run/e1")
    start = threading.Barrier(8)

    def visit(visitor: int) -> None:
        start.wait()
        for number in range(200):
            request = f"{visitor}.{number}"
            assert board.enter("m", "completion", "", request)
            board.leave(request)
            board.leave(request)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    reading = board.readings()["e1"]
    assert (reading.inside, reading.served) == (0, 1600)


def test_no_request_slips_through_a_closing_gate() -> None:
    board = GateBoard()
    board.open("e1", "m", "completion", "mlx", "/run/e1")
    start = threading.Barrier(5)
    entered: list[str] = []

    def visit(visitor: int) -> None:
        start.wait()
        for number in range(200):
            request = f"{visitor}.{number}"
            if board.enter("m", "completion", "", request):
                entered.append(request)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    board.close("e1")
    inside = board.inside("e1")
    for thread in threads:
        thread.join(timeout=30)
    assert board.inside("e1") == inside == set(entered)
