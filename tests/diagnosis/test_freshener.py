"""What `why` needs of a long journal is kept up to date beside a running daemon."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import msgspec
import psutil
import pytest

from daemon_process import DaemonProcess, without_settings
from greenroom.actors.daemon_log import DaemonStarted, DaemonStopped
from greenroom.actors.journal.port import Entry
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.runner.diagnosis import freshener
from greenroom.runner.diagnosis.checkpoint import SUFFIX, resumed
from greenroom.runner.diagnosis.freshener import MANY, Freshener
from waiting import BOUND, until


def long_journal(path: Path) -> Path:
    """A journal in which a daemon has started and stopped many times."""
    events = (DaemonStarted(pid=1, version="0.1.0", platform="Linux"), DaemonStopped(pid=1, reason="asked"))
    texts = [(type(one).TAG, msgspec.json.encode(one).decode()) for one in events]
    journal = SqliteJournal(path)
    journal.append(
        [
            Entry(stream="daemon", version=1 + n, type=tag, schema=1, cause="", data=data, at=1.7e9 + n)
            for n, (tag, data) in enumerate(texts * (MANY // 2))
        ]
    )
    journal.close()
    return path


def kept(path: Path) -> int:
    """How many events what is kept of this journal covers; 0 if it does not count."""
    with JournalReader(path) as reader:
        history = resumed(reader, "")
        return history.count if history is not None else 0


@pytest.fixture
def often() -> Iterator[None]:
    with mock.patch.object(freshener, "LOOK_EVERY", 0.02):
        yield


def test_a_daemon_keeps_the_cache_of_a_long_journal(short_path: Path) -> None:
    daemon = DaemonProcess(short_path / "home")
    daemon.home.mkdir()
    path = long_journal(daemon.home / "journal.db")
    try:
        daemon.fork("serve_fake", "0", env={**without_settings(), "TEST_LOOK_EVERY": "0.1"})
        until(daemon.listens)
        until(lambda: kept(path) > MANY)
    finally:
        daemon.end()
    assert daemon.running.returncode == 0
    assert kept(path) > MANY


@pytest.mark.usefixtures("often")
def test_nothing_is_read_while_something_is_done_or_when_little_is_new(tmp_path: Path) -> None:
    path = long_journal(tmp_path / "journal.db")
    looks, idle = threading.Semaphore(0), threading.Event()
    last = MANY - 1

    def is_idle() -> bool:
        looks.release()
        return idle.is_set()

    def last_seq() -> int:
        looks.release()
        return last

    one = Freshener(path, last_seq, is_idle)
    one.start()
    try:
        for wanted in (last, MANY):
            last = wanted
            for _ in range(6):
                assert looks.acquire(timeout=BOUND)
            assert not path.with_name(path.name + SUFFIX).exists()
        idle.set()
        until(lambda: kept(path) == MANY)
    finally:
        one.stop()


@pytest.mark.usefixtures("often")
def test_a_stop_kills_the_process_that_reads_and_waits_for_nothing(tmp_path: Path) -> None:
    started = tmp_path / "started"
    hangs = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(999)"
    one = Freshener(started, lambda: MANY, lambda: True, (sys.executable, "-S", "-c", hangs))
    one.start()
    until(lambda: started.exists() and started.read_text())
    child = int(started.read_text())
    assert psutil.pid_exists(child)
    one.stop()
    until(lambda: not psutil.pid_exists(child))
