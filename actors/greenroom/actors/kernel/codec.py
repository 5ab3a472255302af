"""Events to text and back: tags, schema versions, upcasters, tombstones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from greenroom.actors.journal.port import Entry, EventChanged, JournalTooNew, NotWritten, Record
from greenroom.actors.kernel.core import Event, Stored, Upcasters


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
    """The event types of one system, by tag. Each actor registers its own, a host's actor too."""

    def __init__(self) -> None:
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
            decoder = self._decoders[tag] = msgspec.json.Decoder(kind)
            self._current[tag, kind.SCHEMA] = decoder.decode
            upcasters = kind.UPCASTERS
            missing = [schema for schema in range(1, kind.SCHEMA) if schema not in upcasters]
            if missing:
                raise ValueError(f"{tag!r} has schema {kind.SCHEMA} and no upcaster from {missing}")
            self._upcasters[tag] = upcasters

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
            read = self._decoders[kind.TAG].decode(data)
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
        fields: dict[str, Any] = msgspec.json.decode(record.data)
        for schema in range(record.schema, kind.SCHEMA):
            fields = self._upcasters[record.type][schema](fields)
        return msgspec.convert(fields, kind)
