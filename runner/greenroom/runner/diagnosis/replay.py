"""The durable state of every actor as it was, from the journal alone.

Records are folded by the cores' own `apply`, read through the kernel's `Codec`, so what comes out is what
the daemon had in memory when it had stored that event. Nothing of the machine is looked at: it works with
the daemon down and on a journal from another machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from greenroom.actors.engine_runner.core import Runner
from greenroom.actors.journal.port import JournalError, Record
from greenroom.actors.kernel.core import Address, Core, Event, Stored
from greenroom.actors.kernel.event_store import PARKED
from greenroom.actors.kernel.supervision import CommandParked
from greenroom.runner.diagnosis.actors import actors, event_codec
from greenroom.runner.diagnosis.host_actors import INSTALLED, HostActors
from greenroom.runner.diagnosis.times import parse_time, precise

_encode = msgspec.msgpack.Encoder().encode

_RUNNER = "runner/"
REMEMBERED = 1_000
"""Steps that can be walked back without replaying the journal."""


class Snapshot(NamedTuple):
    """Everything that was durable once an event was stored."""

    record: Record | None
    """The event; None before the first one."""
    states: Mapping[Address, Any]
    """By actor, in the order of its first event."""
    dormant: Mapping[str, int]
    """Streams none of our actors owns, with their last version."""

    @property
    def seq(self) -> int:
        """The event's number; 0 before the first one."""
        return self.record.seq if self.record is not None else 0


class Replay:
    """Folds one journal from its beginning, a record at a time."""

    def __init__(self, hosts: HostActors | None = None) -> None:
        """Without `hosts`, the streams of other programs are dormant."""
        self._hosts = hosts
        self._codec = event_codec()
        self._cores = actors()
        self._owners: dict[str, Core[Any, Any] | None] = {}
        self._states: dict[Address, Any] = {}
        self._dormant: dict[str, int] = {}
        self.record: Record | None = None
        """The last one."""
        self.has_left_out = False
        """An event could not be folded."""

    def add(self, record: Record) -> Stored[Any] | None:
        """Fold the next record; the event as its actor read it, None for one of a retired type.

        Raises JournalTooNew and EventChanged as a start of the daemon would.
        """
        owner = self._owner(record.stream)
        self.record = record
        if owner is None:
            self._dormant[record.stream] = record.version
            # The kernel's records of actor faults belong to no state, but are worth showing.
            return self._codec.decode(record) if record.type == CommandParked.TAG else None
        state = self._states.get(owner.address)
        if state is None:
            state = self._states[owner.address] = owner.initial()
        stored = self._codec.decode(record)
        if stored is None:
            return None
        # An event that cannot be folded is left out, as at a start, where a `command_parked` names it.
        try:
            self._states[owner.address] = owner.apply(state, stored)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other events are not about it
            self.has_left_out = True
            import logging  # commands import this module and log nothing

            logging.getLogger(__name__).warning(
                "event %d (%s) is left out of the replay: %r", record.seq, record.type, error
            )
        return stored

    def event(self, record: Record) -> Event | None:
        """The event of a record, without folding it; None for one of a type that is not known here."""
        if self._owner(record.stream) is None and record.type != CommandParked.TAG:
            return None
        try:
            stored = self._codec.decode(record)
        except JournalError:
            return None
        return stored.event if stored is not None else None

    def frozen(self) -> dict[str, bytes]:
        """The state of every actor as MessagePack, by address."""
        return {str(address): _encode(state) for address, state in self._states.items()}

    def thaw(self, states: Mapping[str, bytes], dormant: Mapping[str, int], record: Record) -> None:
        """Go on from what `frozen` gave after `record`.

        Raises msgspec.MsgspecError or LookupError for what it did not give.
        """
        for name, state in states.items():
            known = (one for one in self._cores if str(one.address) == name)
            core = self._owner(name) if name.startswith(_RUNNER) else next(known, None)
            if core is None:
                raise LookupError(name)
            self._states[core.address] = msgspec.msgpack.decode(state, type=type(core.initial()))
        self._dormant = dict(dormant)
        self.record = record

    @property
    def snapshot(self) -> Snapshot:
        """As of the last record. It stays as it is whatever is added later."""
        states, dormant = dict(self._states), dict(self._dormant)
        return Snapshot(self.record, MappingProxyType(states), MappingProxyType(dormant))

    def _owner(self, stream: str) -> Core[Any, Any] | None:
        if stream not in self._owners:
            self._owners[stream] = None if stream.startswith(PARKED) else self._find_owner(stream)
        return self._owners[stream]

    def _find_owner(self, stream: str) -> Core[Any, Any] | None:
        owner = next((core for core in self._cores if core.claims(stream)), None)
        if owner is None and stream.startswith(_RUNNER):
            # A runner for each backend there ever was: the journal knows which.
            owner = Runner(stream.removeprefix(_RUNNER))
            self._cores.append(owner)
        if owner is None and self._hosts is not None:
            owner = self._hosts.core_of(stream)
            if owner is not None:
                self._codec.register(owner.event_types)
                self._cores.append(owner)
        return owner


def replay(records: Iterable[Record], *, until: int | None = None, hosts: HostActors = INSTALLED) -> Snapshot:
    """Fold everything up to the event with number `until`, or all."""
    fold = Replay(hosts)
    for record in records:
        if until is not None and record.seq > until:
            break
        fold.add(record)
    return fold.snapshot


def seq_at(records: Iterable[Record], at: float) -> int:
    """The number of the last event stored at or before a wall-clock second; 0 when all came later.

    A clock that was set back makes an event look older than the one before it; the last one counts.
    """
    return max((record.seq for record in records if record.at <= at), default=0)


class NoSuchEvent(LookupError):
    """The journal has no event there; the text says what it has."""


def event_at(at: str, read: Callable[[], Iterator[Record]], now: float) -> int:
    """The number of the event that a number, an event's id or a time means.

    `read` begins to read the journal. Raises NoSuchEvent, and ValueError for what is none of these.
    """
    if at.isdigit() and len(at) < 9:
        last = 0
        for record in read():
            last = record.seq
            if last == int(at):
                break
        if last != int(at) or not last:
            held = f"its events are 1 to {last}" if last else "it has none"
            raise NoSuchEvent(f"There is no event {at} in this journal: {held}.")
        return int(at)
    stream, _, version = at.rpartition("/")
    if stream and version.isdigit():
        found = next((record.seq for record in read() if record.id == at), 0)
        if not found:
            raise NoSuchEvent(f"There is no event {at} in this journal. To see its events: greenroom log")
        return found
    second = parse_time(at, now)
    found = seq_at(read(), second)
    if not found:
        first = next(read(), None)
        begun = (
            f"its first event was stored at {precise(first.at)}" if first is not None else "it has no events"
        )
        raise NoSuchEvent(f"{precise(second)} is before the first event of this journal: {begun}.")
    return found


class Walk:
    """A journal that is walked forwards and back, a step an event."""

    def __init__(self, read: Callable[[], Iterator[Record]], start: int = 0) -> None:
        """`read` begins to read the journal from its first event; the walk begins after event `start`."""
        self._read = read
        self.here: Snapshot = Replay(INSTALLED).snapshot
        """Where the walk stands."""
        self._start_over()
        self.go_to(start)

    def forwards(self) -> Snapshot | None:
        """One event on; None at the end."""
        if self._ahead:
            self._behind.append(self.here)
            self.here = self._ahead.pop()
            return self.here
        record = next(self.records, None)
        if record is None:
            return None
        self._replay.add(record)
        self._behind.append(self.here)
        self.here = self._replay.snapshot
        return self.here

    def back(self) -> Snapshot | None:
        """One event back; None at the beginning."""
        if not self._behind and self.here.seq > 0:
            self._go_again_to(self.here.seq - 1)
            return self.here
        if not self._behind:
            return None
        self._ahead.append(self.here)
        self.here = self._behind.pop()
        return self.here

    def go_to(self, seq: int) -> Snapshot:
        """To the event with this number, or the nearest there is."""
        while self.here.seq < seq and self.forwards() is not None:
            pass
        while self.here.seq > seq and self.back() is not None:
            pass
        return self.here

    def before(self) -> Snapshot:
        """The snapshot one event back, without going there."""
        if not self._behind and self.here.seq > 0:
            self._go_again_to(self.here.seq)
        return self._behind[-1] if self._behind else self.here

    def _start_over(self) -> None:
        self._replay = Replay(INSTALLED)
        self.records = self._read()
        self.here = self._replay.snapshot
        # Snapshots share all that did not change between them.
        self._behind: deque[Snapshot] = deque(maxlen=REMEMBERED)
        self._ahead: list[Snapshot] = []

    def _go_again_to(self, seq: int) -> None:
        self._start_over()
        self.go_to(seq)


def as_builtins(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as JSON has it: what `greenroom replay --json` prints."""
    record = snapshot.record
    return {
        "seq": snapshot.seq,
        "at": record.at if record is not None else None,
        "event": record.id if record is not None else None,
        "type": record.type if record is not None else None,
        "states": {str(address): _builtins(state) for address, state in snapshot.states.items()},
        "dormant": dict(snapshot.dormant),
    }


def changes(before: Snapshot, after: Snapshot) -> dict[str, tuple[Any, Any]]:
    """What differs between two snapshots: path → (old, new); None where there was or is nothing.

    What came or went as a whole is one entry. Counters of events say nothing and are left out.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for address in {**before.states, **after.states}:
        old, new = before.states.get(address), after.states.get(address)
        if old is not new:
            now = _plain(new)
            # The state of another program's actor may be anything.
            was = None if old is None and not isinstance(now, dict) else _plain(old)
            _compare(str(address), was, now, found)
    return found


def _plain(state: Any) -> Any:
    plain = {} if state is None else _builtins(state)
    return {k: v for k, v in plain.items() if k != "version"} if isinstance(plain, dict) else plain


def _builtins(state: Any) -> Any:
    """As JSON has it; what it does not know is shown as Python writes it."""
    try:
        return msgspec.to_builtins(state, str_keys=True, enc_hook=repr)
    except Exception:  # noqa: BLE001 - other people's code may raise anything
        return repr(state)


def _compare(path: str, old: Any, new: Any, found: dict[str, tuple[Any, Any]]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            _compare(f"{path} {key}", old.get(key), new.get(key), found)
    elif old != new and (old or new):
        found[path] = (_worth_saying(old), _worth_saying(new))


def _worth_saying(value: Any) -> Any:
    """Without what is empty: a new state has many fields that are not set yet."""
    if not isinstance(value, dict):
        return value
    return {key: _worth_saying(one) for key, one in value.items() if one not in (None, "", [], {}, 0)}
