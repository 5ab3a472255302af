"""The journal as lines, for `log` here and over HTTP: which events are wanted, and their sentences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from greenroom.actors.journal.port import Record
from greenroom.runner.diagnosis.filters import Filter, filter_about, unknown_kinds
from greenroom.runner.diagnosis.host_actors import INSTALLED, HostActors
from greenroom.runner.diagnosis.sentences import Narrator

JOURNAL = "X-Greenroom-Journal"
AFTER = "X-Greenroom-After"
"""Headers of `GET /log`: which journal it is, and the number of the event after which the answer begins."""


class EventQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which events of a journal are wanted; what is empty does not matter."""

    about: str = ""
    """An event's id or number, a request, an engine, a backend or a model."""
    model: str = ""
    backend: str = ""
    engine: str = ""
    stream: str = ""
    cause: str = ""
    kinds: tuple[str, ...] = ()
    problems: bool = False
    since: float | None = None
    """Wall-clock seconds."""
    until: float | None = None

    def filter(self, read: Callable[[], Iterable[Record]]) -> Filter:
        """`read` begins to read the journal from its first event. Raises LookupError for an unknown name."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name != "about"}
        if self.about:
            fields |= filter_about(self.about, read())
        return Filter(**fields)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One event, as `greenroom log --json` prints it and `GET /log` sends it."""

    seq: int
    at: float
    """Wall-clock seconds."""
    id: str
    """`stream/version`."""
    type: str
    schema: int
    cause: str
    """The event or the request that led to it."""
    text: str
    """It as a sentence."""
    data: Any
    """Its fields."""

    @classmethod
    def of(cls, record: Record, text: str) -> Line:
        """The line of a record, of which `text` is the sentence."""
        try:
            data = json.loads(record.data)
        except ValueError:
            data = record.data
        return cls(
            seq=record.seq,
            at=record.at,
            id=record.id,
            type=record.type,
            schema=record.schema,
            cause=record.cause,
            text=text,
            data=data,
        )


class ToldEvents:
    """Words the records of one journal, in their order and from the first one, and picks what is wanted."""

    def __init__(
        self, wanted: EventQuery, read: Callable[[], Iterable[Record]], hosts: HostActors = INSTALLED
    ) -> None:
        """Raises LookupError for the name of nothing."""
        self.seq = 0
        """Of the last record that was read."""
        self.is_first_shown = False
        """The journal's first event was wanted."""
        self.shown = 0
        self._wanted = wanted
        self._filter = wanted.filter(read)
        self._narrator = Narrator(hosts)

    def lines(self, records: Iterable[Record], *, after: int = 0) -> Iterator[tuple[Record, str]]:
        """Those that are wanted and have a higher number than `after`, each with its sentence."""
        # The narrator reads all events: those not shown name what later ones refer to.
        for record in records:
            self.seq = record.seq
            sentence = self._narrator.tell(record)
            if self._filter.takes(record) and record.seq > after:
                self.shown += 1
                self.is_first_shown = self.is_first_shown or record.seq == 1
                yield record, sentence

    def unknown(self) -> tuple[str, ...]:
        """A sentence for each name in what is wanted that the journal does not know."""
        return (*unknown_kinds(self._wanted.kinds), *self._filter.unknown_names())
