"""Greenroom's actors, as a journal is read with them: nothing is decided, so they need no machine."""

from __future__ import annotations

from typing import Any

from greenroom.actors.conversation_log import ConversationLog
from greenroom.actors.daemon_log import DaemonLog, DaemonStarted
from greenroom.actors.engine_runner.core import Runner
from greenroom.actors.idempotency import Idempotency
from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.kernel.core import Core, Event
from greenroom.actors.kernel.event_store import Codec
from greenroom.actors.kernel.supervision import CommandParked
from greenroom.actors.library.core import Library
from greenroom.actors.remote_log import RemoteLog
from greenroom.actors.scheduler.core import Scheduler


def actors() -> list[Core[Any, Any]]:
    """All but the runners, of which there is one for each backend."""
    # What a core was made with matters to `decide` alone.
    started = DaemonStarted(pid=0, version="", platform="")
    return [
        DaemonLog(started),
        Idempotency(),
        ConversationLog(),
        RemoteLog(),
        InstallerCore(()),
        Library(),
        Scheduler(()),
    ]


def event_codec(*types: type[Event]) -> Codec:
    """A codec for all of Greenroom's events and a program's own `types`.

    `codec.decode(record)` is the event of a `Record`; see `Codec`. Raises ValueError for a type whose tag
    Greenroom has itself.
    """
    codec = Codec(lazy=True)
    codec.register([CommandParked])
    for core in (*actors(), Runner("")):
        codec.register(core.event_types)
    codec.register(types)
    return codec
