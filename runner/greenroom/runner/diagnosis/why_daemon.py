"""Whether the daemon runs, how earlier daemons ended, and what is new about its settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from greenroom.actors.daemon_log import DaemonStarted, DaemonStopped, DevicesChanged
from greenroom.actors.kernel.supervision import CommandParked
from greenroom.runner.diagnosis.explanation import Explanation, Remedy, counted, full_stop
from greenroom.runner.diagnosis.history import History, latest, of_type
from greenroom.runner.diagnosis.live import Live
from greenroom.runner.diagnosis.sentences import OUR_ACTORS
from greenroom.runner.diagnosis.settings_changed import chosen, settings_changed
from greenroom.runner.diagnosis.times import moment

_TO_START = Remedy(aim="To start it", command="greenroom serve")
_REPORT = "Please report it and attach the file that greenroom bundle writes."
_SIGNALS = {
    "SIGHUP": "its terminal was closed (SIGHUP)",
    "SIGINT": "it was interrupted with Ctrl-C (SIGINT)",
    "SIGTERM": "it was asked to end (SIGTERM)",
}
"""Reasons for a stop that are signals, for people."""
_STARTS = 3
"""Starts with other settings that are shown."""


def why_daemon(history: History, now: float, live: Live | None) -> Explanation:
    """What runs now, if that is known; else the last start or stop decides."""
    daemons = [one for one in history.daemons if not isinstance(one.event, DevicesChanged)]
    killed = sum(
        isinstance(one.event, DaemonStarted) and isinstance(following.event, DaemonStarted)
        for one, following in itertools.pairwise(daemons)
    )
    started = latest(daemons, DaemonStarted)
    found = present(history, now, live)
    found.numbers |= {"starts": float(history.daemon.starts), "killed": float(killed)}
    found.steps = tuple(one.step for one in (*list(history.daemons)[-8:], *list(history.faults)[-4:]))
    ours = parked(history)
    if ours:
        found.also += (f"{counted(ours, 'command')} failed because of a bug in Greenroom. {_REPORT}",)
    found.also += (*devices(history), *_changes_between_lives(history, now))
    if started is not None and (settings := chosen(started[1].settings)):
        found.also += (f"Non-default settings: {settings}.",)
    return found


def _changes_between_lives(history: History, now: float) -> Iterator[str]:
    """A sentence for each of the last starts with other settings than the one before, the newest first."""
    starts = list(of_type(history.daemons, DaemonStarted))
    found = [
        f"Since the start at {moment(happening.at, now)}: {'; '.join(changes)}."
        for (_, before), (happening, after) in itertools.pairwise(starts)
        if (changes := settings_changed(before, after))
    ]
    yield from reversed(found[-_STARTS:])


def present(history: History, now: float, live: Live | None) -> Explanation:
    """Whether it runs, in a sentence or two."""
    daemons = [one for one in history.daemons if not isinstance(one.event, DevicesChanged)]
    started, stopped = latest(daemons, DaemonStarted), latest(daemons, DaemonStopped)
    if started is None:
        return Explanation(
            state="stopped",
            cause="never_started",
            answer="No daemon has ever run on this journal.",
            remedies=(_TO_START,),
        )
    before = daemons[daemons.index(started[0]) - 1] if daemons[0] is not started[0] else None
    after_a_kill = before is not None and isinstance(before.event, DaemonStarted)
    ended_before = (
        " The previous daemon did not shut down cleanly: it crashed or was killed." if after_a_kill else ""
    )
    began, pid = moment(started[0].at, now), started[1].pid
    found = Explanation(state="stopped", cause="stopped", remedies=(_TO_START,))
    if stopped is not None and stopped[0].record.seq > started[0].record.seq:
        told = _SIGNALS.get(stopped[1].reason, stopped[1].reason)
        at, reason = moment(stopped[0].at, now), full_stop(told)
        found.answer = f"Greenroom is not running: it shut down cleanly at {at}: {reason}"
    elif live is None:
        found.state, found.cause = "running", "after_a_kill" if after_a_kill else "started"
        found.answer = (
            f"Greenroom {started[1].version} started at {began} as process {pid} and has not shut down "
            f"since. If it is not running, it crashed or was killed.{ended_before}"
        )
        found.remedies = (Remedy(aim="To see whether it is running", command="greenroom status"),)
    elif not live.running:
        found.cause = "killed"
        last = history.last.at if history.last is not None else started[0].at
        found.answer = (
            f"Greenroom is not running: process {pid} was killed or crashed after {moment(last, now)}, when "
            "it stored its last event."
        )
        found.remedies = (_TO_START, Remedy(aim="To read its log", command="greenroom logs"))
    elif live.silence:
        found.state, found.cause = "silent", "does_not_answer"
        found.answer, found.also = live.silence, (live.advice,) if live.advice else ()
        found.remedies = (Remedy(aim="To read its log", command="greenroom logs"),)
    else:
        found.state, found.cause = "running", "after_a_kill" if after_a_kill else "started"
        found.answer = (
            f"Greenroom {started[1].version} has been running since {began} as process "
            f"{live.pid or pid}.{ended_before}"
        )
        if live.problem:
            found.state, found.cause = "not_ready", "not_ready"
            found.answer += f" It is not ready: {full_stop(live.problem)}"
        found.remedies = (Remedy(aim="To see its jobs and backends", command="greenroom status"),)
    if live is not None and not live.running and live.silence:
        found.answer += f" It cannot be started as it is: {live.silence}"
        found.cause = "cannot_start"
        found.also = (live.advice,) if live.advice else ()
        found.remedies = tuple(one for one in found.remedies if one is not _TO_START)
    return found


def parked(history: History) -> int:
    """Commands that our own actors failed on, since the daemon last started."""
    since = history.daemon.started_at
    events = [one.event for one in history.faults if one.at >= since]
    return sum(isinstance(one, CommandParked) and one.actor.partition("/")[0] in OUR_ACTORS for one in events)


def devices(history: History) -> Iterator[str]:
    """What is wrong with the graphics devices, as they were last seen."""
    for one in history.daemon.devices:
        if one.problem is not None:
            yield f"{one.name} cannot be used: {one.problem.sentence()}"
    yield from (one.sentence() for one in history.daemon.device_problems)
