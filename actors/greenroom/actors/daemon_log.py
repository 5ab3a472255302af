"""The daemon's own stream: when it started and whether it stopped in order or was killed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Address,
    Command,
    Decision,
    Effect,
    Event,
    NotUnderstood,
    Recovered,
    Stored,
)
from greenroom.actors.limits import Reason, Whole

DAEMON = Address("daemon")


class NoteStopped(Command[None], frozen=True, kw_only=True):
    """Store that this daemon stops in order."""

    ACTOR = DAEMON
    pid: Whole
    reason: Reason


class DaemonStarted(Event, frozen=True, kw_only=True):
    """A daemon has opened this journal."""

    TAG = "daemon_started"
    pid: int
    version: str
    platform: str
    boot_id: str = ""
    address: str = ""
    life: str = ""
    """A name of its own: in a container each daemon has the same pid."""


class DaemonStopped(Event, frozen=True, kw_only=True):
    """It has stopped in order. Without this before the next start, it was killed."""

    TAG = "daemon_stopped"
    URGENT = True
    pid: int
    reason: str


class DaemonState(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal says of the daemon."""

    starts: int = 0
    running_pid: int = 0
    """The pid of the daemon that has not said that it stopped; another than ours was killed."""
    running_life: str = ""
    """And its own name."""
    started_at: float = 0.0
    """When the last one started."""
    started_before: float = 0.0
    """When the one before it did."""


class DaemonVolatile(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing beside the journal."""


class DaemonLog:
    """The pure core."""

    def __init__(self, started: DaemonStarted) -> None:
        """`started` is stored at the beginning of this daemon's life."""
        self._started = started

    address: Address = DAEMON
    event_types: Sequence[type[Event]] = (DaemonStarted, DaemonStopped)

    def claims(self, stream: str) -> bool:
        return stream == "daemon"

    def stream_of(self, _event: Event) -> str:
        return "daemon"

    def initial(self) -> DaemonState:
        return DaemonState()

    def initial_volatile(self) -> DaemonVolatile:
        return DaemonVolatile()

    def apply(self, state: DaemonState, stored: Stored[Any]) -> DaemonState:
        match stored.event:
            case DaemonStarted(pid=pid, life=life):
                return DaemonState(
                    starts=state.starts + 1,
                    running_pid=pid,
                    running_life=life,
                    started_at=stored.at,
                    started_before=state.started_at,
                )
            case _:
                return replace(state, running_pid=0, running_life="")

    def decide(
        self, state: DaemonState, command: Command[Any], _now: Moment, _volatile: DaemonVolatile
    ) -> Decision[DaemonVolatile]:
        match command:
            case NoteStopped() as c:
                return Decision(events=(DaemonStopped(pid=c.pid, reason=c.reason),))
            case Recovered():
                # A rebuild of this actor is not another start of the daemon.
                ours = (self._started.pid, self._started.life)
                known = (state.running_pid, state.running_life) == ours
                return Decision(events=() if known else (self._started,))
            case _:
                raise NotUnderstood(self.address, command)

    def react(self, _state: DaemonState, _stored: Stored[Any]) -> Sequence[Effect]:
        """Nothing follows."""
        return ()

    def settle(
        self, _state: DaemonState, _now: Moment, _volatile: DaemonVolatile
    ) -> Decision[DaemonVolatile]:
        """Nothing follows."""
        return Decision()
