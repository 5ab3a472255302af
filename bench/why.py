"""How long `why` takes over a journal of many events, beside a bare read of the same journal.

    python bench/why.py [--json] [--events 100000] [--models 20] [--repeat 5]

The journal holds loads and unloads of some models. Seconds are of the processor, and the median counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.kernel.core import Event
from greenroom.actors.library.events import ModelCommitted
from greenroom.actors.scheduler.events import EvictionDecided, LoadAdmitted
from greenroom.actors.values import EngineExit, EngineSpec, Model
from greenroom.runner.diagnosis.explain import explain

BATCH = 10_000
BEGAN = 1_790_000_000.0
RUNNER = "runner/llama.cpp"


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


def median(repeat: int, work: Callable[[], None]) -> float:
    seconds = []
    for _ in range(repeat):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


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

        def read() -> None:
            with JournalReader(path) as reader:
                for _ in reader.read():
                    pass

        def why(name: str) -> None:
            gc.disable()  # as the command does
            with JournalReader(path) as reader:
                explain(reader.read(), name, BEGAN + options.events)
            gc.enable()

        bare = median(options.repeat, read)
        found = {
            name: median(options.repeat, lambda name=name: why(name))  # type: ignore[misc]
            for name in ("model3", "scheduler/8", "")
        }
    if options.json:
        json.dump({"read": bare, "why": found}, sys.stdout)
        return
    print(f"{options.events:,} events: {bare:.2f} s to read them and check their chain")
    for name, seconds in found.items():
        print(f"why {name or '(alone)':<12} {seconds:.2f} s, {seconds / bare:.1f} times that")


if __name__ == "__main__":
    main()
