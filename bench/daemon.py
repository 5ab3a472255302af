"""The daemon: restart to ready with a long journal, idle memory, `greenroom ps`, a thousand callers.

    python bench/daemon.py [--json] [--events 100000] [--repeat 5] [--callers 1000]

The restart is measured from the start of the process to the first green `/readyz`, beside the same with an
empty journal; the callers ask for one absent backend at once, which is really installed from a wheel at hand.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from greenroom.actors import Ensure, Event, SqliteJournal, read_journal
from greenroom.actors.engine_runner.events import (
    EngineExited,
    EngineReady,
    EngineSpawned,
    EngineStartRequested,
    EngineStopRequested,
)
from greenroom.actors.journal.port import Entry
from greenroom.actors.kernel.event_store import Codec
from greenroom.actors.scheduler.events import EvictionDecided, LoadAdmitted
from greenroom.actors.values import EngineExit, EngineSpec
from greenroom.runner import Greenroom, Settings

REPOSITORY = Path(__file__).resolve().parents[1]
BOUND = 60.0


def lives() -> Iterator[tuple[str, Event]]:
    """Engines that were started, served and ended, one after the other, without end."""
    number = 0
    while True:
        number += 1
        one = f"e{number}"
        spec = EngineSpec(
            engine_id=one,
            backend="llama.cpp",
            installation_id="1.0-0.1",
            model_id="sha256:m",
            model_ref="tiny",
        )
        end = EngineExit(at=1.8e9, code=0, summary="The engine was asked to end and did.", expected=True)
        yield "scheduler", LoadAdmitted(spec=spec, reserved=2**30, budget=2**33)
        yield "runner/llama.cpp", EngineStartRequested(spec=spec)
        yield "runner/llama.cpp", EngineSpawned(engine_id=one, pid=7, started=1.0, endpoint="/run/e.sock")
        yield "runner/llama.cpp", EngineReady(engine_id=one, seconds=1.5)
        yield (
            "scheduler",
            EvictionDecided(
                engine_id=one, model_id="sha256:m", model_ref="tiny", backend="llama.cpp", reason="idle"
            ),
        )
        yield "runner/llama.cpp", EngineStopRequested(engine_id=one, reason="it is no longer needed")
        yield "runner/llama.cpp", EngineExited(engine_id=one, exit=end)


def write_journal(path: Path, events: int) -> None:
    """A journal of whole lives, so that nothing is left to be looked for."""
    codec = Codec()
    versions: dict[str, int] = {}
    batch: list[Entry] = []
    journal = SqliteJournal(path)
    source = lives()
    for number in range(events - events % 7):
        stream, event = next(source)
        codec.register([type(event)])
        versions[stream] = versions.get(stream, 0) + 1
        entry, _ = codec.entry(
            event, stream=stream, version=versions[stream], cause="", at=1.8e9 + number / 100
        )
        batch.append(entry)
        if len(batch) == 2000:
            journal.append(batch)
            batch = []
    if batch:
        journal.append(batch)
    journal.close()


class Daemon:
    """`greenroom serve`, started and ready. It may install nothing: only the start is measured."""

    def __init__(self, home: Path) -> None:
        self.home = home
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "greenroom.runner.cli", "--home", str(home), "serve", "--port", "0"],
            env={**os.environ, "GREENROOM_INSTALL_POLICY": "never"},
            stderr=subprocess.DEVNULL,
        )
        note = home / "daemon.json"
        while not (note.exists() and self._is_ready(json.loads(note.read_text())["url"])):
            assert time.perf_counter() - began < BOUND, "the daemon did not become ready"
            time.sleep(0.002)  # another process; polled, with a bound
        self.ready_s = time.perf_counter() - began
        spent = psutil.Process(self.process.pid).cpu_times()
        self.ready_cpu_s = float(spent.user + spent.system)

    def _is_ready(self, url: str) -> bool:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)

    @property
    def memory_mb(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss / 1e6)

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(BOUND) == 0


def restarts(folder: Path, events: int, repeat: int) -> dict[str, Any]:
    """Best of some starts, with a long journal and with an empty one."""
    found: dict[str, Any] = {"events": events}
    for name, count in (("empty", 0), ("long", events)):
        home = folder / name
        home.mkdir()
        write_journal(home / "journal.db", count)
        times, processor = [], []
        for _ in range(repeat):
            daemon = Daemon(home)
            times.append(daemon.ready_s)
            processor.append(daemon.ready_cpu_s)
            found[f"{name}_memory_mb"] = round(daemon.memory_mb, 1)
            daemon.stop()
        found[f"{name}_ready_s"] = round(min(times), 3)
        # What waiting for other processes does not touch.
        found[f"{name}_ready_cpu_s"] = round(min(processor), 3)
    return found


def ps(folder: Path, repeat: int) -> dict[str, Any]:
    """`greenroom ps` as a person runs it, beside a Python that does nothing."""
    home = folder / "ps"
    home.mkdir()
    daemon = Daemon(home)
    env = {**os.environ, "GREENROOM_HOME": str(home)}
    commands = {
        "ps_ms": [sys.executable, "-m", "greenroom.runner.cli", "ps"],
        "bare_python_ms": [sys.executable, "-c", "pass"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeat * 4):
        for name, argv in commands.items():
            began = time.perf_counter()
            subprocess.run(argv, env=env, check=True, capture_output=True)
            times[name].append((time.perf_counter() - began) * 1000)
    daemon.stop()
    return {name: round(statistics.median(one), 1) for name, one in times.items()}


def callers(folder: Path, count: int) -> dict[str, Any]:
    """So many ask for one absent backend at the same moment."""
    sys.path.insert(0, str(REPOSITORY / "tests" / "shared"))
    from toy import make_wheel, sources, toy_backend

    make_wheel(folder / "wheels")
    os.environ.update(sources(folder / "wheels"))
    home = folder / "callers"

    async def ask() -> float:
        async with Greenroom(Settings(home=home), backends={"toy": toy_backend(folder)}) as greenroom:
            began = time.perf_counter()
            await asyncio.gather(*(greenroom.system.ask(Ensure(backend="toy")) for _ in range(count)))
            return time.perf_counter() - began

    took = asyncio.run(ask())
    types = [record.type for record in read_journal(home / "journal.db")]
    return {
        "callers": count,
        "installations": types.count("installation_committed"),
        "seconds": round(took, 3),
    }


def measure(folder: Path, flags: argparse.Namespace) -> dict[str, Any]:
    return {
        "restart": restarts(folder, flags.events, flags.repeat),
        "command_line": ps(folder, flags.repeat),
        "joined": callers(folder, flags.callers),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--callers", type=int, default=1000)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gr-") as folder:
        found = measure(Path(folder), flags)
    if flags.json:
        print(json.dumps(found))
        return 0
    for part, values in found.items():
        print(f"{part}:")
        for key, value in values.items():
            print(f"  {key:24} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
