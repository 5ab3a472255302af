"""The installer: beside uv itself, and what looking at installations costs.

    python bench/installer.py [--json] [--backend mlx] [--repeat 3] [--pause 0] [--folder DIR]

Each installation is measured beside `uv pip install` of the same lock in the same run: `cold` fetches
everything into empty caches, `warm` finds everything in them. Both make the environment and both compile
nothing; ours also imports the backend once on a probe, lists every file and syncs the disk. So there are
three ratios: of what both do, until the last file is unpacked (`_unpacked`); of the whole to uv alone; and
of the whole to uv and that first import in uv's environment (`_with_import`). All are medians over the
rounds, as the seconds are. Beside the seconds on the clock stand those of the processors, of ours and of
every process begun for it: on a machine that has other work they are the ones that mean something.
The verification is what every start of the daemon does: presence and size of each file, the interpreter once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import uv
from aiohttp import web

from greenroom.actors.scheduler.messages import AwaitReady
from greenroom.actors.values import Progress
from greenroom.runner.backends.base import Environment, Platform
from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.config import Settings
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.app import front_door
from greenroom.runner.installations.environment import Environments
from greenroom.runner.installations.lock_file import LOCKS
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.testing import fake_backend

BUDGETS = {
    "cold_ratio_unpacked": 1.1,
    "warm_ratio_unpacked": 1.1,
    "cold_ratio_with_import": 1.1,
    "warm_ratio_with_import": 1.1,
    "look_ms": 100.0,
}
"""What is said to be installed starts: of the whole, the first import belongs to the work on either side."""


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one go."""
    return measured(work)[0]


def measured(work: Callable[[], Any], pause: float = 0.0) -> tuple[float, float]:
    """Seconds of one go: on the clock, and of the processors, child processes included."""
    os.sync()  # ours ends with a sync, which is not to write what the one before it has left
    time.sleep(pause)  # earlier removals slow the file system for a while
    began, spent = time.perf_counter(), processor()
    work()
    return time.perf_counter() - began, processor() - spent


def processor() -> float:
    """Seconds this process and its children have used so far."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))


def by_uv(source: Environment, sources: PackageSources, place: Path) -> None:
    """What a person would do by hand, with the same sources, hashes and Python."""
    program, target = uv.find_uv_bin(), place / "venv"
    env = {**os.environ, **sources.uv_environment(), "UV_CACHE_DIR": str(place / "cache")}
    make = [program, "venv", "--no-config", "-q", "-p", sys.executable, str(target)]
    install = [program, "pip", "install", "--no-config", "-q", "--require-hashes", "--only-binary", ":all:"]
    install += ["--python", str(target / "bin" / "python"), "-r", str(LOCKS / f"{source.lock}.txt")]
    for argv in (make, [*install, *sources.uv_arguments()]):
        subprocess.run(argv, check=True, env=env, cwd=place, capture_output=True)


def first_import(source: Environment, place: Path) -> None:
    """What our probe does, in uv's environment: only then is it known that the backend starts."""
    code = "; ".join(f"import {module}" for module in source.probe)
    subprocess.run([str(place / "venv" / "bin" / "python"), "-I", "-c", code], check=True, cwd=place)


def installs(folder: Path, backend: str, repeat: int, pause: float) -> dict[str, Any]:
    """Cold and warm, ours and uv's, taking turns so that the network's mood meets both."""
    source = BACKENDS[backend].source
    assert isinstance(source, Environment), f"{backend} is installed from an image"
    sources = PackageSources.discover().with_indexes(source.indexes, "the declaration")
    names = ("cold", "warm", "uv_cold", "uv_warm", "import")
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    ends: list[float] = []
    """When ours had unpacked everything: cold and warm by turns."""
    for number in range(repeat):
        home, place = folder / f"home{number}", folder / f"uv{number}"
        place.mkdir(parents=True)
        environments = Environments(home, PackageSources.discover())

        def ours(environments: Environments = environments) -> None:
            began, phases = time.perf_counter(), dict[str, float]()

            def tell(progress: Progress) -> None:
                phases.setdefault(progress.phase, time.perf_counter() - began)

            environments.build(backend, source, job="bench", progress=tell)
            ends.append(phases["verifying"])

        def theirs(place: Path = place) -> None:
            by_uv(source, sources, place)

        order = [("cold", ours), ("uv_cold", theirs)]
        for name, work in order if number % 2 else order[::-1]:
            took[name].append(measured(work, pause))  # type: ignore[arg-type]
        took["import"].append(measured(lambda place=place: first_import(source, place), pause))  # type: ignore[misc]
        # Warm as a person has it: the first one is gone, what was fetched for it is not. Gone means moved
        # away: for half a minute after thousands of files were removed, ext4 takes seconds to make new ones.
        (home / "backends").rename(home / "backends.gone")
        (place / "venv").rename(place / "venv.gone")
        took["warm"].append(measured(ours, pause))
        took["uv_warm"].append(measured(theirs, pause))
    unpacked = {"cold": ends[0::2], "warm": ends[1::2]}
    found: dict[str, Any] = {}
    for index, unit, label in ((0, "s", "ratio"), (1, "cpu_s", "cpu_ratio")):
        series = {name: [times[index] for times in rounds] for name, rounds in took.items()}
        found |= {f"{name}_{unit}": round(statistics.median(times), 3) for name, times in series.items()}
        for kind in ("cold", "warm"):
            # Within each round, since the machine's speed may be another one in the next.
            rounds = list(zip(series[kind], series[f"uv_{kind}"], series["import"], strict=True))
            if label == "ratio":
                both = zip(unpacked[kind], series[f"uv_{kind}"], strict=True)
                found[f"{kind}_unpacked_s"] = round(statistics.median(unpacked[kind]), 3)
                found[f"{kind}_ratio_unpacked"] = round(statistics.median(ours / uv for ours, uv in both), 3)
            found[f"{kind}_{label}"] = round(statistics.median(ours / uv for ours, uv, _ in rounds), 3)
            found[f"{kind}_{label}_with_import"] = round(
                statistics.median(ours / (uv + first) for ours, uv, first in rounds), 3
            )
    return found


def looks(home: Path, backend: str, repeat: int) -> dict[str, Any]:
    """What every start does, and what `backends verify` does."""
    installed = Environments(home, PackageSources()).installed
    times = [timed(lambda: installed.look(backend)) for _ in range(max(repeat, 5))]
    (one,) = installed.look(backend)
    record = installed.record(one)
    return {
        "megabytes": round(one.size / 1e6),
        "files": len(record.files),
        "look_ms": round(statistics.median(times) * 1000, 1),
        "hashes_ms": round(timed(lambda: installed.verify(one)) * 1000, 1),
    }


def statuses(home: Path) -> dict[str, Any]:
    """`GET /engines/status` and `GET /engines` over TCP, with ten backends."""
    here = Platform.here()
    backends = {f"b{n}": fake_backend(Path("none"), name=f"b{n}", deferred=True) for n in range(10)}

    async def ask(greenroom: Greenroom) -> dict[str, float]:
        runner = web.AppRunner(front_door(greenroom), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        found = {}
        async with aiohttp.ClientSession() as session:
            for path, name in (("/engines/status", "status_ms"), ("/engines", "engines_ms")):
                times = []
                for _ in range(200):
                    began = time.perf_counter()
                    async with session.get(f"http://127.0.0.1:{port}{path}") as response:
                        await response.read()
                    times.append(time.perf_counter() - began)
                found[name] = round(statistics.median(times) * 1000, 3)
        await runner.cleanup()
        return found

    with Greenroom(Settings(home=home), backends=backends, here=here) as greenroom:
        greenroom.system.ask(AwaitReady()).get(timeout=30)
        return {"backends": len(backends), **asyncio.run(ask(greenroom))}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one object, for programs")
    parser.add_argument("--backend", default="mlx")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of rest before each go")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-installer-", dir=flags.folder) as name:
        folder = Path(name)
        install = installs(folder, flags.backend, flags.repeat, flags.pause)
        look = looks(folder / f"home{flags.repeat - 1}", flags.backend, flags.repeat)
        found = {"install": install, "look": look, "status": statuses(folder / "ten")}
    everything = {**install, **look}
    found["within_budget"] = {name: everything[name] <= limit for name, limit in BUDGETS.items()}
    found["machine"] = {
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
    }
    if flags.json:
        print(json.dumps(found))
        return 0
    for part in ("install", "look", "status", "within_budget"):
        print(f"{part}:")
        for key, value in found[part].items():
            print(f"  {key:24} {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
