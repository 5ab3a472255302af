"""Counts what has happened in a period, for `log --summary` and `GET /log/summary`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from greenroom.actors.daemon_log import DaemonStarted, DaemonStopped, DevicesChanged
from greenroom.actors.engine_runner.events import EngineReady
from greenroom.actors.installer.events import (
    InstallationBroken,
    InstallationCommitted,
    InstallationMissing,
    InstallationRemoved,
    InstallationsUnread,
    InstallFailed,
)
from greenroom.actors.journal.port import JournalDamaged, Record
from greenroom.actors.kernel.core import Event
from greenroom.actors.kernel.supervision import CommandParked
from greenroom.actors.library.events import ModelCommitted, ModelRemoved, PullFailed, PushFailed
from greenroom.actors.scheduler.events import (
    BreakerOpened,
    ConfigChanged,
    EvictionDecided,
    KeepAliveWished,
    LoadFailed,
    LoadRefused,
    ModelQuarantined,
)
from greenroom.runner.diagnosis.explanation import counted, full_stop
from greenroom.runner.diagnosis.problems import Events
from greenroom.runner.diagnosis.sentences import Narrator, short
from greenroom.runner.diagnosis.settings_changed import settings_changed
from greenroom.runner.diagnosis.times import clock, precise
from greenroom.runner.record.row import Row
from greenroom.runner.record.table import Endings, RecordReader
from greenroom.runner.units import format_duration

SLOW = 5.0
"""Seconds until a model begins to answer, from which on a request is slow."""
_SLOWEST = 5
"""Slow requests that are listed."""
_REFUSALS = 10
_PART: dict[type[Event], str] = {
    DaemonStarted: "starts",
    LoadFailed: "crashes",
    BreakerOpened: "quarantines",
    ModelQuarantined: "quarantines",
    InstallationCommitted: "installations",
    ModelCommitted: "pulls",
    ModelRemoved: "removals",
    InstallationRemoved: "removals",
    EngineReady: "loads",
    EvictionDecided: "evictions",
    LoadRefused: "refusals",
    ConfigChanged: "settings",
    KeepAliveWished: "settings",
    InstallFailed: "failures",
    InstallationMissing: "failures",
    InstallationsUnread: "failures",
    InstallationBroken: "failures",
    PullFailed: "failures",
    PushFailed: "failures",
    CommandParked: "failures",
    DevicesChanged: "devices",
}
_TITLES = {
    "starts": "Started",
    "crashes": "Crashed",
    "quarantines": "Taken out of service",
    "failures": "Failed",
    "refusals": "Refused",
    "slow": "Slow",
    "installations": "Installed",
    "pulls": "Pulled or adopted",
    "removals": "Removed",
    "loads": "Loaded",
    "evictions": "Unloaded",
    "settings": "Settings changed",
    "devices": "Graphics devices",
}


_ENDED = {
    "whole": "answered",
    "refused": "refused",
    "left": "left by the client",
    "died": "lost with the engine",
    "cut": "cut off",
    "cancelled": "cancelled",
}


class Tally(msgspec.Struct, kw_only=True):
    """Similar events, counted."""

    count: int
    at: float
    """When it happened last, in seconds since 1970."""
    id: str
    """Of the last event, or of the last request."""
    about: str
    """What it is about: a model, a backend, the code of a refusal."""
    text: str
    """The last one, as a sentence."""


class Summary(msgspec.Struct, kw_only=True):
    """What has happened in a period. Similar events are one entry."""

    since: float
    until: float
    events: int = 0
    requests: int | None = None
    """Requests in the record; null where there is none."""
    outcomes: dict[str, int] = {}
    """How many of them ended how: `whole`, `refused`, `left`, `died`, `cut`, `cancelled`."""
    starts: list[Tally] = []
    """Of the daemon."""
    crashes: list[Tally] = []
    """Engines that failed or stalled, loads that failed, daemons that did not shut down cleanly."""
    quarantines: list[Tally] = []
    """Models that are not tried any more for a while, or that an older version serves."""
    failures: list[Tally] = []
    """Pulls, pushes and installations that failed, and damage."""
    refusals: list[Tally] = []
    """By code, from the record of requests; without one, from the journal, which has those of loads alone."""
    slow: list[Tally] = []
    """The slowest requests."""
    slow_requests: int = 0
    """How many a model took at least 5 seconds to begin to answer."""
    installations: list[Tally] = []
    pulls: list[Tally] = []
    """Models that were pulled, or adopted from other programs."""
    removals: list[Tally] = []
    """Models and installations."""
    loads: list[Tally] = []
    evictions: list[Tally] = []
    settings: list[Tally] = []
    """Of models, and of the daemon from one start to the next."""
    devices: list[Tally] = []
    notices: list[str] = []
    """Why the summary is incomplete, if it is."""

    def text(self, now: float) -> str:
        """Plain text; lines of entries are indented, and what goes on in them by `INDENT`."""
        lasted = format_duration(max(0.0, round(self.until - self.since)))
        what = counted(self.events, "event")
        if self.requests is not None:
            ended = ", ".join(f"{number:,} {_ENDED[how]}" for how, number in self.outcomes.items())
            what += f" and {counted(self.requests, 'request')}{f' ({ended})' if ended else ''}"
        parts = [f"{what} since {precise(self.since)[:-4]} ({lasted})."]
        for name, title in _TITLES.items():
            entries: list[Tally] = getattr(self, name)
            count = self.slow_requests if name == "slow" else sum(one.count for one in entries)
            if entries:
                parts.append("\n".join([f"{title}: {count:,}", *_lines(entries, now)]))
        if not (self.crashes or self.failures or self.refusals or self.quarantines):
            parts.append("Nothing failed, and nothing was refused.")
        parts += [f"Note: {one}" for one in self.notices]
        return "\n\n".join(parts)


def _lines(entries: Iterable[Tally], now: float) -> Iterator[str]:
    for one in entries:
        times = f"{one.count:,} times; the last: " if one.count > 1 else ""
        yield f"  {clock(one.at, now)}  {one.id:<20}  {times}{one.text}"


class _Key(NamedTuple):
    part: str
    about: str
    how: str = ""


def summarize(
    records: Iterable[Record], since: float, until: float, record: RecordReader | None = None
) -> Summary:
    """Count what happened between two wall-clock seconds.

    `records` are a journal from its first event on, since later events refer to earlier ones; damage ends it
    with a notice. `record` is the record of requests, where there is one.
    """
    counting = _Counting(since, until)
    found = counting.summary
    try:
        for one in records:
            counting.add(one)
    except JournalDamaged as damage:
        found.notices.append(f"The journal is damaged from event {damage.seq} on: {damage}")
    if record is not None:
        endings = record.endings(since, until)
        for ending in endings:
            found.outcomes[ending.outcome] = found.outcomes.get(ending.outcome, 0) + ending.count
        found.requests = sum(one.count for one in endings)
        found.refusals = [_refused(one) for one in endings if one.outcome == "refused"][:_REFUSALS]
        slowest, found.slow_requests = record.slowest(since, until, SLOW, _SLOWEST)
        found.slow = [_slow(one) for one in slowest]
    return found


class _Counting:
    def __init__(self, since: float, until: float) -> None:
        self.summary = Summary(since=since, until=until)
        self._events = Events()
        self._narrator = Narrator()
        self._entries: dict[_Key, Tally] = {}
        self._models: dict[str, str] = {}
        """engine → its model."""
        self._running = False
        """A daemon has not recorded its stop."""
        self._started: DaemonStarted | None = None
        """The last daemon."""

    def add(self, record: Record) -> None:
        sentence = self._narrator.tell(record)
        event = self._events.of(record)
        if spec := getattr(event, "spec", None):
            self._models[spec.engine_id] = short(spec.model_ref)
        in_time = self.summary.since <= record.at <= self.summary.until
        self.summary.events += in_time
        if isinstance(event, DaemonStarted):
            if in_time:
                self._count_start(record, event)
            self._running, self._started = True, event
        elif isinstance(event, DaemonStopped):
            self._running = False
        part = _PART.get(type(event), "") if event is not None else ""
        if not part or not in_time or (isinstance(event, ModelCommitted) and not event.fresh):
            return
        self._count(_Key(part, *self._subject(event)), record, sentence, getattr(event, "count", 1))

    def _count_start(self, record: Record, event: DaemonStarted) -> None:
        """What a start tells of the daemon before it: that it was killed, and which settings it had."""
        if self._running:
            self._count(_Key("crashes", "daemon"), record, "A daemon did not shut down cleanly.")
        if self._started is not None and (changes := settings_changed(self._started, event)):
            self._count(_Key("settings", "daemon"), record, full_stop("; ".join(changes)))

    def _subject(self, event: Event | None) -> tuple[str, str]:
        """What an event is about, and what else must be alike for events to be counted together."""
        match event:
            case LoadFailed():
                return short(event.model_ref), event.failure.code
            case LoadRefused():
                return event.code, short(event.model_ref)
            case EvictionDecided():
                return short(event.model_ref), event.reason
            case EngineReady():
                return self._models.get(event.engine_id, ""), ""
            case DaemonStarted():
                return event.version, ""
            case CommandParked():
                return event.actor, event.command
            case ModelCommitted():
                return event.model.id, ""
        for name in ("model_ref", "reference", "model_id", "backend", "job"):
            if about := getattr(event, name, ""):
                return short(about), str(getattr(event, "installation_id", ""))
        return "", ""

    def _count(self, key: _Key, record: Record, text: str, count: int = 1) -> None:
        entry = self._entries.get(key)
        if entry is None:
            entry = Tally(count=0, at=0.0, id="", about=key.about, text="")
            self._entries[key] = entry
            getattr(self.summary, key.part).append(entry)
        entry.count += count
        entry.at, entry.id, entry.text = record.at, record.id, text


def _refused(one: Endings) -> Tally:
    text = f"{one.code}: {one.sentence}" if one.sentence else one.code
    return Tally(count=one.count, at=one.at, id=one.id, about=one.code, text=text)


def _slow(row: Row) -> Tally:
    took = row.seconds if row.first_token is None else row.first_token
    waits = {"queued": row.queued, "installing": row.installing, "loading": row.loading}
    waited = ", ".join(f"{format_duration(number)} {name}" for name, number in waits.items() if number >= 0.1)
    what = "to the first token" if row.first_token is not None else "to the end of its answer"
    text = f"{row.model or row.asked}: {format_duration(took)} {what}{f' ({waited})' if waited else ''}."
    return Tally(count=1, at=row.at, id=row.id, about=row.model or row.asked, text=text)
