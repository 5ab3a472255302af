"""A journal as `why` needs it: the state it leads to, and the events by what they are about.

Many events name only an engine or a job; an earlier event says which model and backend that is, so the
journal is read from its beginning, or from where a checkpoint ends. Of each event only what it concerns is
remembered; those that an answer needs are read again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from greenroom.actors.daemon_log import DAEMON, DaemonStarted, DaemonState
from greenroom.actors.engine_runner.core import RunnerState
from greenroom.actors.engine_runner.events import EngineAdopted, EngineSpawned
from greenroom.actors.engine_runner.messages import runner_address
from greenroom.actors.installer.messages import INSTALLER
from greenroom.actors.installer.state import BackendInstallState, InstallerState
from greenroom.actors.journal.port import EventChanged, JournalDamaged, JournalError, Picking, Record
from greenroom.actors.kernel.core import Address, Event
from greenroom.actors.kernel.supervision import CommandParked
from greenroom.actors.library.messages import LIBRARY
from greenroom.actors.library.state import LibraryState
from greenroom.actors.remote_log import REMOTES, RemotesState, RemoteState
from greenroom.actors.scheduler.events import LoadAdmitted
from greenroom.actors.scheduler.messages import SCHEDULER
from greenroom.actors.scheduler.state import SchedulerState
from greenroom.actors.values import Caller, Mode
from greenroom.runner.diagnosis.event_index import EventIndex, Topic
from greenroom.runner.diagnosis.explanation import Step
from greenroom.runner.diagnosis.host_actors import INSTALLED
from greenroom.runner.diagnosis.recorded_request import Recorded, named
from greenroom.runner.diagnosis.replay import Replay, Snapshot
from greenroom.runner.diagnosis.subjects import About, Subjects, remember
from greenroom.runner.record.row import ID

E = TypeVar("E", bound=Event)

_STREAMS = {str(LIBRARY): "library", str(DAEMON): "daemon"}
_KEPT = 600
"""Events of one model or one backend."""
_REQUESTS = 2_000
"""Requests of which we know what they caused."""

_WITH_PIDS = (EngineSpawned, EngineAdopted, DaemonStarted)


class Happening(msgspec.Struct, frozen=True, gc=False):
    record: Record
    event: Event | None
    """None for what this version does not know."""
    about: About

    @property
    def at(self) -> float:
        return self.record.at

    @property
    def step(self) -> Step:
        """The event as a step of an explanation, not yet worded."""
        one = self.record
        return Step(seq=one.seq, at=one.at, event=one.id, type=one.type, cause=one.cause)


class Shelves(Mapping[str, Sequence[Happening]]):
    """The latest events of each subject, in order, read when they are asked for."""

    def __init__(
        self,
        index: EventIndex,
        topics: Mapping[str, Sequence[int]],
        pick: Callable[[Sequence[int]], list[Happening]],
    ) -> None:
        """`topics`: subject → the topics of its events."""
        self._index = index
        self._topics = topics
        self._pick = pick

    def __getitem__(self, subject: str) -> Sequence[Happening]:
        return self._pick(self._numbers(subject))

    def __iter__(self) -> Iterator[str]:
        """In the order in which the journal first names them."""
        return iter(self._topics)

    def __len__(self) -> int:
        return len(self._topics)

    def __contains__(self, subject: object) -> bool:
        return subject in self._topics

    def of_type(self, subject: str, *kinds: type[Event]) -> list[Happening]:
        """Those of a subject's latest events that have one of these types."""
        if subject not in self._topics:
            return []
        types = {one.TAG for one in kinds}
        return self._pick([seq for seq in self._numbers(subject) if self._index.type_of(seq) in types])

    def _numbers(self, subject: str) -> list[int]:
        return self._index.of_topics(self._topics[subject], _KEPT)


class History:
    """Reads a journal for one question."""

    def __init__(self, asked: str, source: Picking | None = None) -> None:
        """`asked` is the question: all events can be had of the engines, requests and jobs that it names.
        `source` finds events by their numbers; without one, what is read is kept in memory.
        """
        self.subjects = Subjects()
        self.index = EventIndex()
        self.replay = Replay()
        self.hosts = INSTALLED
        """Word the events of other programs."""
        self.recent_engines: OrderedDict[str, None] = OrderedDict()
        """Ids of the latest engines."""
        self.caused: OrderedDict[str, list[int]] = OrderedDict()
        """Request → the numbers of the events that it caused directly, of the latest requests."""
        self.pids: OrderedDict[int, str] = OrderedDict()
        """Process id → the last engine that had it; empty for a daemon."""
        self.versions: dict[str, int] = {}
        """stream → the version of its last event."""
        self.modes: OrderedDict[str, Mode] = OrderedDict()
        """engine → what its model is used for, if that is not completion."""
        self.notices: list[str] = []
        self.is_sound = True
        """No event was unknown to this version."""
        self.damage: JournalDamaged | None = None
        """What ended the reading."""
        self.told: set[str] = set()
        """Requests that `who` was asked for."""
        self.recorded: Recorded = lambda _: None
        """Finds what is recorded of a request."""
        words = tuple(asked.split())
        self._asked = (*words, *(f"r-{one}" for one in words))
        self._memory = _Memory() if source is None else None
        self._source: Picking = source or self._memory or _Memory()
        self._picked: dict[int, Happening] = {}

    def read(self, records: Iterable[Record]) -> History:
        """Read records; damage ends it with a notice, since what came before is still true."""
        try:
            for record in records:
                self._add(record)
        except JournalDamaged as damage:
            self.damage = damage
            self.notices.append(f"The journal is damaged from event {damage.seq} on: {damage}")
        except EventChanged as changed:
            self.notices.append(
                f"This version cannot read the journal from event {changed.seq} on: {changed}"
            )
        return self

    # the state it leads to

    @property
    def snapshot(self) -> Snapshot:
        return self.replay.snapshot

    @property
    def installer(self) -> InstallerState:
        state: InstallerState = self._state(INSTALLER, InstallerState())
        return state

    @property
    def scheduler(self) -> SchedulerState:
        state: SchedulerState = self._state(SCHEDULER, SchedulerState())
        return state

    @property
    def library(self) -> LibraryState:
        state: LibraryState = self._state(LIBRARY, LibraryState())
        return state

    @property
    def daemon(self) -> DaemonState:
        state: DaemonState = self._state(DAEMON, DaemonState())
        return state

    @property
    def remotes(self) -> Mapping[str, RemoteState]:
        """Remote backends, by name."""
        state: RemotesState = self._state(REMOTES, RemotesState())
        return state.backends

    def runner(self, backend: str) -> RunnerState:
        state: RunnerState = self._state(runner_address(backend), RunnerState())
        return state

    def backend(self, name: str) -> BackendInstallState:
        return self.installer.of(name)

    @property
    def last(self) -> Record | None:
        """The last event."""
        return self.replay.record

    @property
    def count(self) -> int:
        return len(self.index)

    # what the events are about

    @cached_property
    def models(self) -> Shelves:
        """The latest events of each model, by its id."""
        return self._shelves((one, number) for number, topic in self._topics for one in topic.models)

    @cached_property
    def pulls(self) -> Shelves:
        """By canonical reference: what led to a model, or did not."""
        return self._shelves(
            (one, number)
            for number, topic in self._topics
            if topic.stream == "library"
            for one in topic.references
        )

    @cached_property
    def backends(self) -> Shelves:
        return self._shelves((one, number) for number, topic in self._topics for one in topic.backends)

    @cached_property
    def daemons(self) -> Sequence[Happening]:
        """The latest events of the daemon's own stream."""
        return self._of_stream("daemon")

    @cached_property
    def faults(self) -> Sequence[Happening]:
        """The latest commands that actors failed on."""
        return self._of_stream("parked")

    # what the question names

    @cached_property
    def named(self) -> dict[str, list[Happening]]:
        """engine → its events, for engines whose id starts with a name in the question."""
        found = self.index.of_engines(self._asked) if self._asked else {}
        return {engine: self._pick(numbers) for engine, numbers in found.items()}

    @cached_property
    def asked(self) -> dict[str, Happening]:
        """Events whose ids are in the question."""
        found = ((one, self.event(one)) for one in self._asked)
        return {one: happening for one, happening in found if happening is not None}

    @cached_property
    def jobs(self) -> dict[str, list[Happening]]:
        """job → its events, for jobs that the question names."""
        topics: dict[str, list[int]] = {}
        for number, topic in self._topics:
            if topic.job and topic.job in self._asked:
                topics.setdefault(topic.job, []).append(number)
        return {job: self._pick(self.index.of_topics(numbers)) for job, numbers in topics.items()}

    @cached_property
    def requests(self) -> Collection[str]:
        """The latest requests, and those in the question, that caused something."""
        asked = {one: None for one in self._asked if ID.fullmatch(one) and self.caused_by(one)}
        return {**dict.fromkeys(self.caused), **asked}.keys()

    # looking around

    def events_of(self, model: str) -> Sequence[Happening]:
        """The latest events of a model, its engines' included."""
        return self.models.get(model, ())

    def latest_of(self, model: str, kind: type[E]) -> tuple[Happening, E] | None:
        """The latest of one type among these."""
        found = self.models.of_type(model, kind)
        return latest(found, kind)

    def events_of_engine(self, engine_id: str) -> list[Happening]:
        """All of them where the question names it, else the latest."""
        if engine_id in self.named:
            return self.named[engine_id]
        model = self.subjects.engine(engine_id)[0]
        return [one for one in self.events_of(model) if one.about.engine == engine_id]

    def caused_by(self, cause: str) -> list[Happening]:
        """What a request or an event caused directly: all of it where the question names it."""
        if cause in self._asked and (ID.fullmatch(cause) or "/" in cause):
            return self._pick(self._known(self._source.caused_by(cause)))
        return self._pick(self.caused.get(cause, []))

    def event(self, event_id: str) -> Happening | None:
        """The event with this id; None if there is none."""
        stream, _, version = event_id.rpartition("/")
        if not stream or not version.isdecimal() or str(int(version)) != version:
            return None
        seq = self._source.number_of(stream, int(version))
        return self.happening(seq) if seq is not None and self._known([seq]) else None

    def happening(self, seq: int) -> Happening:
        """The event with this number."""
        return self._pick([seq])[0]

    def around(self, happenings: Iterable[Happening]) -> dict[int, Happening]:
        """By number, the events of whatever these concern: a narrator reads them, too."""
        abouts = [one.about for one in happenings]
        found = list(self.daemons)
        for model in {model for about in abouts for model in about.models}:
            found += self.events_of(model)
        for backend in {backend for about in abouts for backend in about.backends}:
            found += self.backends.get(backend, ())
        for reference in {reference for about in abouts for reference in about.references}:
            found += self.pulls.get(reference, ())
        return {one.record.seq: one for one in found}

    def who(self, cause: str, caller: Caller | None = None) -> str:
        """The request behind an event, with what it was and who sent it; empty if no request is behind it."""
        if not ID.fullmatch(cause):
            return ""
        self.told.add(cause)
        row = self.recorded(cause)
        if row is not None:
            return named(row)
        return f"request {cause} (from {caller})" if caller is not None and caller.id else f"request {cause}"

    def mode_of(self, engine_id: str) -> Mode:
        """Of an engine that was started; models have a configuration for each mode."""
        return self.modes.get(engine_id, "completion")

    # reading

    def _add(self, record: Record) -> None:
        if self._memory is not None:
            self._memory.add(record)
        event = self._event(record)
        about = self.subjects.of(record, event)
        stream, cause, engine = record.stream, record.cause, about.engine
        self.versions[stream] = record.version
        parked = "parked" if isinstance(event, CommandParked) else ""
        self.index.add(record.type, _STREAMS.get(stream, parked), about)
        if engine and engine not in self.recent_engines:
            self.recent_engines[engine] = None
            if len(self.recent_engines) > _REQUESTS:
                self.recent_engines.popitem(last=False)
        if cause and "/" not in cause:
            caused = self.caused.get(cause)
            if caused is not None:
                caused.append(record.seq)
            else:
                self.caused[cause] = [record.seq]
                if len(self.caused) > _REQUESTS:
                    self.caused.popitem(last=False)
        if isinstance(event, _WITH_PIDS):
            remember(self.pids, event.pid, engine)
        elif isinstance(event, LoadAdmitted) and event.spec.mode != "completion":
            remember(self.modes, event.spec.engine_id, event.spec.mode)

    def _event(self, record: Record) -> Event | None:
        try:
            stored = self.replay.add(record)
        except JournalError as error:
            # From a newer version, or rejected by its actor: the rest still says a lot.
            if self.is_sound:
                self.notices.append(f"Part of the journal could not be read: {error}")
            self.is_sound = False
            return None
        return stored.event if stored is not None else None

    # finding events again

    @property
    def _topics(self) -> Iterable[tuple[int, Topic]]:
        return enumerate(self.index.topics)

    def _shelves(self, found: Iterable[tuple[str, int]]) -> Shelves:
        topics: dict[str, list[int]] = {}
        for subject, number in found:
            numbers = topics.setdefault(subject, [])
            # An event may name one subject twice.
            if numbers[-1:] != [number]:
                numbers.append(number)
        return Shelves(self.index, topics, self._pick)

    def _of_stream(self, stream: str) -> list[Happening]:
        topics = [number for number, topic in self._topics if topic.stream == stream]
        return self._pick(self.index.of_topics(topics, _KEPT))

    def _known(self, numbers: Iterable[int]) -> list[int]:
        """Without events that were stored after the last one that was read."""
        return [seq for seq in numbers if seq <= len(self.index)]

    def _pick(self, numbers: Sequence[int]) -> list[Happening]:
        missing = [seq for seq in numbers if seq not in self._picked]
        for record in self._source.pick(missing) if missing else ():
            about = self.index.about(record.seq)
            self._picked[record.seq] = Happening(record, self.replay.event(record), about)
        return [self._picked[seq] for seq in numbers]

    def _state(self, address: Address, otherwise: Any) -> Any:
        state = self.replay.snapshot.states.get(address)
        return otherwise if state is None else state


class _Memory:
    """Events that are kept in memory."""

    def __init__(self) -> None:
        self._records: dict[int, Record] = {}

    def add(self, record: Record) -> None:
        self._records[record.seq] = record

    def pick(self, numbers: Sequence[int]) -> list[Record]:
        return [self._records[seq] for seq in numbers]

    def caused_by(self, cause: str) -> list[int]:
        return [seq for seq, one in self._records.items() if one.cause == cause]

    def number_of(self, stream: str, version: int) -> int | None:
        event_id = f"{stream}/{version}"
        return next((seq for seq, one in self._records.items() if one.id == event_id), None)


def of_type(happenings: Iterable[Happening], kind: type[E]) -> Iterator[tuple[Happening, E]]:
    """Those of one type, with the event as that type."""
    for one in happenings:
        if isinstance(one.event, kind):
            yield one, one.event


def latest(happenings: Iterable[Happening], kind: type[E]) -> tuple[Happening, E] | None:
    return max(of_type(happenings, kind), key=lambda one: one[0].record.seq, default=None)
