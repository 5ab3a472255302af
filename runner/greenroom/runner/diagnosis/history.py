"""A journal as `why` needs it: the state it leads to, and the events by whom they are about.

One pass, and bounded however long the journal is: of each model and backend the latest events are kept, of
what was asked for all of them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from greenroom.actors.daemon_log import DAEMON, DaemonState
from greenroom.actors.engine_runner.core import RunnerState
from greenroom.actors.engine_runner.messages import runner_address
from greenroom.actors.installer.messages import INSTALLER
from greenroom.actors.installer.state import BackendInstallState, InstallerState
from greenroom.actors.journal.port import EventChanged, JournalDamaged, JournalError, Record
from greenroom.actors.kernel.core import Address, Event
from greenroom.actors.kernel.supervision import CommandParked
from greenroom.actors.library.core import LibraryState
from greenroom.actors.library.messages import LIBRARY
from greenroom.actors.scheduler.messages import SCHEDULER
from greenroom.actors.scheduler.state import SchedulerState
from greenroom.runner.diagnosis.replay import Replay, Snapshot
from greenroom.runner.diagnosis.subjects import About, Subjects

E = TypeVar("E", bound=Event)

_LIBRARY, _DAEMON = str(LIBRARY), str(DAEMON)
_KEPT = 600
"""Events of one model or one backend."""
_REQUESTS = 2_000
"""Requests of which we know what they caused."""


class Happening(NamedTuple):
    """One event, with what it is about."""

    record: Record
    event: Event | None
    """None for what this version does not know."""
    about: About

    @property
    def at(self) -> float:
        """Wall-clock second."""
        return self.record.at

    @property
    def id(self) -> str:
        """`stream/version`."""
        return self.record.id


class History:
    """Reads a journal for one question."""

    def __init__(self, asked: str) -> None:
        """`asked` is the name in the question: engines and requests of that name are kept whole."""
        self.subjects = Subjects()
        self.models: dict[str, deque[Happening]] = {}
        """By id."""
        self.pulls: dict[str, deque[Happening]] = {}
        """By canonical reference: what led to a model, or did not."""
        self.backends: dict[str, deque[Happening]] = {}
        self.engines: OrderedDict[str, None] = OrderedDict()
        """Ids of the latest engines."""
        self.named: dict[str, list[Happening]] = {}
        """engine → its events, for engines whose id begins as the question does."""
        self.requests: OrderedDict[str, list[Happening]] = OrderedDict()
        """request → what it caused directly."""
        self.daemons: deque[Happening] = deque(maxlen=_KEPT)
        self.faults: deque[Happening] = deque(maxlen=_KEPT)
        """Commands our own actors failed on."""
        self.notices: list[str] = []
        self.first: Record | None = None
        self.last: Record | None = None
        self.count = 0
        self._asked = asked
        self._replay = Replay()
        self._is_sound = True

    def read(self, records: Iterable[Record]) -> History:
        """Take in records; damage ends it with a notice, since what came before is still true."""
        try:
            for record in records:
                self._add(record)
        except JournalDamaged as damage:
            self.notices.append(f"The journal is damaged from event {damage.seq} on: {damage}")
        except EventChanged as changed:
            self.notices.append(
                f"This version cannot read the journal from event {changed.seq} on: {changed}"
            )
        return self

    # the state it leads to

    @property
    def snapshot(self) -> Snapshot:
        """Of all actors."""
        return self._replay.snapshot

    @property
    def installer(self) -> InstallerState:
        """What the journal says of installations."""
        state: InstallerState = self._state(INSTALLER, InstallerState())
        return state

    @property
    def scheduler(self) -> SchedulerState:
        """What the journal says of loads."""
        state: SchedulerState = self._state(SCHEDULER, SchedulerState())
        return state

    @property
    def library(self) -> LibraryState:
        """What the journal says of models."""
        state: LibraryState = self._state(LIBRARY, LibraryState())
        return state

    @property
    def daemon(self) -> DaemonState:
        """What the journal says of the daemon."""
        state: DaemonState = self._state(DAEMON, DaemonState())
        return state

    def runner(self, backend: str) -> RunnerState:
        """What the journal says of a backend's engines."""
        state: RunnerState = self._state(runner_address(backend), RunnerState())
        return state

    def backend(self, name: str) -> BackendInstallState:
        """What the journal says of one backend."""
        return self.installer.of(name)

    # looking around

    def events_of(self, model: str) -> deque[Happening]:
        """The latest events of a model, its engines' included."""
        return self.models.get(model, deque())

    def caused_by(self, request: str) -> list[Happening]:
        """What a request caused directly."""
        return self.requests.get(request, [])

    # reading

    def _add(self, record: Record) -> None:
        self.first = self.first or record
        self.last = record
        self.count += 1
        event = self._event(record)
        self._file(Happening(record, event, self.subjects.of(record, event)))

    def _event(self, record: Record) -> Event | None:
        try:
            stored = self._replay.add(record)
        except JournalError as error:
            # One of a newer version, or one whose actor cannot take it: the rest still says a lot.
            if self._is_sound:
                self.notices.append(f"Not all of the journal can be understood: {error}")
            self._is_sound = False
            return None
        return stored.event if stored is not None else None

    def _file(self, happening: Happening) -> None:
        record, event, about = happening
        stream, cause, engine = record.stream, record.cause, about.engine
        for model in about.models:
            _shelf(self.models, model).append(happening)
        for backend in about.backends:
            _shelf(self.backends, backend).append(happening)
        if stream == _LIBRARY:
            for reference in about.references:
                _shelf(self.pulls, reference).append(happening)
        elif stream == _DAEMON:
            self.daemons.append(happening)
        elif isinstance(event, CommandParked):
            self.faults.append(happening)
        if engine:
            self._note_engine(engine, happening)
        if cause and "/" not in cause:
            self._note_request(cause, happening)

    def _note_engine(self, engine: str, happening: Happening) -> None:
        if engine not in self.engines:
            self.engines[engine] = None
            if len(self.engines) > _REQUESTS:
                self.engines.popitem(last=False)
        if self._asked and engine.startswith(self._asked):
            self.named.setdefault(engine, []).append(happening)

    def _note_request(self, request: str, happening: Happening) -> None:
        caused = self.requests.get(request)
        if caused is not None:
            caused.append(happening)
            return
        self.requests[request] = [happening]
        if len(self.requests) > _REQUESTS:
            del self.requests[next(one for one in self.requests if one != self._asked)]

    def _state(self, address: Address, otherwise: Any) -> Any:
        state = self._replay.snapshot.states.get(address)
        return otherwise if state is None else state


def _shelf(shelves: dict[str, deque[Happening]], name: str) -> deque[Happening]:
    shelf = shelves.get(name)
    if shelf is None:
        shelf = shelves[name] = deque(maxlen=_KEPT)
    return shelf


def of_type(happenings: Iterable[Happening], kind: type[E]) -> Iterator[tuple[Happening, E]]:
    """Those of one type, with the event as that type."""
    for one in happenings:
        if isinstance(one.event, kind):
            yield one, one.event


def latest(happenings: Iterable[Happening], kind: type[E]) -> tuple[Happening, E] | None:
    """The last one of a type."""
    return max(of_type(happenings, kind), key=lambda one: one[0].record.seq, default=None)
