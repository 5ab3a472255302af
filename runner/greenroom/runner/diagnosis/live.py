"""What only a running daemon knows: who waits, who is inside, how far jobs are. None of it is stored."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from greenroom.actors.scheduler.messages import EngineAccount, LedgerReading, QueueEntry
from greenroom.runner.record.row import Row
from greenroom.runner.remotes.reading import RemoteReading


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon of the journal says now, or why it says nothing."""

    running: bool = True
    pid: int = 0
    silence: str = ""
    """Why it does not answer, or could not be started, as a sentence."""
    advice: str = ""
    """What to do about its silence."""
    problem: str = ""
    """Why it is not ready, as a sentence."""
    ledger: LedgerReading | None = None
    """None if its scheduler does not answer."""
    jobs: Mapping[str, str] = {}
    """The progress board's key of a job → how far it is, for people."""
    requests: tuple[Row, ...] = ()
    """Those under way."""
    remotes: tuple[RemoteReading, ...] = ()
    """Remote backends."""
    verdicts: Mapping[str, str] | None = None
    """The backends that it knows, with why this machine cannot run them (empty: it can)."""

    def remote(self, name: str) -> RemoteReading | None:
        return next((one for one in self.remotes if one.name == name), None)

    @property
    def queue(self) -> tuple[QueueEntry, ...]:
        return self.ledger.queue if self.ledger is not None else ()

    def account(self, engine_id: str) -> EngineAccount | None:
        engines = self.ledger.engines if self.ledger is not None else ()
        return next((one for one in engines if one.engine_id == engine_id), None)

    def inside(self, engine_id: str) -> tuple[Row, ...]:
        """The requests that an engine answers, the oldest first."""
        found = (one for one in self.requests if one.engine == engine_id and one.family != "management")
        return tuple(sorted(found, key=lambda one: one.at))

    def progress(self, key: str) -> str:
        """How far a job is; empty if none of this key is running."""
        return self.jobs.get(key, "")


DOWN = Live(running=False)
