"""What is known of an engine's work, and whether it can be reached."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_stage import Stage
from greenroom.actors.gates import GateBoard, GateReading, LastByte
from greenroom.runner.engines import reachability
from greenroom.runner.engines.handle import batch_of
from greenroom.runner.engines.liveness import LIMIT, EngineObservations
from greenroom.runner.engines.reachability import Reachability
from greenroom.runner.systems import processes
from waiting import until

COUNTED = b"llamacpp:prompt_tokens_total 1000\nllamacpp:prompt_seconds_total 10\n"


def reading(inside: int = 1, quiet_since: float = 0.0, **more: Any) -> GateReading:
    more = {"idle_since": 0.0, "served": 0, **more}
    return GateReading(open=True, inside=inside, quiet_since=quiet_since, **more)


def test_silence_counts_from_the_last_byte_or_the_last_work_whichever_was_later() -> None:
    life = EngineObservations(0.0)
    life.use(1.0, 10.0)
    assert life.still_for(reading(quiet_since=4.0), 30.0) == 20.0
    assert life.still_for(reading(quiet_since=25.0), 30.0) == 5.0


def test_an_engine_without_requests_has_no_silence() -> None:
    assert EngineObservations(0.0).quiet_for(reading(0), 1000.0) == 0.0


def test_what_an_idle_server_uses_does_not_count_as_work() -> None:
    life = EngineObservations(0.0)
    life.use(5.0, 0.0)
    for second in range(1, 101):
        life.use(5.0 + second * 0.01, float(second))
    assert life.still_for(reading(), 100.0) == 100.0
    life.use(7.0, 101.0)
    assert life.still_for(reading(), 101.0) == 0.0


def test_a_process_that_left_the_group_is_a_change() -> None:
    life = EngineObservations(0.0)
    life.use(50.0, 0.0)
    life.use(3.0, 20.0)
    assert life.still_for(reading(), 20.0) == 0.0


def test_clients_that_come_and_go_without_an_answer_do_not_reset_the_silence() -> None:
    byte = LastByte(0.5)

    def told(inside: int) -> GateReading:
        since, left = byte.unanswered_since, byte.left_at
        return reading(inside, byte.at, unanswered_since=since, left_at=left)

    for number in range(10):
        byte.ask(1.0 + 2 * number)
        assert EngineObservations(0.0).quiet_for(told(1), 2.0 + 2 * number) == 1.0 + 2 * number
        byte.left_at = 2.5 + 2 * number
    assert EngineObservations(0.0).quiet_for(told(0), 20.5) == 19.5
    byte.ask(25.0)
    byte.at = 30.0
    assert EngineObservations(0.0).quiet_for(told(1), 31.0) == 1.0
    byte.left_at = 32.0
    assert EngineObservations(0.0).quiet_for(told(0), 100.0) == 0.0


def test_a_client_that_leaves_at_once_is_no_reason_to_ask_an_idle_engine() -> None:
    left = reading(0, 10.0, left_at=10.2, unanswered_since=10.0)
    assert EngineObservations(0.0).quiet_for(left, 100.0) == 0.0


def test_a_gate_tells_since_when_a_question_is_unanswered_and_when_the_last_one_left() -> None:
    gates = GateBoard()
    gates.open("e", "m", "completion", "fake", "/e")
    assert gates.enter("m", "completion", "", "r")
    (asked,) = gates.readings().values()
    assert asked.unanswered_since == asked.quiet_since > 0
    gates.leave("r")
    (left,) = gates.readings().values()
    assert left.left_at >= left.unanswered_since == asked.unanswered_since
    gates.last_byte("e").at = time.monotonic() + 1
    (answered,) = gates.readings().values()
    assert answered.unanswered_since == 0.0


def test_counters_that_move_are_work_and_show_how_long_a_batch_takes() -> None:
    life = EngineObservations(0.0)
    life.count(b"1", 10.0, since=0.0)
    life.count(b"1", 30.0, since=0.0)
    assert life.quiet_for(reading(), 30.0) == 30.0
    life.count(b"2", 50.0, since=0.0)
    assert life.quiet_for(reading(), 50.0) == 0.0
    assert life.longest == 50.0


def test_counters_that_moved_before_this_silence_prove_nothing_about_it() -> None:
    life = EngineObservations(0.0)
    life.count(b"1", 10.0, since=0.0)
    life.count(b"9", 3604.0, since=3600.0)
    assert life.longest == 0.0
    assert life.quiet_for(reading(quiet_since=3600.0), 3604.0) == 4.0
    life.count(b"10", 3606.0, since=3600.0)
    assert life.longest == 6.0


def test_an_engine_at_work_has_five_times_its_longest_batch_reckoned_from_its_speed() -> None:
    assert EngineObservations(0.0).patience(LIMIT) >= 600.0, (
        "of one whose speed is not known a batch may take long"
    )
    life = EngineObservations(0.0, batch=512)
    life.count(COUNTED, 1.0, since=0.0)
    assert life.patience(LIMIT) == pytest.approx(5 * 5.12)
    fast = EngineObservations(0.0, batch=128)
    fast.count(COUNTED, 1.0, since=0.0)
    assert fast.patience(LIMIT) == LIMIT


def test_a_token_a_second_says_nothing_about_how_long_a_batch_of_a_prompt_takes() -> None:
    life = EngineObservations(0.0)
    for second in range(1, 10):
        life.read(reading(quiet_since=float(second)))
    assert life.longest == 1.0
    assert life.patience(LIMIT) >= 600.0


def test_an_engine_at_work_in_vain_is_counted_from_when_its_last_client_left() -> None:
    life, cpu, second = EngineObservations(0.0), 0.0, 0

    def after(seconds: int, share: float, told: GateReading) -> float:
        nonlocal cpu, second
        found = 0.0
        for _ in range(seconds):
            cpu, second = cpu + share, second + 1
            life.use(cpu, float(second))
            found = life.at_work_in_vain(told, float(second))
        return found

    assert after(10, 1.0, reading(0)) == 0.0, "no client has been there"
    assert after(10, 0.01, reading(0, left_at=5.0)) == 0.0
    assert after(50, 1.0, reading(1)) == 0.0, "it has a request"
    assert after(20, 1.0, reading(0, left_at=70.0)) == 20.0
    assert life.patience_in_vain(reading(0), LIMIT) > 20.0
    assert after(1, 0.01, reading(0, left_at=70.0)) == 0.0, "it has noticed"
    assert after(5, 1.0, reading(0, left_at=70.0)) == 5.0, "it began again"
    new = reading(1, left_at=70.0, unanswered_since=95.0)
    assert after(5, 1.0, new) == 0.0, "it may compute for the new request"
    blocked = reading(1, left_at=70.0, unanswered_since=60.0)
    assert after(5, 1.0, blocked) == 15.0, "no one has had a byte since before that client left"
    life.prove(float(second))
    assert after(5, 1.0, blocked) == 5.0, "it computes for the new request too"
    life.excuse(float(second))
    assert life.at_work_in_vain(reading(0, left_at=70.0), float(second)) == 0.0
    slow = EngineObservations(0.0, batch=2048)
    slow.count(COUNTED, 1.0, since=0.0)
    assert slow.patience_in_vain(reading(0), LIMIT) == pytest.approx(40.96), "it notices after a batch"
    assert slow.patience_in_vain(reading(1), LIMIT) == pytest.approx(81.92)


def test_time_in_which_nothing_was_observed_does_not_count() -> None:
    life = EngineObservations(0.0)
    life.excuse(5000.0)
    assert life.quiet_for(reading(quiet_since=1.0), 5001.0) == 1.0
    assert life.still_for(reading(quiet_since=1.0), 5001.0) == 1.0


def test_the_batch_is_what_the_command_line_says_last() -> None:
    assert batch_of(["llama-server", "-b", "64", "--batch-size", "128"]) == 128
    assert batch_of(["llama-server", "--batch-size", "many"]) == 0


def test_a_listener_is_found_without_a_connection(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        assert os.fsencode(path) in reachability.listeners()
        found = reachability.check(
            path, leader=1, inode=reachability.inode_of(path), listening=frozenset([os.fsencode(path)])
        )
        assert found is Reachability.REACHED
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        # Where the system does not list it, a knock tells.
        there: dict[str, Any] = {"inode": reachability.inode_of(path), "listening": frozenset[bytes]()}
        assert reachability.check(path, leader=os.getpid(), **there) is Reachability.REACHED
        assert reachability.check(path, leader=1, **there) is Reachability.STRANGER
    assert reachability.check(path, leader=1, **there) is Reachability.REFUSED
    path.unlink()
    assert reachability.check(path, leader=1, **there) is Reachability.GONE
    path.write_text("no socket")
    assert reachability.check(path, leader=1, **there) is Reachability.GONE


def test_a_full_queue_of_new_connections_counts_as_listening(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as clients:
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(3):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(path))
        assert reachability.knock(path, os.getpid()) is Reachability.REACHED


def test_a_folder_that_cannot_be_read_says_nothing_about_listeners(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    found = reachability.check(file / "s", leader=1, inode=1, listening=frozenset())
    assert found is Reachability.REACHED


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def test_a_stopped_process_is_seen_and_one_that_runs_is_not(stage: Stage, sleeper: Any) -> None:
    until(lambda: not processes.wants_to_work([sleeper.pid]))
    assert not processes.stopped([sleeper.pid])
    assert not processes.traced([sleeper.pid])
    sleeper.send_signal(signal.SIGSTOP)
    until(lambda: processes.stopped([sleeper.pid]))
    assert not processes.wants_to_work([sleeper.pid])
