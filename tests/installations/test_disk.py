from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from greenroom.actors.values import Installation
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations import verification
from greenroom.runner.installations.environment import Environments
from greenroom.runner.installations.installed import InstallationStore, discard, folder_of, segment, usage
from package_index import Index, Misbehaviour
from toys import Toy
from waiting import until


@pytest.fixture
def start(
    home: Path, index: Index, toy: Toy, programs: Path
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts an installation in a process of its own."""
    running = []

    def start(phase: str, *uv: Any) -> subprocess.Popen[str]:
        argv = [sys.executable, programs / "install_process.py", home, index.url, toy.source.lock, phase, *uv]
        process = subprocess.Popen([str(part) for part in argv], stdout=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("phase", ["downloading", "unpacking", "verifying"])
def test_a_daemon_killed_in_any_phase_leaves_nothing_that_is_believed(
    environments: Environments,
    toy: Toy,
    start: Callable[..., subprocess.Popen[str]],
    home: Path,
    phase: str,
    index: Index,
    misbehave: type[Misbehaviour],
) -> None:
    stuck = threading.Event()
    if phase == "downloading":
        index.wrong[toy.files[0].name] = misbehave(rate=2_000_000, hang=stuck, hang_after=100_000)
    process = start(phase)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == phase
    process.send_signal(signal.SIGKILL)
    process.wait()
    stuck.set()
    assert environments.installed.look("toy") == []
    environments.installed.sweep()
    assert [path for path in (home / "backends").rglob("*") if path.is_file()] == []
    index.wrong.clear()
    built = environments.build("toy", toy.source, job="install-1")
    assert (built.broken, environments.installed.verify(built)) == ("", [])


def test_a_uv_that_outlived_its_daemon_is_ended_before_its_folder_is_swept(
    environments: Environments,
    start: Callable[..., subprocess.Popen[str]],
    home: Path,
    program: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    slow = program(
        "uv",
        f"#!/bin/sh\nif [ $1 = venv ]; then mkdir -p $2/bin; exit 0; fi\n"
        f"echo $$ > {tmp_path}/pid\nexec sleep 100\n",
    )
    process = start("never", slow)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    orphan = int((tmp_path / "pid").read_text())
    until(lambda: next(home.glob("backends/toy/*/attempt.json")).read_text().find(str(orphan)) > 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.kill(orphan, 0)
    assert len(environments.installed.sweep()) == 1
    until(lambda: not _runs(orphan))
    assert list((home / "backends" / "toy").iterdir()) == []


def _runs(pid: int) -> Any:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_is_being_built_is_not_swept(environments: Environments, home: Path) -> None:
    folder = environments.installed.new_folder("toy", "1.0", "a" * 64, "install-1")
    assert environments.installed.sweep() == []
    environments.installed.settled(folder)
    assert environments.installed.sweep() == [folder]


def test_a_folder_counts_up_and_never_takes_the_place_of_another(environments: Environments) -> None:
    store = environments.installed
    names = [store.new_folder("toy", "1.0", digest * 64, "x").name for digest in "aab"]
    assert names == ["1.0-aaaaaaaa.1", "1.0-aaaaaaaa.2", "1.0-bbbbbbbb.1"]


def test_a_damaged_mark_is_broken_with_the_reason(
    environments: Environments, built: Installation, home: Path
) -> None:
    (folder_of(home, built) / "installation.json").write_text('{"id": "1.0')
    [found] = environments.installed.look("toy")
    assert (found.id, found.version) == (built.id, "1.0")
    assert "installation.json is damaged" in found.broken


def test_a_mark_of_a_newer_greenroom_is_not_guessed_at_and_left_to_it(
    environments: Environments, built: Installation, home: Path
) -> None:
    mark = folder_of(home, built) / "installation.json"
    record = msgspec.json.decode(mark.read_bytes())
    mark.write_bytes(msgspec.json.encode({**record, "schema": 99}))
    assert environments.installed.judged("toy") == (
        (),
        {built.id: "installation.json was written by another release of Greenroom (schema 99)"},
    )
    assert environments.installed.sweep() == []
    assert mark.exists()


def test_a_folder_that_was_moved_is_broken_since_environments_hold_their_path(
    environments: Environments, built: Installation, home: Path
) -> None:
    folder = folder_of(home, built)
    folder.rename(folder.with_name("1.0-aaaaaaaa.7"))
    [found] = environments.installed.look("toy")
    assert found.id == "1.0-aaaaaaaa.7"
    assert "has been moved" in found.broken


def test_a_base_interpreter_that_was_removed_is_named(
    environments: Environments, built: Installation, home: Path, tmp_path: Path
) -> None:
    folder = folder_of(home, built)
    record = verification.read_record(folder)
    python = folder / "env" / "bin" / "python"
    gone = tmp_path / "python3.11"
    python.unlink()
    python.symlink_to(gone)
    assert record is not None
    links = {**record.links, "env/bin/python": str(gone)}
    moved = msgspec.structs.replace(
        record, links=links, python=msgspec.structs.replace(record.python, base=str(gone))
    )
    verification.write_record(folder, moved)
    [found] = environments.installed.look("toy")
    assert found.broken == f"its Python is gone: {gone} no longer exists"


def test_another_python_than_it_was_built_for_is_named(
    environments: Environments, built: Installation, home: Path
) -> None:
    folder = folder_of(home, built)
    record = verification.read_record(folder)
    assert record is not None
    older = msgspec.structs.replace(record.python, tag="cpython-27", version="2.7.18")
    verification.write_record(folder, msgspec.structs.replace(record, python=older))
    [found] = environments.installed.look("toy")
    assert "and was 2.7.18" in found.broken


def test_a_patch_release_of_the_same_python_is_the_same_python(
    environments: Environments, built: Installation, home: Path
) -> None:
    folder = folder_of(home, built)
    record = verification.read_record(folder)
    assert record is not None
    other = msgspec.structs.replace(record.python, version="3.11.0")
    verification.write_record(folder, msgspec.structs.replace(record, python=other))
    assert environments.installed.look("toy") == [built]


def test_looking_needs_neither_uv_nor_a_network(
    home: Path,
    built: Installation,
    index: Index,
    program: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GREENROOM_UV", str(program("uv", "#!/bin/sh\nexit 77\n")))
    index.requests.clear()
    assert InstallationStore(home).look("toy") == [built]
    assert index.requests == []


def test_removing_takes_the_mark_first(
    environments: Environments, built: Installation, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(home, built)
    monkeypatch.setattr(shutil, "rmtree", _refuse)
    with pytest.raises(JobFailed, match="could not be removed"):
        environments.remove(built)
    monkeypatch.undo()
    assert environments.installed.look("toy") == []
    (left,) = environments.installed.sweep()
    assert left.name.startswith(folder.name)
    assert list(folder.parent.iterdir()) == []


def _refuse(path: Path, ignore_errors: bool = False) -> None:
    if not ignore_errors:
        raise PermissionError(13, "Permission denied", str(path))


def test_an_attempt_that_takes_the_name_of_what_is_being_removed_keeps_its_folder(
    environments: Environments, built: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree
    attempts: list[Path] = []

    def interrupted(path: Path, ignore_errors: bool = False) -> None:
        remove(path, ignore_errors=ignore_errors)
        if not attempts:
            attempts.append(environments.installed.new_folder("toy", built.version, built.digest, "toy.2"))

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    discard(folder_of(environments.installed.home, built))
    assert attempts[0].name == built.id
    assert (attempts[0] / "attempt.json").exists()


def test_removing_what_is_gone_frees_nothing(
    environments: Environments, built: Installation, home: Path
) -> None:
    discard(folder_of(home, built))
    assert environments.remove(built) == 0


def test_the_record_lists_every_file_and_a_sum_for_what_no_wheel_speaks_for(
    built: Installation, home: Path
) -> None:
    record = verification.read_record(folder_of(home, built))
    assert record is not None
    assert record.python.tag == sys.implementation.cache_tag
    names = set(record.files)
    assert {"lock.txt", "env/pyvenv.cfg"} <= names
    assert not [name for name in names if name.endswith((".pyc", "attempt.json", "requirements.txt"))]
    site = next(name.rpartition("/")[0] for name in names if name.endswith("companion.py"))
    assert {f"{site}/toy-1.0.dist-info/RECORD", "env/pyvenv.cfg"} <= set(record.sums)
    assert f"{site}/companion.py" not in record.sums


def test_space_in_use_counts_hard_links_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 100_000)
    alone = usage([tmp_path / "a"])
    os.link(tmp_path / "a" / "file", tmp_path / "linked")
    assert usage([tmp_path / "a", tmp_path]) == alone >= 100_000


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "a\0b", "a..b", "-x"])
def test_a_name_that_could_mean_another_place_is_refused(name: str, home: Path) -> None:
    with pytest.raises(JobFailed, match="is not a valid folder name"):
        segment(name)
    with pytest.raises(JobFailed):
        folder_of(home, Installation(id=name, backend="toy", version="1"))


def test_the_folder_and_the_record_of_a_variant_name_it(environments: Any, toy: Any) -> None:
    usual = environments.build("toy", toy.source, job="install-1")
    cuda = environments.build("toy", toy.source, job="install-2", variant="cuda")
    assert (cuda.id, cuda.variant, cuda.version) == (f"cuda-{usual.id}", "cuda", usual.version)
    found = environments.installed.look("toy")
    assert sorted(one.variant for one in found) == ["", "cuda"]
    assert environments.installed.made_of("toy", "1.0", "cuda") == cuda
    assert environments.installed.made_of("toy", "1.0", "") == usual
