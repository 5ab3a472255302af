"""One journal's life, again and again, each time with another fault (see faults.c; Linux, LD_PRELOAD).

Reads lines of JSON, `{"folder": …, "kill_at": n, "tear": 0|1, "fail_sync_at": n, "break_at": n}`; lives each
in a child of its own and answers with what came of it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from greenroom.actors.journal import sqlite
from greenroom.actors.journal.conformance import entry
from greenroom.actors.journal.port import Entry, JournalError, JournalFailed
from greenroom.actors.journal.sqlite import SqliteJournal

shim = ctypes.CDLL(None)
sqlite.CHECKPOINT_PAGES = 20
"""The fifth batch of each life reaches it: what follows begins in a log that starts again."""


def batches(first: int) -> list[list[Entry]]:
    """What is appended, in order; batches of two, one of them long, all in two streams."""
    data = '{"note":"' + "x" * 300 + '"}'
    long = '{"log":"' + "y" * 9_000 + '"}'
    return [
        [
            entry("runner/mlx", version, data=long if version == first + 3 else data),
            entry("scheduler", version),
        ]
        for version in range(first, first + 8)
    ]


def live(folder: Path, tell: int) -> None:
    """Open, append, close, twice; say what was acknowledged as soon as it was."""
    version = 1
    for _ in range(2):
        try:
            journal = SqliteJournal(folder / "journal.db", reserve=8192)
        except JournalError as error:
            say(tell, {"not_opened": str(error)})
            return
        for batch in batches(version):
            try:
                records = journal.append(batch)
            except JournalFailed as error:
                say(tell, {"failed": str(error)})
                refuses_for_ever(journal, batch)
                journal.close()
                return
            say(tell, {"acknowledged": [record.id for record in records]})
        journal.close()
        version += 8


def refuses_for_ever(journal: SqliteJournal, batch: list[Entry]) -> None:
    for attempt in (batch, [entry("another", 1)]):
        try:
            journal.append(attempt)
        except JournalFailed:
            continue
        raise AssertionError("a journal that had failed took another batch")


def say(tell: int, what: object) -> None:
    os.write(tell, json.dumps(what).encode() + b"\n")


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read_end)
            code = 1
            try:
                shim.faults_arm(
                    order["kill_at"], order["tear"], order["fail_sync_at"], order["folder"].encode()
                )
                shim.faults_break_disk(order["break_at"])
                live(Path(order["folder"]), write_end)
                counts = {"syncs": shim.faults_syncs(), "writes": shim.faults_writes()}
                say(write_end, {"steps": shim.faults_steps(), **counts})
                code = 0
            finally:
                os._exit(code)
        os.close(write_end)
        with os.fdopen(read_end) as said:
            heard = [json.loads(text) for text in said]
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(
            json.dumps({"heard": heard, "killed": killed, "code": os.waitstatus_to_exitcode(status)}),
            flush=True,
        )


main()
