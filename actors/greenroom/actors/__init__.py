"""The event-sourced actor system: kernel, journal, and the four actors of a model runner.

What is public is said here and described in docs/embedding.md; a name is imported when it is first used, so
that to import one module does not import all. Everything else may change in any version.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greenroom.actors.addresses import INSTALLER, LIBRARY, SCHEDULER
    from greenroom.actors.installer.messages import (
        CancelInstall,
        Ensure,
        Ensured,
        PlanInstall,
        Uninstall,
        Uninstalled,
    )
    from greenroom.actors.journal.memory import MemoryJournal
    from greenroom.actors.journal.port import (
        Entry,
        EventChanged,
        Journal,
        JournalBusy,
        JournalDamaged,
        JournalError,
        JournalFailed,
        JournalFull,
        JournalTooNew,
        NotAJournal,
        NotWritten,
        Record,
    )
    from greenroom.actors.journal.reader import JournalReader, read_journal
    from greenroom.actors.journal.sqlite import SqliteJournal
    from greenroom.actors.kernel.clock import Clock, ManualClock, Moment, SystemClock, Timer
    from greenroom.actors.kernel.core import (
        Address,
        Answer,
        Command,
        Core,
        Decision,
        Effect,
        EffectHandler,
        Event,
        Fault,
        Later,
        NotUnderstood,
        Recovered,
        SingleStream,
        Stored,
        Tell,
        fault,
        refuse,
    )
    from greenroom.actors.kernel.errors import (
        ActorStopped,
        AskExpired,
        Forked,
        KernelError,
        MailboxFull,
        Refusal,
        Refused,
        StartFailed,
        SystemFailed,
        UnknownActor,
    )
    from greenroom.actors.kernel.reply import NoAnswerYet, Reply
    from greenroom.actors.kernel.system import ActorSystem
    from greenroom.actors.library.messages import (
        CancelPull,
        Pull,
        Pulled,
        Removed,
        RemoveModel,
        Tagged,
        TagModel,
    )
    from greenroom.actors.scheduler.messages import (
        Abandon,
        Configure,
        Configured,
        Granted,
        Serve,
        Unload,
        Unloaded,
    )
    from greenroom.actors.testing import Case, FaultyJournal, ManualSystem, RecordingEffectHandler, given
    from greenroom.actors.values import (
        Cancelled,
        Engine,
        EngineExit,
        EngineSpec,
        Failure,
        Installation,
        Model,
        Plan,
        Progress,
    )

_PLACES = {
    "addresses": "INSTALLER LIBRARY SCHEDULER",
    "installer.messages": "CancelInstall Ensure Ensured PlanInstall Uninstall Uninstalled",
    "journal.memory": "MemoryJournal",
    "journal.port": (
        "Entry EventChanged Journal JournalBusy JournalDamaged JournalError JournalFailed "
        "JournalFull JournalTooNew NotAJournal NotWritten Record"
    ),
    "journal.reader": "JournalReader read_journal",
    "journal.sqlite": "SqliteJournal",
    "kernel.clock": "Clock ManualClock Moment SystemClock Timer",
    "kernel.core": (
        "Address Answer Command Core Decision Effect EffectHandler Event Fault Later NotUnderstood "
        "Recovered SingleStream Stored Tell fault refuse"
    ),
    "kernel.errors": (
        "ActorStopped AskExpired Forked KernelError MailboxFull Refusal Refused StartFailed "
        "SystemFailed UnknownActor"
    ),
    "kernel.reply": "NoAnswerYet Reply",
    "kernel.system": "ActorSystem",
    "library.messages": "CancelPull Pull Pulled Removed RemoveModel Tagged TagModel",
    "scheduler.messages": "Abandon Configure Configured Granted Serve Unload Unloaded",
    "testing": "Case FaultyJournal ManualSystem RecordingEffectHandler given",
    "values": "Cancelled Engine EngineExit EngineSpec Failure Installation Model Plan Progress",
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names.split()}

__all__ = [
    "INSTALLER",
    "LIBRARY",
    "SCHEDULER",
    "Abandon",
    "ActorStopped",
    "ActorSystem",
    "Address",
    "Answer",
    "AskExpired",
    "CancelInstall",
    "CancelPull",
    "Cancelled",
    "Case",
    "Clock",
    "Command",
    "Configure",
    "Configured",
    "Core",
    "Decision",
    "Effect",
    "EffectHandler",
    "Engine",
    "EngineExit",
    "EngineSpec",
    "Ensure",
    "Ensured",
    "Entry",
    "Event",
    "EventChanged",
    "Failure",
    "Fault",
    "FaultyJournal",
    "Forked",
    "Granted",
    "Installation",
    "Journal",
    "JournalBusy",
    "JournalDamaged",
    "JournalError",
    "JournalFailed",
    "JournalFull",
    "JournalReader",
    "JournalTooNew",
    "KernelError",
    "Later",
    "MailboxFull",
    "ManualClock",
    "ManualSystem",
    "MemoryJournal",
    "Model",
    "Moment",
    "NoAnswerYet",
    "NotAJournal",
    "NotUnderstood",
    "NotWritten",
    "Plan",
    "PlanInstall",
    "Progress",
    "Pull",
    "Pulled",
    "Record",
    "RecordingEffectHandler",
    "Recovered",
    "Refusal",
    "Refused",
    "RemoveModel",
    "Removed",
    "Reply",
    "Serve",
    "SingleStream",
    "SqliteJournal",
    "StartFailed",
    "Stored",
    "SystemClock",
    "SystemFailed",
    "TagModel",
    "Tagged",
    "Tell",
    "Timer",
    "Uninstall",
    "Uninstalled",
    "UnknownActor",
    "Unload",
    "Unloaded",
    "fault",
    "given",
    "read_journal",
    "refuse",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    place = _PLACE_OF.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{place}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
