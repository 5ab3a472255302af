"""All actors of a Greenroom in one thread, on a clock, a disk and a machine that a test is the master of.

The cores are the real ones, and so are the gates. The shells, mailboxes, engine processes and builds are
plain data: nothing runs by itself, so a test decides what happens next and in which order, within what the
kernel promises (a mailbox keeps its order, a command is decided, stored, applied and carried out as one).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from greenroom.actors.addresses import INSTALLER, LIBRARY, SCHEDULER, runner_address
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
from greenroom.actors.engine_runner.messages import StartEngine
from greenroom.actors.gates import GateBoard
from greenroom.actors.installer.core import Installer
from greenroom.actors.installer.effects import (
    BuildInstallation,
    CancelBuild,
    InspectInstallations,
    PublishInstallProgress,
    RemoveInstallation,
)
from greenroom.actors.installer.messages import (
    InstallationsSeen,
)
from greenroom.actors.journal.port import Record
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.codec import Codec
from greenroom.actors.kernel.core import (
    Address,
    Answer,
    Command,
    Decision,
    Effect,
    Event,
    Later,
    Recovered,
    Stored,
    Tell,
)
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.library.core import Library
from greenroom.actors.library.effects import InspectModels
from greenroom.actors.library.messages import ModelsSeen
from greenroom.actors.reports import Happened
from greenroom.actors.scheduler.context import Limits
from greenroom.actors.scheduler.core import Scheduler
from greenroom.actors.scheduler.effects import (
    AdmitRequest,
    CloseGate,
    LeaveGate,
    OpenGate,
    PublishRequestProgress,
    RemoveGates,
)
from greenroom.actors.scheduler.ledger import Device, Memory
from greenroom.actors.scheduler.messages import Abandon, GateEmptied, Granted, Serve
from greenroom.actors.values import EngineExit, EngineSpec, Failure, Installation, Model
from reports import attempt_failed, build_committed, removed
from stage import LLAMA, MLX, NO_SPACE, OFFLINE

TICK = 5.0
LADDER = 15.0
"""Seconds within which an engine host ends what it was asked to end."""
GONE = Refusal(code="rebuilt", message="The actor was rebuilt or has stopped.", kind="unavailable")
FULL = Refusal(code="journal_full", message="The journal takes nothing.", kind="exhausted")


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


class Wake(Command, frozen=True):
    """Time has passed. It comes by mail, behind what is there already."""


class Actor:
    """What the kernel's shell does, one step at a time."""

    def __init__(self, world: World, core: Any) -> None:
        self.world = world
        self.core = core
        self.mail: deque[tuple[Command, Client | None, str]] = deque()
        self.state = core.initial()
        self.volatile = core.initial_volatile()
        self.versions: dict[str, int] = {}
        self.waiting: dict[str, list[Client]] = {}
        self.wake_at = 0.0

    def begin(self) -> None:
        """A new life: fold the journal, forget everything else, look."""
        self.state, self.versions = self.world.replay(self.core)
        self.volatile = self.core.initial_volatile()
        for clients in self.waiting.values():
            for client in clients:
                client.answers.append(GONE)
        self.waiting = {}
        self.handle(Recovered(), None, "")

    def deliver(self) -> None:
        """Handle the next message."""
        self.handle(*self.mail.popleft())

    def handle(self, command: Command, client: Client | None, cause: str) -> None:
        if isinstance(command, Wake):
            self.settle()
            return
        decision = self.core.decide(self.state, command, self.world.now, self.look())
        if not self.storable(decision):
            if client is not None:
                client.answers.append(FULL)
            else:
                self.world.later(1.0, self, command, cause)
            return
        effects = self.take(decision, cause)
        if isinstance(decision.reply, Later) and client is not None:
            self.waiting.setdefault(decision.reply.key, []).append(client)
        self.perform(effects)
        if client is not None and not isinstance(decision.reply, Later):
            client.answers.append(decision.reply)
        self.settle()

    def settle(self) -> None:
        self.wake_at = self.world.monotonic + TICK
        for _ in range(200):
            decision = self.core.settle(self.state, self.world.now, self.look())
            assert not decision.faults, decision.faults[0].traceback
            if not self.storable(decision):
                if decision.if_not_stored is not None:
                    assert not decision.if_not_stored.events
                    self.perform(self.take(decision.if_not_stored, ""))
                self.wake_at = self.world.monotonic + 1.0
                return
            self.perform(self.take(decision, ""))
            if decision.wake_at is not None:
                self.wake_at = min(self.wake_at, max(decision.wake_at, self.world.monotonic + 0.01))
            if not decision.events:
                return
        raise AssertionError(f"{self.core.address} does not settle")

    def storable(self, decision: Decision[Any]) -> bool:
        urgent = any(event.is_urgent for event in decision.events)
        return not decision.events or urgent or not self.world.disk_full

    def take(self, decision: Decision[Any], cause: str) -> list[tuple[Effect, str]]:
        cause = decision.cause or cause
        effects: list[tuple[Effect, str]] = []
        for event in decision.events:
            stored = self.world.store(self, event, cause)
            self.state = self.core.apply(self.state, stored)
            effects += [(effect, stored.id) for effect in self.core.react(self.state, stored)]
            cause = cause or stored.id
        if decision.volatile is not None:
            self.volatile = decision.volatile
        return effects + [(effect, cause) for effect in decision.effects]

    def perform(self, effects: Sequence[tuple[Effect, str]]) -> None:
        for effect, cause in effects:
            if isinstance(effect, Tell):
                self.world.tell(effect.to, effect.command, effect.cause or cause)
            elif isinstance(effect, Answer):
                for client in self.waiting.pop(effect.key, ()):
                    client.answers.append(effect.outcome)
            else:
                self.world.perform(self, effect)

    def look(self) -> Any:
        if not isinstance(self.core, Scheduler):
            return self.volatile
        world = self.world
        memory = Memory(budget=world.budget, available=world.available, devices=world.devices)
        self.volatile = msgspec.structs.replace(
            self.volatile, gates=self.world.gates.readings(), memory=memory
        )
        return self.volatile


class World:
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
        """With `devices`, the engines of mlx compute there; how much is free on them is never told."""
        self.devices = tuple(devices)
        self.wall, self.monotonic = 1_700_000_000.0, 1_000.0
        self.budget = budget
        self.outside = 0
        """Bytes that other programs use."""
        self.disk_full = False
        self.models = {model.id: model for model in models}
        self.gates = GateBoard(*[lambda: self.monotonic] * 2)
        self.processes: dict[str, Process] = {}
        self.spawns: dict[str, int] = {}
        self.disk: dict[str, dict[str, Installation]] = {"llama.cpp": {}, "mlx": {}}
        self.builds: dict[str, BuildInstallation] = {}
        self.chores: list[tuple[float, Effect]] = []
        """What hands have still to do, and by when at the latest."""
        self.delayed: list[tuple[float, Actor, Command, str]] = []
        self.clients: dict[str, Client] = {}
        self.journal: list[tuple[Record, Stored[Any]]] = []
        self.codec = Codec()
        self._built = 0
        facts = (LLAMA, msgspec.structs.replace(MLX, device=True) if devices else MLX)
        cores: list[Any] = [Installer(facts), Runner("llama.cpp"), Runner("mlx"), Library()]
        cores.append(Scheduler(facts, policy=policy, limits=limits or Limits()))
        self.actors = {core.address: Actor(self, core) for core in cores}
        for core in cores:
            self.codec.register(core.event_types)
        for actor in self.actors.values():
            actor.begin()

    # time

    @property
    def now(self) -> Moment:
        return Moment(self.wall, self.monotonic, 0.5)

    @property
    def available(self) -> int:
        used = sum(one.spec.memory for one in self.processes.values() if one.alive)
        return max(0, self.budget + self.budget // 2 - used - self.outside)

    def pass_time(self, seconds: float, *, busy: bool = False) -> None:
        """Let time pass. Unless everybody is too busy, what is due is done on the way and mail is read."""
        target = self.monotonic + seconds
        for _ in range(10_000):
            if not busy:
                self.read_mail()
            due = min([*self._due(), target])
            self._move_to(max(due, self.monotonic))
            self._do_due(busy)
            if self.monotonic >= target:
                return
        raise AssertionError("time does not pass")

    def _due(self) -> list[float]:
        ends = [one.dies_at for one in self.processes.values() if one.dies_at is not None]
        chores = [by for by, _ in self.chores]
        return (
            [actor.wake_at for actor in self.actors.values()] + ends + chores + [d[0] for d in self.delayed]
        )

    def _do_due(self, busy: bool) -> None:
        for one in list(self.processes.values()):
            if one.dies_at is not None and one.dies_at <= self.monotonic:
                self.ends(one.spec.engine_id)
        for by, effect in list(self.chores):
            if by <= self.monotonic:
                self.do_chore(effect)
        for item in list(self.delayed):
            if item[0] <= self.monotonic:
                self.delayed.remove(item)
                item[1].mail.append((item[2], None, item[3]))
        for actor in self.actors.values():
            if actor.wake_at <= self.monotonic:
                actor.wake_at = math.inf
                actor.mail.append((Wake(), None, ""))
        if not busy:
            self.read_mail()

    def _move_to(self, monotonic: float) -> None:
        self.wall += monotonic - self.monotonic
        self.monotonic = monotonic

    def later(self, seconds: float, actor: Actor, command: Command, cause: str) -> None:
        self.delayed.append((self.monotonic + seconds, actor, command, cause))

    # mail

    def tell(self, to: Address, command: Command, cause: str = "") -> None:
        self.actors[to].mail.append((command, None, cause))

    def ask(self, client: Client, to: Address, command: Command) -> None:
        self.actors[to].mail.append((command, client, client.request_id))

    def read_mail(self) -> None:
        """Everybody reads everything there is."""
        for _ in range(10_000):
            full = [actor for actor in self.actors.values() if actor.mail]
            if not full:
                return
            for actor in full:
                actor.deliver()
        raise AssertionError("they talk without end")

    # journal

    def store(self, actor: Actor, event: Any, cause: str) -> Stored[Any]:
        stream = actor.core.stream_of(event)
        version = actor.versions[stream] = actor.versions.get(stream, 0) + 1
        record = Record(
            seq=len(self.journal) + 1,
            at=self.wall,
            stream=stream,
            version=version,
            type=type(event).TAG,
            schema=type(event).SCHEMA,
            cause=cause,
            data=self.codec.encode(event),
        )
        stored = self.codec.decode(record)
        assert stored is not None
        assert stored.event == event
        self.journal.append((record, stored))
        return stored

    def replay(self, core: Any) -> tuple[Any, dict[str, int]]:
        state, versions = core.initial(), {}
        for record, stored in self.journal:
            if core.claims(record.stream):
                state = core.apply(state, stored)
                versions[record.stream] = record.version
        return state, versions

    def stored(self, kind: type[Any]) -> list[Any]:
        return [stored.event for _, stored in self.journal if isinstance(stored.event, kind)]

    # hands

    def perform(self, actor: Actor, effect: Effect) -> None:
        match effect:
            case OpenGate() as e:
                self.gates.open(e.engine_id, e.model_id, e.mode, e.backend, e.endpoint, e.slots)
            case CloseGate(engine_id=one):
                self.gates.close(one)
            case RemoveGates(keep=keep):
                self.gates.keep(keep)
            case AdmitRequest(engine_id=one, request_id=request) as e:
                assert self.gates.reserve(one, request, e.caller, e.places), (
                    f"{request} was granted a gate that is not open"
                )
            case LeaveGate(request_id=request):
                self.leave_gate(request)
            case PublishRequestProgress() | PublishInstallProgress():
                pass
            case SpawnEngine(spec=spec):
                self.spawns[spec.engine_id] = self.spawns.get(spec.engine_id, 0) + 1
                assert self.spawns[spec.engine_id] == 1, f"{spec.engine_id} is started twice"
                here = spec.installation_id in self.disk[spec.backend]
                assert here, f"{spec.engine_id} is started on an installation that is removed"
                self.processes[spec.engine_id] = Process(spec)
            case EndEngine(engine_id=one, reason=reason):
                self._end_engine(actor, one, reason)
            case BuildInstallation(job=job):
                assert all(build.backend != effect.backend for build in self.builds.values()), "two builds"
                self.builds[job] = effect
            case CancelBuild(job=job):
                self.builds.pop(job, None)
            case InspectInstallations() | InspectModels():
                self.chores.append((self.monotonic + 20.0, effect))
            case RecoverEngines() | RemoveInstallation():
                self.chores.append((self.monotonic + 20.0, effect))
            case _:
                raise AssertionError(f"nobody does {effect!r}")

    def _end_engine(self, actor: Actor, one: str, reason: str) -> None:
        process = self.processes.get(one)
        if process is None or process.state == "dead":
            self._report(actor.core.backend, EngineLost(engine_id=one, reason="there is no such engine"))
            return
        in_any_case = ("its requests did not end", "no sign", "it is no longer needed", "nothing is heard")
        willing = reason.startswith(in_any_case)
        reading = self.gates.readings().get(one)
        if not willing and reading is not None:
            assert not reading.open, f"{one} is ended with an open gate"
            assert not reading.inside, f"{one} is ended under a request"
        if not process.asked:
            process.asked, process.dies_at = True, self.monotonic + LADDER

    def _report(self, backend: str, event: Event) -> None:
        self.tell(runner_address(backend), Happened(event=event))

    def do_chore(self, effect: Effect) -> None:
        """Carry out one of `chores` and report."""
        self.chores = [item for item in self.chores if item[1] is not effect]
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
            process.dies_at = self.monotonic + LADDER

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

    def leave(self, client: Client) -> None:
        """The client is done, or gone: as the front door does it."""
        waited = client.waits
        client.left = True
        self.leave_gate(client.request_id)
        if waited:
            self.tell(SCHEDULER, Abandon(request_id=client.request_id))

    def leave_gate(self, request_id: str) -> None:
        before = {one for one in self.gates.readings() if request_id in self.gates.inside(one)}
        self.gates.leave(request_id)
        for one in before:
            if not self.gates.inside(one):
                self.tell(SCHEDULER, GateEmptied(engine_id=one))

    def place_of(self, client: Client) -> str:
        return next((one.engine_id for one in client.answers if isinstance(one, Granted)), "")

    # disasters

    def rebuild(self, address: Address) -> None:
        """A bug in an actor: it is folded anew, and its mail is still there."""
        self.actors[address].begin()

    def restart(self, *, engines_survive: bool) -> None:
        """The daemon is killed and started again. Engines live on, or end with it."""
        for client in self.clients.values():
            if not client.left:
                if client.waits:
                    client.answers.append(GONE)
                client.left = True
        self.gates = GateBoard(*[lambda: self.monotonic] * 2)
        self.builds, self.chores, self.delayed = {}, [], []
        for process in self.processes.values():
            if process.state == "starting" or not engines_survive:
                process.state, process.dies_at = "dead", None
        for actor in self.actors.values():
            actor.mail.clear()
            actor.waiting = {}
        for actor in self.actors.values():
            actor.begin()

    # what must always hold

    def check(self) -> None:
        for actor in self.actors.values():
            state, versions = self.replay(actor.core)
            assert state == actor.state, f"the replayed state of {actor.core.address} is not the live one"
            assert versions == actor.versions
        held = {one: process.spec for one, process in self.processes.items() if process.state != "dead"}
        intents = {event.spec.engine_id: event.spec for event in self.stored(EngineStartRequested)}
        for one, spec in held.items():
            assert intents.get(one) == spec, f"{one} has no intent"
        held |= {one: load.spec for one, load in self.actors[SCHEDULER].state.loads.items()}
        held |= {spec.engine_id: spec for spec in self._starts_in_the_mail() if spec.engine_id not in intents}
        total = sum(spec.memory for spec in held.values())
        assert total <= self.budget, f"{total} of {self.budget} are held by {sorted(held)}"
        for device in self.devices:
            there = sum(spec.device_memory for spec in held.values() if spec.device == device.id)
            assert there <= device.budget, f"{there} of {device.budget} are held on {device.id}"
        for client in self.clients.values():
            assert len(client.answers) <= 1, f"{client.request_id} was answered {client.answers}"
        for engine_id in self.gates.readings():
            for request in self.gates.inside(engine_id):
                client = self.clients[request]
                gone = client.left and not self.actors[SCHEDULER].mail
                assert not gone, f"{request} is gone and still held in {engine_id}"

    def _starts_in_the_mail(self) -> list[EngineSpec]:
        mail = [command for actor in self.actors.values() for command, *_ in actor.mail]
        mail += [command for _, _, command, _ in self.delayed]
        starts = [command.spec for command in mail if isinstance(command, StartEngine)]
        return [
            one
            for one in starts
            if one.engine_id not in self.actors[runner_address(one.backend)].state.forbidden
        ]


__all__ = ["NO_SPACE", "OFFLINE", "Client", "World"]
