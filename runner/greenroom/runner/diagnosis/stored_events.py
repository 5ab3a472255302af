"""Stored events as Python objects: decoded, with their sentences; and those of a journal on the disk."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from greenroom.actors.journal.port import JournalError, Record
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.kernel.core import Event
from greenroom.runner.config import load
from greenroom.runner.diagnosis.actors import event_codec
from greenroom.runner.diagnosis.event_log import EventQuery, Line, ToldEvents
from greenroom.runner.diagnosis.host_actors import INSTALLED, HostActors
from greenroom.runner.diagnosis.replay import event_at, seq_at
from greenroom.runner.diagnosis.times import parse_time

_log = logging.getLogger(__name__)

Since = int | float | str | datetime
"""A position in a journal (0 is its beginning), an event's id, or a time: seconds since 1970 as a float, a
`datetime`, or text such as `2h` or `14:03`, as for `greenroom log --since`."""
Types = Sequence[type[Event] | str]
"""Which events: classes, or tags, in which `*` stands for anything: `load_*`."""
_FIRST_SECOND = 1e9
"""In 2001: no event is older, and a smaller number would be read as a position."""


class StoredEvent(Line, frozen=True, kw_only=True):
    """An event with its place in the journal. `str()` gives its sentence, as in `greenroom log`.

    `seq` is its position in the journal, from 1; `at` seconds since 1970; `data` its fields as they are
    stored; `cause` the id of the event or request that led to it.
    """

    event: Event | None = None
    """An instance of its class; None if that is unknown: of another program, or of a newer version."""

    @property
    def stream(self) -> str:
        """The stream that it belongs to, such as `library` or `runner/mlx`."""
        return self.id.rpartition("/")[0]

    @property
    def version(self) -> int:
        """Its number in its stream."""
        return int(self.id.rpartition("/")[2])

    def __str__(self) -> str:
        return self.text


class EventDecoder:
    def __init__(self, types: Sequence[type[Event]] = (), hosts: HostActors = INSTALLED) -> None:
        """`types` and those of `hosts` are known beside those of Greenroom.

        Raises ValueError for one of `types` that has a tag of Greenroom's.
        """
        self._hosts = hosts
        self._codec = event_codec(*types)

    def decode(self, record: Record, text: str) -> StoredEvent:
        """`text` is its sentence."""
        line = Line.of(record, text)
        return StoredEvent(
            **{name: getattr(line, name) for name in Line.__struct_fields__}, event=self._event(record)
        )

    def _event(self, record: Record) -> Event | None:
        try:
            stored = self._codec.decode(record)
        except JournalError:
            return self._hosts.event(record)
        return stored.event if stored is not None else None


def read_events(
    path: str | os.PathLike[str] | None = None, *, since: Since = 0, types: Types | None = None
) -> Iterator[StoredEvent]:
    """The events of a journal on the disk, in order, with or without a daemon that writes to it.

    The file is neither locked nor changed.

    Args:
        path: a `journal.db`, the data directory it is in, or a copy of either; by default that of the
            command line.
        since: where to begin; see `Client.events`.
        types: only events of these classes or tags. Your own classes are decoded, too.

    Raises:
        TypeError: a wrong argument.
        ValueError: a wrong argument.
        LookupError: there is no event `since`.
        FileNotFoundError: there is no journal.
        JournalError: it cannot be read; `JournalDamaged` comes after the events that are whole.
    """
    if path is not None and not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a path, not {type(path).__name__}")
    if path is not None and not os.fspath(path):
        raise ValueError("path must be a journal or its folder, not an empty text")
    after, kinds, decoder = since_text(since), type_tags(types), EventDecoder(event_classes(types))
    where = load(tolerant=True).home if path is None else os.path.expanduser(path)
    return _read(where, after, kinds, decoder)


def _read(
    path: str | os.PathLike[str], after: str, kinds: tuple[str, ...], decoder: EventDecoder
) -> Iterator[StoredEvent]:
    with JournalReader(path, strict=False) as reader:
        for notice in reader.notices:
            _log.warning("%s", notice)
        begin = position(after, reader.read)
        if begin > reader.last_seq():
            raise LookupError(
                f"There is no event {begin}: the last event in {reader.files.db} is {reader.last_seq()}."
            )
        events = ToldEvents(EventQuery(kinds=kinds), reader.read)
        for record, text in events.lines(reader.read(), after=begin):
            yield decoder.decode(record, text)


def position(after: str, read: Callable[[], Iterator[Record]]) -> int:
    """The number of the event after which to begin, from a number, an event's id or a time.

    Raises LookupError for an id that no event has, and ValueError for what is none of these.
    """
    if after.isascii() and after.isdecimal() and len(after) < 10:
        return int(after)
    if "/" in after:
        return event_at(after, read, time.time())
    return seq_at(read(), parse_time(after, time.time()))


# arguments


def since_text(since: object) -> str:
    """As text for `position`. Raises TypeError, ValueError."""
    if isinstance(since, bool) or not isinstance(since, Since):
        raise TypeError(
            "since must be a position (int), an event's id or a time (str), seconds since 1970 (float) or a "
            f"datetime, not {type(since).__name__}"
        )
    if isinstance(since, datetime):
        since = since.timestamp()
    if isinstance(since, float):
        if not since < float("inf"):
            raise ValueError(f"since must be a time, not {since}")
        return f"{max(since, _FIRST_SECOND):.6f}"
    if isinstance(since, int):
        if not 0 <= since < 10**9:
            raise ValueError(f"since must be a position from 0 on, not {since}; a time is a float")
        return str(since)
    if "/" not in since:
        parse_time(since, time.time())
    return since.strip()


def event_classes(types: Types | None) -> list[type[Event]]:
    """The classes among them."""
    return [one for one in types or () if isinstance(one, type)]


def type_tags(types: object) -> tuple[str, ...]:
    """Their tags; none for all types. Raises TypeError, ValueError."""
    if types is None:
        return ()
    if not isinstance(types, list | tuple | set | frozenset):
        raise TypeError(f"types must be a list of event classes or tags, not {types!r:.80}")
    if not types:
        raise ValueError("types must not be empty: no event would match")
    return tuple(_tag(one) for one in types)


def _tag(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, Event) and hasattr(kind, "TAG"):
        return kind.TAG
    if isinstance(kind, str):
        if not kind or "," in kind:
            raise ValueError(f"{kind!r} is not the tag of an event type")
        return kind
    raise TypeError(f"types must be event classes or tags, and {kind!r:.80} is neither")
