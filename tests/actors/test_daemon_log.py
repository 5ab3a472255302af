"""The daemon's own stream: started, stopped in order, or killed."""

from __future__ import annotations

from msgspec.structs import replace

from greenroom.actors.daemon_log import (
    DaemonLog,
    DaemonStarted,
    DaemonStopped,
    DevicesChanged,
    NoteDevices,
    NoteStopped,
)
from greenroom.actors.graphics import Graphics, GraphicsDevice
from greenroom.actors.kernel.core import Recovered
from greenroom.actors.testing import given
from greenroom.actors.values import Failure

CARD = GraphicsDevice(id="GPU-1", maker="nvidia", name="NVIDIA L4", total=24, driver="570.1")
OTHER = GraphicsDevice(id="pci:0000:03:00.0", maker="amd", name="AMD Radeon RX 7600", total=8)
MISMATCH = Failure(kind="permanent", code="driver_mismatch", message="They differ.", advice="Restart.")
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


def seen(*devices: GraphicsDevice) -> NoteDevices:
    return NoteDevices(graphics=Graphics(devices=devices).lasting)


def test_devices_are_stored_when_they_change_and_not_before() -> None:
    case = given(DaemonLog(STARTED), STARTED).when(seen()).then()
    case.when(seen(CARD)).then(DevicesChanged(after=(CARD,)))
    case.when(seen(replace(CARD, free=17))).then()
    broken = replace(CARD, problem=MISMATCH)
    case.when(seen(broken)).then(DevicesChanged(before=(CARD,), after=(broken,)))
    case.when(seen(OTHER)).then(DevicesChanged(before=(broken,), after=(OTHER,)))
    assert case.state.devices == (OTHER,)


def test_devices_are_known_to_the_next_daemon() -> None:
    restarted = replace(STARTED, pid=43)
    case = given(DaemonLog(restarted), STARTED, DevicesChanged(after=(CARD, OTHER)), restarted)
    case.when(seen(OTHER)).then(DevicesChanged(before=(CARD,)))
    assert (case.state.devices, case.state.starts) == ((OTHER,), 2)


def test_problems_of_no_device_are_stored_with_their_end() -> None:
    case = given(DaemonLog(STARTED), STARTED)
    case.when(NoteDevices(graphics=Graphics(problems=(MISMATCH,)))).then(DevicesChanged(problems=(MISMATCH,)))
    case.when(seen()).then(DevicesChanged())
    assert case.state.device_problems == ()


def test_software_that_nothing_uses_is_no_device_of_the_journal() -> None:
    idle = replace(OTHER, problem=replace(MISMATCH, code="software"))
    given(DaemonLog(STARTED), STARTED).when(seen(idle)).then()
