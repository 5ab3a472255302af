"""Fault injection at the system's border, and journals to spoil."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.journal.conformance import entry
from greenroom.actors.journal.port import Record
from greenroom.actors.journal.sqlite import SqliteJournal

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that injects faults, built from faults.c."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler for the fault shim: apt-get install gcc libc6-dev")
    library = tmp_path_factory.mktemp("shim") / "faults.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(PROGRAMS / "faults.c"), "-ldl"],
        check=True,
    )
    return library


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: what is tested is what survives the process, not the power."""
    shared_memory = Path("/dev/shm")
    if not os.access(shared_memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="greenroom-test-", dir=shared_memory) as name:
        yield Path(name)


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[SqliteJournal]:
    journal = SqliteJournal(path)
    yield journal
    journal.close()


Life = Callable[..., dict[str, Any]]


@pytest.fixture
def live(shim: Path) -> Iterator[Life]:
    """Lives programs/life.py once in a folder with the given fault, and says what came of it."""
    process = subprocess.Popen(
        [sys.executable, "-u", str(PROGRAMS / "life.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"LD_PRELOAD": str(shim)},
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def once(
        folder: Path, *, kill_at: int = 0, tear: bool = False, fail_sync_at: int = 0, break_at: int = 0
    ) -> dict[str, Any]:
        folder.mkdir()
        order = {"folder": str(folder), "kill_at": kill_at, "tear": int(tear), "fail_sync_at": fail_sync_at}
        order["break_at"] = break_at
        assert process.stdin is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        assert process.stdout is not None
        answer = process.stdout.readline()
        assert answer, "life.py ended"
        return dict(json.loads(answer))

    with process:
        yield once
        process.stdin.close()
        process.wait(10)


@pytest.fixture(scope="session")
def left_behind(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Record, ...]]:
    """A folder as a killed writer leaves it, half of its 240 events only in the log, and its history."""
    folder = tmp_path_factory.mktemp("live")
    copy = tmp_path_factory.mktemp("left") / "journal"
    for versions in (range(1, 21), range(21, 41)):
        journal = SqliteJournal(folder / "journal.db")
        for version in versions:
            data = f'{{"engine":"e-{version}","why":"asked","n":{version}}}'
            journal.append([entry(f"runner/{name}", version, data=data) for name in "abcdef"])
        history = tuple(journal.read())
        # The second time without a second of idleness, in which the log would be brought in.
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        journal.close()
    return copy, history
