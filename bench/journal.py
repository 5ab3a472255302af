"""The journal: durable appends a second, alone and in company, and how long a replay takes.

    python bench/journal.py [--json] [--folder DIR] [--seconds 3] [--callers 1 8 64] [--events 100000 1000000]

The disk decides what a commit costs, so a bare append-and-sync of the same bytes is measured beside it, and
a bare read of the same rows beside the replay.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from greenroom.actors.journal import schema
from greenroom.actors.journal.chain import Chain, Draft, Row
from greenroom.actors.journal.files import JournalFiles
from greenroom.actors.journal.port import Entry
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.journal.sqlite import SqliteJournal

DATA = (
    '{"engine_id":"e-01hx3v8k2m","backend":"llama.cpp","installation":"0.32.0-3fa9c1d2.1",'
    '"model":"docker.io/ai/smollm2:latest","mode":"completion","memory":268435456,"why":"asked"}'
)
BATCH = 10_000


def event(stream: str, version: int) -> Entry:
    return Entry(
        stream=stream,
        version=version,
        type="engine_start_requested",
        schema=1,
        cause="scheduler/417",
        data=DATA,
        at=1_790_000_000.0 + version * 0.01,
    )


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def rates(latencies: list[float], elapsed: float) -> dict[str, float]:
    return {
        "per_second": round(len(latencies) / elapsed, 1),
        "p50_us": round(percentile(latencies, 0.5) * 1e6, 1),
        "p99_us": round(percentile(latencies, 0.99) * 1e6, 1),
    }


def bare_sync(folder: Path, seconds: float) -> dict[str, float]:
    """What the disk itself takes: append the same bytes to a file and sync it."""
    sync = getattr(os, "fdatasync", os.fsync)
    descriptor = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    latencies = []
    start = now = time.perf_counter()
    while now - start < seconds:
        os.write(descriptor, DATA.encode())
        sync(descriptor)
        then, now = now, time.perf_counter()
        latencies.append(now - then)
    os.close(descriptor)
    return rates(latencies, now - start)


def appends(folder: Path, callers: int, seconds: float) -> dict[str, float]:
    """Each caller waits for its event to be durable before it sends the next."""
    journal = SqliteJournal(folder / f"appends-{callers}.db")
    latencies: list[list[float]] = [[] for _ in range(callers)]
    ready = threading.Barrier(callers + 1)
    end = [0.0]

    def call(number: int) -> None:
        mine = latencies[number]
        version = 0
        ready.wait()
        now = time.perf_counter()
        while now < end[0]:
            version += 1
            journal.append([event(f"runner/{number}", version)])
            then, now = now, time.perf_counter()
            mine.append(now - then)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    end[0] = start + seconds
    ready.wait()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    journal.close()
    return {"callers": callers, **rates([one for mine in latencies for one in mine], elapsed)}


def made(folder: Path, events: int) -> Path:
    """A closed journal of so many events in seven streams."""
    files = JournalFiles(folder / f"replay-{events}.db")

    def rows() -> Iterator[Row]:
        chain = Chain()
        for first in range(0, events, BATCH):
            draft = Draft(chain)
            draft.add(
                [event(f"runner/{n % 7}", n // 7 + 1) for n in range(first, min(events, first + BATCH))]
            )
            draft.accept()
            yield from draft.rows

    with schema.new_database(files, journal_id="bench", created=0.0, rows=rows()):
        pass
    return files.db


def bare_read(path: Path) -> None:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    cursor = connection.execute(f"SELECT {schema.COLUMNS} FROM events ORDER BY seq")
    while cursor.fetchmany(256):
        pass
    connection.close()


def replayed(path: Path) -> None:
    with JournalReader(path) as reader:
        for _ in reader.read():
            pass


def opened(path: Path) -> None:
    SqliteJournal(path).close()


def best_of(times: int, call: Callable[[Path], None], path: Path) -> float:
    def once() -> float:
        start = time.perf_counter()
        call(path)
        return time.perf_counter() - start

    return round(min(once() for _ in range(times)), 3)


def replay(folder: Path, events: int) -> dict[str, float]:
    path = made(folder, events)
    result = {
        "events": events,
        "bytes": path.stat().st_size,
        "bare_read_s": best_of(3, bare_read, path),
        "replay_s": best_of(3, replayed, path),
        "open_and_verify_s": best_of(3, opened, path),
    }
    result["replay_per_second"] = round(events / result["replay_s"])
    return result


def measure(folder: Path, seconds: float, callers: list[int], events: list[int]) -> dict[str, object]:
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "bare_sync": bare_sync(folder, seconds),
        "appends": [appends(folder, count, seconds) for count in callers],
        "replays": [replay(folder, count) for count in events],
    }


def show(result: dict[str, object]) -> None:
    print(f"{result['machine']}, Python {result['python']}, SQLite {result['sqlite']}\n")
    print(f"{'durable appends':<24}{'a second':>12}{'p50 us':>12}{'p99 us':>12}")
    lines = [("append and sync, bare", result["bare_sync"])]
    lines += [(f"journal, {line['callers']} callers", line) for line in result["appends"]]  # type: ignore[attr-defined]
    for name, line in lines:
        print(f"{name:<24}{line['per_second']:>12,.0f}{line['p50_us']:>12,.0f}{line['p99_us']:>12,.0f}")  # type: ignore[index]
    print(f"\n{'replay':<24}{'seconds':>12}{'bare read':>12}{'open':>12}{'a second':>12}{'MB':>8}")
    for line in result["replays"]:  # type: ignore[attr-defined]
        print(
            f"{line['events']:<24,}{line['replay_s']:>12.3f}{line['bare_read_s']:>12.3f}"
            f"{line['open_and_verify_s']:>12.3f}{line['replay_per_second']:>12,}{line['bytes'] / 1e6:>8.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder otherwise")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measurement of appends")
    parser.add_argument("--callers", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--events", type=int, nargs="*", default=[100_000, 1_000_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="greenroom-bench-", dir=options.folder) as folder:
        result = measure(Path(folder), options.seconds, options.callers, options.events)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        show(result)


if __name__ == "__main__":
    main()
