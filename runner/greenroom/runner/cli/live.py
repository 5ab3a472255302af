"""What the daemon of a data directory says now, for `why`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from greenroom.actors.scheduler.messages import LedgerReading
from greenroom.runner.client.daemons import Unresponsive, find, is_on_this_machine
from greenroom.runner.client.errors import GreenroomError, RequestRefused, Unreachable
from greenroom.runner.client.http_client import HttpClient
from greenroom.runner.config import Settings
from greenroom.runner.daemon_lock import holding_pid
from greenroom.runner.diagnosis.live import DOWN, Live
from greenroom.runner.record.row import Row
from greenroom.runner.remotes.reading import RemoteReading

_PATIENCE = 1.5
"""Seconds for its first answer."""
_WITHIN = 3.0
"""Seconds for each of the others."""


def live_facts(settings: Settings) -> Live | None:
    """None if these settings mean a daemon on another machine, whose journal is not the one here."""
    if settings.host and not is_on_this_machine(settings.host):
        return None
    try:
        daemon = find(settings, patience=_PATIENCE)
    except Unresponsive as silent:
        return Live(pid=silent.holder.pid, silence=silent.message, advice=silent.advice)
    except GreenroomError as odd:
        # Something else answers at its address: then its lock tells whether it runs.
        pid = holding_pid(settings.home)
        return Live(running=pid is not None, pid=pid or 0, silence=odd.message, advice=odd.advice)
    if daemon is None:
        return DOWN
    if Path(daemon.home).resolve() != settings.home.resolve():
        return None
    client, ledger, problem = daemon.client(), None, ""
    try:
        try:
            ledger = msgspec.convert(client.get("/engines/ledger", timeout=_WITHIN), LedgerReading)
        except RequestRefused as refused:
            problem = refused.message
        jobs = client.get("/jobs", timeout=_WITHIN) or ()
        requests = _requests(client)
        engines = client.get("/engines", timeout=_WITHIN) or ()
        remotes = client.get("/engines/remotes", timeout=_WITHIN) or ()
    except Unreachable as gone:
        return Live(pid=daemon.pid, silence=str(gone))
    return Live(
        pid=daemon.pid,
        problem=problem,
        ledger=ledger,
        jobs=_told(jobs),
        requests=requests,
        remotes=tuple(msgspec.convert(one, RemoteReading) for one in remotes),
        verdicts={str(one["name"]): str(one["verdict"]) for one in engines},
    )


def _told(jobs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The progress board's key of each job → how far it is."""
    if not jobs:
        return {}
    # Not quick to import, and mostly there are none.
    from greenroom.runner.cli.display import describe

    return {str(one["job"]): describe(one) for one in jobs}


def _requests(client: HttpClient) -> tuple[Row, ...]:
    try:
        rows = client.get("/requests?status=running", timeout=_WITHIN) or ()
    except RequestRefused:
        # None are recorded.
        return ()
    return tuple(msgspec.convert(one, Row) for one in rows)
