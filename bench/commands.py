"""How long each command takes that answers at once, and how long a program takes to import Greenroom.

    python bench/commands.py [--json] [--events 1000] [--repeat 7]

A daemon runs on a data directory with a model and a journal of so many events. Every command is a process of
its own, run in turn with a Python that does nothing; the least of some runs counts, since whatever else the
machine does only adds to it. What is compared with the limits is the command's own processor time: on a quiet
machine the wait for the daemon adds 2 to 8 ms to it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from daemon import Daemon
from front_door import tiny_gguf
from why import write

MODEL = "bench-model"
BARE = "python -c pass"
AT_ONCE, WHY = 100.0, 300.0
"""Milliseconds of the processor."""
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("--version",),
    ("--help",),
    ("help", "ps"),
    ("completion", "bash"),
    ("version",),
    ("ps",),
    ("list",),
    ("inspect", MODEL),
    ("configure", MODEL),
    ("configure", MODEL, "--context", "512"),
    ("tag", MODEL, "other"),
    ("models",),
    ("conversations",),
    ("memory",),
    ("queue",),
    ("status",),
    ("devices",),
    ("df",),
    ("unload", "--all"),
    ("unload", MODEL),
    ("logs",),
    ("log", "-n", "20"),
    ("log", "--problems"),
    ("log", "--summary"),
    ("requests",),
    ("replay",),
    ("journal", "verify"),
    ("backends",),
    ("config",),
    ("adopt", "--dry-run"),
    ("why",),
    ("why", MODEL),
    ("why", "daemon"),
)
IMPORTS = {
    "actors alone": "from greenroom.actors import ActorSystem, Event, SqliteJournal",
    "the client's transport": "import greenroom.runner.client.http_client",
    "the client": "from greenroom import connect",
    "the whole runner": "from greenroom import Greenroom",
}
IMPORT = """
import sys, time
before, began = len(sys.modules), time.process_time()
{}
print((time.process_time() - began) * 1e3, len(sys.modules) - before)
"""


class Spent(NamedTuple):
    """Milliseconds."""

    wall: float
    processor: float
    code: int


def spend(argv: Sequence[str], env: Mapping[str, str]) -> Spent:
    """Run a process to its end."""
    nothing = subprocess.DEVNULL
    began = time.perf_counter()
    process = subprocess.Popen(argv, env=env, stdin=nothing, stdout=nothing, stderr=nothing)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    return Spent(wall * 1e3, (used.ru_utime + used.ru_stime) * 1e3, process.returncode)


def commands(home: Path, repeat: int) -> list[dict[str, object]]:
    """The least of some runs of each command, in turn; the first is a Python that does nothing."""
    env = os.environ | {"GREENROOM_HOME": str(home)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    programs = {BARE: (sys.executable, "-c", "pass")} | {
        " ".join(one): (str(Path(sys.executable).with_name("greenroom")), *one) for one in COMMANDS
    }
    runs: dict[str, list[Spent]] = {}
    for _ in range(repeat + 1):  # the first fills caches, and that of `why`
        for name, argv in programs.items():
            runs.setdefault(name, []).append(spend(argv, env))
    found = []
    for name, all_of_them in runs.items():
        limit = WHY if name.startswith("why") else AT_ONCE
        processor = min(one.processor for one in all_of_them[1:])
        found.append(
            {
                "command": name,
                "wall_ms": round(min(one.wall for one in all_of_them[1:]), 1),
                "processor_ms": round(processor, 1),
                "limit_ms": limit,
                "held": processor <= limit,
                "exit_code": all_of_them[-1].code,
            }
        )
    return found


def imports(repeat: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the processor and modules that an import adds to a bare Python."""
    found = {}
    for name, program in IMPORTS.items():
        lines = [
            subprocess.run(
                [sys.executable, "-c", IMPORT.format(program)], capture_output=True, text=True, check=True
            ).stdout.split()
            for _ in range(repeat)
        ]
        took = min(float(line[0]) for line in lines)
        found[name] = {"processor_ms": round(took, 1), "modules": int(lines[0][1])}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--events", type=int, default=1_000)
    parser.add_argument("--repeat", type=int, default=7)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gr-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        write(home / "journal.db", flags.events, 20)
        daemon = Daemon(home)
        try:
            gguf = Path(folder) / "tiny.gguf"
            tiny_gguf(gguf)
            package = ("package", "--gguf", str(gguf), MODEL)
            argv = (sys.executable, "-m", "greenroom.runner.cli", "--home", str(home), *package)
            subprocess.run(argv, check=True, capture_output=True)
            taken = commands(home, flags.repeat)
        finally:
            daemon.stop()
    found = {"events": flags.events, "commands": taken, "imports": imports(flags.repeat)}
    if flags.json:
        print(json.dumps(found))
        return 0
    print(f"{'':40} {'wall':>7} {'processor':>10}   ms, the least of {flags.repeat}")
    for one in taken:
        missed = "" if one["held"] else f"   NOT within {one['limit_ms']:g} ms"
        failed = f"   exit code {one['exit_code']}" if one["exit_code"] else ""
        print(f"{one['command']:40} {one['wall_ms']:7} {one['processor_ms']:10}{missed}{failed}")
    print(f"\n{'imports':40} {'modules':>7} {'processor':>10}")
    for name, of_it in found["imports"].items():
        print(f"{name:40} {of_it['modules']:7} {of_it['processor_ms']:10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
