"""The journal of the daemon that GREENROOM_HOST names, asked over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import msgspec

from greenroom.actors.journal.port import JournalError, Record
from greenroom.runner import exit_codes
from greenroom.runner.cli.problem import Problem
from greenroom.runner.client.daemons import Daemon, find, is_on_this_machine, not_running
from greenroom.runner.client.errors import GreenroomError, RequestRefused
from greenroom.runner.client.http_client import DaemonResponse, HttpClient
from greenroom.runner.config import Settings

if TYPE_CHECKING:
    from greenroom.runner.diagnosis.event_log import EventQuery, Line
    from greenroom.runner.diagnosis.explanation import Explanation
    from greenroom.runner.diagnosis.summary import Summary

_PATIENCE = 120.0
"""Seconds of silence before giving up: a long journal is read from its beginning."""
_NDJSON = "application/x-ndjson"
_TEXT = "text/plain, application/json"
"""The second one is for refusals."""
_NO_ROUTE = frozenset({"", "no_such_path", "wrong_method"})
"""Codes of a daemon that does not have a route."""
_PIECE = 2**20
_LARGEST = 2**28
"""Bytes of an archive."""
_GZIP = "application/gzip"


def daemon_elsewhere(settings: Settings) -> Daemon | None:
    """The daemon at `host`; None if it is that of this data directory, whether or not it runs."""
    try:
        daemon = find(settings)
    except GreenroomError:
        if _listened_there(settings):
            return None
        raise
    if daemon is None:
        if _listened_there(settings):
            return None
        raise not_running(settings)
    return None if daemon.secret else daemon


def _listened_there(settings: Settings) -> bool:
    """Whether the last daemon of this data directory listened at `host`, as its journal says."""
    from greenroom.actors.daemon_log import DAEMON, DaemonStarted
    from greenroom.actors.journal.reader import JournalReader

    if not is_on_this_machine(settings.host):
        return False
    try:
        with JournalReader(settings.home / "journal.db", strict=False) as reader:
            starts = [
                json.loads(record.data)
                for record in reader.read_stream(str(DAEMON), head=0)
                if record.type == DaemonStarted.TAG
            ]
    except (OSError, ValueError, JournalError):
        return False
    address = str(starts[-1].get("address", "")) if starts else ""
    return is_on_this_machine(address) and urlsplit(address).port == urlsplit(settings.host).port


class RemoteJournal:
    """What the commands ask of it. Everything raises Problem."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._client: HttpClient = daemon.client()
        self._records: list[Record] | None = None

    def log(self, wanted: EventQuery, *, last: int | None = None, follow: bool = False) -> Iterator[Line]:
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

    def has_ended(self) -> Problem:
        """Why there is no more news."""
        return Problem(
            f"The Greenroom daemon at {self._daemon.url} closed the connection: it was stopped.",
            "Once it is running again: greenroom log -f",
            code=exit_codes.NOT_RUNNING,
        )

    def read(self) -> Iterator[Record]:
        """All events as they were stored when this was first called."""
        from greenroom.runner.diagnosis.event_log import EventQuery

        if self._records is None:
            self._records = [_record(line) for line in self.log(EventQuery())]
        return iter(self._records)

    def last_seq(self) -> int:
        """The last event's number; 0 when there is none."""
        return max((one.seq for one in self.read()), default=0)

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
        with self._open("/replay", query, _TEXT, timeout=_PATIENCE) as answer:
            return answer.read().decode("utf-8", "replace")

    def bundle(self, target: Path) -> tuple[str, int]:
        """Write an archive for a bug report to a new file; what is in it, and its bytes. Raises OSError."""
        import tarfile

        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with (
                os.fdopen(descriptor, "wb") as file,
                self._open("/bundle", {}, _GZIP, timeout=_PATIENCE) as answer,
            ):
                while file.tell() < _LARGEST and (piece := answer.read(_PIECE)):
                    file.write(piece)
            with tarfile.open(target) as archive:
                first = archive.next()
                readme = archive.extractfile(first) if first is not None else None
                return readme.read(_PIECE).decode("utf-8", "replace") if readme else "", target.stat().st_size
        except (tarfile.TarError, EOFError) as error:
            target.unlink(missing_ok=True)
            raise self._no_bundle(str(error)) from error
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def _no_bundle(self, why: str) -> Problem:
        return Problem(
            f"What the daemon at {self._daemon.url} sent is not a valid archive: {why}.",
            "To make one there: greenroom bundle",
        )

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
        except RequestRefused as refused:
            if refused.status in (404, 405) and refused.code in _NO_ROUTE:
                raise self._too_old() from refused
            raise

    def _too_old(self) -> Problem:
        return Problem(
            f"The Greenroom daemon at {self._daemon.url} is version {self._daemon.version}, which does not "
            "serve this over the network.",
            "Upgrade it there, or copy its journal and read that with --journal FILE.",
        )


def _record(line: Line) -> Record:
    stream, _, version = line.id.rpartition("/")
    return Record(
        seq=line.seq,
        at=line.at,
        stream=stream,
        version=int(version),
        type=line.type,
        schema=line.schema,
        cause=line.cause,
        data=json.dumps(line.data, ensure_ascii=False),
    )
