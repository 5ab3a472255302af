"""The daemon's own stream: started, stopped in order, or killed."""

from __future__ import annotations

from greenroom.actors.daemon_log import DaemonLog, DaemonStarted, DaemonStopped, NoteStopped
from greenroom.actors.kernel.core import Recovered
from greenroom.actors.testing import given

STARTED = DaemonStarted(pid=42, version="0.1", platform="test")


def test_a_start_is_stored_first() -> None:
    given(DaemonLog(STARTED)).when(Recovered()).then(STARTED)


def test_a_rebuilt_actor_is_not_another_start() -> None:
    given(DaemonLog(STARTED), STARTED).when(Recovered()).then()


def test_a_daemon_with_the_pid_of_one_that_was_killed_has_started_too() -> None:
    """Process 1 of a container is 1 in each life."""
    first, second = (DaemonStarted(pid=1, version="0.1", platform="test", life=life) for life in "ab")
    case = given(DaemonLog(second), first).when(Recovered()).then(second)
    assert case.state.starts == 2
    given(DaemonLog(second), first, second).when(Recovered()).then()


def test_an_orderly_stop_differs_from_a_killed_daemon() -> None:
    case = given(DaemonLog(STARTED), STARTED)
    assert case.state.running_pid == 42
    case.when(NoteStopped(pid=42, reason="a stop was requested")).then(DaemonStopped)
    assert case.state.running_pid == 0


def test_a_daemon_after_one_that_was_killed_has_started_too() -> None:
    killed = DaemonStarted(pid=7, version="0.1", platform="test")
    case = given(DaemonLog(STARTED), killed).when(Recovered()).then(STARTED)
    assert case.state.starts == 2
