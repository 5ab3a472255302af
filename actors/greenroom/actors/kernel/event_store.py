"""What all actors of a system share in the journal: storing their events, and what they have failed on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from greenroom.actors.journal.port import Entry, Journal, JournalFailed, NotWritten, Record
from greenroom.actors.kernel.clock import Clock
from greenroom.actors.kernel.codec import Batch, Codec
from greenroom.actors.kernel.core import Command, Core, Event, Fault, Stored
from greenroom.actors.kernel.replay import PARKED
from greenroom.actors.kernel.supervision import (
    CommandParked,
    Complaints,
    as_text,
    in_one_line,
    without_secrets,
)

_log = logging.getLogger(__name__)


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
                    _log.exception("a listener failed on %s", record.id)

    def park(
        self, core: Core[Any, Any], about: Fault, cause: str, command: Command[Any] | None = None
    ) -> None:
        """Store that something failed: its 1st, 10th, 100th … time. With `command`, its fields too.

        Raises JournalFailed.
        """
        count, worth_storing = self._complaints.count(str(core.address), about)
        what = self._clean(command, f"{core.address} failed: {about.doing} {about.about}".rstrip())
        if not worth_storing:
            _log.error("%s: %s (%d times now)", what, self._clean(command, about.error), count)
            return
        _log.error("%s\n%s", what, self._clean(command, about.traceback))
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
            _log.error("the journal cannot record that %s failed: %s", event.command, full)
            return
        self.dormant[stream] = version

    def _clean(self, command: Command[Any] | None, text: str) -> str:
        known = text if command is None else without_secrets(command, text)
        # Text that cannot be encoded could not be stored, and may be why something failed.
        return self.redact(known).encode("utf-8", "replace").decode()
