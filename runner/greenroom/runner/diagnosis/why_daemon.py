"""Whether the daemon runs, according to its journal, and how earlier daemons ended."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from greenroom.actors.daemon_log import DaemonStarted, DaemonStopped, DevicesChanged
from greenroom.actors.kernel.supervision import CommandParked
from greenroom.runner.diagnosis.explanation import Explanation, Remedy, counted, full_stop
from greenroom.runner.diagnosis.history import History, latest
from greenroom.runner.diagnosis.sentences import OUR_ACTORS
from greenroom.runner.diagnosis.times import moment


def why_daemon(history: History, now: float) -> Explanation:
    """The last start or stop decides."""
    told = list(history.daemons)
    daemons = [one for one in told if not isinstance(one.event, DevicesChanged)]
    started, stopped = latest(daemons, DaemonStarted), latest(daemons, DaemonStopped)
    killed = sum(
        isinstance(one.event, DaemonStarted) and isinstance(following.event, DaemonStarted)
        for one, following in itertools.pairwise(daemons)
    )
    found = Explanation(
        state="stopped",
        cause="never_started",
        answer="No daemon has ever run on this journal.",
        numbers={"starts": float(history.daemon.starts), "killed": float(killed)},
        steps=tuple(one.step for one in (*told[-8:], *list(history.faults)[-4:])),
        remedies=(Remedy(aim="To start it", command="greenroom serve"),),
    )
    parked = [one.event for one in history.faults if isinstance(one.event, CommandParked)]
    ours = sum(one.actor.partition("/")[0] in OUR_ACTORS for one in parked)
    if ours:
        report = "Please report it and attach the file that greenroom bundle writes."
        found.also = (f"{counted(ours, 'command')} failed because of a bug in Greenroom. {report}",)
    found.also = (*found.also, *_devices(history))
    if started is None:
        return found
    if stopped is not None and stopped[0].record.seq > started[0].record.seq:
        found.cause = "stopped"
        at, reason = moment(stopped[0].at, now), full_stop(stopped[1].reason)
        found.answer = f"Greenroom is not running: it shut down cleanly at {at}: {reason}"
        return found
    found.state, found.cause = "running", "started"
    found.answer = (
        f"Greenroom {started[1].version} started at {moment(started[0].at, now)} as process "
        f"{started[1].pid} and has not shut down since. If it is not running, it crashed or was killed."
    )
    found.remedies = (Remedy(aim="To see whether it is running", command="greenroom status"),)
    before = daemons[daemons.index(started[0]) - 1] if daemons[0] is not started[0] else None
    if before is not None and isinstance(before.event, DaemonStarted):
        found.cause = "after_a_kill"
        found.answer += " The previous daemon did not shut down cleanly: it crashed or was killed."
    return found


def _devices(history: History) -> Iterator[str]:
    """What is wrong with the graphics devices, as they were last seen."""
    for one in history.daemon.devices:
        if one.problem is not None:
            yield f"{one.name} cannot be used: {one.problem.sentence()}"
    yield from (one.sentence() for one in history.daemon.device_problems)
