"""What all actors of a system share in the journal: events to text and back, storing, and replay.

Stored text has tags, schema versions, upcasters and tombstones; what an actor has failed on is stored, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from greenroom.actors.journal.port import (
    Entry,
    EventChanged,
    Journal,
    JournalFailed,
    JournalTooNew,
    NotWritten,
    Record,
)
from greenroom.actors.kernel.clock import Clock
from greenroom.actors.kernel.core import Address, Command, Core, Event, Fault, Stored, Upcasters, fault
from greenroom.actors.kernel.errors import StartFailed
from greenroom.actors.kernel.supervision import (
    CommandParked,
    Complaints,
    as_text,
    in_one_line,
    without_secrets,
)

if TYPE_CHECKING:
    import logging


class CannotEncode(NotWritten):
    """The event itself is at fault: it will not be stored however often one tries."""


class Batch(NamedTuple):
    """The events of one decision, ready to be stored together."""

    entries: tuple[Entry, ...]
    stored: tuple[Stored[Event], ...]
    """The same, as they will be read from the journal."""
    versions: dict[str, int]
    """The versions of the actor's streams once they are stored."""
    urgent: bool


class Codec:
    """Turns events into stored text and back: the event types of one system, by tag."""

    def __init__(self, *, lazy: bool = False) -> None:
        """With `lazy`, how a type is decoded is worked out when the first such event comes, which is quicker
        for a program that reads few types; else a type that cannot be decoded is refused by `register`.
        """
        self._is_lazy = lazy
        self._types: dict[str, type[Event]] = {}
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {}
        # By tag and schema, what is stored as it is written today: nearly all there ever is.
        self._current: dict[tuple[str, int], Callable[[str], Any]] = {}
        self._upcasters: dict[str, Upcasters] = {}
        self._retired: set[str] = set()
        self._encoder = msgspec.json.Encoder()

    def register(self, types: Iterable[type[Event]]) -> None:
        """Make types known. The same type twice is harmless; two types with one tag are not."""
        for kind in types:
            tag = getattr(kind, "TAG", "")
            if not tag:
                raise ValueError(f"{kind} has no TAG to be stored under")
            known = self._types.setdefault(tag, kind)
            if known is not kind:
                raise ValueError(f"two event types have the tag {tag!r}: {known} and {kind}")
            if not self._is_lazy:
                self._learn(kind)
            upcasters = kind.UPCASTERS
            missing = [schema for schema in range(1, kind.SCHEMA) if schema not in upcasters]
            if missing:
                raise ValueError(f"{tag!r} has schema {kind.SCHEMA} and no upcaster from {missing}")
            self._upcasters[tag] = upcasters

    def _learn(self, kind: type[Event]) -> msgspec.json.Decoder[Any]:
        decoder = self._decoders[kind.TAG] = msgspec.json.Decoder(kind)
        self._current[kind.TAG, kind.SCHEMA] = decoder.decode
        return decoder

    @property
    def types(self) -> Mapping[str, type[Event]]:
        """Those that are known, by tag."""
        return MappingProxyType(self._types)

    def retire(self, *tags: str) -> None:
        """Tombstones: events of these tags are still in old journals and mean nothing any more."""
        self._retired.update(tags)

    def encode(self, event: Event) -> str:
        """The event's fields as JSON text. Raises CannotEncode."""
        if self._types.get(type(event).TAG) is not type(event):
            raise CannotEncode(f"{type(event).__name__} is not an event type of this system")
        try:
            return self._encoder.encode(event).decode()
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise CannotEncode(f"{type(event).__name__} cannot be encoded: {error}") from error

    def entry(
        self, event: Event, *, stream: str, version: int, cause: str, at: float
    ) -> tuple[Entry, Stored[Event]]:
        """The event as it will lie in the journal, and as it will be read from there.

        The state is folded from the latter, so that it cannot differ from what a replay makes: a NaN, a
        list in a tuple's place or an unknown key would be found out only years later. Raises CannotEncode.
        """
        kind = type(event)
        data = self.encode(event)
        try:
            read = (self._decoders.get(kind.TAG) or self._learn(kind)).decode(data)
        except msgspec.MsgspecError as error:
            raise CannotEncode(f"{kind.__name__} could not be read back: {error}") from error
        entry = Entry(
            stream=stream, version=version, type=kind.TAG, schema=kind.SCHEMA, cause=cause, data=data, at=at
        )
        return entry, Stored(read, f"{stream}/{version}", at, cause)

    def decode(self, record: Record) -> Stored[Event] | None:
        """The stored event, or None for a retired one.

        Raises JournalTooNew for what is not known here, EventChanged for what does not fit its class: what
        a journal returns is what was written, so the class has changed.
        """
        decode = self._current.get((record.type, record.schema))
        try:
            event = decode(record.data) if decode is not None else self._old(record)
        except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
            raise EventChanged(self._how_changed(record, error), record.seq) from error
        return None if event is None else Stored(event, record.id, record.at, record.cause)

    def _how_changed(self, record: Record, error: Exception) -> str:
        kind = self._types[record.type]
        name = f"{kind.__module__}.{kind.__qualname__}"
        what = f"event {record.seq} ({record.id}, {record.type}, schema {record.schema})"
        if record.schema < kind.SCHEMA:
            return (
                f"{what} cannot be raised to schema {kind.SCHEMA} of {name}: {error!r}. The journal is "
                "whole; the upcasters of that class do not fit what was stored"
            )
        return (
            f"{what} does not fit {name}: {error}. The journal is whole, but the class has changed since the "
            f"event was stored. Give it SCHEMA = {kind.SCHEMA + 1} and an upcaster from {kind.SCHEMA}, make "
            "the new field optional, or run the version that wrote it"
        )

    def _old(self, record: Record) -> Event | None:
        """An event of an older schema, raised to today's; None for a retired one."""
        kind = self._types.get(record.type)
        if kind is None:
            if record.type in self._retired:
                return None
            raise JournalTooNew(
                f"event {record.seq} ({record.id}) is of type {record.type!r}, which this version does "
                "not know. A newer version probably wrote it"
            )
        if record.schema > kind.SCHEMA:
            raise JournalTooNew(
                f"event {record.seq} ({record.id}, {record.type}) has schema {record.schema}; this version "
                f"knows up to {kind.SCHEMA}. A newer version wrote it"
            )
        if record.schema == kind.SCHEMA:
            event: Event = self._learn(kind).decode(record.data)
            return event
        fields: dict[str, Any] = msgspec.json.decode(record.data)
        for schema in range(record.schema, kind.SCHEMA):
            fields = self._upcasters[record.type][schema](fields)
        return msgspec.convert(fields, kind)


def _log() -> logging.Logger:
    import logging  # commands import this module and log nothing

    return logging.getLogger(__name__)


class Store:
    """Stores the events of one system's actors. Thread-safe."""

    def __init__(self, journal: Journal, clock: Clock, redact: Callable[[str], str] = str) -> None:
        """`redact` takes secrets out of what is stored of a failure."""
        self.journal = journal
        self.codec = Codec()
        self.codec.register([CommandParked])
        self.listeners: list[Callable[[Record], None]] = []
        self.failure: BaseException | None = None
        """Why the system has stopped itself: nothing is stored any more."""
        self.dormant: dict[str, int] = {}
        """The last version of each stream that no actor claims, those of parked commands included."""
        self.redact = redact
        self._clock = clock
        self._complaints = Complaints()

    def prepare(
        self, core: Core[Any, Any], versions: dict[str, int], events: Sequence[Event], cause: str
    ) -> Batch:
        """Make the events of one decision ready to be stored.

        Raises CannotEncode, and ValueError for an event in a stream that the core does not claim.
        """
        at = self._clock.now().wall
        ahead = dict(versions)
        entries: list[Entry] = []
        stored: list[Stored[Event]] = []
        for event in events:
            stream = core.stream_of(event)
            if not core.claims(stream):
                # A replay would not find it again.
                raise ValueError(f"{core.address} does not claim the stream {stream!r} of {event!r}")
            ahead[stream] = ahead.get(stream, 0) + 1
            entry, as_read = self.codec.entry(event, stream=stream, version=ahead[stream], cause=cause, at=at)
            entries.append(entry)
            stored.append(as_read)
        return Batch(tuple(entries), tuple(stored), ahead, any(event.is_urgent for event in events))

    def commit(self, batch: Batch) -> None:
        """Store a batch, all or none. Raises NotWritten, or JournalFailed when it may have lost something."""
        try:
            records = self.journal.append(batch.entries, urgent=batch.urgent)
        except (NotWritten, JournalFailed):
            raise
        except BaseException as error:
            # An error that the port does not name leaves open what was written.
            raise JournalFailed(f"the journal raised {in_one_line(error)}") from error
        for record in records:
            for listener in self.listeners:
                try:
                    listener(record)
                except Exception:  # noqa: BLE001 - the event is stored, whatever its listener makes of it
                    _log().exception("a listener failed on %s", record.id)

    def park(
        self, core: Core[Any, Any], about: Fault, cause: str, command: Command[Any] | None = None
    ) -> None:
        """Store that something failed: its 1st, 10th, 100th … time. With `command`, its fields too.

        Raises JournalFailed.
        """
        count, worth_storing = self._complaints.count(str(core.address), about)
        what = self._clean(command, f"{core.address} failed: {about.doing} {about.about}".rstrip())
        if not worth_storing:
            _log().error("%s: %s (%d times now)", what, self._clean(command, about.error), count)
            return
        _log().error("%s\n%s", what, self._clean(command, about.traceback))
        stream = f"{PARKED}{core.address}"
        version = self.dormant.get(stream, 0) + 1
        event = CommandParked(
            actor=str(core.address),
            command=about.doing,
            fields=self._clean(command, as_text(command) if command is not None else about.about)[:4_000],
            traceback=self._clean(command, about.traceback)[-8_000:],
            count=count,
        )
        at = self._clock.now().wall
        try:
            entry, stored = self.codec.entry(event, stream=stream, version=version, cause=cause, at=at)
            self.commit(Batch((entry,), (stored,), {}, False))
        except NotWritten as full:
            _log().error("the journal cannot record that %s failed: %s", event.command, full)
            return
        self.dormant[stream] = version

    def _clean(self, command: Command[Any] | None, text: str) -> str:
        known = text if command is None else without_secrets(command, text)
        # Text that cannot be encoded could not be stored, and may be why something failed.
        return self.redact(known).encode("utf-8", "replace").decode()


PARKED = "parked/"
"""Streams of `command_parked`, one for each actor; they are the kernel's own and are not folded."""


class LeftOut(NamedTuple):
    """A stored event that cannot be folded: the state is as if it were not there."""

    event_id: str
    fault: Fault


class Replayed(NamedTuple):
    state: Any
    versions: dict[str, int]
    """The last version of each of its streams."""
    left_out: tuple[LeftOut, ...] = ()


def replay(
    records: Iterable[Record], codec: Codec, cores: Sequence[Core[Any, Any]]
) -> tuple[dict[Address, Replayed], dict[str, int]]:
    """Fold all records; the second value is the last version of each stream that no core claims.

    A stream that no core claims is dormant: a host's or a plug-in's that is gone. It is not decoded.
    An event that `apply` raises on is left out, and named in the result: one event must not keep the rest
    from starting. Raises JournalError for what cannot be read.
    """
    folds = {core.address: _Fold(core) for core in cores}
    dormant: dict[str, int] = {}
    owners: dict[str, _Fold | None] = {}
    decode = codec.decode
    for record in records:
        stream = record.stream
        try:
            fold = owners[stream]
        except KeyError:
            owner = _owner(stream, cores)
            fold = owners[stream] = folds[owner.address] if owner is not None else None
        if fold is None:
            dormant[stream] = record.version
            continue
        fold.versions[stream] = record.version
        stored = decode(record)
        if stored is None:
            continue
        try:
            fold.state = fold.apply(fold.state, stored)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this event's
            fold.left_out.append(LeftOut(record.id, fault(error, doing="replay an event", about=record.id)))
    replayed = {
        address: Replayed(fold.state, fold.versions, tuple(fold.left_out)) for address, fold in folds.items()
    }
    return replayed, dormant


class _Fold:
    """One actor's state on its way through the journal."""

    __slots__ = ("apply", "left_out", "state", "versions")

    def __init__(self, core: Core[Any, Any]) -> None:
        self.apply = core.apply
        try:
            self.state: Any = core.initial()
        except Exception as error:
            raise StartFailed(f"{core.address} could not start: {in_one_line(error)}") from error
        self.versions: dict[str, int] = {}
        self.left_out: list[LeftOut] = []


def _owner(stream: str, cores: Sequence[Core[Any, Any]]) -> Core[Any, Any] | None:
    if stream.startswith(PARKED):
        return None
    owners = [core for core in cores if core.claims(stream)]
    if len(owners) > 1:
        raise StartFailed(f"{owners[0].address} and {owners[1].address} both claim the stream {stream!r}")
    return owners[0] if owners else None
