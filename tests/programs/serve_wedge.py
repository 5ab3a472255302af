"""The daemon with the fake engine as its backend, as settings from the environment have it.

    serve_wedge.py HOME [--port N] [--toy] [-- ENGINE FLAGS]

Any of the fake engine's flags may be configured for a model. With `--toy` there is a second, deferred backend
that is really installed, from the wheels and the lock beside the data directory. Beside it, a file
`available` says how many bytes of memory are free on this machine, for tests about memory.

Where `NVIDIA_FAKE_FOLDER` is set its engines compute on the devices that `fake_nvidia_smi.py` tells of; with
`GREENROOM_TEST_DIVIDES` they divide models between these and memory, and log what llama.cpp would. With
`GREENROOM_TEST_VARIANTS` the backend of `--toy` is installed without being asked for, and has a variant for
NVIDIA's cards.

With `GREENROOM_TEST_BESIDE` the backend of `--toy` can be installed beside the other one.
`GREENROOM_TEST_BINARY=FILE` is configured as the program of the fake engine's backend, instead of Python.
`GREENROOM_TEST_COOL_DOWN=SECONDS` is how long a breaker stays open first.
`GREENROOM_TEST_SLOTS=N`: each engine answers so many requests at once, instead of any number.
`GREENROOM_TEST_STEADY=SECONDS` is how long a device must have had room before a model is moved there.
`GREENROOM_TEST_KILL=TYPE:before|after` kills the daemon when an event of that type reaches the journal:
before or after it is stored.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from greenroom.actors.journal.port import Entry, Journal, Record
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.actors.scheduler import moving, quarantine
from greenroom.actors.values import Loaded
from greenroom.runner.backends import llama_cpp_log
from greenroom.runner.backends.base import Backend
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.config import load
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.server import run
from greenroom.runner.setting_values import ExternalBackend
from greenroom.runner.testing import fake_backend

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from toy import toy_backend

ENGINE = Path(__file__).with_name("fake_engine.py")
FLAGS = frozenset(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', ENGINE.read_text()))
OVERHEAD = 64 * 2**20
"""More than the program needs, so that the reservation is the number that tests expect."""


class Killing:
    """A journal under which the daemon dies."""

    def __init__(self, inside: Journal, type_: str, when: str) -> None:
        self.inside = inside
        self.type = type_
        self.when = when

    def append(self, batch: Sequence[Entry], *, urgent: bool = False) -> list[Record]:
        due = any(entry.type == self.type for entry in batch)
        if due and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        records = self.inside.append(batch, urgent=urgent)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return records

    def read(self, *, after: int = 0, stream: str | None = None) -> Iterator[Record]:
        return self.inside.read(after=after, stream=stream)

    def close(self) -> None:
        self.inside.close()


def pretend(file: Path) -> None:
    """Have as much free memory as the file says, while there is one."""
    real = psutil.virtual_memory

    def virtual_memory() -> Any:
        found = real()
        try:
            return found._replace(available=int(file.read_text()))
        except (OSError, ValueError):
            return found

    psutil.virtual_memory = virtual_memory


def dividing(fake: Backend) -> Backend:
    def loaded(_: Backend, log: str) -> Loaded | None:
        return llama_cpp_log.loaded(log, 0)

    def answer_speed(_: Backend, log: str) -> float:
        return LlamaCpp().answer_speed(log)

    facts = {"divides": True, "loaded": loaded, "answer_speed": answer_speed}
    kind: Any = type("Dividing", (type(fake),), facts)
    divides: Backend = kind()
    return divides


def main() -> None:
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--toy", action="store_true")
    given = parser.parse_args(own)
    pretend(given.home.parent / "available")
    if cool_down := os.environ.get("GREENROOM_TEST_COOL_DOWN"):
        quarantine.FIRST_COOL_DOWN = float(cool_down)
    if steady := os.environ.get("GREENROOM_TEST_STEADY"):
        moving.STEADY, moving.IDLE, moving.LOOK = float(steady), 0.0, 0.2
    settings = load({"home": str(given.home), "port": given.port})
    fake = fake_backend(
        ENGINE,
        *flags,
        allowed_flags=FLAGS,
        overhead=OVERHEAD,
        uses_devices="NVIDIA_FAKE_FOLDER" in os.environ,
        slots=int(os.environ.get("GREENROOM_TEST_SLOTS", "0")),
    )
    if "GREENROOM_TEST_DIVIDES" in os.environ:
        fake = dividing(fake)
    backends: dict[str, Backend] = {"fake": fake}
    if given.toy:
        has_variants = "GREENROOM_TEST_VARIANTS" in os.environ
        toy = toy_backend(given.home.parent, *flags, deferred=not has_variants, for_cards=has_variants)
        backends = {"toy": toy}
    else:
        binary = Path(os.environ.get("GREENROOM_TEST_BINARY", sys.executable))
        settings = settings.changed("test", backends={"fake": ExternalBackend(binary=binary)})
    if "GREENROOM_TEST_BESIDE" in os.environ:
        backends["toy"] = toy_backend(given.home.parent, *flags)
    journal: Journal | None = None
    if kill := os.environ.get("GREENROOM_TEST_KILL"):
        given.home.mkdir(exist_ok=True)
        journal = Killing(SqliteJournal(given.home / "journal.db"), *kill.split(":"))
    run(Greenroom(settings, journal=journal, backends=backends), drain=1.0)


if __name__ == "__main__":
    main()
