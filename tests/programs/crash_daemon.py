"""A daemon that dies at a chosen point of one event's life: `crash_daemon.py HOME [EVENT POINT [LATE]]`.

EVENT is an id, and may be empty; LATE is a type of event that is acknowledged before it is stored. Points:

    before    the batch with the event has reached the journal, nothing of it is written
    after     it is written; no message has been sent, no effect has begun
    effect    what it made necessary is done: told, answered, and where work in the world was begun (a
              build, a process, a deletion) that has ended too, but its report has not arrived
    outcome   the next event of its stream, or one it has caused, is written; else the journal closes

What is committed, and that the point was reached, is written to `<home>.notes` at once.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from greenroom.actors.engine_runner.effects import EndEngine, SpawnEngine
from greenroom.actors.engine_runner.messages import EngineMoved
from greenroom.actors.installer.effects import BuildInstallation, CancelBuild, RemoveInstallation
from greenroom.actors.journal.port import Entry, Journal, Record
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.kernel.core import Command, Effect, EffectHandler, Event
from greenroom.actors.kernel.event_store import replay
from greenroom.actors.kernel.executor import Executor
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.library.effects import AddTag, DeleteModel, FetchModel, RemoveTag
from greenroom.actors.reports import EffectEnded, Happened
from greenroom.actors.scheduler.messages import GateEmptied
from greenroom.runner.config import Settings
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.server import run

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from toy import toy_backend

# Work outside this process, which ends with a report; gates, answers and messages are done at once.
WORLD = (
    BuildInstallation,
    CancelBuild,
    RemoveInstallation,
    SpawnEngine,
    EndEngine,
    FetchModel,
    DeleteModel,
    AddTag,
    RemoveTag,
)
NO_END = (EngineMoved, GateEmptied)
"""Reports that say nothing about how an effect ended."""


class Boundary:
    """Watches one event's life and ends this process at one point of it."""

    def __init__(self, event: str, point: str, notes: int) -> None:
        self._event = event
        self._point = point
        self._notes = notes
        self._stream = event.rpartition("/")[0]
        self._thread: int | None = None
        """Whose handler committed the event, until that handler is done."""
        self._is_stored = False
        self._awaited: set[str] = set()
        """What the effects that are under way are about."""

    def note(self, text: str) -> None:
        os.write(self._notes, f"{text}\n".encode())

    def resume(self, journal: Journal) -> None:
        """An earlier daemon of this life may have stored the event already; what follows it is to come."""
        self._is_stored = any(record.id == self._event for record in journal.read(stream=self._stream))

    def arriving(self, batch: Sequence[Entry]) -> None:
        """A batch has come to the journal."""
        if self._point == "before":
            self._die_if_among(batch)

    def stored(self, batch: Sequence[Entry]) -> None:
        """A batch is written."""
        if self._point == "after":
            self._die_if_among(batch)
        if self._is_stored:
            if self._point == "outcome" and any(
                one.stream == self._stream or one.cause == self._event for one in batch
            ):
                self._die(batch[0].type)
        elif self._event in ids(batch):
            self._is_stored = True
            self._thread = threading.get_ident()

    def begun(self, effect: Effect) -> None:
        """An effect has begun."""
        if self._thread == threading.get_ident() and isinstance(effect, WORLD):
            self._awaited |= subjects(effect)

    def settled(self) -> None:
        """A handler is done, with all that followed."""
        if self._thread == threading.get_ident():
            self._thread = None
            if self._point == "effect" and not self._awaited:
                self._die("every message is sent")

    def reported(self, report: Command[Any]) -> None:
        """It is about to be reported how something ended."""
        if self._point == "effect" and not isinstance(report, NO_END) and self._awaited & subjects(report):
            self._die(type(report).__name__)

    def closing(self) -> None:
        """The journal closes."""
        if self._is_stored and self._point in ("outcome", "effect"):
            self._die("the end")

    def _die_if_among(self, batch: Sequence[Entry]) -> None:
        if self._event in ids(batch):
            self._die(next(one.type for one in batch if f"{one.stream}/{one.version}" == self._event))

    def _die(self, at: str) -> None:
        self.note(f"! {self._event} {self._point} {at}")
        os.kill(os.getpid(), signal.SIGKILL)


def ids(batch: Sequence[Entry]) -> list[str]:
    return [f"{one.stream}/{one.version}" for one in batch]


def subjects(value: Effect | Command[Any] | Event) -> set[str]:
    """The ids of what an effect or a report is about."""
    if isinstance(value, Happened):
        return subjects(value.event)
    if isinstance(value, EffectEnded):
        return subjects(value.effect)
    spec, installation = getattr(value, "spec", None), getattr(value, "installation", None)
    found = {getattr(value, name, "") for name in ("job", "engine_id", "installation_id", "model_id")}
    found |= {getattr(spec, "engine_id", ""), getattr(installation, "id", "")}
    return found - {""}


class WatchedJournal:
    """A journal at whose boundaries the process may end."""

    def __init__(self, inner: Journal, boundary: Boundary, late: str) -> None:
        self._inner = inner
        self._boundary = boundary
        self._late = late
        self._held: list[Entry] = []

    def append(self, batch: Sequence[Entry], *, urgent: bool = False) -> list[Record]:
        self._boundary.arriving(batch)
        if batch[0].type == self._late:
            # The fault that the test must notice: reported as stored, and stored only later.
            self._held += batch
            fields = ("at", "stream", "version", "type", "schema", "cause", "data")
            records = [Record(0, *(getattr(one, name) for name in fields)) for one in batch]
        else:
            held, self._held = self._held, []
            records = self._inner.append([*held, *batch], urgent=urgent)[len(held) :]
        for record in records:
            self._boundary.note(f"{record.id} {record.type}")
        self._boundary.stored(batch)
        return records

    def read(self, *, after: int = 0, stream: str | None = None) -> Iterator[Record]:
        return self._inner.read(after=after, stream=stream)

    def close(self) -> None:
        self._boundary.closing()
        self._inner.close()


class WatchedEffectHandler:
    """An effect handler whose effects are noticed."""

    def __init__(self, inner: EffectHandler, boundary: Boundary) -> None:
        self._inner = inner
        self._boundary = boundary

    def perform(self, effect: Effect, cause: str) -> None:
        # Noticed first: its report may come before `perform` returns.
        self._boundary.begun(effect)
        self._inner.perform(effect, cause)


def watch(boundary: Boundary) -> None:
    """Put the boundary where the kernel has no port: around effects, at their reports, at the end of each
    handler; and compare what was replayed with what was lived.
    """
    register, report, stop = ActorSystem.register, ActorSystem.report, ActorSystem.stop
    start, handle = Executor.start, Executor.handle

    @functools.wraps(register)
    def registered(
        self: ActorSystem, core: Any, *, effect_handler: EffectHandler | None = None, **more: Any
    ) -> None:
        register(
            self,
            core,
            effect_handler=effect_handler and WatchedEffectHandler(effect_handler, boundary),
            **more,
        )

    @functools.wraps(report)
    def reported(self: ActorSystem, command: Command[Any], **more: Any) -> None:
        if "cause" not in more:  # what actors tell each other has one, if an empty one
            boundary.reported(command)
        report(self, command, **more)

    @functools.wraps(stop)
    def stopped(self: ActorSystem, timeout: float = 10.0) -> None:
        # Actors act on as long as they run: what differs once may have moved between the two looks.
        for address, core in self.addresses.items():
            for _ in range(20):
                replayed, _ = replay(self.journal.read(), self.store.codec, [core])
                if replayed[address].state == self.state(address):
                    break
            else:
                boundary.note(f"! replay of {address} differs")
        stop(self, timeout)

    @functools.wraps(start)
    def started(self: Executor) -> None:
        start(self)
        boundary.settled()

    @functools.wraps(handle)
    def handled(self: Executor, message: Any) -> None:
        handle(self, message)
        boundary.settled()

    ActorSystem.register = registered  # type: ignore[method-assign]
    ActorSystem.report = reported  # type: ignore[method-assign]
    ActorSystem.stop = stopped  # type: ignore[method-assign]
    Executor.start, Executor.handle = started, handled  # type: ignore[method-assign]


def main() -> None:
    home, event, point, late = (*sys.argv[1:], "", "", "")[:4]
    live(Path(home), event, point, late)


def live(home: Path, event: str, point: str, late: str) -> None:
    """One daemon, from its start to its end."""
    notes = os.open(f"{home}.notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    boundary = Boundary(event, point, notes)
    watch(boundary)
    home.mkdir(exist_ok=True)
    settings = Settings(home=home, port=0, engine_grace=60.0, memory_budget=2**20 + 2**19)
    store = SqliteJournal(home / "journal.db")
    boundary.resume(store)
    journal = WatchedJournal(store, boundary, late)
    backend = toy_backend(home.parent, "--note", f"{home}.starts")
    run(Greenroom(settings, journal=journal, backends={"toy": backend}), drain=1.0)


if __name__ == "__main__":
    main()
