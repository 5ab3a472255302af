"""Disks that do not answer now: nothing is taken for broken, nothing for gone, and nothing is taken away."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.values import Installation
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations import verification
from greenroom.runner.installations.environment import Environments
from greenroom.runner.installations.installed import folder_of
from greenroom.runner.systems import linux, macos
from package_index import Index
from toys import Toy


def failing(number: int) -> Callable[..., None]:
    """A call of the system that ends with this error."""

    def fail(*_args: Any, **_named: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


PASSING = [errno.EMFILE, errno.EIO, errno.EACCES, errno.ESTALE]


@pytest.mark.parametrize("number", PASSING)
def test_a_mark_that_cannot_be_read_now_is_neither_broken_nor_swept(
    environments: Environments, built: Installation, home: Path, monkeypatch: pytest.MonkeyPatch, number: Any
) -> None:
    mark = folder_of(home, built) / "installation.json"
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: failing(number)() if path == mark else real(path))
    found, unclear = environments.installed.judged("toy")
    assert (found, list(unclear)) == ((), [built.id])
    assert os.strerror(number) in unclear[built.id]
    assert environments.installed.sweep() == []
    monkeypatch.undo()
    assert environments.installed.look("toy") == [built]


@pytest.mark.parametrize("number", PASSING)
def test_a_mark_that_cannot_be_looked_for_sweeps_nothing(
    environments: Environments, built: Installation, home: Path, monkeypatch: pytest.MonkeyPatch, number: Any
) -> None:
    mark = folder_of(home, built) / "installation.json"
    real = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda path: failing(number)() if path == mark else real(path))
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        environments.installed.sweep()
    monkeypatch.undo()
    assert environments.installed.look("toy") == [built]


@pytest.mark.parametrize("number", PASSING)
def test_a_file_that_cannot_be_looked_at_now_is_not_missing(
    environments: Environments, built: Installation, monkeypatch: pytest.MonkeyPatch, number: Any
) -> None:
    monkeypatch.setattr("greenroom.runner.installations.verification.os.lstat", failing(number))
    assert list(environments.installed.judged("toy")[1]) == [built.id]


@pytest.mark.parametrize("number", PASSING)
def test_a_file_that_cannot_be_read_now_has_not_changed(
    environments: Environments, built: Installation, monkeypatch: pytest.MonkeyPatch, number: Any
) -> None:
    monkeypatch.setattr("greenroom.runner.installations.verification.sha256", failing(number))
    with pytest.raises(JobFailed) as told:
        environments.installed.verify(built)
    assert told.value.failure.blame == "machine"


@pytest.mark.parametrize(
    ("script", "seconds"),
    [
        pytest.param("exit 0", 20.0, id="says nothing"),
        pytest.param("kill -KILL $$", 20.0, id="is killed"),
        pytest.param("exec sleep 30", 0.3, id="does not answer"),
    ],
)
def test_silence_of_a_python_is_no_proof_that_it_is_broken(
    environments: Environments,
    built: Installation,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    seconds: float,
) -> None:
    monkeypatch.setattr("greenroom.runner.installations.verification.IDENTITY_SECONDS", seconds)
    python = folder_of(home, built) / "env" / "bin" / "python"
    python.unlink()
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr("greenroom.runner.installations.verification.missing", lambda *_: "")
    found, unclear = environments.installed.judged("toy")
    assert (found, list(unclear)) == ((), [built.id])


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EAGAIN, errno.ENOMEM])
def test_a_python_that_the_machine_cannot_start_now_is_not_broken(
    environments: Environments, built: Installation, monkeypatch: pytest.MonkeyPatch, number: Any
) -> None:
    monkeypatch.setattr(subprocess, "Popen", failing(number))
    assert os.strerror(number) in environments.installed.judged("toy")[1][built.id]


def test_a_disk_that_does_not_answer_delays_no_scan(
    environments: Environments, built: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr("greenroom.runner.installations.installed.LOOK_SECONDS", 0.3)
    monkeypatch.setattr("greenroom.runner.installations.installed.read_record", lambda _: gate.wait(30))
    assert "has not answered" in environments.installed.judged("toy")[1][built.id]
    gate.set()


def test_what_was_fetched_stays_while_a_mark_cannot_be_read(
    environments: Environments, built: Installation, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = folder_of(home, built) / "installation.json"
    kept = sorted(environments.store.root.rglob("*.whl"))
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: failing(errno.EIO)() if path == mark else real(path))
    environments.drop_fetched()
    assert kept
    assert sorted(environments.store.root.rglob("*.whl")) == kept


def test_a_disk_of_backends_that_is_not_mounted_is_not_an_empty_one(
    environments: Environments, built: Installation, home: Path, tmp_path: Path
) -> None:
    (home / "backends").rename(tmp_path / "elsewhere")
    (home / "backends").symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match="No such file"):
        environments.installed.judged("toy")


def test_a_data_directory_mounted_noexec_is_reported_before_anything_is_fetched(
    environments: Environments, toy: Toy, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def noexec(place: Any) -> Any:
        told = real(place)
        return os.statvfs_result((*tuple(told)[:8], os.ST_NOEXEC, *tuple(told)[9:]))  # type: ignore[attr-defined, unused-ignore]

    monkeypatch.setattr(os, "statvfs", noexec)
    with pytest.raises(JobFailed, match="is mounted noexec") as told:
        environments.build("toy", toy.source, job="install-1")
    assert told.value.failure.code == "noexec"
    assert told.value.failure.blame == "machine"
    assert index.requests == []


@pytest.mark.parametrize("system", [linux, macos])
def test_everything_is_on_the_disk_before_the_mark_is_there(
    environments: Environments, built: Installation, home: Path, monkeypatch: pytest.MonkeyPatch, system: Any
) -> None:
    folder = folder_of(home, built)
    found = verification.read_record(folder)
    (folder / "installation.json").unlink()
    order = []
    real = os.fsync

    def fsync(handle: int) -> None:
        order.append(Path(f"/proc/self/fd/{handle}").readlink())
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(verification, "flush", partial(verification.flush, system=system))
    verification.write_record(folder, found)  # type: ignore[arg-type]
    marks = [place for place, path in enumerate(order) if path.name.startswith(".tmp-")]
    assert len(marks) == 1
    before = set(order[: marks[0]])
    files = {path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    if system is macos:
        assert before >= files - {folder / "installation.json"}
    assert {folder, folder.parent, folder.parent.parent} <= set(order[marks[0] + 1 :])
    assert environments.installed.look("toy") == [built]
