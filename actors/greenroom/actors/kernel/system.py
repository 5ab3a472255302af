"""An actor system: addresses, one journal, one clock. Two of them live side by side in one process."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Self, TypeVar

import msgspec
import pykka

from greenroom.actors.journal.port import Journal, Record
from greenroom.actors.kernel.actor import Actor
from greenroom.actors.kernel.answers import Asked, Leases, Reply, bad_fields
from greenroom.actors.kernel.checks import Explain, complaint, no_words
from greenroom.actors.kernel.clock import Clock, SystemClock
from greenroom.actors.kernel.core import Address, Command, Core, EffectHandler, NoEffectHandler, Tell
from greenroom.actors.kernel.errors import (
    ActorStopped,
    AskExpired,
    Forked,
    KernelError,
    MailboxFull,
    Refused,
    StartFailed,
    SystemFailed,
    UnknownActor,
)
from greenroom.actors.kernel.event_store import PARKED, Codec, Replayed, Store, replay
from greenroom.actors.kernel.executor import Executor
from greenroom.actors.kernel.supervision import in_one_line

_log = logging.getLogger(__name__)

R = TypeVar("R")


class _Registered(msgspec.Struct):
    core: Core[Any, Any]
    effect_handler: EffectHandler
    observe: Callable[[Any], Any] | None
    mailbox: int


class Startable(ABC):
    """A context manager, plain and asynchronous: starts on entry, stops on exit.

    `async with` blocks no loop, and what a cancelled caller had started is stopped again.
    """

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await start_in_thread(self.start, self.stop)
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop_in_thread(self.stop)


async def start_in_thread(start: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run `start` in a thread; if the caller is cancelled meanwhile, wait for it and run `stop`.

    A thread cannot be cancelled: left alone it would leave something running.
    """
    starting = asyncio.ensure_future(asyncio.to_thread(start))
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait([starting])
        if not starting.cancelled() and starting.exception() is None:
            await stop_in_thread(stop)
        raise


async def stop_in_thread(stop: Callable[[], None]) -> None:
    """Run `stop` in a thread to its end, also when the caller is cancelled."""
    stopping = asyncio.ensure_future(asyncio.to_thread(stop))
    try:
        await asyncio.shield(stopping)
    except asyncio.CancelledError:
        await asyncio.wait([stopping])
        raise


class ActorSystem(Startable):
    """Runs cores on one journal. A context manager; starts on entry, stops on exit.

    It keeps nothing global: no signal handlers, no atexit, no logging set-up, no entry in Pykka's registry.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        clock: Clock | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
        redact: Callable[[str], str] = str,
        explain: Explain = no_words,
    ) -> None:
        """Make a system that owns `journal` (it closes it) and, unless one is given, its clock.

        `on_failure` is called once, from any thread, when the system has stopped itself. `redact` takes
        secrets out of what is stored of a command that failed, beside those the command names itself.
        `explain` may have better words than msgspec for a field that is wrong.
        """
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.store = Store(journal, self.clock, redact)
        self._owns_clock = clock is None
        self._on_failure = on_failure
        self._explain = explain
        self._pid = os.getpid()
        """Of the process whose threads the actors are."""
        self._registered: dict[Address, _Registered] = {}
        self._actors: dict[Address, Actor] = {}
        self._leases = Leases()
        self._in_flight = 0
        self._rest = threading.Condition()
        self._ending = threading.Lock()
        self._stopping = False
        self._closed = False

    @property
    def journal(self) -> Journal:
        return self.store.journal

    @property
    def codec(self) -> Codec:
        """Decodes the records of its journal: the event types of the actors that are registered."""
        return self.store.codec

    @property
    def failure(self) -> BaseException | None:
        """Why the system has stopped itself; None as long as it has not."""
        return self.store.failure

    # making

    def register(
        self,
        core: Core[Any, Any],
        *,
        effect_handler: EffectHandler | None = None,
        observe: Callable[[Any], Any] | None = None,
        mailbox: int = 10_000,
    ) -> None:
        """Add an actor before the start.

        `effect_handler` carries out its own effects. `observe` refreshes its volatile state from facts that
        others own, just before each decision. Asks beyond `mailbox` waiting ones raise MailboxFull.
        """
        if self._actors:
            raise StartFailed("actors must be registered before the system starts")
        if core.address in self._registered:
            raise StartFailed(f"there is already an actor {core.address}")
        self.store.codec.register(core.event_types)
        self._registered[core.address] = _Registered(
            core, effect_handler or NoEffectHandler(), observe, mailbox
        )

    def start(self, timeout: float = 60.0) -> None:
        """Replay the journal, start every actor, and wait until each has had its first look at the world.

        Raises JournalError when the journal cannot be trusted, StartFailed when an actor cannot start; the
        system has stopped then. A system is started once.
        """
        if self._actors or self._stopping:
            raise StartFailed("a system can be started only once; create another")
        self._pid = os.getpid()
        try:
            self._start(timeout)
        except BaseException:
            self.stop(min(timeout, 10.0))
            raise

    def _start(self, timeout: float) -> None:
        cores = [one.core for one in self._registered.values()]
        replayed, self.store.dormant = replay(self.journal.read(), self.store.codec, cores)
        for address, one in self._registered.items():
            found = replayed[address]
            self._note_left_out(one.core, found)
            executor = Executor(
                one.core,
                one.effect_handler,
                one.observe,
                state=found.state,
                versions=found.versions,
                store=self.store,
                clock=self.clock,
                leases=self._leases,
                send=self._send,
                failed=self._failed,
            )
            self._actors[address] = self._actor(executor)
        deadline = time.monotonic() + timeout
        for address, actor in self._actors.items():
            # One after the other, so that what the first looks store stands in the order of registration.
            actor.begin()
            try:
                actor.started.get(timeout=max(0.0, deadline - time.monotonic()))
            except pykka.Timeout as late:
                raise StartFailed(f"{address} did not start within {timeout:g} seconds") from late

    def _actor(self, executor: Executor) -> Actor:
        """`ManualSystem` has another kind."""
        return Actor(executor, self._count)

    def _note_left_out(self, core: Core[Any, Any], found: Replayed) -> None:
        """Store which events are left out of the state, once for each and not at every start."""
        if not found.left_out:
            return
        stream = f"{PARKED}{core.address}"
        noted = {record.cause for record in self.journal.read() if record.stream == stream}
        for one in found.left_out:
            _log.error("event %s cannot be replayed and is skipped: %s", one.event_id, one.fault.error)
            if one.event_id not in noted:
                self.store.park(core, one.fault, one.event_id)

    def stop(self, timeout: float = 10.0) -> None:
        """Let every actor finish what it has in hand, then close the journal. Idempotent, bounded.

        An actor that does not end within `timeout` seconds is left behind; it can store nothing any more.
        In a forked child this does nothing: actors and journal are the parent's.
        """
        if os.getpid() != self._pid:
            return
        self._stop_actors()
        deadline = time.monotonic() + timeout
        for address, actor in self._actors.items():
            # An actor that stops the system, from `on_failure` say, cannot wait for itself.
            if actor.thread is threading.current_thread():
                continue
            if actor.thread is not None and not actor.stopped.wait(max(0.05, deadline - time.monotonic())):
                _log.error("%s did not stop within %g seconds and is left behind", address, timeout)
            if not actor.stopped.is_set():
                actor.on_stop()
        self._closed = True
        self._leases.drop()
        if self._owns_clock:
            self.clock.close()
        self.journal.close()

    def _stop_actors(self) -> None:
        with self._ending:
            if self._stopping:
                return
            self._stopping = True
        for actor in self._actors.values():
            actor.actor_ref.stop(block=False)

    # using

    def ask(
        self,
        command: Command[R],
        *,
        to: Address | str | None = None,
        cause: str = "",
        timeout: float | None = None,
    ) -> Reply[R]:
        """Ask the actor that handles a command, or the one at `to`.

        The reply is had by `.get(timeout)` in a thread or by `await` in a loop.

        The reply raises Refused, ActorStopped, AskExpired (after `timeout` seconds), MailboxFull,
        SystemFailed. Abandoning it does not undo the command. Raises TypeError at once for what is no
        command, and Forked in a child of the process that started the system.
        """
        address = self._checked(command, to)
        reply: Reply[R] = Reply()
        actor = self._actors.get(address)
        if self.failure is not None:
            reply.fail(SystemFailed(f"the system has stopped: {in_one_line(self.failure)}"))
        elif actor is None:
            reply.fail(self._unreachable(address))
        elif wrong := complaint(command, self._explain):
            reply.fail(Refused(bad_fields(type(command).__name__, wrong)))
        elif (waiting := actor.actor_inbox.qsize()) >= self._registered[address].mailbox:
            reply.fail(MailboxFull(f"{address} has {waiting} requests waiting; try again later"))
        else:
            deadline = None
            if timeout is not None:
                deadline = self.clock.now().monotonic + timeout
                late = f"{address} did not answer within {timeout:g} seconds"
                timer = self.clock.call_at(deadline, lambda: self._expire(actor, command, cause, reply, late))
                reply.on_done(timer.cancel)
            actor.post(Asked(command=command, cause=cause, reply=reply, deadline=deadline))
        return reply

    def tell(self, command: Command[Any], *, to: Address | str | None = None, cause: str = "") -> None:
        """Send a command without waiting for anything. To a stopped actor it goes nowhere.

        Raises Refused for a command with a wrong field, UnknownActor, ActorStopped before the start,
        TypeError for what is no command, and Forked.
        """
        address = self._checked(command, to)
        if wrong := complaint(command, self._explain):
            raise Refused(bad_fields(type(command).__name__, wrong))
        self._deliver(address, command, cause)

    def report(self, command: Command[Any], *, to: Address | str | None = None, cause: str = "") -> None:
        """Send what an effect handler reports, whatever its fields hold: it must not be lost.

        Raises UnknownActor, ActorStopped before the start, TypeError for what is no command, and Forked.
        """
        self._deliver(self._checked(command, to), command, cause)

    def end_leases(self) -> None:
        """Withdraw every command whose answer is still held (see `Command.is_leased`)."""
        self._leases.end_all()

    def state(self, of: Address | str) -> Any:
        """The durable state of an actor as of its last event: an immutable value."""
        address = Address(of) if isinstance(of, str) else of
        return self._found(address).executor.state

    def volatile(self, of: Address | str) -> Any:
        """What an actor knows but does not store, as of its last message: an immutable value."""
        return self._found(Address(of) if isinstance(of, str) else of).executor.volatile

    @property
    def addresses(self) -> Mapping[Address, Core[Any, Any]]:
        return MappingProxyType({address: one.core for address, one in self._registered.items()})

    def on_record(self, listener: Callable[[Record], None]) -> None:
        """Call with every stored event, in the thread of the actor that stored it. Must be quick."""
        self.store.listeners.append(listener)

    def rest(self, timeout: float = 10.0) -> None:
        """Wait until no message waits or is being handled. For tests; timers that are not due do not count.

        Raises TimeoutError.
        """
        with self._rest:
            if not self._rest.wait_for(lambda: self._in_flight <= 0, timeout):
                raise TimeoutError(f"{self._in_flight} messages are still in flight")

    # for actors

    def _send(self, effect: Tell, cause: str) -> None:
        try:
            self.report(effect.command, to=effect.to, cause=cause)
        except KernelError as error:
            # The sender is right whatever its host has put together: to fail here would fail it every time.
            _log.error("undelivered %s, caused by %s: %s", type(effect.command).__name__, cause, error)

    def _failed(self, error: BaseException) -> None:
        with self._ending:
            if self.store.failure is not None:
                return
            self.store.failure = error
        if self._closed:
            # An actor that was left behind has found its journal closed.
            return
        _log.critical("the actor system stops itself: %s", in_one_line(error))
        self._stop_actors()
        if self._on_failure is not None:
            try:
                self._on_failure(error)
            except BaseException:  # noqa: BLE001
                # A host may well call `sys.exit` here; raised in this thread it would only do damage.
                _log.exception("on_failure raised")

    def _count(self, change: int) -> None:
        with self._rest:
            self._in_flight += change
            if self._in_flight <= 0:
                self._rest.notify_all()

    # inside

    def _checked(self, command: object, to: object) -> Address:
        """Who is meant; raises TypeError and Forked."""
        if os.getpid() != self._pid:
            raise Forked(
                f"the actor system runs in process {self._pid}, of which this one, {os.getpid()}, is a fork; "
                "start another system here"
            )
        if not isinstance(command, Command):
            what = f"the class {command.__name__}" if isinstance(command, type) else repr(command)[:100]
            raise TypeError(f"an actor accepts an instance of a Command, not {what}")
        if to is None:
            return command.actor
        if not isinstance(to, Address | str):
            raise TypeError(f"the recipient must be an address or a string, not {to!r:.100}")
        return Address(to) if isinstance(to, str) else to

    def _deliver(self, address: Address, command: Command[Any], cause: str) -> None:
        self._found(address).post(Asked(command=command, cause=cause))

    def _found(self, address: Address) -> Actor:
        actor = self._actors.get(address)
        if actor is None:
            raise self._unreachable(address)
        return actor

    def _expire(self, actor: Actor, command: Command[Any], cause: str, reply: Reply[Any], late: str) -> None:
        """The caller has gone: what the actor does for it is taken back, if the command can be."""
        if reply.fail(AskExpired(late)):
            actor.executor.withdraw(command, cause)

    def _unreachable(self, address: Address) -> UnknownActor | ActorStopped:
        if address in self._registered:
            return ActorStopped(f"{address} is not running")
        known = ", ".join(sorted(map(str, self._registered))) or "none"
        return UnknownActor(f"no actor {str(address)!r} in this system (there are: {known})")
