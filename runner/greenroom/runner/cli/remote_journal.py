"""The journal of the daemon that GREENROOM_HOST names, asked over HTTP."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click
import msgspec

from greenroom.actors.journal.port import Record
from greenroom.runner.cli.client import Client, DaemonRefused, DaemonResponse
from greenroom.runner.cli.connect import Daemon, find, not_running
from greenroom.runner.cli.exit_codes import Problem
from greenroom.runner.cli.main import settings_of

if TYPE_CHECKING:
    from greenroom.runner.diagnosis.event_log import Line, Wanted
    from greenroom.runner.diagnosis.explanation import Explanation
    from greenroom.runner.diagnosis.summary import Summary

_PATIENCE = 120.0
"""Seconds of silence that are borne: a long journal is read from its beginning."""
_NDJSON = "application/x-ndjson"
_GZIP = "application/gzip"


def journal_elsewhere(ctx: click.Context, journal: Path | None) -> RemoteJournal | None:
    """The journal of the daemon that the settings name; None where a file is meant. Raises Problem."""
    settings = settings_of(ctx)
    if journal is not None or not settings.host:
        return None
    daemon = find(settings)
    if daemon is None:
        raise not_running(settings)
    return RemoteJournal(daemon)


class RemoteJournal:
    """What the commands ask of it. Everything raises Problem."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._client: Client = daemon.client()

    def log(self, wanted: Wanted, *, last: int | None = None, follow: bool = False) -> Iterator[Line]:
        """The events that are wanted, the oldest first; with `follow` also each new one."""
        from greenroom.runner.diagnosis.event_log import Line

        query: dict[str, Any] = {name: value for name, value in msgspec.to_builtins(wanted).items() if value}
        kinds = query.pop("kinds", ())
        query |= {"kind": ",".join(kinds)} if kinds else {}
        query |= {"last": last} if last is not None else {}
        query |= {"follow": "true"} if follow else {}
        with self._open("/log", query, _NDJSON, timeout=None if follow else _PATIENCE) as answer:
            for fields in answer.objects():
                yield msgspec.convert(fields, Line)

    def records(self) -> Iterator[Record]:
        """All events, as they are stored."""
        from greenroom.runner.diagnosis.event_log import Wanted

        for line in self.log(Wanted()):
            stream, _, version = line.id.rpartition("/")
            yield Record(
                seq=line.seq,
                at=line.at,
                stream=stream,
                version=int(version),
                type=line.type,
                schema=line.schema,
                cause=line.cause,
                data=json.dumps(line.data, ensure_ascii=False),
            )

    def summary(self, since: float, until: float) -> Summary:
        from greenroom.runner.diagnosis.summary import Summary

        return msgspec.convert(self._json("/log/summary", {"since": since, "until": until}), Summary)

    def why(self, name: str) -> Explanation:
        from greenroom.runner.diagnosis.explanation import Explanation

        return msgspec.convert(self._json("/why", {"name": name}), Explanation)

    def replay(self, at: str | None) -> Any:
        """The state as JSON."""
        return self._json("/replay", {"at": at} if at is not None else {})

    def replay_text(self, at: str | None) -> str:
        query = {"at": at} if at is not None else {}
        with self._open("/replay", query, "text/plain", timeout=_PATIENCE) as answer:
            return answer.read().decode("utf-8", "replace")

    @contextlib.contextmanager
    def bundle(self) -> Iterator[DaemonResponse]:
        """An archive for a bug report, as it comes."""
        with self._open("/bundle", {}, _GZIP, timeout=_PATIENCE) as answer:
            yield answer

    def _json(self, path: str, query: Mapping[str, Any]) -> Any:
        with self._open(path, query, "application/json", timeout=_PATIENCE) as answer:
            return json.loads(answer.read())

    @contextlib.contextmanager
    def _open(
        self, path: str, query: Mapping[str, Any], accept: str, *, timeout: float | None
    ) -> Iterator[DaemonResponse]:
        target = f"{path}?{urlencode(query)}" if query else path
        try:
            with self._client.open("GET", target, accept=accept, timeout=timeout) as answer:
                yield answer
        except DaemonRefused as refused:
            if refused.status in (404, 405) and not refused.code:
                raise self._too_old() from refused
            raise

    def _too_old(self) -> Problem:
        return Problem(
            f"The Greenroom daemon at {self._daemon.url} is version {self._daemon.version}, which does not "
            "tell this over the network.",
            "Upgrade it there, or copy its journal and read that with --journal FILE.",
        )
