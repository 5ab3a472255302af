"""A daemon to which anything may happen: `chaos_daemon.py HOME PORT`.

Its engines are fake ones, of which the memory has room for one. What it commits it writes to `HOME.notes` at
once; its wall clock is off by the number of seconds in the file `HOME.clock`, as often as that is changed.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from greenroom.actors.journal.port import Entry, Record
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.runner.config import Settings
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.server import run
from greenroom.runner.setting_values import ExternalBackend
from greenroom.runner.testing import fake_backend


class NotedJournal:
    """Notes each event as soon as it is stored, so that the test can check later that it still is."""

    def __init__(self, inner: SqliteJournal, notes: Path) -> None:
        self._inner = inner
        self._notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append(self, batch: Sequence[Entry], *, urgent: bool = False) -> list[Record]:
        records = self._inner.append(batch, urgent=urgent)
        # The disk may be full for these as well: what is not noted cannot be missed.
        with contextlib.suppress(OSError):
            os.write(self._notes, "".join(f"{one.id} {one.type}\n" for one in records).encode())
        return records

    def read(self, *, after: int = 0, stream: str | None = None) -> Iterator[Record]:
        return self._inner.read(after=after, stream=stream)

    def close(self) -> None:
        self._inner.close()


def bend_the_clock(file: Path) -> None:
    """Have `time.time` be off by what the file says."""
    with file.open("r+b") as opened:
        offset = mmap.mmap(opened.fileno(), 8)
    real = time.time
    time.time = lambda: real() + struct.unpack("d", offset[:8])[0]


def main() -> None:
    home, port = Path(sys.argv[1]), int(sys.argv[2])
    bend_the_clock(Path(f"{home}.clock"))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    settings = Settings(
        home=home,
        port=port,
        engine_grace=60.0,
        max_wait=20.0,
        memory_budget=2**20 + 2**19,
        backends={"fake": ExternalBackend(binary=Path(sys.executable))},
    )
    flags = ("--tokens", "20", "--token-delay", "0.01", "--note", f"{home}.starts")
    backend = fake_backend(Path(__file__).with_name("fake_engine.py"), *flags)
    home.mkdir(exist_ok=True)
    journal = NotedJournal(SqliteJournal(home / "journal.db"), Path(f"{home}.notes"))
    run(Greenroom(settings, journal=journal, backends={"fake": backend}), drain=1.0)


if __name__ == "__main__":
    main()
