"""Which events report a problem. Each type of event decides that itself: `Event.is_problem`."""

from __future__ import annotations

from greenroom.actors.conversation_log import ConversationLog
from greenroom.actors.daemon_log import DaemonLog, DaemonStarted, DaemonStopped
from greenroom.actors.engine_runner import events as runner_events
from greenroom.actors.idempotency import Idempotency
from greenroom.actors.installer import events as installer_events
from greenroom.actors.journal.port import JournalError, Record
from greenroom.actors.kernel.core import Event, events_of
from greenroom.actors.kernel.event_store import Codec
from greenroom.actors.kernel.supervision import CommandParked
from greenroom.actors.library import events as library_events
from greenroom.actors.scheduler import events as scheduler_events

_TYPES: tuple[type[Event], ...] = (
    *DaemonLog.event_types,
    *Idempotency.event_types,
    *ConversationLog.event_types,
    *events_of(installer_events),
    *events_of(library_events),
    *events_of(scheduler_events),
    *events_of(runner_events),
    CommandParked,
)
_MAY_BE = frozenset(one.TAG for one in _TYPES if one.PROBLEM or one.is_problem is not Event.is_problem) | {
    DaemonStarted.TAG,
    DaemonStopped.TAG,
}


class Events:
    """Reads single records as the events they are."""

    def __init__(self) -> None:
        self._codec = Codec(lazy=True)
        self._codec.register(_TYPES)

    def of(self, record: Record) -> Event | None:
        """None for an event of another program, or of a newer version."""
        try:
            stored = self._codec.decode(record)
        except JournalError:
            return None
        return stored.event if stored is not None else None


class Problems:
    """Takes the records of one journal from its beginning, and says of each whether something went wrong."""

    def __init__(self) -> None:
        self._events = Events()
        self._runs = False
        """A daemon has started and has not recorded its stop."""

    def takes(self, record: Record) -> bool:
        if record.type not in _MAY_BE:
            return False
        event = self._events.of(record)
        match event:
            case DaemonStarted():
                # The one before it was killed, which it could not record.
                was_killed, self._runs = self._runs, True
                return was_killed
            case DaemonStopped():
                self._runs = False
        return event is not None and event.is_problem
