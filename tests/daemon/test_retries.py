"""What failed for a while is tried again at its recorded time: after a kill, and whatever the clock says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.installer.messages import BackendStatus, Ensure
from greenroom.actors.kernel.clock import ManualClock
from greenroom.actors.kernel.errors import Refused
from greenroom.actors.retry import INSTALL_RETRIES
from greenroom.runner.config import Settings
from greenroom.runner.daemon import Greenroom
from package_index import Misbehaviour
from toy import toy_backend
from waiting import until
from workshop import Workshop

DAY = 86_400.0
FIRST_WAIT = 1.5
"""Seconds after which the second attempt has begun, whatever was drawn."""
LONGEST = INSTALL_RETRIES.longest


def attempts(workshop: Workshop, name: str) -> int:
    """How often the index was asked for a backend: once an attempt while it fails."""
    return workshop.index.paths().count(f"/simple/{name}/")


@pytest.mark.parametrize("late", [False, True], ids=["in_time", "after_it"])
def test_a_retry_outlives_a_killed_daemon_and_begins_at_its_recorded_time(
    late: bool, workshop: Workshop, make_daemon: Callable[..., Any], tmp_path: Path
) -> None:
    workshop.add("killed")
    workshop.index.wrong["killed"] = Misbehaviour(status=503)
    daemon = make_daemon(**workshop.environment(tmp_path))
    workshop.furnish(daemon.home)
    daemon.start()
    asking = daemon.begin("install-runner", "--backend", "killed")

    def far_enough() -> bool:
        failed = daemon.events("install_attempt_failed")
        return bool(failed) and failed[-1][1]["retry_at"] > time.time() + 2.0

    # A wait that another daemon's start fits into; the second or third is.
    until(far_enough)
    daemon.kill()
    failures = daemon.events("install_attempt_failed")
    retry_at = failures[-1][1]["retry_at"]
    asked = attempts(workshop, "killed")
    out, err = asking.communicate(timeout=60)
    assert asking.returncode != 0
    assert "killed: Waiting to try again (attempt 2): 127.0.0.1 has a problem (HTTP status 503)" in out + err
    del workshop.index.wrong["killed"]

    if late:
        time.sleep(max(0.0, retry_at - time.time()) + 0.1)  # it comes due while there is no daemon
    daemon.start()

    def goes_on() -> bool:
        begun, now = attempts(workshop, "killed") > asked, time.time()
        assert not begun or now >= retry_at, f"{retry_at - now:.1f} s too early"
        return begun

    until(goes_on)
    (committed, _), *more = until(lambda: daemon.events("installation_committed"))
    assert not more
    assert committed.at >= retry_at
    assert daemon.events("install_attempt_failed") == failures, "the kill was no attempt"
    stored, begun = daemon.events("install_attempt_begun")[-1]
    assert stored.at >= retry_at
    assert begun["attempt"] == failures[-1][1]["attempt"] + 1
    assert len([one for one, _ in daemon.events("install_requested") if one.stream == "install/killed"]) == 1
    assert daemon.get("/engines/killed").json["state"] == "installed"
    assert daemon.run("why", "killed").stdout.startswith("killed 1.0 has been installed since")


@pytest.fixture
def make_greenroom(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AbstractContextManager[Greenroom]]:
    """Greenrooms with one backend and a clock of the test's; they share a data directory."""
    for name, value in workshop.environment(tmp_path).items():
        monkeypatch.setenv(name, value)

    @contextmanager
    def make(name: str, clock: ManualClock) -> Iterator[Greenroom]:
        backends = {name: toy_backend(workshop.folder, name=name)}
        with Greenroom(Settings(home=tmp_path / "home"), backends=backends, clock=clock) as greenroom:
            yield greenroom

    return make


def job_of(greenroom: Greenroom) -> BackendStatus:
    return greenroom.statuses()[0]


@pytest.fixture
def fails_once(workshop: Workshop, make_greenroom: Any) -> Callable[..., Any]:
    """Begins an installation whose first attempt fails, then repairs the index."""

    @contextmanager
    def begin(name: str, clock: ManualClock) -> Iterator[tuple[Greenroom, Any]]:
        workshop.add(name)
        workshop.index.wrong[name] = Misbehaviour(status=503)
        with make_greenroom(name, clock) as greenroom:
            reply = greenroom.system.ask(Ensure(backend=name))
            until(lambda: job_of(greenroom).attempt == 2)
            del workshop.index.wrong[name]
            yield greenroom, reply

    return begin


def test_a_second_attempt_under_way_is_called_installing_and_not_waiting(
    workshop: Workshop, fails_once: Any
) -> None:
    clock = ManualClock(time.time())
    with fails_once("second", clock) as (greenroom, reply):
        assert job_of(greenroom).state == "waiting_to_retry"
        go_on = threading.Event()
        workshop.index.wrong["second"] = Misbehaviour(hang=go_on)
        clock.advance(FIRST_WAIT)
        until(lambda: attempts(workshop, "second") == 2)
        assert job_of(greenroom).state == "installing"
        go_on.set()
        assert reply.get(timeout=60).fresh


def test_a_clock_that_is_set_back_by_a_day_delays_no_retry(workshop: Workshop, fails_once: Any) -> None:
    clock = ManualClock(time.time())
    with fails_once("setback", clock) as (_, reply):
        clock.jump(-DAY)
        clock.advance(FIRST_WAIT)
        assert reply.get(timeout=60).fresh


def test_a_retry_recorded_by_a_clock_that_was_a_day_ahead_waits_no_longer_than_any_other(
    workshop: Workshop, fails_once: Any, make_greenroom: Any
) -> None:
    with fails_once("ahead", ManualClock(time.time() + DAY)):
        pass
    asked = attempts(workshop, "ahead")
    clock = ManualClock(time.time())
    with make_greenroom("ahead", clock) as greenroom:
        assert job_of(greenroom).state == "waiting_to_retry"
        assert job_of(greenroom).retry_at <= clock.now().wall + LONGEST
        clock.advance(LONGEST - 1)
        with pytest.raises(Refused):  # behind whatever that woke
            greenroom.system.ask(Ensure(backend="unknown")).get(timeout=60)
        assert attempts(workshop, "ahead") == asked
        clock.advance(1.5)
        until(lambda: job_of(greenroom).state == "installed")
