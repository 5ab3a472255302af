"""All actors of a Greenroom in one thread, on a clock, a disk and a machine that a test is the master of.

The actors are the real ones in a `ManualSystem`, and so are the gates. Engine processes and builds are plain
data: nothing runs by itself, so a test decides what happens next and in which order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from greenroom.actors.engine_runner.core import Runner
from greenroom.actors.engine_runner.effects import EndEngine, RecoverEngines, SpawnEngine
from greenroom.actors.engine_runner.events import (
    EngineAdopted,
    EngineExited,
    EngineLost,
    EngineReady,
    EngineSpawned,
    EngineStartRequested,
)
from greenroom.actors.engine_runner.messages import StartEngine, runner_address
from greenroom.actors.gates import GateEffects
from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.installer.effects import (
    BuildInstallation,
    CancelBuild,
    InspectInstallations,
    PublishInstallProgress,
    RemoveInstallation,
)
from greenroom.actors.installer.messages import (
    INSTALLER,
    InstallationsSeen,
)
from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import JournalFull, Record
from greenroom.actors.kernel.answers import Reply
from greenroom.actors.kernel.clock import ManualClock
from greenroom.actors.kernel.core import Address, Command, Core, Effect, Event, Stored
from greenroom.actors.kernel.errors import KernelError, Refusal, Refused
from greenroom.actors.library.core import Library
from greenroom.actors.library.effects import InspectModels
from greenroom.actors.library.messages import LIBRARY, ModelsSeen
from greenroom.actors.progress import ProgressBoard
from greenroom.actors.reports import Happened
from greenroom.actors.scheduler.core import Scheduler
from greenroom.actors.scheduler.effects import (
    AdmitRequest,
    CloseGate,
    HoldGates,
    LeaveGate,
    LoadAgain,
    OpenGate,
    PublishRequestProgress,
    RemoveGates,
)
from greenroom.actors.scheduler.holdings import share
from greenroom.actors.scheduler.ledger import Device, Memory
from greenroom.actors.scheduler.messages import SCHEDULER, Abandon, GateEmptied, Granted, Serve
from greenroom.actors.scheduler.turn_context import Limits
from greenroom.actors.testing import FaultyJournal, ManualSystem
from greenroom.actors.values import Caller, EngineExit, EngineSpec, Failure, Installation, Model
from reports import attempt_failed, build_committed, removed
from scheduler_stage import LLAMA, MLX, NO_SPACE, OFFLINE
from strict_gates import StrictGates

LADDER = 15.0
"""Seconds within which an engine host ends what it was asked to end."""
GONE = Refusal(code="rebuilt", message="The actor was rebuilt or has stopped.", kind="unavailable")


@dataclass
class Process:
    """An engine's process, from the moment its start is under way."""

    spec: EngineSpec
    state: str = "starting"
    """`starting`, `running` (spawned), `ready`, `dead`."""
    dies_at: float | None = None
    asked: bool = False

    @property
    def alive(self) -> bool:
        return self.state in ("running", "ready")


@dataclass
class Client:
    """One request, as its front door sees it."""

    request_id: str
    model_id: str
    answers: list[Any] = field(default_factory=list)
    left: bool = False

    @property
    def inside(self) -> bool:
        return not self.left and any(isinstance(one, Granted) for one in self.answers)

    @property
    def waits(self) -> bool:
        return not self.left and not self.answers


class Effects:
    """Carries out the effects of one actor in the simulation."""

    def __init__(self, simulation: Simulation, core: Any) -> None:
        self.simulation = simulation
        self.core = core

    def perform(self, effect: Effect, cause: str) -> None:
        self.simulation.perform(self.core, effect)


class Simulation:
    """Scheduler, installer, library and two runners, with everything around them."""

    def __init__(
        self,
        models: Sequence[Model],
        *,
        budget: int,
        policy: Any = "auto",
        limits: Limits | None = None,
        devices: Sequence[Device] = (),
    ) -> None:
        """With `devices`, the engines of mlx compute there, and those of llama.cpp divide models between them
        and memory; how much is free on them is never told.
        """
        self.devices = tuple(devices)
        self.clock = ManualClock()
        self.budget = budget
        self.outside = 0
        """Bytes that other programs use."""
        self.journal = FaultyJournal(MemoryJournal())
        self.models = {model.id: model for model in models}
        self.gates = self._new_gates()
        self.board = ProgressBoard()
        self.processes: dict[str, Process] = {}
        self.spawns: dict[str, int] = {}
        self.disk: dict[str, dict[str, Installation]] = {"llama.cpp": {}, "mlx": {}}
        self.builds: dict[str, BuildInstallation] = {}
        self.chores: list[Effect] = []
        """What effect handlers have still to do; it is done after 20 s at the latest."""
        self.clients: dict[str, Client] = {}
        self.history: list[tuple[Record, Stored[Any]]] = []
        """All that was ever stored."""
        self._built = 0
        self.facts = (LLAMA, MLX)
        if devices:
            divides = msgspec.structs.replace(LLAMA, device=True, divides=True, device_overhead=2**27)
            self.facts = (divides, msgspec.structs.replace(MLX, device=True))
        self.policy, self.limits = policy, limits or Limits()
        self.begin()

    def begin(self) -> None:
        """A new life of the daemon, on the same journal."""
        facts = self.facts
        scheduler = Scheduler(facts, policy=self.policy, limits=self.limits)
        cores: list[Core[Any, Any]] = [InstallerCore(facts), Runner("llama.cpp"), Runner("mlx"), Library()]
        self.journal.inside = MemoryJournal([record for record, _ in self.history])
        self.system = ManualSystem(self.journal, clock=self.clock)
        for core in cores:
            self.system.register(core, effect_handler=Effects(self, core))
        self.system.register(scheduler, effect_handler=Effects(self, scheduler), observe=self._observe)
        self.system.on_record(self._note)
        self.system.start()

    def _observe(self, volatile: Any) -> Any:
        memory = Memory(budget=self.budget, available=self.available, devices=self.devices)
        return msgspec.structs.replace(volatile, gates=self.gates.readings(), memory=memory)

    def _note(self, record: Record) -> None:
        stored = self.system.store.codec.decode(record)
        assert stored is not None
        self.history.append((record, stored))

    # time

    @property
    def wall(self) -> float:
        return self.clock.now().wall

    @property
    def monotonic(self) -> float:
        return self.clock.now().monotonic

    @property
    def available(self) -> int:
        used = sum(one.spec.memory for one in self.processes.values() if one.alive)
        return max(0, self.budget + self.budget // 2 - used - self.outside)

    def pass_time(self, seconds: float, *, busy: bool = False) -> None:
        """Let time pass. Unless `busy`, what is due is done on the way and messages are handled."""
        if busy:
            self.clock.advance(seconds)
        else:
            self.system.pass_time(seconds)

    # mail

    def tell(self, to: Address, command: Command[Any], cause: str = "") -> None:
        self.system.report(command, to=to, cause=cause)

    def ask(self, client: Client, to: Address, command: Command[Any]) -> None:
        reply = self.system.ask(command, to=to, cause=client.request_id)
        reply.on_done(lambda: client.answers.append(outcome(reply)))

    def read_mail(self) -> None:
        """Let every actor handle all its messages."""
        self.system.rest()

    # journal

    @property
    def disk_full(self) -> bool:
        return self.journal.fault is not None

    @disk_full.setter
    def disk_full(self, full: bool) -> None:
        self.journal.fault = JournalFull("no space left on device") if full else None

    def stored(self, kind: type[Any]) -> list[Any]:
        return [stored.event for _, stored in self.history if isinstance(stored.event, kind)]

    # effects

    def perform(self, core: Any, effect: Effect) -> None:
        match effect:
            case OpenGate() | HoldGates() | CloseGate() | RemoveGates() | AdmitRequest() | LeaveGate():
                GateEffects(self.gates, self.board).perform(effect, "")
            case LoadAgain():
                self.clock.call_at(self.monotonic, partial(self._load_again, effect))
            case PublishRequestProgress() | PublishInstallProgress():
                pass
            case SpawnEngine(spec=spec):
                self.spawns[spec.engine_id] = self.spawns.get(spec.engine_id, 0) + 1
                assert self.spawns[spec.engine_id] == 1, f"{spec.engine_id} is started twice"
                here = spec.installation_id in self.disk[spec.backend]
                assert here, f"{spec.engine_id} is started on an installation that is removed"
                self.processes[spec.engine_id] = Process(spec)
            case EndEngine(engine_id=one, reason=reason):
                self._end_engine(core.backend, one, reason)
            case BuildInstallation(job=job):
                assert all(build.backend != effect.backend for build in self.builds.values()), "two builds"
                self.builds[job] = effect
            case CancelBuild(job=job):
                self.builds.pop(job, None)
            case InspectInstallations() | InspectModels():
                self.chores.append(effect)
                self.clock.call_at(self.monotonic + 20.0, partial(self.do_chore, effect))
            case RecoverEngines() | RemoveInstallation():
                self.chores.append(effect)
                self.clock.call_at(self.monotonic + 20.0, partial(self.do_chore, effect))
            case _:
                raise AssertionError(f"no effect handler for {effect!r}")

    def _end_engine(self, backend: str, one: str, reason: str) -> None:
        process = self.processes.get(one)
        if process is None or process.state == "dead":
            self._report(backend, EngineLost(engine_id=one, reason="there is no such engine"))
            return
        in_any_case = ("its requests did not finish", "no sign", "it is no longer needed", "nothing is heard")
        willing = reason.startswith(in_any_case)
        reading = self.gates.readings().get(one)
        if not willing and reading is not None:
            assert not reading.open, f"{one} is ended with an open gate"
            assert not reading.inside, f"{one} is ended under a request"
        if not process.asked:
            process.asked = True
            self._dies_later(process)

    def _dies_later(self, process: Process) -> None:
        due = process.dies_at = self.monotonic + LADDER

        def die() -> None:
            if process.dies_at == due:
                self.ends(process.spec.engine_id)

        self.clock.call_at(due, die)

    def _report(self, backend: str, event: Event) -> None:
        self.tell(runner_address(backend), Happened(event=event))

    def do_chore(self, effect: Effect) -> None:
        """Carry out one of `chores` and report."""
        if not any(one is effect for one in self.chores):
            return
        self.chores = [one for one in self.chores if one is not effect]
        match effect:
            case InspectInstallations(backends=backends):
                for name in backends:
                    found = tuple(self.disk[name].values())
                    self.tell(INSTALLER, InstallationsSeen(backend=name, installations=found))
            case InspectModels():
                self.tell(LIBRARY, ModelsSeen(models=tuple(self.models.values())))
            case RemoveInstallation(backend=backend, installation_id=one):
                specs = [p.spec for p in self.processes.values() if p.alive and p.spec.backend == backend]
                assert not any(spec.installation_id == one for spec in specs), f"{one} is still in use"
                self.disk[backend].pop(one, None)
                gone = removed(backend, one, freed=1)
                self.tell(INSTALLER, gone)
            case RecoverEngines(backend=backend, engines=engines):
                for engine in engines:
                    self._recover(backend, engine.spec, stopping=engine.state == "stopping")

    def _recover(self, backend: str, spec: EngineSpec, *, stopping: bool) -> None:
        one = spec.engine_id
        process = self.processes.get(one)
        if process is None or not process.alive:
            if process is not None:
                process.state = "dead"
            self._report(backend, EngineLost(engine_id=one, reason="there is no such process"))
            return
        adopted = EngineAdopted(
            engine_id=one, pid=7, started=1.0, endpoint=f"/run/{one}", ready=process.state == "ready"
        )
        self._report(backend, adopted)
        if stopping and process.dies_at is None:
            self._dies_later(process)

    # what may happen to engines and builds

    def spawned(self, one: str) -> None:
        process = self.processes[one]
        process.state = "running"
        spawned = EngineSpawned(engine_id=one, pid=7, started=1.0, endpoint=f"/run/{one}")
        self._report(process.spec.backend, spawned)

    def becomes_ready(self, one: str) -> None:
        self.processes[one].state = "ready"
        self._report(self.processes[one].spec.backend, EngineReady(engine_id=one))

    def ends(self, one: str, *, expected: bool | None = None) -> None:
        process = self.processes[one]
        process.state, process.dies_at = "dead", None
        asked = process.asked if expected is None else expected
        end = EngineExit(at=self.wall, code=0 if asked else 1, summary="It ended.", expected=asked)
        self._report(process.spec.backend, EngineExited(engine_id=one, exit=end))
        for client in self.clients.values():
            # Its front door sees the stream break, and leaves.
            if client.inside and self.place_of(client) == one:
                self.leave(client)

    def build_ends(self, job: str, failure: Failure | None) -> None:
        build = self.builds.pop(job)
        if failure is not None:
            ended = attempt_failed(job, failure)
            self.tell(INSTALLER, ended)
            return
        self._built += 1
        one = Installation(
            id=f"1-aaaa.{self._built}",
            backend=build.backend,
            version="1",
            digest="aaaa",
            built_at=self.wall + self._built / 1000,
        )
        self.disk[build.backend][one.id] = one
        self.tell(INSTALLER, build_committed(job, one))

    # clients

    def request(self, name: str, **more: Any) -> Client:
        """A request comes: through an open gate, or by asking the scheduler."""
        client = Client(f"r{len(self.clients) + 1}", f"sha256:{name}")
        self.clients[client.request_id] = client
        place = self.gates.enter(client.model_id, "completion", more.get("backend", ""), client.request_id)
        if place is not None:
            client.answers.append(
                Granted(engine_id=place.engine_id, backend=place.backend, endpoint=place.endpoint)
            )
        else:
            ask = Serve(request_id=client.request_id, model_id=client.model_id, model_ref=name, **more)
            self.ask(client, SCHEDULER, ask)
        return client

    def _load_again(self, effect: LoadAgain) -> None:
        """As the daemon does it: a request that leaves as soon as it is answered."""
        caller = Caller(kind="greenroom", id="moved")
        client = self.request(effect.model_id.removeprefix("sha256:"), backend=effect.backend, caller=caller)
        self._leave_once_answered(client)

    def _leave_once_answered(self, client: Client) -> None:
        if client.left:
            return
        if client.waits:
            self.clock.call_at(self.monotonic + 1.0, partial(self._leave_once_answered, client))
        else:
            self.leave(client)

    def leave(self, client: Client) -> None:
        """The client is done, or gone: as the front door does it."""
        waited = client.waits
        client.left = True
        self.gates.leave(client.request_id)
        if waited:
            self.tell(SCHEDULER, Abandon(request_id=client.request_id))

    def _new_gates(self) -> StrictGates:
        gates = StrictGates(lambda: self.monotonic)
        gates.on_empty = lambda one: self.tell(SCHEDULER, GateEmptied(engine_id=one))
        return gates

    def place_of(self, client: Client) -> str:
        return next((one.engine_id for one in client.answers if isinstance(one, Granted)), "")

    # disasters

    def rebuild(self, address: Address) -> None:
        """An effect failed: what is volatile is lost, and the mail is still there."""
        self.system.rebuild(address)

    def restart(self, *, engines_survive: bool) -> None:
        """The daemon is killed and started again. Engines live on, or end with it."""
        self.system.crash()
        for client in self.clients.values():
            client.left = True
        self.gates = self._new_gates()
        self.builds, self.chores = {}, []
        for process in self.processes.values():
            if process.state == "starting" or not engines_survive:
                process.state, process.dies_at = "dead", None
        self.begin()

    # what must always hold

    def check(self) -> None:
        for address, core in self.system.addresses.items():
            state = core.initial()
            for record, stored in self.history:
                if core.claims(record.stream):
                    state = core.apply(state, stored)
            assert state == self.system.state(address), f"the replayed state of {address} is not the live one"
        held = {one: process.spec for one, process in self.processes.items() if process.state != "dead"}
        intents = {event.spec.engine_id: event.spec for event in self.stored(EngineStartRequested)}
        for one, spec in held.items():
            assert intents.get(one) == spec, f"{one} has no intent"
        held |= {one: load.spec for one, load in self.system.state(SCHEDULER).loads.items()}
        held |= {spec.engine_id: spec for spec in self._starts_in_the_mail() if spec.engine_id not in intents}
        total = sum(spec.memory for spec in held.values())
        assert total <= self.budget, f"{total} of {self.budget} are held by {sorted(held)}"
        for device in self.devices:
            there = sum(share(spec, device.id) for spec in held.values())
            assert there <= device.budget, f"{there} of {device.budget} are held on {device.id}"
        for client in self.clients.values():
            assert len(client.answers) <= 1, f"{client.request_id} was answered {client.answers}"
        for engine_id in self.gates.readings():
            for request in self.gates.inside(engine_id):
                client = self.clients[request]
                gone = client.left and not self.system.mail(SCHEDULER)
                assert not gone, f"{request} is gone and still held in {engine_id}"

    def _starts_in_the_mail(self) -> list[EngineSpec]:
        mail = [
            one for to in self.system.addresses for one in (*self.system.mail(to), *self.system.postponed(to))
        ]
        starts = [command.spec for command in mail if isinstance(command, StartEngine)]
        return [
            one
            for one in starts
            if one.engine_id not in self.system.state(runner_address(one.backend)).forbidden
        ]


def outcome(reply: Reply[Any]) -> Any:
    """What a client was answered: an answer, or a refusal."""
    try:
        return reply.get(timeout=0)
    except Refused as error:
        return error.refusal
    except KernelError:
        return GONE


__all__ = ["NO_SPACE", "OFFLINE", "Client", "Simulation"]
