"""Stopping ends within a bound, whatever an installation waits for, and leaves no process behind."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from greenroom.actors.installer.effects import RemoveInstallation
from greenroom.actors.installer.events import InstallationCommitted, InstallCancelled
from greenroom.actors.kernel.core import Address
from greenroom.actors.progress import ProgressBoard
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations import verification
from greenroom.runner.installations.builder import Builder
from greenroom.runner.installations.installed import InstallationStore
from package_index import Index, Misbehaviour
from reports import build
from toys import Toy
from waiting import until

BOUND = 8.0
"""Seconds; a stopped uv takes two until it is killed."""


class Deaf:
    """Keeps the kinds of what is reported."""

    def __init__(self) -> None:
        self.heard: list[type[Any]] = []
        self.board = ProgressBoard()

    def tell(self, _to: Address, report: Any) -> None:
        self.heard.append(type(getattr(report, "event", None) or report))


@pytest.fixture
def deaf() -> Deaf:
    return Deaf()


@pytest.fixture
def builder(tmp_path: Path, deaf: Deaf, toy: Toy, index: Index) -> Callable[..., Builder]:
    def make(**more: Any) -> Builder:
        return Builder(
            tmp_path / "home",
            deaf.tell,
            deaf.board,
            **{"backends": {"toy": toy.backend}, "sources": index.sources, **more},
        )

    return make


def stopped(fake_uv: str, pids: Path) -> str:
    """A uv that writes down who it is and then does not move any more."""
    return f"#!/bin/sh\n{fake_uv}\necho $$ >> {pids}\nkill -STOP $$\nsleep 100\n"


def ends(builder: Builder) -> None:
    began = time.monotonic()
    builder.close()
    assert time.monotonic() - began < BOUND


def verified(builder: Builder, installation: str) -> None:
    with suppress(JobFailed, OSError):
        builder.verify("toy", installation)


def alive(pids: Path) -> list[int]:
    found = []
    for line in pids.read_text().split() if pids.exists() else []:
        try:
            if psutil.Process(int(line)).status() != psutil.STATUS_ZOMBIE:
                found.append(int(line))
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize("at", ["venv", "pip", "pip compile"])
def test_a_builder_ends_with_a_uv_that_is_suspended(
    builder: Callable[..., Builder], deaf: Deaf, program: Callable[[str, str], Path], tmp_path: Path, at: str
) -> None:
    pids = tmp_path / "pids"
    passed = {
        "venv": "",
        "pip": f'if [ "$1" = venv ]; then exec {sys.executable} -m venv --without-pip "$2"; fi',
        "pip compile": "",
    }[at]
    one = builder(uv_binary=program("uv", stopped(passed, pids)))
    one.start(build("j1", "toy", version="0.9" if at == "pip compile" else ""))
    until(lambda: alive(pids))
    ends(one)
    assert alive(pids) == []
    assert deaf.heard == [InstallCancelled]


@pytest.mark.parametrize("what", ["page", "file"])
def test_a_builder_ends_while_an_index_hangs(
    builder: Callable[..., Builder],
    deaf: Deaf,
    toy: Toy,
    index: Index,
    misbehave: type[Misbehaviour],
    what: str,
) -> None:
    name = "toy" if what == "page" else toy.files[0].name
    index.wrong[name] = misbehave(hang=threading.Event())
    one = builder()
    one.start(build("j1", "toy"))
    until(lambda: any(name in path for path in index.paths()))
    ends(one)
    assert deaf.heard == [InstallCancelled]


def test_a_builder_ends_while_a_file_trickles_in(
    builder: Callable[..., Builder], deaf: Deaf, toy: Toy, index: Index, misbehave: type[Misbehaviour]
) -> None:
    index.wrong[toy.files[0].name] = misbehave(rate=1_000)
    one = builder()
    one.start(build("j1", "toy"))
    until(lambda: index.sent[toy.files[0].name])
    ends(one)
    assert deaf.heard == [InstallCancelled]


def test_a_builder_ends_while_a_probe_hangs(
    builder: Callable[..., Builder], deaf: Deaf, make_toy: Callable[..., Toy], tmp_path: Path, index: Index
) -> None:
    pids = tmp_path / "pids"
    body = f"import os, time\nopen({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\ntime.sleep(100)\n"
    toy = make_toy("hangs", body=body.encode(), companion=False)
    one = builder(backends={"hangs": toy.backend})
    one.start(build("j1", "hangs"))
    until(lambda: alive(pids))
    ends(one)
    assert alive(pids) == []
    assert deaf.heard == [InstallCancelled]


@pytest.mark.parametrize("hangs", ["flush", "sums", "look", "verify", "remove"])
def test_a_builder_ends_while_a_disk_hangs(
    builder: Callable[..., Builder], deaf: Deaf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hangs: str
) -> None:
    gate, reached = threading.Event(), threading.Event()

    def hang(*_: Any, **__: Any) -> Any:
        reached.set()
        gate.wait(60)
        raise OSError("the disk came back")

    one = builder()
    if hangs in ("flush", "sums"):
        place = {
            "flush": "greenroom.runner.installations.environment.flush",
            "sums": "greenroom.runner.installations.environment.own_sums",
        }[hangs]
        monkeypatch.setattr(place, hang)
        one.start(build("j1", "toy"))
    else:
        one.start(build("j1", "toy"))
        until(lambda: deaf.heard == [InstallationCommitted])
        (installation,) = InstallationStore(tmp_path / "home").look("toy")
        monkeypatch.setattr("greenroom.runner.installations.installed.read_record", hang)
        removal = RemoveInstallation(backend="toy", installation_id=installation.id)
        threading.Thread(
            target={
                "look": one.look,
                "verify": lambda: verified(one, installation.id),
                "remove": lambda: one.perform(removal, "cause"),
            }[hangs],
            daemon=True,
        ).start()
    assert reached.wait(20)
    ends(one)
    gate.set()


def test_a_child_that_holds_the_pipes_of_a_probe_does_not_block_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "END_SECONDS", 0.5)
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '6'], start_new_session=True)\n"
        "print(child.pid, flush=True)\ntime.sleep(100)\n"
    )
    began = time.monotonic()
    outcome = verification.run_python(Path(sys.executable), ["-c", script], seconds=1.0)
    assert outcome.code is None
    assert time.monotonic() - began < 5
