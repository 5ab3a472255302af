"""The daemon's own stream: when it started, whether it was killed, and which graphics devices it had."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from greenroom.actors.graphics import Graphics, GraphicsDevice
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Address,
    Command,
    Decision,
    Event,
    NotUnderstood,
    Recovered,
    SingleStream,
    Stored,
)
from greenroom.actors.limits import Reason, Whole
from greenroom.actors.values import Fact, Failure

DAEMON = Address("daemon")


class NoteStopped(Command[None], frozen=True, kw_only=True):
    """Record that this daemon is stopping in order."""

    ACTOR = DAEMON
    pid: Whole
    reason: Reason


class NoteDevices(Command[None], frozen=True, kw_only=True):
    """Record what is new about the machine's graphics devices. Repeating it changes nothing."""

    ACTOR = DAEMON
    REPEATABLE = True
    graphics: Graphics
    """Without free memory, which always changes: `Graphics.lasting`."""


class SettingInForce(Fact, frozen=True, kw_only=True):
    """One setting of a daemon, as people read it."""

    name: str
    """Such as `memory_budget` or `backends.mlx.python`."""
    value: str
    origin: str
    """`default`, `flag --port`, `environment GREENROOM_PORT`, or the path of the file."""


class DaemonStarted(Event, frozen=True, kw_only=True):
    """A daemon has opened this journal."""

    TAG = "daemon_started"
    pid: int
    version: str
    platform: str
    boot_id: str = ""
    address: str = ""
    life: str = ""
    """Unique id of this run of the daemon: in a container every daemon has the same pid."""
    settings: tuple[SettingInForce, ...] = ()
    """The settings that matter most, and all that are no defaults; empty in journals of earlier versions."""


class DaemonStopped(Event, frozen=True, kw_only=True):
    """The daemon stopped in order. If this is missing before the next start, it was killed."""

    TAG = "daemon_stopped"
    URGENT = True
    pid: int
    reason: str


class DevicesChanged(Event, frozen=True, kw_only=True):
    """Graphics devices appeared, went away, or are not what they were. Only those that differ are listed."""

    TAG = "devices_changed"
    before: tuple[GraphicsDevice, ...] = ()
    after: tuple[GraphicsDevice, ...] = ()
    """One in both has changed, one in `before` alone is gone."""
    problems: tuple[Failure, ...] = ()
    """All that belong to no device, as they are now."""

    @property
    def is_problem(self) -> bool:
        """Whether one is gone or cannot be used, or there is a problem with all."""
        there = {one.id for one in self.after}
        lost = any(one.id not in there for one in self.before)
        return lost or bool(self.problems) or any(one.problem is not None for one in self.after)


class DaemonState(msgspec.Struct, frozen=True, kw_only=True):
    starts: int = 0
    running_pid: int = 0
    """Pid of the daemon that has not recorded a stop; if it is not ours, that daemon was killed."""
    running_life: str = ""
    """`DaemonStarted.life` of that daemon."""
    started_at: float = 0.0
    """When the last daemon started."""
    started_before: float = 0.0
    """When the one before it started."""
    devices: tuple[GraphicsDevice, ...] = ()
    """The machine's graphics devices when they last changed."""
    device_problems: tuple[Failure, ...] = ()


class DaemonLog(SingleStream[DaemonState]):
    address = DAEMON
    event_types = (DaemonStarted, DaemonStopped, DevicesChanged)

    def __init__(self, started: DaemonStarted) -> None:
        """`started` is stored when this daemon's actors start."""
        self._started = started

    def initial(self) -> DaemonState:
        return DaemonState()

    def apply(self, state: DaemonState, stored: Stored[Any]) -> DaemonState:
        match stored.event:
            case DaemonStarted(pid=pid, life=life):
                return replace(
                    state,
                    starts=state.starts + 1,
                    running_pid=pid,
                    running_life=life,
                    started_at=stored.at,
                    started_before=state.started_at,
                )
            case DevicesChanged(before=before, after=after, problems=problems):
                gone = {one.id for one in (*before, *after)}
                kept = tuple(one for one in state.devices if one.id not in gone)
                return replace(state, devices=(*kept, *after), device_problems=problems)
            case _:
                return replace(state, running_pid=0, running_life="")

    def decide(
        self, state: DaemonState, command: Command[Any], _now: Moment, _volatile: None
    ) -> Decision[None]:
        match command:
            case NoteDevices(graphics=graphics):
                before = tuple(one for one in state.devices if one not in graphics.devices)
                after = tuple(one for one in graphics.devices if one not in state.devices)
                is_new = before or after or graphics.problems != state.device_problems
                changed = DevicesChanged(before=before, after=after, problems=graphics.problems)
                return Decision(events=(changed,) if is_new else ())
            case NoteStopped() as c:
                return Decision(events=(DaemonStopped(pid=c.pid, reason=c.reason),))
            case Recovered():
                # A rebuilt actor is not a restarted daemon.
                ours = (self._started.pid, self._started.life)
                known = (state.running_pid, state.running_life) == ours
                return Decision(events=() if known else (self._started,))
            case _:
                raise NotUnderstood(self.address, command)
