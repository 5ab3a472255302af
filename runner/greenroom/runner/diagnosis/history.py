"""A journal as `why` needs it: the state it leads to, and the events by what they are about.

Many events name only an engine or a job; an earlier event says which model and backend that is, so the
journal is read from its beginning. It is one pass with bounded memory: the latest events of each model and
backend are kept, and all events of what the question names.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from greenroom.actors.daemon_log import DAEMON, DaemonStarted, DaemonState
from greenroom.actors.engine_runner.core import RunnerState
from greenroom.actors.engine_runner.events import EngineAdopted, EngineSpawned
from greenroom.actors.engine_runner.messages import runner_address
from greenroom.actors.installer.messages import INSTALLER
from greenroom.actors.installer.state import BackendInstallState, InstallerState
from greenroom.actors.journal.port import EventChanged, JournalDamaged, JournalError, Record
from greenroom.actors.kernel.core import Address, Event
from greenroom.actors.kernel.supervision import CommandParked
from greenroom.actors.library.messages import LIBRARY
from greenroom.actors.library.state import LibraryState
from greenroom.actors.scheduler.events import LoadAdmitted
from greenroom.actors.scheduler.messages import SCHEDULER
from greenroom.actors.scheduler.state import SchedulerState
from greenroom.actors.values import Caller, Mode
from greenroom.runner.diagnosis.explanation import Step
from greenroom.runner.diagnosis.recorded_request import Recorded, named
from greenroom.runner.diagnosis.replay import Replay, Snapshot
from greenroom.runner.record.row import ID

E = TypeVar("E", bound=Event)
K = TypeVar("K")
V = TypeVar("V")

_LIBRARY, _DAEMON = str(LIBRARY), str(DAEMON)
_KEPT = 600
"""Events of one model or one backend."""
_REQUESTS = 2_000
"""Requests of which we know what they caused."""


_ENGINES_AND_JOBS = 20_000
"""Remembered; no later event names older ones."""
_BACKEND_STREAMS = ("install/", "runner/")

_UNKNOWN = ("", "")
_WITH_PIDS = (EngineSpawned, EngineAdopted, DaemonStarted)

_decode = msgspec.json.Decoder().decode


class About(msgspec.Struct, frozen=True, gc=False):
    """What one event concerns. Models by id, and by reference where there is no id yet."""

    models: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    """Canonical references in the event: a model's tags, what is pulled, what a load was requested as."""
    backends: tuple[str, ...] = ()
    engine: str = ""
    job: str = ""


class _Fields(NamedTuple):
    """Which of the fields that name its subjects an event type has."""

    spec: bool
    model: bool
    installation: bool
    engine_id: bool
    model_id: bool
    model_ref: bool
    backend: bool
    job: bool
    reference: bool
    tags: bool
    in_favour_of: bool

    @classmethod
    def of(cls, kind: type[Event]) -> _Fields | None:
        """None for an event that names only its engine, as most do."""
        has = cls(*(name in kind.__struct_fields__ for name in cls._fields))
        return None if has.engine_id and sum(has) == 1 else has


class Subjects:
    """Learns from each record, in order, what later ones mean."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        """Every reference a model has ever had → its latest id; the latest names come last."""
        self._engines: OrderedDict[str, tuple[str, str]] = OrderedDict()
        """engine → model, backend."""
        self._pulls: OrderedDict[str, str] = OrderedDict()
        """pull → reference."""
        self._fields: dict[type[Event], _Fields | None] = {}

    def of(self, record: Record, event: Event | None = None) -> About:
        """What the next record is about; `event`, where known, saves decoding it again."""
        backend = record.stream.partition("/")[2] if record.stream.startswith(_BACKEND_STREAMS) else ""
        if event is not None:
            return self._of_event(event, backend)
        try:
            fields = _decode(record.data)
        except msgspec.DecodeError:
            fields = None
        if not isinstance(fields, dict):
            return About(backends=(backend,) if backend else ())
        return self._of_fields(fields, backend)

    def engine(self, engine_id: str) -> tuple[str, str]:
        """The model and the backend of an engine; empty when unknown."""
        return self._engines.get(engine_id, _UNKNOWN)

    def _of_event(self, event: Any, backend: str) -> About:
        """From an event that is decoded already."""
        kind = type(event)
        try:
            has = self._fields[kind]
        except KeyError:
            has = self._fields[kind] = _Fields.of(kind)
        if has is None:
            engine = event.engine_id
            model_id, known = self._engines.get(engine, _UNKNOWN)
            backend = backend or known
            return About((model_id,) if model_id else (), (), (backend,) if backend else (), engine)
        engine = model_id = reference = job = favoured = ""
        references: tuple[str, ...] = ()
        if has.spec:
            spec = event.spec
            engine, model_id, reference = spec.engine_id, spec.model_id, spec.model_ref
            backend = backend or spec.backend
        if has.engine_id:
            engine = event.engine_id
        if has.model_id:
            model_id = event.model_id
        if has.model_ref:
            reference = event.model_ref
        if has.model:
            model_id, references = event.model.id, event.model.tags
        if has.tags:
            references = event.tags
        if has.reference:
            reference = event.reference
        if has.installation:
            backend = backend or event.installation.backend
        if has.backend:
            backend = backend or event.backend
        if has.job:
            job = event.job
        if has.in_favour_of:
            favoured = event.in_favour_of
        if reference:
            references = (*references, reference)
        return self._about(engine, model_id, backend, job, references, favoured, asks=has.reference)

    def _of_fields(self, fields: Mapping[str, Any], backend: str) -> About:
        """From the raw fields of an event of any type."""
        spec, model = _mapping(fields, "spec"), _mapping(fields, "model")
        backend = backend or _text(fields, "backend") or _text(spec, "backend")
        references = (
            *_texts(model, "tags"),
            *_texts(fields, "tags"),
            *filter(
                None, (_text(fields, "model_ref") or _text(spec, "model_ref"), _text(fields, "reference"))
            ),
        )
        return self._about(
            _text(fields, "engine_id") or _text(spec, "engine_id"),
            _text(fields, "model_id") or _text(spec, "model_id") or _text(model, "id"),
            backend or _text(_mapping(fields, "installation"), "backend"),
            _text(fields, "job"),
            references,
            _text(fields, "in_favour_of"),
            asks="reference" in fields,
        )

    def _about(
        self,
        engine: str,
        model_id: str,
        backend: str,
        job: str,
        references: tuple[str, ...],
        favoured: str,
        *,
        asks: bool,
    ) -> About:
        """Complete it with what earlier events named, and remember what later ones need."""
        if engine:
            if model_id:
                _remember(self._engines, engine, (model_id, backend))
            else:
                model_id, known = self._engines.get(engine, _UNKNOWN)
                backend = backend or known
        if job and asks and references:
            _remember(self._pulls, job, references[-1])
        elif job in self._pulls:
            # The catalogue's name of a model is not the one it is stored under.
            references = (*references, self._pulls[job])
        if model_id:
            for name in reversed(references):
                self.names.pop(name, None)
                self.names[name] = model_id
        models = (model_id,) if model_id else ()
        other = self.names.get(favoured, "") if favoured else ""
        if other and other != model_id:
            models = (*models, other)
        return About(models, references, (backend,) if backend else (), engine, job)


def _mapping(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _texts(fields: Mapping[str, Any], name: str) -> list[str]:
    value = fields.get(name)
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _remember(into: OrderedDict[K, V], key: K, value: V) -> None:
    if key not in into and len(into) >= _ENGINES_AND_JOBS:
        into.popitem(last=False)
    into[key] = value


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


class History:
    """Reads a journal for one question."""

    def __init__(self, asked: str) -> None:
        """`asked` is the question: all events are kept of the engines, requests and jobs that it names."""
        self.subjects = Subjects()
        self.models: defaultdict[str, deque[Happening]] = defaultdict(_shelf)
        """By id."""
        self.pulls: defaultdict[str, deque[Happening]] = defaultdict(_shelf)
        """By canonical reference: what led to a model, or did not."""
        self.backends: defaultdict[str, deque[Happening]] = defaultdict(_shelf)
        self.engines: OrderedDict[str, None] = OrderedDict()
        """Ids of the latest engines."""
        self.named: dict[str, list[Happening]] = {}
        """engine → its events, for engines whose id starts with the name in the question."""
        self.requests: OrderedDict[str, list[Happening]] = OrderedDict()
        """request → what it caused directly."""
        self.asked: dict[str, Happening] = {}
        """Events whose ids are in the question."""
        self.led_to: dict[str, list[Happening]] = {}
        """What these caused directly."""
        self.jobs: dict[str, list[Happening]] = {}
        """job → its events, for jobs that the question names."""
        self.pids: OrderedDict[int, str] = OrderedDict()
        """Process id → the last engine that had it; empty for a daemon."""
        self.versions: dict[str, int] = {}
        """stream → the version of its last event."""
        self.daemons: deque[Happening] = deque(maxlen=_KEPT)
        self.faults: deque[Happening] = deque(maxlen=_KEPT)
        """Commands that actors failed on."""
        self.notices: list[str] = []
        self.first: Record | None = None
        self.last: Record | None = None
        self.count = 0
        self.told: set[str] = set()
        """Requests that `who` was asked for."""
        self.modes: OrderedDict[str, Mode] = OrderedDict()
        """engine → what its model is used for."""
        self.recorded: Recorded = lambda _: None
        """Finds what is recorded of a request."""
        words = tuple(asked.split())
        self._asked = (*words, *(f"r-{one}" for one in words))
        # Names of events and jobs; what has neither is spared the search.
        self._asks_by_id = any("/" in one or "." in one for one in words)
        self._replay = Replay()
        self._is_sound = True

    def read(self, records: Iterable[Record]) -> History:
        """Read records; damage ends it with a notice, since what came before is still true."""
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
        return self._replay.snapshot

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

    def runner(self, backend: str) -> RunnerState:
        state: RunnerState = self._state(runner_address(backend), RunnerState())
        return state

    def backend(self, name: str) -> BackendInstallState:
        return self.installer.of(name)

    # looking around

    def events_of(self, model: str) -> deque[Happening]:
        """The latest events of a model, its engines' included."""
        return self.models.get(model, deque())

    def events_of_engine(self, engine_id: str) -> list[Happening]:
        """All of them where the question names it, else the latest."""
        if engine_id in self.named:
            return self.named[engine_id]
        model = self.subjects.engine(engine_id)[0]
        return [one for one in self.events_of(model) if one.about.engine == engine_id]

    def caused_by(self, request: str) -> list[Happening]:
        return self.requests.get(request, [])

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

    def kept(self) -> dict[int, Happening]:
        """Every event that is still held, by its number."""
        by_subject = (
            *(self.models, self.pulls, self.backends, self.named, self.requests),
            *(self.led_to, self.jobs),
        )
        shelves = [self.daemons, self.faults, self.asked.values()]
        shelves += (shelf for one in by_subject for shelf in one.values())
        return {one.record.seq: one for shelf in shelves for one in shelf}

    # reading

    def _add(self, record: Record) -> None:
        self.first = self.first or record
        self.last = record
        self.count += 1
        event = self._event(record)
        if isinstance(event, LoadAdmitted):
            _remember(self.modes, event.spec.engine_id, event.spec.mode)
        self._file(Happening(record, event, self.subjects.of(record, event)))

    def _event(self, record: Record) -> Event | None:
        try:
            stored = self._replay.add(record)
        except JournalError as error:
            # From a newer version, or rejected by its actor: the rest still says a lot.
            if self._is_sound:
                self.notices.append(f"Part of the journal could not be read: {error}")
            self._is_sound = False
            return None
        return stored.event if stored is not None else None

    def _file(self, happening: Happening) -> None:
        record, event, about = happening.record, happening.event, happening.about
        stream, cause, engine = record.stream, record.cause, about.engine
        self.versions[stream] = record.version
        if self._asks_by_id:
            self._note_asked(happening)
        for model in about.models:
            self.models[model].append(happening)
        for backend in about.backends:
            self.backends[backend].append(happening)
        if stream == _LIBRARY:
            for reference in about.references:
                self.pulls[reference].append(happening)
        elif stream == _DAEMON:
            self.daemons.append(happening)
        elif isinstance(event, CommandParked):
            self.faults.append(happening)
        if engine:
            self._note_engine(engine, happening)
        if cause and "/" not in cause:
            self._note_request(cause, happening)
        if isinstance(event, _WITH_PIDS):
            _remember(self.pids, event.pid, engine)

    def _note_asked(self, happening: Happening) -> None:
        record, job = happening.record, happening.about.job
        if record.id in self._asked:
            self.asked[record.id] = happening
        if record.cause in self._asked:
            self.led_to.setdefault(record.cause, []).append(happening)
        if job in self._asked:
            self.jobs.setdefault(job, []).append(happening)

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
            del self.requests[next(one for one in self.requests if one not in self._asked)]

    def _state(self, address: Address, otherwise: Any) -> Any:
        state = self._replay.snapshot.states.get(address)
        return otherwise if state is None else state


def _shelf() -> deque[Happening]:
    return deque(maxlen=_KEPT)


def of_type(happenings: Iterable[Happening], kind: type[E]) -> Iterator[tuple[Happening, E]]:
    """Those of one type, with the event as that type."""
    for one in happenings:
        if isinstance(one.event, kind):
            yield one, one.event


def latest(happenings: Iterable[Happening], kind: type[E]) -> tuple[Happening, E] | None:
    return max(of_type(happenings, kind), key=lambda one: one[0].record.seq, default=None)
