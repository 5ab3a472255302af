"""The whole runner without HTTP: it wires actors, effect handlers, journal and data directory together."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from greenroom import __version__
from greenroom.actors.conversation_log import ConversationLog
from greenroom.actors.daemon_log import (
    DAEMON,
    DaemonLog,
    DaemonStarted,
    NoteDevices,
    NoteStopped,
)
from greenroom.actors.engine_runner.core import Runner
from greenroom.actors.gates import Emptied, GateBoard, GateEffects
from greenroom.actors.graphics import Graphics
from greenroom.actors.idempotency import Idempotency
from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.installer.messages import INSTALLER, RankVariants
from greenroom.actors.journal.port import Journal, JournalError
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.kernel.clock import Clock
from greenroom.actors.kernel.core import Address, Command, Core, EffectHandler
from greenroom.actors.kernel.errors import KernelError, StartFailed
from greenroom.actors.kernel.system import ActorSystem, Startable
from greenroom.actors.library.core import Library
from greenroom.actors.limits import complaint
from greenroom.actors.progress import ProgressBoard
from greenroom.actors.remote_log import REMOTES, RemoteLog
from greenroom.actors.scheduler.core import Scheduler
from greenroom.actors.scheduler.messages import SCHEDULER, AwaitReady, Drain, GateEmptied, SlotFreed
from greenroom.actors.scheduler.state import SchedulerVolatile
from greenroom.actors.scheduler.turn_context import Limits
from greenroom.actors.values import EngineSpec, Installation
from greenroom.runner.actor_states import ActorStates
from greenroom.runner.attachments import Attachments
from greenroom.runner.awake_clock import AwakeClock, AwakeTime
from greenroom.runner.backend_facts import facts_of
from greenroom.runner.backends.base import Backend, Launch, Platform
from greenroom.runner.backends.device_users import DeviceUser, device_users
from greenroom.runner.backends.discovery import BACKENDS, Catalog
from greenroom.runner.backends.variants import order
from greenroom.runner.config import Settings
from greenroom.runner.conversations.saver import ConversationSaver
from greenroom.runner.conversations.store import ConversationStore
from greenroom.runner.daemon_lock import DaemonLock
from greenroom.runner.devices.watch import DeviceWatch
from greenroom.runner.diagnosis.host_actors import HostActor, HostActors
from greenroom.runner.engines.folders import EngineFolder, prompt_speed
from greenroom.runner.engines.handle import PreparedEngine
from greenroom.runner.engines.host import EngineHost
from greenroom.runner.engines.memory_bound import hard_limit
from greenroom.runner.engines.memory_watch import MemoryWatch
from greenroom.runner.errors import JobFailed
from greenroom.runner.home import HomeWatch, prepare_home
from greenroom.runner.installations.builder import Builder
from greenroom.runner.installations.installed import folder_of, python_of
from greenroom.runner.installations.sources import redact
from greenroom.runner.memory import EngineMemory
from greenroom.runner.models.puller import Puller
from greenroom.runner.models.references import AmbiguousName, BadReference
from greenroom.runner.models.short_names import Catalogue
from greenroom.runner.models.store import ModelStore
from greenroom.runner.placement_text import where
from greenroom.runner.preload import load_again, preload, wanted
from greenroom.runner.proof import instance_id, keep_secret, prove
from greenroom.runner.remotes.watch import Remotes
from greenroom.runner.settings_text import in_force
from greenroom.runner.shutdown import StopDeadline
from greenroom.runner.systems.processes import boot_id

if TYPE_CHECKING:
    from greenroom.runner import Client
    from greenroom.runner.diagnosis.host_actors import Sentences

_log = logging.getLogger(__name__)

_LOOK_BOUND = 120.0
"""Seconds a start waits for the first look at disk and processes."""
STOP_BOUND = 60.0
"""Seconds a stop takes at most, whatever hangs."""

_LEASES_END = 2.0
"""Seconds of a stop after which places that this program itself holds are taken from it."""


class Greenroom(ActorStates, Startable):
    """Everything but HTTP. A context manager, plain and asynchronous.

    It keeps nothing global: no signal handlers, no atexit, no logging set-up. Two of them live side by side
    in one process as long as their data directories differ.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        journal: Journal | None = None,
        clock: Clock | None = None,
        backends: Mapping[str, Backend] = BACKENDS,
        here: Platform | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
        actors: Iterable[HostActor] = (),
    ) -> None:
        """Wire everything; nothing is started and nothing is written before `start`.

        `journal` replaces the SQLite file; `here` is the machine that verdicts are about. `on_failure` is
        called once, from any thread, if the actors have stopped themselves; `stop` must still be called.
        """
        self.settings = settings
        self.home = settings.home
        self._external = settings.own_backends
        self._awake = AwakeTime()
        self.gates = GateBoard(self._awake if clock is None else lambda: clock.now().monotonic)
        self.board = ProgressBoard()
        self._devices = DeviceWatch(headroom=settings.gpu_headroom)
        self._platform = here or Platform.here(self._devices.look())
        self.ignored_backends = backends.problems if isinstance(backends, Catalog) else ()
        self.backends = {name: backend.on(self._platform) for name, backend in backends.items()}
        super().__init__(self.backends, Remotes(settings.remote_backends, backends))
        self._journal = journal
        self._clock = clock
        self._lock: DaemonLock | None = None
        self._watch: HomeWatch | None = None
        self._host: EngineHost | None = None
        self._builder: Builder | None = None
        self._puller: Puller | None = None
        self.conversations = ConversationStore.of(settings)
        self._store = ModelStore(self.home / "models", make_room=self.conversations.make_room)
        self.conversation_saver = ConversationSaver(
            self.home,
            self.conversations,
            self.gates,
            self.backends,
            self.engine,
            self.why_evicted,
            lambda *one: self.builder.no_restore(self.installation(*one)),
            clock=self._awake if clock is None else lambda: clock.now().monotonic,
        )
        self._hosts = list(actors)
        self._on_failure = [on_failure] if on_failure is not None else []
        self.attachments = Attachments()
        self.address = ""
        """Where its front door listens, for the journal; empty in a program that listens nowhere."""
        self._pid = os.getpid()
        """Of the process that has started it: in a fork of that one, it is not ours."""
        self.facts = tuple(
            facts_of(backend, self._platform, self._external.get(name))
            for name, backend in self.backends.items()
        )
        self.memory = EngineMemory(settings, self._devices, self.facts)
        self.instance_id = ""
        self.life = ""
        """Names the time from one start to its stop, among all of this data directory."""
        self._secret = b""

    # for programs that ask rather than wire

    @classmethod
    def open(
        cls,
        home: str | os.PathLike[str] | None = None,
        *,
        on_failure: Callable[[BaseException], None] | None = None,
        actors: Iterable[HostActor] = (),
        **settings: Any,
    ) -> Client:
        """A client of a Greenroom inside this program: `with Greenroom.open() as client`.

        It starts on entering `with` or at the first call, and stops when its last client is closed: opening
        the same data directory again in this process gives the same Greenroom. `home` is by default the
        command line's; `~` is expanded, and a relative path is resolved now. `settings` override those of
        config.toml: `install_policy="auto"`. `actors` are the program's own. Raises TypeError for an unknown
        setting, ValueError for an invalid value.

        If the actor system fails and stops, `on_failure` is called once with the error, in the thread of the
        failed actor. Exceptions that it raises are logged. Have another thread close the client.
        """
        # A client is made of a front door, which is made of this: only the public names know both.
        from greenroom.runner import Client

        return Client.opened(home, settings, on_failure, tuple(actors))

    def client(self) -> Client:
        """A client of this Greenroom. It starts the Greenroom if it is not running, and then also stops it.

        It may be created at any time, on any thread; nothing is started before the client is used.
        """
        from greenroom.runner import Client

        return Client.inside(self)

    # life

    def notify_of_failure(self, on_failure: Callable[[BaseException], None]) -> None:
        """Also call this, once, if the actor system fails; at once if it already has."""
        self._on_failure.append(on_failure)
        if self.failure is not None:
            on_failure(self.failure)

    def register(
        self,
        core: Core[Any, Any],
        *,
        effect_handler: EffectHandler | None = None,
        sentences: Sentences | None = None,
    ) -> None:
        """Add an actor of the program's own before the start; its events go to the same journal.

        `effect_handler` carries out the actor's effects, on threads that it chooses. `sentences` describe its
        events, by type. Raises StartFailed after the start.
        """
        if self._system is not None:
            raise StartFailed("actors must be registered before the start")
        self._hosts.append(HostActor(core, sentences or {}, effect_handler))

    def start(self) -> None:
        """Lock, open and verify the journal, replay, start the actors, look, settle.

        Blocks for about half a second, longer with a large journal; in asyncio use `async with`. It may be
        started again after a stop. Raises HomeLocked, JournalError, StartFailed, OSError; after any of them
        nothing is left running.
        """
        if self._lock is not None and os.getpid() != self._pid:
            raise StartFailed(
                f"this Greenroom was started in process {self._pid}; create another one in this process"
            )
        self._pid = os.getpid()
        prepare_home(self.home)
        self._lock = DaemonLock(self.home)
        self._watch = HomeWatch(self.home, self._lock.is_in_place)
        try:
            self.instance_id, self._secret = instance_id(self.home), keep_secret(self.home)
            self.life = uuid.uuid4().hex
            self._start()
            self._watch.start()
        except BaseException:
            # Engines of the last daemon may have been adopted already: the next start finds them.
            self._end_effects(self.settings.engine_grace, StopDeadline(STOP_BOUND))
            self._lock.release()
            raise

    def _start(self) -> None:
        self._devices.start()
        try:
            self._store.prepare()
        except JobFailed as failed:
            # What is in it may still be read; pulls say why they fail.
            _log.error("the model store cannot be written to: %s", failed.failure.sentence())
        clock = self._clock or AwakeClock(self._awake)
        journal = self._journal or self._open_journal()
        system = ActorSystem(journal, clock=clock, on_failure=self._failed, redact=redact, explain=complaint)
        self._system = system
        try:
            self._populate(system, clock)
            system.start()
        except BaseException:
            self._stop_system(system)
            raise
        self._devices.subscribe(self._note_devices)
        # Ready only once installations, engines and the store have been inspected.
        try:
            system.ask(AwaitReady()).get(timeout=_LOOK_BOUND)
        except TimeoutError:
            _log.warning("not all actors are ready after %.0f s; /readyz waits for them", _LOOK_BOUND)
        assert self._host is not None
        self._host.sweep([engine.spec.engine_id for engine in self.engines()])
        self.conversations.start(lambda: {one.id for one in self.models()})
        self.remotes.start(partial(self._tell, REMOTES), self.life)
        preload(system, wanted(self, self.settings), self.settings.max_wait)

    def _populate(self, system: ActorSystem, clock: Clock) -> None:
        """Register all actors, with the handlers of their effects."""
        tell, factor = self._tell, self.settings.engine_memory_limit
        self._builder = Builder(
            self.home,
            tell,
            self.board,
            backends=self.backends,
            platform=self._platform,
            external=self._external,
            registries=self.settings.registries,
            free_memory=lambda: self.memory.available,
            make_room=self.conversations.make_room,
        )
        self._host = EngineHost(
            self.home / "engines",
            prepare=self._prepare,
            tell=tell,
            board=self.board,
            grace=self.settings.engine_grace,
            stall_after=self.settings.stall_after,
            readings=self.gates.readings,
            device_usage=self._devices.used_by,
            watch_memory=partial(MemoryWatch, room=self.memory.left, factor=factor) if factor else None,
            loaded=lambda spec, log: self.backends[spec.backend].loaded(log),
            speed=lambda spec, log: self.backends[spec.backend].answer_speed(log),
            before_end=self.conversation_saver.before_end,
        )
        self._puller = Puller(
            self._store,
            tell,
            self.board,
            catalogue=Catalogue.load(self.settings.models),
            registries=self.settings.registries,
            machine=self.memory.machine,
            forget=lambda model_id: self.conversations.drop(model_id=model_id),
        )
        limits = Limits(
            keep_alive=self.settings.keep_alive,
            max_wait=self.settings.max_wait,
            max_queued=self.settings.max_queued,
            queue=self.settings.queue_limit,
            slots=self.settings.slots,
            prompt_cache=self.settings.prompt_cache,
            require_device=self.settings.require_device,
            remotes={one.name: one.slot_owner for one in self.remotes},
        )
        for problem in self.ignored_backends:
            _log.warning("%s", problem)
        # First, so that what follows a start stands behind it in the journal.
        system.register(DaemonLog(self._started()))
        system.register(Idempotency())
        install_defaults = self.settings.install_policy != "never"
        system.register(
            InstallerCore(
                self.facts,
                install_defaults=install_defaults,
                fetch_variants=self.settings.install_policy == "auto",
            ),
            effect_handler=self._builder,
        )
        for name in self.backends:
            system.register(Runner(name), effect_handler=self._host)
        self.conversation_saver.start(self._tell)
        system.register(Library(), effect_handler=self._puller)
        system.register(
            Scheduler(self.facts, policy=self.settings.install_policy, limits=limits),
            effect_handler=GateEffects(
                self.gates, self.board, lambda one: load_again(system, one, self.settings.max_wait)
            ),
            observe=self._observe,
        )
        for core in (ConversationLog(), RemoteLog()):
            system.register(core)
        for one in self._hosts:
            system.register(one.core, effect_handler=one.effect_handler)
        self.gates.on_freed = lambda one: tell(SCHEDULER, SlotFreed(engine_id=one))
        self.gates.on_empty = Emptied(clock, lambda one: tell(SCHEDULER, GateEmptied(engine_id=one)))

    def _open_journal(self) -> Journal:
        # Checked while it is replayed: reading it twice would be most of a restart.
        journal = SqliteJournal(self.home / "journal.db", lazy=True)
        for notice in journal.notices:
            _log.warning("%s", notice)
        return journal

    def _started(self) -> DaemonStarted:
        return DaemonStarted(
            pid=os.getpid(),
            version=__version__,
            platform=platform.platform(),
            boot_id=boot_id(),
            address=self.address,
            life=uuid.uuid4().hex,
            settings=in_force(self.settings),
        )

    def stop(self, keep_engines: float | None = None, *, reason: str = "a stop was requested") -> None:
        """End in order: engines, jobs, actors, journal. Idempotent; takes `STOP_BOUND` seconds at most.

        `keep_engines` leaves the engines running for so many seconds (`math.inf`: forever), for the next
        daemon to adopt; None ends them. What hangs is left behind and named in the log. If the actors have
        stopped themselves, engines are left for their grace in any case: what may be lost must not cost what
        still works. In a forked child this does nothing, since all of it is the parent's.
        """
        system = self._system
        if system is None or os.getpid() != self._pid:
            return
        ending = StopDeadline(STOP_BOUND)
        self.attachments.close()
        if system.failure is not None and keep_engines is None:
            keep_engines = self.settings.engine_grace
        if self._watch is not None:
            self._watch.close()
        if keep_engines is None and system.failure is None:
            with contextlib.suppress(Exception):
                # A scheduler that does not answer in time is overruled by the host below.
                drained = system.ask(Drain())
                with contextlib.suppress(TimeoutError):
                    drained.get(timeout=_LEASES_END)
                system.end_leases()
                drained.get(timeout=STOP_BOUND / 2 - _LEASES_END)
        self.conversation_saver.close()
        self.remotes.close()
        self._end_effects(keep_engines, ending, spare=STOP_BOUND / 5)
        if system.failure is None:
            try:
                stopped = NoteStopped(pid=os.getpid(), reason=reason)
                system.ask(stopped).get(timeout=ending.left(spare=STOP_BOUND / 10, most=5.0))
            except (KernelError, TimeoutError) as error:
                _log.warning("this stop could not be recorded in the journal: %s", error)
        ending.all_of({"the actors and the journal": lambda: self._stop_system(system)})
        self._system = None
        if self._lock is not None:
            self._lock.release()

    # reading

    @cached_property
    def host_actors(self) -> HostActors:
        """Decodes and describes the events of the program's actors and of declared ones."""
        return HostActors(self._hosts)

    def last_event(self) -> int:
        """The number of the last event in its journal, before the start, too; 0 if there is none."""
        try:
            if self._journal is not None:
                return max((record.seq for record in self._journal.read()), default=0)
            with JournalReader(self.home / "journal.db", strict=False) as reader:
                return reader.last_seq()
        except (FileNotFoundError, JournalError):
            # There is none yet, or the start says what is wrong with it.
            return 0

    def prove(self, challenge: str, address: str) -> str:
        """Prove to a client that has reached us at `host:port` that this data directory is ours."""
        return prove(self._secret, challenge, address)

    @property
    def home_problem(self) -> str:
        """What is wrong with the data directory; empty if nothing is."""
        return "" if self._watch is None else self._watch.problem

    @property
    def store(self) -> ModelStore:
        return self._store

    @property
    def puller(self) -> Puller:
        """For questions to the sources of models; pulls go through the library."""
        assert self._puller is not None, "not running"
        return self._puller

    @property
    def builder(self) -> Builder:
        """The installations on disk, for reading and verifying."""
        assert self._builder is not None, "not running"
        return self._builder

    @property
    def devices(self) -> DeviceWatch:
        """The machine's graphics devices, as they are read regularly."""
        return self._devices

    def device_users(self, graphics: Graphics) -> dict[str, tuple[DeviceUser, ...]]:
        """By id of each device, which variants of backends would use it."""
        return device_users(self.backends.values(), graphics, self._platform, self.installed_variants())

    def where(self, engine_id: str) -> str:
        """Where the layers of an engine's model lie, such as `28/37 on RTX 4070`; `unknown` if that is not
        known.
        """
        engine = self.engine(engine_id)
        return (where(engine, self.device_names()) if engine is not None else "") or "unknown"

    def device_names(self) -> dict[str, str]:
        """Device → its name, of those that can compute."""
        return {one.id: one.name for one in self._devices.graphics.usable}

    # inside

    def _tell(self, to: Address, command: Command[Any]) -> None:
        system = self._system
        if system is None:
            _log.debug("%s came after the stop", type(command).__name__)
            return
        system.report(command, to=to)

    def _note_devices(self, graphics: Graphics) -> None:
        """Record what the devices are now, and which variants this machine would use for them."""
        graphics = graphics.lasting
        self._tell(DAEMON, NoteDevices(graphics=graphics))
        found = tuple(f"{one.name} ({one.driver})" if one.driver else one.name for one in graphics.devices)
        for name, backend in self.backends.items():
            if backend.variants:
                ranked = order(backend.variants, graphics, self._platform)
                self._tell(INSTALLER, RankVariants(backend=name, devices=found, variants=ranked))

    def _observe(self, volatile: SchedulerVolatile) -> SchedulerVolatile:
        """Read what changes without messages: gates and memory."""
        return msgspec.structs.replace(volatile, gates=self.gates.readings(), memory=self.memory.reading())

    def _data_limit(self, spec: EngineSpec, installation: Installation) -> int:
        """Bytes beyond which the system is to refuse an engine more; 0 if drivers may need any number."""
        factor, backend = self.settings.engine_memory_limit, self.backends[spec.backend]
        facts = next(one for one in self.facts if one.name == spec.backend)
        computes = dict(facts.runtimes).get(installation.variant) or spec.device
        is_known = backend.limits_data and installation.managed and not computes
        return hard_limit(spec, factor) if factor and is_known else 0

    def _prepare(self, spec: EngineSpec, socket: Path) -> PreparedEngine:
        """The command line of one engine, from what is on disk now."""
        installation = self.installation(spec.backend, spec.installation_id)
        if installation is None:
            raise JobFailed.permanent(
                "backend_not_installed", f"The installation {spec.installation_id} of {spec.backend} is gone."
            )
        backend = self.backends[spec.backend].built(installation.variant)
        self.builder.prepare(installation)
        external = self._external.get(spec.backend)
        files = self._store.open_model(spec.model_id, name=spec.model_ref)
        no_restore, kept = self.builder.no_restore(installation), spec.prompt_cache or 0
        keeps = not (self.conversations.off or backend.why_not_saved(spec.mode, no_restore, kept))
        launch = Launch(
            spec=spec,
            root=folder_of(self.home, installation),
            python=python_of(self.home, installation),
            model=files,
            socket=socket,
            binary=external.binary if external is not None and not installation.managed else None,
            built=self.builder.program(installation) if installation.managed else None,
            prompt_speed=prompt_speed(self.home / "engines", spec, backend.prompt_speed),
            slot_files=EngineFolder.of(self.home / "engines", spec.engine_id).make_slots() if keeps else None,
        )
        command = backend.command(launch)
        if spec.device or spec.layers:
            devices = [one.device for one in spec.placement] or [spec.device] * bool(spec.device)
            variables = self._devices.variables(devices)
            if variables is None:
                raise JobFailed.permanent(
                    "device_gone",
                    f"The selected graphics device {' or '.join(devices)} is no longer available.",
                )
            command = replace(command, env={**command.env, **variables})
        return PreparedEngine(
            command=command,
            readiness=backend.readiness,
            model_name=backend.dialect.spoken(spec.model_id) or files.name,
            version=installation.version,
            data_limit=self._data_limit(spec, installation),
        )

    def _failed(self, error: BaseException) -> None:
        self.failure = error
        for notify in self._on_failure:
            try:
                notify(error)
            except BaseException:  # noqa: BLE001 - `sys.exit` would end only an actor's thread
                _log.exception("on_failure raised")

    def _stop_system(self, system: ActorSystem) -> None:
        system.stop(STOP_BOUND / 10)
        if self._clock is None:
            # The system ends only a clock of its own, and this one is ours.
            system.clock.close()

    def _end_effects(self, keep_engines: float | None, ending: StopDeadline, *, spare: float = 0.0) -> None:
        """Concurrently, so that one that hangs does not delay the others. Leaves `spare` seconds."""
        work: dict[str, Callable[[], None]] = {"the graphics devices": self._devices.close}
        self.conversations.close()
        if (host := self._host) is not None:
            work["the engines"] = lambda: host.shutdown(keep=keep_engines)
        if (builder := self._builder) is not None:
            work["installations"] = builder.close
        if (puller := self._puller) is not None:
            work["pulls"] = puller.close
        ending.all_of(work, spare=spare)


__all__ = ["AmbiguousName", "BadReference", "Greenroom", "facts_of"]
