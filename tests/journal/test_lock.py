"""Locks for life: a living process keeps others out; a dead one does not, whatever it has left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from greenroom.actors.journal import writer_lock as lock
from greenroom.actors.journal.port import JournalBusy
from greenroom.actors.journal.writer_lock import WriterLock
from greenroom.runner.daemon_lock import DaemonLock, HomeLocked

# Takes the lock and starts a child that has not begun its own program yet: it does so with the next line.
# Python closes the lock in children that it forks itself; another number of the same open file stands for
# what one has that is forked in C, as `subprocess` does it.
HOLDER = """
import os, sys
from pathlib import Path
from greenroom.actors.journal.writer_lock import WriterLock
from greenroom.runner.daemon_lock import DaemonLock
path = Path(sys.argv[2])
held = DaemonLock(path) if sys.argv[1] == "daemon" else WriterLock(path / "lock")
os.dup(held._descriptor if isinstance(held, WriterLock) else held._file.fileno())
child = os.fork()
if child:
    print(os.getpid(), flush=True)
sys.stdin.readline()
os._exit(0)
"""


def journal_lock(folder: Path) -> WriterLock:
    return WriterLock(folder / "lock")


LOCKS = pytest.mark.parametrize(
    ("kind", "take", "busy"), [("journal", journal_lock, JournalBusy), ("daemon", DaemonLock, HomeLocked)]
)


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    holders = []

    def begin(kind: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", HOLDER, kind, str(tmp_path)]
        holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        holders.append(holder)
        assert holder.stdout is not None
        assert int(holder.stdout.readline()) == holder.pid
        return holder

    yield begin
    for holder in holders:
        holder.kill()
        holder.communicate()


@LOCKS
def test_a_live_holder_is_named_at_once(
    tmp_path: Path, hold: Any, kind: str, take: Callable[[Path], Any], busy: type[Any]
) -> None:
    holder = hold(kind)
    with pytest.raises(busy) as error:
        take(tmp_path)
    assert error.value.pid == holder.pid


@LOCKS
@pytest.mark.parametrize(
    "buried",
    [
        pytest.param(True, id="buried"),
        pytest.param(
            False,
            id="not_buried",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="asks /proc (Linux)"),
        ),
    ],
)
def test_a_child_that_outlives_its_killed_holder_for_a_moment_is_waited_for(
    tmp_path: Path, hold: Any, kind: str, take: Callable[[Path], Any], busy: type[Any], buried: bool
) -> None:
    holder = hold(kind)
    os.kill(holder.pid, signal.SIGKILL)
    if buried:
        holder.wait()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # type: ignore[attr-defined, unused-ignore]
    taken: list[Any] = []
    taking = threading.Thread(target=lambda: taken.append(take(tmp_path)))
    taking.start()
    assert not taken, "the child holds it"
    holder.stdin.write("\n")
    holder.stdin.flush()
    taking.join(lock.PATIENCE)
    (mine,) = taken
    mine.release()


@LOCKS
def test_the_wait_for_a_process_that_never_ends_is_bounded(
    tmp_path: Path,
    hold: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    take: Callable[[Path], Any],
    busy: type[Any],
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.02)
    holder = hold(kind)
    holder.kill()
    holder.wait()
    with pytest.raises(busy):
        take(tmp_path)


@LOCKS
def test_what_was_given_back_is_free_although_a_child_still_has_the_file_open(
    tmp_path: Path, kind: str, take: Callable[[Path], Any], busy: type[Any]
) -> None:
    mine = take(tmp_path)
    (file,) = [one for one in psutil.Process().open_files() if Path(one.path).parent == tmp_path.resolve()]
    # What a child that was just forked has: the same open file under another number.
    inherited = os.dup(file.fd)
    try:
        with pytest.raises(busy):
            take(tmp_path)
        mine.release()
        take(tmp_path).release()
        mine.release()
    finally:
        os.close(inherited)
