"""What does nothing for its requests is found out; what works is left alone."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from typing import Any

import pytest

from greenroom.runner.engines import liveness, reachability
from greenroom.runner.systems import processes
from odd_stage import Odd
from waiting import suspend, until


@pytest.mark.parametrize(
    ("wrong", "code"), [("hang", "engine_stalled"), ("garble", "engine_garbled")], ids=["hangs", "garbles"]
)
def test_an_engine_that_answers_nothing_or_nonsense_is_found_with_no_request_inside(
    odd: Odd, wrong: str, code: str
) -> None:
    odd.goes(wrong)
    assert odd.found_out().code == code
    assert odd.lag.allows(odd.took, 15.0)


@pytest.mark.parametrize("wrong", ["hang", "hollow", "half"])
def test_an_engine_that_answers_no_request_is_found_whether_or_not_clients_keep_asking(
    odd: Odd, wrong: str
) -> None:
    odd.goes(wrong)
    odd.enter("r0")
    threading.Event().wait(1.2)
    odd.gates.leave("r0")
    assert odd.found_out().code == "engine_stalled"
    assert odd.lag.allows(odd.took, 15.0)


def test_an_engine_whose_answers_are_invalid_is_asked_as_soon_as_the_front_door_reports_it(odd: Odd) -> None:
    odd.goes("mumble")
    odd.gates.doubt(odd.spec.engine_id)
    assert odd.found_out().code == "engine_garbled"
    assert odd.lag.allows(odd.took, 15.0)


def test_an_engine_in_doubt_that_answers_is_left_alone(odd: Odd) -> None:
    odd.gates.doubt(odd.spec.engine_id)
    odd.is_left_alone_for(3.5)


def test_without_a_descriptor_to_ask_with_nothing_is_said_of_an_engine(
    odd: Odd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(reachability, "listeners", frozenset)
    odd.enter()
    odd.is_left_alone_for(4.0)
    odd.gates.leave("r")
    odd.is_left_alone_for(4.0)
    monkeypatch.undo()


def test_an_engine_that_computes_is_left_alone_for_long(odd: Odd) -> None:
    odd.goes("spin")
    odd.enter()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(odd.endpoint)
        client.sendall(b"POST /v1/completions HTTP/1.1\r\n\r\n")
        odd.is_left_alone_for(5.0)
    odd.goes("well")


def test_an_engine_that_computes_on_when_its_clients_have_left_is_given_up_soon(
    odd: Odd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that makes a grammar of a schema without end, however well it answers others."""
    monkeypatch.setattr(liveness, "AT_WORK_IN_VAIN", 3.0)
    odd.enter()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(odd.endpoint)
        client.sendall(b"POST /long HTTP/1.1\r\n\r\n")
        odd.is_left_alone_for(4.0)
        odd.gates.leave("r")
        failure = odd.found_out()
    assert (failure.code, failure.blame) == ("engine_abandoned", "client")
    assert "for a client that had left" in failure.message


def test_an_engine_that_is_kept_at_work_by_a_client_that_left_is_given_up_though_others_wait(
    odd: Odd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "AT_WORK_IN_VAIN", 3.0)
    odd.goes("spin")
    odd.enter("first")
    odd.enter("second")
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(odd.endpoint)
        client.sendall(b"POST /v1/completions HTTP/1.1\r\n\r\n")
        odd.is_left_alone_for(4.0)
        odd.gates.leave("first")
        assert odd.found_out().code == "engine_abandoned"


def test_an_engine_that_computes_a_long_answer_and_answers_others_is_left_alone(
    odd: Odd, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is asked every 3 s, and given up 3 s after that: longer than machines stand still.
    monkeypatch.setattr(liveness, "UNKNOWN_BATCH", 1.2)
    odd.enter()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(odd.endpoint)
        client.sendall(b"POST /long HTTP/1.1\r\n\r\n")
        odd.is_left_alone_for(9.0)
        odd.goes("hollow")


def test_an_engine_under_a_debugger_is_left_alone(odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "traced", lambda pids: odd.pid in pids)
    suspend(odd.pid)
    odd.enter()
    odd.is_left_alone_for(4.0)
    monkeypatch.undo()
    assert odd.found_out().code == "engine_halted", "the debugger has gone and left it stopped"


def test_after_the_daemon_itself_was_suspended_an_engine_gets_its_full_time_again(
    odd: Odd, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd.goes("hollow")
    odd.enter()
    threading.Event().wait(1.5)
    slept, looked = time.monotonic() + 1000.0, list[float]()

    def since_boot(_clock: int) -> float:
        looked.append(time.monotonic())
        return slept

    monkeypatch.setattr(time, "clock_gettime", since_boot)
    until(lambda: looked)
    monkeypatch.undo()
    woke = looked[0]
    odd.found_out()
    assert odd.stage.heard.moment("stalled") - woke > 1.5
