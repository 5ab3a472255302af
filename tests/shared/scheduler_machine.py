"""Everything that may happen to a Greenroom, for Hypothesis to put in order."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from greenroom.actors.engine_runner.messages import runner_address
from greenroom.actors.installer.messages import INSTALLER, CancelInstall, Ensure, Uninstall
from greenroom.actors.library.messages import LIBRARY
from greenroom.actors.scheduler.ledger import Device
from greenroom.actors.scheduler.messages import SCHEDULER, Configure, Unload
from greenroom.actors.scheduler.turn_context import Limits
from greenroom.actors.values import Caller
from scheduler_stage import model
from simulation import NO_SPACE, OFFLINE, Simulation

UNIT = 2**30
LIMITS = Limits(keep_alive=60, max_wait=120, drain=90, queue=8)
MODELS = {
    "small": model("small", UNIT),
    "large": model("large", 3 * UNIT),
    "safe": model("safe", 2 * UNIT, format="safetensors"),
    "huge": model("huge", 9 * UNIT),
}
NAMES = st.sampled_from([*MODELS, "missing"])
ALL_CHECKS: Any = tuple(HealthCheck)
RULES = settings(deadline=None, suppress_health_check=ALL_CHECKS)


@pytest.fixture(autouse=True)
def no_logging() -> Iterator[None]:
    """What is logged of a full disk has the exception, and so the simulation: pytest would keep both."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


class Greenroom(RuleBasedStateMachine):
    """A simulation with room for four gibibytes, and everything that may happen in it."""

    devices: tuple[Device, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.simulation = Simulation(
            list(MODELS.values()), budget=4 * UNIT, limits=LIMITS, devices=self.devices
        )
        self.simulation.read_mail()

    @initialize(installed=st.sets(st.sampled_from(["llama.cpp", "mlx"])))
    def some_backends_are_installed(self, installed: set[str]) -> None:
        for backend in sorted(installed):
            self.simulation.tell(INSTALLER, Ensure(backend=backend))
        for _ in range(3):
            self.simulation.pass_time(10)
            for job, build in list(self.simulation.builds.items()):
                if build.backend in installed:
                    self.simulation.build_ends(job, None)

    # clients

    @rule(name=st.sampled_from(["small", "large", "safe"]), stays=st.booleans())
    def a_model_is_loaded_and_all_goes_well(self, name: str, stays: bool) -> None:
        client = self.simulation.request(name)
        for _ in range(8):
            self.simulation.pass_time(0.1)
            self.everything_goes_well()
            if client.answers:
                break
        if not stays:
            self.simulation.leave(client)

    @rule(name=NAMES, caller=st.sampled_from(["a", "b"]), keep=st.sampled_from([None, None, 0.0, 5.0, -1.0]))
    def a_request_comes(self, name: str, caller: str, keep: float | None) -> None:
        self.simulation.request(name, caller=Caller(id=caller), keep_alive=keep)

    @rule(backend=st.sampled_from(["mlx", "mlx", "llama.cpp"]))
    def a_request_names_its_backend(self, backend: str) -> None:
        self.simulation.request("safe", backend=backend)

    @precondition(lambda self: self.here())
    @rule(data=st.data())
    def a_client_leaves(self, data: Any) -> None:
        client = data.draw(st.sampled_from(self.here()))
        self.simulation.leave(client)

    # worst moments, which chance alone would rarely find

    @rule(name=st.sampled_from(["small", "large", "safe"]))
    def a_load_is_decided_and_its_start_is_on_its_way(self, name: str) -> None:
        self.simulation.request(name)
        self.only(SCHEDULER)

    @rule(backend=st.sampled_from(["llama.cpp", "mlx"]))
    def a_backend_is_uninstalled_and_its_runner_is_busy(self, backend: str) -> None:
        self.simulation.tell(INSTALLER, Uninstall(backend=backend))
        self.only(INSTALLER)
        self.only(SCHEDULER)
        self.only(INSTALLER)

    @precondition(lambda self: any(one.waits for one in self.simulation.clients.values()))
    @rule()
    def a_client_leaves_before_its_grant(self) -> None:
        simulation = self.simulation
        for one in self.processes("starting"):
            simulation.spawned(one)
        for one in self.processes("running"):
            simulation.becomes_ready(one)
        for backend in ("llama.cpp", "mlx"):
            self.only(runner_address(backend))
        simulation.leave(next(one for one in simulation.clients.values() if one.waits))

    @rule(name=st.sampled_from(["small", "large", "safe"]))
    def everybody_tells_and_the_scheduler_is_rebuilt_before_it_reads(self, name: str) -> None:
        self.simulation.pass_time(6, busy=True)
        self.simulation.rebuild(SCHEDULER)
        self.a_load_is_decided_and_its_start_is_on_its_way(name)

    @rule(name=st.sampled_from(["small", "large", "safe"]))
    def runners_are_busy_for_long_and_the_scheduler_goes_on(self, name: str) -> None:
        for _ in range(11):
            self.simulation.pass_time(6, busy=True)
            self.only(SCHEDULER)
        self.a_load_is_decided_and_its_start_is_on_its_way(name)

    def only(self, address: Any) -> None:
        """One actor reads what it has; the others do not come to it."""
        for _ in range(len(self.simulation.system.mail(address))):
            self.simulation.system.step(address)

    def here(self) -> list[Any]:
        return [one for one in self.simulation.clients.values() if one.inside or one.waits]

    # people

    @rule(which=st.sampled_from([{"all": True}, {"backend": "mlx"}, {"model_ids": ("sha256:small",)}]))
    def somebody_unloads(self, which: dict[str, Any]) -> None:
        self.simulation.tell(SCHEDULER, Unload(**which))

    @rule(name=st.sampled_from([*MODELS]), size=st.sampled_from([0, 2048]), keep=st.sampled_from([-1.0, 9.0]))
    def somebody_configures(self, name: str, size: int, keep: float) -> None:
        configure = Configure(model_id=f"sha256:{name}", model_ref=name, context_size=size, keep_alive=keep)
        self.simulation.tell(SCHEDULER, configure)

    @rule(backend=st.sampled_from(["llama.cpp", "mlx"]), repair=st.booleans())
    def somebody_installs(self, backend: str, repair: bool) -> None:
        self.simulation.tell(INSTALLER, Ensure(backend=backend, repair=repair))

    @rule(backend=st.sampled_from(["llama.cpp", "mlx"]))
    def somebody_uninstalls(self, backend: str) -> None:
        self.simulation.tell(INSTALLER, Uninstall(backend=backend))

    @rule(backend=st.sampled_from(["llama.cpp", "mlx"]))
    def somebody_cancels(self, backend: str) -> None:
        self.simulation.tell(INSTALLER, CancelInstall(backend=backend))

    # engines

    def processes(self, *states: str) -> list[str]:
        return [one for one, process in self.simulation.processes.items() if process.state in states]

    @precondition(lambda self: self.processes("starting"))
    @rule(data=st.data())
    def a_process_begins(self, data: Any) -> None:
        self.simulation.spawned(data.draw(st.sampled_from(self.processes("starting"))))

    @precondition(lambda self: self.processes("running"))
    @rule(data=st.data())
    def an_engine_becomes_ready(self, data: Any) -> None:
        self.simulation.becomes_ready(data.draw(st.sampled_from(self.processes("running"))))

    @precondition(lambda self: self.processes("starting", "running", "ready"))
    @rule(data=st.data(), expected=st.booleans())
    def an_engine_ends(self, data: Any, expected: bool) -> None:
        one = data.draw(st.sampled_from(self.processes("starting", "running", "ready")))
        self.simulation.ends(one, expected=expected)

    # installations

    @precondition(lambda self: self.simulation.builds)
    @rule(data=st.data(), failure=st.sampled_from([None, None, OFFLINE, NO_SPACE]))
    def a_build_ends(self, data: Any, failure: Any) -> None:
        self.simulation.build_ends(data.draw(st.sampled_from(sorted(self.simulation.builds))), failure)

    @precondition(lambda self: self.simulation.chores)
    @rule(data=st.data())
    def somebody_has_looked(self, data: Any) -> None:
        chores = self.simulation.chores
        self.simulation.do_chore(chores[data.draw(st.integers(0, len(chores) - 1))])

    # messages, time and disasters

    @precondition(lambda self: self.readers())
    @rule(data=st.data(), count=st.integers(1, 4))
    def an_actor_reads(self, data: Any, count: int) -> None:
        system, reader = self.simulation.system, data.draw(st.sampled_from(self.readers()))
        for _ in range(min(count, len(system.mail(reader)))):
            system.step(reader)

    def readers(self) -> list[Any]:
        return [one for one in self.simulation.system.addresses if self.simulation.system.mail(one)]

    @rule()
    def everybody_reads(self) -> None:
        self.simulation.read_mail()

    @rule(seconds=st.sampled_from([0.05, 1.0, 6.0, 31.0, 65.0, 130.0]))
    def time_passes(self, seconds: float) -> None:
        self.simulation.pass_time(seconds)

    @rule(seconds=st.sampled_from([1.0, 6.0, 65.0]))
    def time_passes_while_everybody_is_busy(self, seconds: float) -> None:
        self.simulation.pass_time(seconds, busy=True)

    @rule(seconds=st.sampled_from([-86_400.0, -30.0, 30.0, 86_400.0]))
    def the_wall_clock_jumps(self, seconds: float) -> None:
        self.simulation.clock.jump(seconds)

    @rule(used=st.sampled_from([0, UNIT, 6 * UNIT]))
    def other_programs_use_memory(self, used: int) -> None:
        self.simulation.outside = used

    @rule(full=st.booleans())
    def the_disk_is_full(self, full: bool) -> None:
        self.simulation.disk_full = full

    @rule(data=st.data())
    def an_actor_is_rebuilt(self, data: Any) -> None:
        # What builder and puller do does not survive what their actors forget, so they are left
        # out here; the daemon's restart rebuilds them too.
        names = [one for one in self.simulation.system.addresses if one not in (INSTALLER, LIBRARY)]
        self.simulation.rebuild(data.draw(st.sampled_from(names)))

    @rule(engines_survive=st.booleans())
    def the_daemon_is_killed(self, engines_survive: bool) -> None:
        if not self.simulation.disk_full:
            self.simulation.restart(engines_survive=engines_survive)

    # what must hold

    @invariant()
    def nothing_is_broken(self) -> None:
        self.simulation.check()

    def teardown(self) -> None:
        """From every state time alone leads to progress, or to a refusal that says why."""
        simulation = self.simulation
        note(f"--- time alone, from {simulation.monotonic}")
        simulation.disk_full, simulation.outside = False, 0
        for _ in range(30):
            simulation.pass_time(5)
            self.everything_goes_well()
        simulation.check()
        for client in simulation.clients.values():
            assert client.left or client.answers, f"{client.request_id} waits forever"
            if client.inside:
                simulation.leave(client)
        simulation.pass_time(30)
        simulation.check()
        assert not simulation.system.volatile(SCHEDULER).queue
        wanted = set(simulation.system.state(SCHEDULER).loads)
        # Those that have just been asked to end are given their time.
        stay = {one for one, process in simulation.processes.items() if process.alive and not process.asked}
        assert wanted <= stay, "intents without an engine"
        assert not any(reading.inside for reading in simulation.gates.readings().values())
        open_gates = {one for one, reading in simulation.gates.readings().items() if reading.open}
        assert open_gates == wanted
        # What was decided a moment ago is asked for a moment later.
        simulation.pass_time(5)
        waits = {one for one, process in simulation.processes.items() if process.alive and not process.asked}
        assert not waits & (stay - wanted), "engines without an intent"
        for name, backend in simulation.system.state(INSTALLER).backends.items():
            assert not backend.retiring, f"{name} retires forever"
            assert backend.job is None, f"{name} is being installed forever"
            assert set(backend.installations) == set(simulation.disk[name])
        # A new request is served or refused with a reason.
        for name in ("small", "safe"):
            client = simulation.request(name)
            for _ in range(35):
                simulation.pass_time(4)
                self.everything_goes_well()
                if client.answers:
                    break
            assert client.answers, f"{name} gets no answer"
            simulation.leave(client)
        simulation.system.crash()

    def everything_goes_well(self) -> None:
        """Whatever was begun comes to its good end."""
        for one in self.processes("starting"):
            self.simulation.spawned(one)
        for one in self.processes("running"):
            self.simulation.becomes_ready(one)
        for job in list(self.simulation.builds):
            self.simulation.build_ends(job, None)
        self.simulation.read_mail()
