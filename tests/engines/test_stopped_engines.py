"""What was stopped or cannot be reached is found out."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from engine_stage import Stage
from odd_stage import Odd
from waiting import suspend


def test_a_stopped_engine_is_found_within_a_second_with_no_request_inside(odd: Odd) -> None:
    odd.since = time.monotonic()
    suspend(odd.pid)
    failure = odd.found_out()
    assert (failure.code, failure.blame) == ("engine_halted", "machine")
    assert odd.lag.allows(odd.took, 1.0)
    assert "exited" not in odd.stage.heard.names()
    began = time.monotonic()
    odd.host.stop(odd.spec.engine_id, reason="it is replaced")
    odd.stage.heard.wait("exited")
    assert time.monotonic() - began < 2.0, "a stopped process obeys SIGKILL only"


def test_an_engine_that_was_stopped_for_a_moment_is_left_alone(odd: Odd) -> None:
    suspend(odd.pid)
    threading.Event().wait(0.05)
    os.kill(odd.pid, signal.SIGCONT)
    odd.is_left_alone_for(1.5)


def test_an_engine_stopped_while_it_loads_is_given_up(stage: Stage) -> None:
    host, spec = stage.host("--load-forever"), stage.spec()
    host.start(spec)
    pid, *_ = stage.heard.wait("spawned")
    suspend(pid)
    (failure,) = stage.heard.wait("stalled", bound=5.0)
    assert failure.code == "engine_halted"


def test_an_engine_without_its_socket_is_found_within_a_second_though_clients_keep_asking(odd: Odd) -> None:
    odd.since = time.monotonic()
    Path(odd.endpoint).unlink()
    for number in range(20):
        odd.enter(f"r{number}")
        threading.Event().wait(0.02)
        odd.gates.leave(f"r{number}")
    failure = odd.found_out()
    assert (failure.code, failure.blame) == ("engine_unreachable", "machine")
    assert odd.lag.allows(odd.took, 1.0)


def test_an_engine_that_refuses_connections_is_found_within_a_second(odd: Odd) -> None:
    odd.goes("close")
    failure = odd.found_out()
    assert (failure.code, failure.blame) == ("engine_closed", "engine")
    assert odd.lag.allows(odd.took, 1.0)
    assert odd.stage.alive(odd.pid)


def test_requests_inside_an_engine_that_new_ones_cannot_reach_are_answered_first(odd: Odd) -> None:
    odd.enter()
    byte = odd.gates.last_byte(odd.spec.engine_id)
    streaming = threading.Event()

    def stream() -> None:
        while not streaming.wait(0.05):
            byte.at = time.monotonic()

    reader = threading.Thread(target=stream)
    reader.start()
    Path(odd.endpoint).unlink()
    odd.found_out()
    odd.host.stop(odd.spec.engine_id, reason="it is replaced")
    threading.Event().wait(1.0)
    assert odd.stage.alive(odd.pid), "its stream was cut off"
    streaming.set()
    reader.join()
    odd.gates.leave("r")
    odd.stage.heard.wait("exited")
