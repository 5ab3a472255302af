"""Time in which the daemon does not run counts against no request; a jump of the wall clock ends nothing."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.actors.library.messages import Pull
from greenroom.actors.scheduler.messages import Abandon, Serve
from greenroom.runner import awake_clock as module
from greenroom.runner.awake_clock import AwakeClock, AwakeTime
from greenroom.runner.config import Settings
from greenroom.runner.daemon import Greenroom
from greenroom.runner.setting_values import ExternalBackend
from greenroom.runner.testing import fake_backend, tiny_gguf


class Machine:
    """Its clock, which can jump as it does for a process that was stopped."""

    def __init__(self) -> None:
        self.asleep = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.asleep


class Still:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_gap_is_taken_off_and_small_ones_are_what_a_busy_machine_costs() -> None:
    still = Still()
    awake = AwakeTime(still)
    assert awake() == 1000.0
    still.now += 1.9
    assert awake() == 1001.9
    still.now += 3600.0
    assert awake() == pytest.approx(1002.4)
    still.now += 1.0
    assert awake() == pytest.approx(1003.4)


def test_timers_come_later_by_the_time_that_was_lost() -> None:
    machine = Machine()
    clock = AwakeClock(AwakeTime(machine))
    try:
        fired = threading.Event()
        due = clock.now().monotonic + 60.0
        clock.call_at(due, fired.set)
        machine.asleep += 3600.0
        assert clock.now().monotonic < due - 55.0
        assert not fired.wait(1.2)  # the timer thread has looked meanwhile
    finally:
        clock.close()


def test_the_clock_looks_by_itself_so_that_time_without_questions_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)
    monkeypatch.setattr(module, "GAP", 0.5)
    clock = AwakeClock(AwakeTime())
    try:
        began, real = clock.now().monotonic, time.monotonic()
        time.sleep(0.8)  # no caller reads the clock
        assert clock.now().monotonic - began > 0.9 * (time.monotonic() - real)
    finally:
        clock.close()


@contextlib.contextmanager
def running(programs: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine) -> Iterator[Greenroom]:
    monkeypatch.setattr("greenroom.runner.daemon.AwakeTime", lambda: AwakeTime(machine))
    with tempfile.TemporaryDirectory(prefix="gr-") as folder:
        binary = {"fake": ExternalBackend(binary=Path(sys.executable))}
        settings = Settings(home=Path(folder) / "h", backends=binary, keep_alive=60.0)
        backends = {"fake": fake_backend(programs / "fake_engine.py")}
        with Greenroom(settings, backends=backends) as greenroom:
            file = tiny_gguf(Path(folder) / "tiny.gguf")
            greenroom.tiny = greenroom.system.ask(Pull(reference=f"file:{file}")).get(timeout=30).model  # type: ignore[attr-defined]
            yield greenroom


def test_an_engine_is_not_idle_and_a_request_does_not_wait_while_nothing_runs(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine()
    with running(programs, monkeypatch, machine) as greenroom:
        system = greenroom.system
        serve = Serve(request_id="r1", model_id=greenroom.tiny.id, model_ref="tiny")  # type: ignore[attr-defined]
        waiting = system.ask(serve, timeout=60)
        machine.asleep += 10_000.0  # beyond every bound: max_wait, keep-alive, drain, stall
        assert waiting.get(timeout=30).endpoint
        system.tell(Abandon(request_id="r1"))
        greenroom.gates.leave("r1")
        machine.asleep += 10_000.0
        system.ask(Abandon(request_id="none")).get(timeout=30)
        system.rest()
        assert [one.state for one in greenroom.engines()] == ["ready"]


@pytest.mark.parametrize("years", [10, -10])
def test_a_wall_clock_that_jumps_by_years_ends_no_request(
    programs: Path, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    real, jump = time.time, 0.0
    with running(programs, monkeypatch, Machine()) as greenroom:
        system = greenroom.system
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        for number in range(2):
            serve = Serve(request_id=f"r{number}", model_id=greenroom.tiny.id, model_ref="tiny")  # type: ignore[attr-defined]
            assert system.ask(serve, timeout=60).get(timeout=30).endpoint
            system.tell(Abandon(request_id=f"r{number}"))
            greenroom.gates.leave(f"r{number}")
            jump = years * 365 * 86_400.0
            system.rest()
        assert [one.state for one in greenroom.engines()] == ["ready"]
