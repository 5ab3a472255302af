"""An actor system: addresses, one journal, one clock. Two of them live side by side in one process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Self

import msgspec
from greenroom.actors.journal.port import Entry, Journal, Record
from greenroom.actors.kernel.clock import Clock, SystemClock
from greenroom.actors.kernel.codec import Codec
from greenroom.actors.kernel.core import Address, Command, Core, Event, Hands, NoHands, Stored, Tell
from greenroom.actors.kernel.errors import (
    ActorStopped,
    MailboxFull,
    StartFailed,
    SystemFailed,
    UnknownActor,
)
from greenroom.actors.kernel.reply import Reply
from greenroom.actors.kernel.shell import Asked, Shell
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

_log = logging.getLogger(__name__)


class CommandParked(Event, frozen=True, kw_only=True):
    """A command failed twice, each time in a freshly rebuilt actor; it was put aside."""

    TAG = "command_parked"
    actor: str
    command: str
    fields: str
    """The command as JSON, for whoever looks into it."""
    traceback: str


class _Registered(msgspec.Struct):
    core: Core[Any, Any]
    hands: Hands
    sense: Callable[[Any], Any] | None
    mailbox: int


class ActorSystem:
    """Runs cores on one journal. A context manager; starts on entry, stops on exit.

    It keeps nothing global: no signal handlers, no atexit, no logging set-up, no entry in Pykka's registry.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        clock: Clock | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Make a system that owns `journal` (it closes it) and, unless one is given, its clock.

        `on_failure` hears once, from any thread, that the system has stopped itself.
        """
        self.journal = journal
        self.clock: Clock = clock if clock is not None else SystemClock()
        self._owns_clock = clock is None
        self.codec = Codec()
        self.codec.register([CommandParked])
        self.failure: BaseException | None = None
        self._on_failure = on_failure
        self._registered: dict[Address, _Registered] = {}
        self._shells: dict[Address, Shell] = {}
        self._parked_version: dict[str, int] = {}
        self._in_flight = 0
        self._rest = threading.Condition()
        self._stopping = False
        self._listeners: list[Callable[[Record], None]] = []

    # making

    def register(
        self,
        core: Core[Any, Any],
        *,
        hands: Hands | None = None,
        sense: Callable[[Any], Any] | None = None,
        mailbox: int = 10_000,
    ) -> None:
        """Add an actor before the start.

        `hands` carry out its own effects; `sense` refreshes its volatile state from what others own just
        before it decides; more than `mailbox` waiting asks are refused.
        """
        if self._shells:
            raise StartFailed("actors are registered before the system starts")
        if core.address in self._registered:
            raise StartFailed(f"there is an actor {core.address} already")
        self.codec.register(core.event_types)
        self._registered[core.address] = _Registered(core, hands or NoHands(), sense, mailbox)

    def start(self, timeout: float = 60.0) -> None:
        """Replay the journal, start every actor, and wait until each has had its first look at the world.

        Raises JournalError when the journal cannot be trusted, StartFailed when an actor cannot start.
        """
        states, versions = self._replay_all()
        for address, registered in self._registered.items():
            self._shells[address] = Shell(
                registered.core,
                registered.hands,
                self,
                states[address],
                versions[address],
                registered.sense,
            )
        for shell in self._shells.values():
            shell.begin()
        deadline = time.monotonic() + timeout
        for address, shell in self._shells.items():
            try:
                shell.started.get(timeout=max(0.0, deadline - time.monotonic()))
            except BaseException as error:
                self.stop()
                raise StartFailed(f"{address} could not start: {error}") from error

    def stop(self, timeout: float = 10.0) -> None:
        """Let every actor finish what it has in hand, then close the journal. Idempotent, bounded."""
        if not self._stopping:
            self._stopping = True
            for shell in self._shells.values():
                if not shell.actor_stopped.is_set():
                    shell.actor_inbox.put(Envelope(_ActorStop()))
        deadline = time.monotonic() + timeout
        for address, shell in self._shells.items():
            try:
                shell.stopped.get(timeout=max(0.05, deadline - time.monotonic()))
            except Exception as error:  # noqa: BLE001 - one actor that hangs must not keep the rest from ending
                _log.error("%s did not stop in time: %r", address, error)
        if self._owns_clock:
            self.clock.close()
        self.journal.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        import asyncio

        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.stop)

    # using

    def ask(
        self, to: Address | str, command: Command, *, cause: str = "", timeout: float | None = None
    ) -> Reply:
        """Ask an actor; the reply is had by `.get(timeout)` in a thread or by `await` in a loop.

        The reply raises Refused, ActorStopped, AskExpired (after `timeout` seconds), MailboxFull,
        SystemFailed. Abandoning it does not undo the command.
        """
        reply = Reply()
        deadline = None if timeout is None else self.clock.now().monotonic + timeout
        address = Address(to) if isinstance(to, str) else to
        shell = self._shells.get(address)
        if self.failure is not None:
            reply.fail(SystemFailed(f"the system has stopped: {self.failure}"))
        elif shell is None:
            reply.fail(self._nobody(address))
        elif shell.actor_inbox.qsize() >= self._registered[address].mailbox:
            reply.fail(MailboxFull(f"{address} has {shell.actor_inbox.qsize()} requests waiting"))
        else:
            self._put(shell, Asked(command=command, cause=cause, reply=reply, deadline=deadline))
        return reply

    def tell(self, to: Address | str, command: Command, *, cause: str = "") -> None:
        """Send a command without waiting for anything. To a stopped actor it goes nowhere."""
        address = Address(to) if isinstance(to, str) else to
        shell = self._shells.get(address)
        if shell is None:
            raise self._nobody(address)
        self._put(shell, Asked(command=command, cause=cause))

    def state(self, of: Address | str) -> Any:
        """The durable state of an actor as of its last event: an immutable value."""
        address = Address(of) if isinstance(of, str) else of
        shell = self._shells.get(address)
        if shell is None:
            raise self._nobody(address)
        return shell.state

    @property
    def addresses(self) -> Mapping[Address, Core[Any, Any]]:
        """Who is registered."""
        return MappingProxyType({address: one.core for address, one in self._registered.items()})

    def on_record(self, listener: Callable[[Record], None]) -> None:
        """Hear of every stored event, from the thread of the actor that stored it. Must be quick."""
        self._listeners.append(listener)

    def rest(self, timeout: float = 10.0) -> None:
        """Wait until no message waits or is being handled. For tests; timers that are not due do not count.

        Raises TimeoutError.
        """
        with self._rest:
            if not self._rest.wait_for(lambda: self._in_flight <= 0, timeout):
                raise TimeoutError(f"{self._in_flight} messages are still in flight")

    # what shells need (`Surroundings`)

    def record(
        self, core: Core[Any, Any], versions: dict[str, int], events: Sequence[Event], cause: str
    ) -> list[Stored[Event]]:
        """Store the events of one decision as one batch; on success `versions` has moved on."""
        at = self.clock.now().wall
        ahead = dict(versions)
        entries = []
        for event in events:
            stream = core.stream_of(event)
            ahead[stream] = ahead.get(stream, 0) + 1
            entries.append(
                Entry(
                    stream=stream,
                    version=ahead[stream],
                    type=type(event).TAG,
                    schema=type(event).SCHEMA,
                    cause=cause,
                    data=self.codec.encode(event),
                    at=at,
                )
            )
        records = self._append(entries, urgent=any(type(event).URGENT for event in events))
        versions.update(ahead)
        return [
            Stored(event, record.id, record.at, record.cause)
            for event, record in zip(events, records, strict=True)
        ]

    def replay(self, core: Core[Any, Any]) -> tuple[Any, dict[str, int]]:
        """The durable state of one actor and the versions of its streams, from the journal alone."""
        state = core.initial()
        versions: dict[str, int] = {}
        for record in self.journal.read():
            if core.claims(record.stream):
                versions[record.stream] = record.version
                stored = self.codec.decode(record)
                if stored is not None:
                    state = _fold(core, state, stored, record)
        return state, versions

    def send(self, effect: Tell, cause: str) -> None:
        """Deliver a command to another actor of this system."""
        self.tell(effect.to, effect.command, cause=cause)

    def park(self, core: Core[Any, Any], command: Command, trace: str) -> None:
        """Store that this command fails whenever it is handled."""
        stream = f"parked/{core.address}"
        version = self._parked_version.get(stream, 0) + 1
        event = CommandParked(
            actor=str(core.address),
            command=type(command).__name__,
            fields=msgspec.json.encode(command, enc_hook=repr).decode()[:4_000],
            traceback=trace[-8_000:],
        )
        self._append(
            [
                Entry(
                    stream=stream,
                    version=version,
                    type=event.TAG,
                    schema=event.SCHEMA,
                    cause="",
                    data=self.codec.encode(event),
                    at=self.clock.now().wall,
                )
            ]
        )
        self._parked_version[stream] = version

    def failed(self, error: BaseException) -> None:
        """Stop the system once and for all."""
        if self.failure is not None:
            return
        self.failure = error
        _log.critical("the actor system stops itself: %s", error)
        self._stopping = True
        for shell in self._shells.values():
            shell.actor_inbox.put(Envelope(_ActorStop()))
        if self._on_failure is not None:
            self._on_failure(error)

    def handled(self) -> None:
        """One message is done."""
        with self._rest:
            self._in_flight -= 1
            if self._in_flight <= 0:
                self._rest.notify_all()

    # inside

    def _put(self, shell: Shell, asked: Asked) -> None:
        self.sent()
        shell.actor_inbox.put(Envelope(asked))

    def sent(self) -> None:
        """One message is under way."""
        with self._rest:
            self._in_flight += 1

    def _append(self, entries: Sequence[Entry], *, urgent: bool = False) -> list[Record]:
        records = self.journal.append(entries, urgent=urgent)
        for record in records:
            for listener in self._listeners:
                listener(record)
        return records

    def _replay_all(self) -> tuple[dict[Address, Any], dict[Address, dict[str, int]]]:
        cores = [one.core for one in self._registered.values()]
        states = {core.address: core.initial() for core in cores}
        versions: dict[Address, dict[str, int]] = {core.address: {} for core in cores}
        owners: dict[str, Core[Any, Any] | None] = {}
        for record in self.journal.read():
            if record.stream not in owners:
                owners[record.stream] = next((core for core in cores if core.claims(record.stream)), None)
            owner = owners[record.stream]
            if owner is None:
                # A stream no running actor claims is dormant: a host's or a plug-in's that is gone.
                if record.type == CommandParked.TAG:
                    self._parked_version[record.stream] = record.version
                continue
            versions[owner.address][record.stream] = record.version
            stored = self.codec.decode(record)
            if stored is not None:
                states[owner.address] = _fold(owner, states[owner.address], stored, record)
        return states, versions

    def _nobody(self, address: Address) -> UnknownActor | ActorStopped:
        if address in self._registered:
            return ActorStopped(f"{address} is not running")
        known = ", ".join(sorted(map(str, self._registered))) or "none"
        return UnknownActor(f"no actor {str(address)!r} in this system (there are: {known})")


def _fold(core: Core[Any, Any], state: Any, stored: Stored[Event], record: Record) -> Any:
    try:
        return core.apply(state, stored)
    except Exception as error:
        # apply is total: if it raises, the state after this event is unknown, and so is all after it.
        raise StartFailed(f"event {record.seq} ({record.id}) cannot be replayed: {error!r}") from error
