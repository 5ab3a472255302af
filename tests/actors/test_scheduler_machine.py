"""In any sequence of events, memory is never reserved twice, and no request waits forever."""

from __future__ import annotations

import pytest
from hypothesis import settings

from greenroom.actors.scheduler.events import LoadAdmitted, LoadFailed
from greenroom.actors.scheduler.ledger import Device
from greenroom.actors.scheduler.messages import SCHEDULER
from scheduler_machine import LIMITS, MODELS, RULES, UNIT, Greenroom, no_logging
from simulation import Simulation

__all__ = ["no_logging"]

TestNormally = Greenroom.TestCase
TestNormally.settings = settings(RULES, max_examples=25, stateful_step_count=30)


class OnDevices(Greenroom):
    """The same where backends compute on graphics devices, of which one is too small for most models."""

    devices = (
        Device(id="GPU-0", name="large", total=3 * UNIT, budget=3 * UNIT),
        Device(id="GPU-1", name="small", total=UNIT, budget=UNIT),
    )


TestOnDevices = OnDevices.TestCase
TestOnDevices.settings = settings(RULES, max_examples=20, stateful_step_count=30)


class Longer(Greenroom):
    """The same, for much longer."""


TestForLonger = pytest.mark.timeout(3600)(pytest.mark.slow(Longer.TestCase))
TestForLonger.settings = settings(RULES, max_examples=3000, stateful_step_count=80)


class OnDevicesForLonger(OnDevices):
    """The same, for much longer."""


TestOnDevicesForLonger = pytest.mark.timeout(3600)(pytest.mark.slow(OnDevicesForLonger.TestCase))
TestOnDevicesForLonger.settings = settings(RULES, max_examples=1000, stateful_step_count=60)


def test_the_simulated_greenroom_serves_a_model() -> None:
    simulation = Simulation(list(MODELS.values()), budget=4 * UNIT, limits=LIMITS)
    simulation.pass_time(30)
    (job,) = simulation.builds
    simulation.build_ends(job, None)
    client = simulation.request("small")
    simulation.read_mail()
    (one,) = simulation.processes
    simulation.spawned(one)
    simulation.becomes_ready(one)
    simulation.read_mail()
    assert client.inside
    assert simulation.stored(LoadAdmitted)
    simulation.check()


def test_a_start_that_lay_behind_a_full_disk_for_minutes_is_not_carried_out_in_memory_that_others_have() -> (
    None
):
    simulation = Simulation(list(MODELS.values()), budget=4 * UNIT, limits=LIMITS)
    simulation.pass_time(30)
    (job,) = simulation.builds
    simulation.build_ends(job, None)
    simulation.read_mail()
    simulation.request("large")
    simulation.system.step(SCHEDULER)
    simulation.disk_full = True
    for _ in range(40):
        simulation.pass_time(5)
        simulation.check()
    assert [one.failure.code for one in simulation.stored(LoadFailed)] == ["engine_lost"]
    assert not simulation.processes
    simulation.disk_full = False
    simulation.request("large")
    for _ in range(10):
        simulation.pass_time(1)
        simulation.check()
    assert len(simulation.processes) == 1
