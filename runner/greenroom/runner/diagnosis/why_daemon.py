"""Whether the daemon runs, as far as its journal knows, and how the ones before it ended."""

from __future__ import annotations

import itertools

from greenroom.actors.daemon_log import DaemonStarted, DaemonStopped
from greenroom.actors.kernel.supervision import CommandParked
from greenroom.runner.diagnosis.explanation import Remedy
from greenroom.runner.diagnosis.finding import Finding
from greenroom.runner.diagnosis.history import History, latest
from greenroom.runner.diagnosis.sentences import OUR_ACTORS
from greenroom.runner.diagnosis.times import moment


def why_daemon(history: History, now: float) -> Finding:
    """The last start or stop decides."""
    daemons = list(history.daemons)
    started, stopped = latest(daemons, DaemonStarted), latest(daemons, DaemonStopped)
    killed = sum(
        isinstance(one.event, DaemonStarted) and isinstance(following.event, DaemonStarted)
        for one, following in itertools.pairwise(daemons)
    )
    finding = Finding(
        state="stopped",
        cause="never_started",
        answer="No daemon has ever run on this journal.",
        numbers={"starts": float(history.daemon.starts), "killed": float(killed)},
        steps=[*daemons[-8:], *list(history.faults)[-4:]],
        remedies=[Remedy(aim="To start it", command="greenroom serve")],
    )
    parked = [one.event for one in history.faults if isinstance(one.event, CommandParked)]
    ours = sum(one.actor.partition("/")[0] in OUR_ACTORS for one in parked)
    if ours:
        faults = f"{ours} faults" if ours > 1 else "One fault"
        finding.also = [f"{faults} in Greenroom. Please report it with the output of greenroom bundle."]
    if started is None:
        return finding
    if stopped is not None and stopped[0].record.seq > started[0].record.seq:
        finding.cause = "stopped"
        finding.answer = (
            f"Greenroom does not run: it stopped in order at {moment(stopped[0].at, now)}: "
            f"{stopped[1].reason}."
        )
        return finding
    finding.state, finding.cause = "running", "started"
    finding.answer = (
        f"Greenroom {started[1].version} was started at {moment(started[0].at, now)} as process "
        f"{started[1].pid} and has not said that it stopped. If it does not run, it was killed."
    )
    finding.remedies = [Remedy(aim="To see whether it runs", command="greenroom status")]
    before = daemons[daemons.index(started[0]) - 1] if daemons[0] is not started[0] else None
    if before is not None and isinstance(before.event, DaemonStarted):
        finding.cause = "after_a_kill"
        finding.answer += " The one before it was killed or failed: it never said that it stopped."
    return finding
