"""Events to text and back: tags, schema versions, upcasters, tombstones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from greenroom.actors.journal.port import JournalTooNew, NotWritten, Record
from greenroom.actors.kernel.core import Event, Stored, Upcasters


class Codec:
    """The event types of one system, by tag. Each actor registers its own, a host's actor too."""

    def __init__(self) -> None:
        self._types: dict[str, type[Event]] = {}
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {}
        self._upcasters: dict[str, Upcasters] = {}
        self._retired: set[str] = set()
        self._encoder = msgspec.json.Encoder()

    def register(self, types: Iterable[type[Event]]) -> None:
        """Make types known. The same type twice is harmless; two types with one tag are not."""
        for kind in types:
            known = self._types.setdefault(kind.TAG, kind)
            if known is not kind:
                raise ValueError(f"two event types have the tag {kind.TAG!r}: {known} and {kind}")
            self._decoders[kind.TAG] = msgspec.json.Decoder(kind)
            self._upcasters[kind.TAG] = getattr(kind, "UPCASTERS", {})

    def retire(self, *tags: str) -> None:
        """Tombstones: events of these tags are still in old journals and mean nothing any more."""
        self._retired.update(tags)

    def encode(self, event: Event) -> str:
        """The event's fields as JSON text. Raises NotWritten when it cannot be encoded."""
        if type(event).TAG not in self._types:
            raise NotWritten(f"{type(event).__name__} is not an event type of this actor")
        try:
            return self._encoder.encode(event).decode()
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise NotWritten(f"{type(event).__name__} cannot be encoded: {error}") from error

    def decode(self, record: Record) -> Stored[Event] | None:
        """The stored event, or None for a retired one. Raises JournalTooNew for what is not known here."""
        kind = self._types.get(record.type)
        if kind is None:
            if record.type in self._retired:
                return None
            raise JournalTooNew(
                f"event {record.seq} ({record.id}) is of type {record.type!r}, which this version of "
                "Greenroom does not know. It was probably written by a newer version: use that one, or "
                "put the journal aside with `greenroom journal set-aside`."
            )
        if record.schema == kind.SCHEMA:
            event = self._decoders[record.type].decode(record.data)
        elif record.schema > kind.SCHEMA:
            raise JournalTooNew(
                f"event {record.seq} ({record.id}, {record.type}) has schema {record.schema}; this version "
                f"of Greenroom knows up to {kind.SCHEMA}. Use the newer version that wrote it."
            )
        else:
            event = self._upcast(kind, record)
        return Stored(event, record.id, record.at, record.cause)

    def _upcast(self, kind: type[Event], record: Record) -> Event:
        fields: dict[str, Any] = msgspec.json.decode(record.data)
        for schema in range(record.schema, kind.SCHEMA):
            fields = self._upcasters[record.type][schema](fields)
        return msgspec.convert(fields, kind)
