"""How long `greenroom why` takes over a journal of many events, beside a bare read of the same journal.

    python bench/why.py [--json] [--events 100000] [--models 20] [--repeat 5]

The journal holds loads and unloads of some models. The command is measured as a whole, with its start: the
first time, when it reads everything, and later, when it reads only what is new and what it needs. Seconds are
of the processor (user and system), those of a Python that does nothing are taken off, and the median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from greenroom.actors.engine_runner.events import (
    EngineExited,
    EngineReady,
    EngineSpawned,
    EngineStartRequested,
    EngineStopRequested,
)
from greenroom.actors.journal.port import Entry
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.kernel.core import Event
from greenroom.actors.library.events import ModelCommitted
from greenroom.actors.scheduler.events import EvictionDecided, LoadAdmitted
from greenroom.actors.values import EngineExit, EngineSpec, Model
from greenroom.runner.diagnosis.checkpoint import SUFFIX

BATCH = 10_000
BEGAN = 1_790_000_000.0
RUNNER = "runner/llama.cpp"
READ = """
import sys
from greenroom.actors.journal.reader import read_journal
for _ in read_journal(sys.argv[1]):
    pass
"""


def model(number: int) -> Model:
    return Model(id=f"sha256:{number:064x}", tags=(f"docker.io/ai/model{number}:latest",), size=10**8)


def happenings(models: int) -> Iterator[tuple[str, Event]]:
    """Stream and event: models arrive, then each is loaded and unloaded in turn, without end."""
    for number in range(models):
        yield "library", ModelCommitted(job="", model=model(number), seconds=2.0)
    load = 0
    while True:
        one, load = model(load % models), load + 1
        spec = EngineSpec(
            engine_id=f"1a22cd38fc4-{load}",
            backend="llama.cpp",
            installation_id="1.0-ab12cd34.1",
            model_id=one.id,
            model_ref=one.tags[0],
            mode="completion",
            memory=444_000_000,
        )
        name = spec.engine_id
        yield "scheduler", LoadAdmitted(spec=spec, reserved=444_000_000, budget=8 * 10**9)
        yield RUNNER, EngineStartRequested(spec=spec)
        yield RUNNER, EngineSpawned(engine_id=name, pid=4711, started=1.0, endpoint="/run/x.sock")
        yield RUNNER, EngineReady(engine_id=name, seconds=0.8)
        evicted = EvictionDecided(
            engine_id=name,
            model_id=one.id,
            model_ref=one.tags[0],
            backend="llama.cpp",
            reason="idle",
            memory=spec.memory,
            idle_seconds=300.0,
        )
        yield "scheduler", evicted
        yield RUNNER, EngineStopRequested(engine_id=name, reason="it is no longer needed")
        end = EngineExit(at=BEGAN, code=0, expected=True, summary="It was stopped.")
        yield RUNNER, EngineExited(engine_id=name, exit=end)


def write(path: Path, events: int, models: int) -> None:
    journal, versions, batch = SqliteJournal(path), dict[str, int](), list[Entry]()
    for number, (stream, event) in zip(range(events), happenings(models), strict=False):
        versions[stream] = versions.get(stream, 0) + 1
        entry = Entry(
            stream=stream,
            version=versions[stream],
            type=type(event).TAG,
            schema=1,
            cause=f"r-0a1b2c3d-{number // 7}",
            data=msgspec.json.encode(event).decode(),
            at=BEGAN + number,
        )
        batch.append(entry)
        if len(batch) == BATCH:
            journal.append(batch)
            batch = []
    journal.append(batch)
    journal.close()


def seconds_of(command: Sequence[str]) -> float:
    """Of the processor, by the system's account of the finished process."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime


def median(repeat: int, command: Sequence[str], before: Callable[[], None] = lambda: None) -> float:
    """Of pairs: the command less a Python that does nothing, which runs just before it."""
    found = []
    for _ in range(repeat):
        before()
        bare = seconds_of((sys.executable, "-c", "pass"))
        found.append(seconds_of(command) - bare)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.db"
        write(path, options.events, options.models)

        cache = path.with_name(path.name + SUFFIX)
        read = (sys.executable, "-c", READ, str(path))
        why = (sys.executable, "-m", "greenroom.runner.cli", "why", "--journal", str(path))
        names = ("model3", "scheduler/8", "llama.cpp", "")
        bare = median(options.repeat, read)
        first = median(options.repeat, (*why, names[0]), lambda: cache.unlink(missing_ok=True))
        later = {one: median(options.repeat, (*why, *one.split())) for one in names}
        size = cache.stat().st_size if cache.exists() else 0
    if options.json:
        json.dump({"read": bare, "first": first, "why": later, "cache_bytes": size}, sys.stdout)
        return
    print(f"{options.events:,} events: {bare:.2f} s to read them and check their chain")
    print(f"{'why model3, the first time':<28} {first:.2f} s; writes {size / 1e6:.1f} MB")
    for name, seconds in later.items():
        print(f"{f'why {name}'.strip():<28} {seconds:.2f} s")


if __name__ == "__main__":
    main()
