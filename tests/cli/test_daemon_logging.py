"""The daemon's log never holds up who logs, and cannot be forged by what a client sends."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.runner.cli import daemon_logging
from greenroom.runner.cli.daemon_logging import DaemonLogging, Handed
from waiting import until


class Frozen:
    """A disk that does not answer until it is released."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.answers = threading.Event()
        self.asked = threading.Event()

    def write(self, line: str) -> bool:
        self.asked.set()
        self.answers.wait(30)
        self.lines.append(line)
        return True


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("test_daemon_logging")
    logger.propagate = False
    yield logger
    logger.handlers.clear()


def test_a_disk_that_hangs_blocks_no_thread_and_lost_lines_are_counted(logger: logging.Logger) -> None:
    disk = Frozen()
    handler = Handed(disk, room=10)  # type: ignore[arg-type]
    logger.addHandler(handler)
    logger.warning("line 0")
    assert disk.asked.wait(10)
    began = time.monotonic()
    for number in range(1, 1000):
        logger.warning("line %d", number)
    assert time.monotonic() - began < 5
    disk.answers.set()
    handler.finish(10)
    assert [line.rpartition(": ")[2] for line in disk.lines[:1]] == ["line 0"]
    assert "989 lines are missing here" in disk.lines[1]
    assert [line.rpartition(": ")[2] for line in disk.lines[2:]] == [f"line {n}" for n in range(1, 11)]


def test_closing_waits_for_a_disk_that_hangs_no_longer_than_its_timeout(logger: logging.Logger) -> None:
    disk = Frozen()
    handler = Handed(disk)  # type: ignore[arg-type]
    logger.addHandler(handler)
    logger.warning("a line")
    began = time.monotonic()
    handler.finish(0.1)
    assert time.monotonic() - began < 5
    disk.answers.set()


@pytest.fixture
def daemon_log(tmp_path: Path) -> Iterator[DaemonLogging]:
    root = logging.getLogger()
    before, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    log = DaemonLogging(tmp_path / "daemon.log", terminal=False)
    yield log
    log.close()
    root.handlers[:], logging.raiseExceptions = before, raises
    root.setLevel(level)


def handler() -> Handed:
    """The one that writes to the file."""
    (found,) = [one for one in logging.getLogger().handlers if isinstance(one, Handed)]
    return found


def test_a_message_is_one_line_whatever_is_in_it_and_a_traceback_stays_readable(
    daemon_log: DaemonLogging, tmp_path: Path
) -> None:
    path = "/x\n2026-01-01 00:00:00.000 INFO forged\x1b[31m\u2028\udce4"
    why = ValueError("why")
    for text, arguments, info in (("GET %s 200", (path,), None), ("it failed", (), (type(why), why, None))):
        record = logging.LogRecord("greenroom.access", logging.INFO, "", 0, text, arguments, info)
        handler().emit(record)
    daemon_log.close()
    lines = (tmp_path / "daemon.log").read_text().splitlines()
    assert "GET /x\\n2026-01-01 00:00:00.000 INFO forged\\x1b[31m\\u2028\\udce4 200" in lines[0]
    assert lines[1].endswith("it failed")
    assert lines[2] == "ValueError: why"


def test_the_log_is_its_owners_and_is_put_aside_when_it_is_long(
    daemon_log: DaemonLogging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_logging, "LOG_BYTES", 1000)
    (tmp_path / "daemon.log").write_text("from before\n")
    (tmp_path / "daemon.log").chmod(0o644)
    for number in range(30):
        logging.getLogger("greenroom").warning("a line of some length, number %d", number)
    daemon_log.close()
    files = sorted(tmp_path.glob("daemon.log*"))
    assert [one.name for one in files] == ["daemon.log", "daemon.log.1"]
    for one in files:
        assert one.stat().st_mode & 0o777 == 0o600
        assert one.stat().st_size <= 1000
    assert "number 29" in files[0].read_text()


def test_a_log_that_cannot_be_written_is_no_error_of_who_logs(
    daemon_log: DaemonLogging, tmp_path: Path
) -> None:
    (tmp_path / "daemon.log").mkdir()
    logging.getLogger("greenroom").warning("into the void")
    until(lambda: handler().lost)  # on the log's own thread
    os.rmdir(tmp_path / "daemon.log")
    logging.getLogger("greenroom").warning("there it is")
    daemon_log.close()
    lines = (tmp_path / "daemon.log").read_text().splitlines()
    assert "1 lines are missing here" in lines[0]
    assert lines[1].endswith("there it is")


def test_what_an_exception_quotes_is_no_sequence_of_a_terminal() -> None:
    formatter = daemon_logging.OneLine("%(message)s")
    error = ValueError("\x1b[2J\u202eforged")
    record = logging.LogRecord("x", logging.ERROR, "", 0, "half \udc80", None, (ValueError, error, None))
    text = formatter.format(record)
    assert text.splitlines()[0] == r"half \udc80"
    assert text.endswith(r"ValueError: \u001b[2J\u202eforged")
