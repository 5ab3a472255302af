from __future__ import annotations

import dataclasses
import errno
import io
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greenroom.actors.values import Installation
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.installations import archive
from greenroom.runner.installations.environment import Environments
from greenroom.runner.installations.errors import os_failure
from greenroom.runner.installations.installed import discard, folder_of, python_of
from greenroom.runner.installations.sources import PackageSources, Setting
from greenroom.runner.systems import packages
from package_index import Index, Misbehaviour
from toys import Toy


@pytest.fixture
def offline(home: Path) -> Environments:
    """The same data directory on a machine without a network."""
    return Environments(home, PackageSources(index=Setting("http://127.0.0.1:9/simple", "test")))


def build(environments: Environments, toy: Toy, **kwargs: Any) -> Installation:
    return environments.build(toy.source.distribution, toy.source, job="install-1", **kwargs)


def left_behind(home: Path) -> list[Path]:
    return [path for backend in (home / "backends").glob("*") for path in backend.iterdir()]


def test_an_installation_is_built_verified_and_found_again(
    environments: Environments, toy: Toy, home: Path
) -> None:
    built = build(environments, toy)
    assert (built.version, built.broken, built.managed) == ("1.0", "", True)
    assert built.id == f"1.0-{built.digest[:8]}.1"
    assert environments.installed.look("toy") == [built]
    assert Environments(home, PackageSources()).installed.look("toy") == [built]
    assert python_of(home, built).exists()
    assert environments.installed.verify(built) == []


def test_the_plan_is_known_before_anything_is_fetched_and_without_a_network(
    offline: Environments, toy: Toy, index: Index
) -> None:
    plan = offline.plan("toy", toy.source)
    assert plan.packages == ("toy==1.0", "companion==2.0")
    assert plan.download_bytes == plan.total_bytes == sum(file.size for file in toy.files)
    assert index.requests == []


def test_a_plan_leaves_out_what_is_here_already(environments: Environments, toy: Toy) -> None:
    build(environments, toy)
    plan = environments.plan("toy", toy.source)
    assert plan.download_bytes == 0
    assert plan.total_bytes > 0


def test_progress_goes_through_its_phases_and_ends_at_its_total(environments: Environments, toy: Toy) -> None:
    reports: list[Any] = []
    build(environments, toy, progress=reports.append)
    phases = list(dict.fromkeys(report.phase for report in reports))
    assert phases == ["downloading", "unpacking", "verifying"]
    assert {report.total for report in reports} == {sum(file.size for file in toy.files)}
    counts = [report.done for report in reports]
    assert counts == sorted(counts)
    assert counts[-1] == reports[-1].total
    assert {report.job for report in reports} == {"install-1"}


def test_a_second_build_needs_no_network_and_a_folder_of_its_own(
    environments: Environments, offline: Environments, toy: Toy
) -> None:
    first = build(environments, toy)
    second = build(offline, toy)
    assert (first.id[-2:], second.id[-2:]) == (".1", ".2")
    assert [found.broken for found in offline.installed.look("toy")] == ["", ""]


def test_without_a_network_and_with_nothing_here_it_fails_and_leaves_nothing(
    offline: Environments, toy: Toy, home: Path
) -> None:
    with pytest.raises(JobFailed) as caught:
        build(offline, toy)
    assert caught.value.failure.kind == "transient"
    assert left_behind(home) == []


def test_a_missing_file_is_named(environments: Environments, toy: Toy, home: Path) -> None:
    built = build(environments, toy)
    path = next(folder_of(home, built).glob("env/lib/*/site-packages/companion.py"))
    path.unlink()
    [found] = environments.installed.look("toy")
    assert found.broken == f"{path.relative_to(folder_of(home, built))} is missing"


def test_a_file_of_another_size_is_named(environments: Environments, toy: Toy, home: Path) -> None:
    built = build(environments, toy)
    path = next(folder_of(home, built).glob("env/lib/*/site-packages/toy/weights.bin"))
    path.unlink()
    path.write_bytes(b"short")
    [found] = environments.installed.look("toy")
    assert "weights.bin has 5 bytes instead of 200000" in found.broken


def test_byte_code_that_python_writes_is_no_damage(environments: Environments, toy: Toy, home: Path) -> None:
    built = build(environments, toy)
    site = next(folder_of(home, built).glob("env/lib/*/site-packages"))
    (site / "__pycache__").mkdir(exist_ok=True)
    (site / "__pycache__" / "companion.cpython-399.pyc").write_bytes(b"x")
    shutil.rmtree(site / "toy" / "__pycache__")
    assert environments.installed.look("toy") == [built]


def test_one_flipped_byte_is_found_by_verify_and_healed_by_a_repair(
    environments: Environments, toy: Toy, home: Path
) -> None:
    first = build(environments, toy)
    path = next(folder_of(home, first).glob("env/lib/*/site-packages/toy/weights.bin"))
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    assert environments.installed.look("toy") == [first], "the size tells nothing"
    [complaint] = environments.installed.verify(first)
    assert complaint.endswith("toy/weights.bin has changed")
    # Hard links share the damage with uv's cache: an installation that is no repair inherits it.
    repaired = build(environments, toy, repair=True)
    later = build(environments, toy)
    assert environments.installed.verify(repaired) == []
    assert environments.installed.verify(later) == []


def test_a_repair_fetches_again_what_is_damaged_in_the_cache(
    environments: Environments, toy: Toy, index: Index
) -> None:
    build(environments, toy)
    wheel = environments.store.path(toy.files[0])
    wheel.write_bytes(b"y" * toy.files[0].size)
    index.requests.clear()
    repaired = build(environments, toy, repair=True)
    assert environments.installed.verify(repaired) == []
    assert [path for path in index.paths() if path.startswith("/files/")] == [f"/files/{toy.files[0].name}"]


def test_a_wheel_damaged_on_the_disk_is_thrown_away_and_worth_another_attempt(
    environments: Environments, toy: Toy, index: Index
) -> None:
    built = build(environments, toy)
    discard(folder_of(environments.installed.home, built))
    shutil.rmtree(environments.installed.home / "cache" / "uv")
    environments.store.path(toy.files[0]).write_bytes(b"y" * toy.files[0].size)
    with pytest.raises(JobFailed) as caught:
        build(environments, toy)
    assert (caught.value.failure.kind, caught.value.failure.code) == ("transient", "cache_damaged")
    assert build(environments, toy).broken == ""


def test_what_a_first_import_writes_is_no_part_of_what_was_installed(
    environments: Environments, make_toy: Callable[..., Toy], home: Path
) -> None:
    body = b"import pathlib\nhere = pathlib.Path(__file__).parent\n"
    body += b"for n in range(300):\n  (here / f'{n}.tmp').write_text('x')\n  (here / f'{n}.tmp').unlink()\n"
    body += b"(here / 'cache.bin').write_text('x')\n"
    built = build(environments, make_toy("busy", body=body))
    record = environments.installed.record(built)
    assert not [name for name in record.files if name.endswith((".tmp", "cache.bin"))]
    (file,) = folder_of(environments.installed.home, built).rglob("cache.bin")
    file.unlink()
    assert environments.installed.verify(built) == []


def test_a_backend_whose_import_fails_is_not_installed(
    environments: Environments, make_toy: Callable[..., Toy], home: Path
) -> None:
    toy = make_toy("bad", body=b"raise ImportError('undefined symbol: ggml_init')\n")
    with pytest.raises(JobFailed, match="does not start here: ImportError: undefined symbol") as caught:
        build(environments, toy)
    assert caught.value.failure.code == "probe_failed"
    assert "Traceback" in caught.value.failure.detail
    assert left_behind(home) == []


def test_a_backend_that_lacks_a_library_of_the_system_says_how_to_install_it(
    environments: Environments, make_toy: Callable[..., Toy], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "family", lambda: "debian")
    says = "libgomp.so.1: cannot open shared object file: No such file or directory"
    with pytest.raises(JobFailed, match="does not start here: this system has no libgomp") as caught:
        build(environments, make_toy("bad", body=f"raise ImportError({says!r})\n".encode()))
    failure = caught.value.failure
    assert (failure.code, failure.blame) == ("missing_library", "machine")
    assert failure.advice == "Install it: sudo apt install libgomp1"
    assert left_behind(home) == []


def test_wrong_bytes_are_permanent_and_leave_nothing(
    environments: Environments, toy: Toy, index: Index, misbehave: type[Misbehaviour], home: Path
) -> None:
    index.wrong[toy.files[0].name] = misbehave(body=b"x" * toy.files[0].size)
    with pytest.raises(JobFailed) as caught:
        build(environments, toy)
    assert caught.value.failure.code == "hash_mismatch"
    assert left_behind(home) == []


def test_too_little_space_is_reported_before_anything_is_fetched(
    environments: Environments, toy: Toy, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(
        JobFailed, match=r"Installing needs .* MB, .*; the disk of .* has 1 MB left"
    ) as caught:
        build(environments, toy)
    assert caught.value.failure.code == "no_space"
    assert index.requests == []


def test_a_disk_that_fills_up_while_unpacking_is_a_sentence_and_leaves_nothing(
    home: Path, index: Index, toy: Toy, program: Callable[[str, str], Path]
) -> None:
    full = program("uv", "#!/bin/sh\necho 'cause: No space left on device (os error 28)' >&2\nexit 2\n")
    with pytest.raises(JobFailed, match="The disk is full") as caught:
        build(Environments(home, index.sources, uv_binary=full), toy)
    assert caught.value.failure.kind == "permanent"
    assert left_behind(home) == []


def test_a_uv_that_fails_ends_the_fetching_too(
    home: Path, index: Index, toy: Toy, program: Callable[[str, str], Path], misbehave: type[Misbehaviour]
) -> None:
    index.wrong[toy.files[0].name] = misbehave(hang=threading.Event())
    broken = program("uv", "#!/bin/sh\necho 'cause: Read-only file system (os error 30)' >&2\nexit 2\n")
    with pytest.raises(JobFailed, match="data directory cannot be written to") as caught:
        build(Environments(home, index.sources, uv_binary=broken), toy)
    assert caught.value.failure.code == "read_only"
    assert left_behind(home) == []


@pytest.mark.parametrize(
    ("number", "code", "sentence"),
    [
        (errno.ENOSPC, "no_space", "The disk is full."),
        (errno.EDQUOT, "no_space", "The disk is full."),
        (errno.EROFS, "read_only", "The data directory cannot be written to."),
        (errno.EACCES, "no_permission", "It could not be made: Permission denied (/data)."),
        (errno.ENOENT, "os_error", "It could not be made: No such file or directory (/data)."),
        (errno.EIO, "io_error", "It could not be made: Input/output error (/data)."),
        (errno.EMFILE, "too_many_files", "It could not be made: Too many open files."),
        (errno.ENOMEM, "no_memory", "It could not be made: Cannot allocate memory."),
        (errno.EAGAIN, "no_process", "It could not be made: Resource temporarily unavailable."),
    ],
)
def test_what_the_system_refuses_becomes_a_sentence_and_is_the_machines(
    number: Any, code: str, sentence: str
) -> None:
    failure = os_failure(OSError(number, os.strerror(number), "/data"), "It could not be made").failure
    assert (failure.code, failure.message, failure.blame) == (code, sentence, "machine")
    # What may pass by itself is worth another attempt.
    passing = code in ("io_error", "too_many_files", "no_memory", "no_process")
    assert failure.kind == ("transient" if passing else "permanent")


def test_a_file_in_the_place_of_the_folder_is_reported_in_a_sentence(
    environments: Environments, toy: Toy, home: Path
) -> None:
    home.mkdir()
    (home / "backends").write_text("")
    with pytest.raises(JobFailed, match="could not be created"):
        build(environments, toy)


@pytest.mark.parametrize("phase", ["downloading", "unpacking", "verifying"])
def test_cancelling_in_any_phase_leaves_nothing(
    environments: Environments, toy: Toy, home: Path, phase: str
) -> None:
    cancel = threading.Event()

    def watch(progress: Any) -> None:
        if progress.phase == phase:
            cancel.set()

    with pytest.raises(JobCancelled):
        build(environments, toy, cancel=cancel, progress=watch)
    assert left_behind(home) == []
    assert environments.installed.look("toy") == []
    assert build(environments, toy).broken == ""


def test_another_version_is_resolved_locked_and_lies_beside_the_first(
    environments: Environments, toy: Toy, index: Index, home: Path
) -> None:
    first = build(environments, toy)
    index.add("toy", "2.0", {"toy/__init__.py": b"VALUE = 2\n"})
    plan = environments.plan("toy", toy.source, "2.0")
    assert (plan.version, plan.packages) == ("2.0", ("toy==2.0",))
    assert plan.total_bytes == len(index.wheels["toy"]["toy-2.0-py3-none-any.whl"])
    second = build(environments, toy, version="2.0")
    assert second.version == "2.0"
    assert build(environments, toy, version="latest") == second, "the newest is installed"
    latest = build(environments, toy, version="latest", repair=True)
    assert latest.version == "2.0"
    assert "toy==2.0" in (folder_of(home, second) / "lock.txt").read_text()
    assert [found.version for found in environments.installed.look("toy")] == ["1.0", "2.0", "2.0"]
    assert first.digest != second.digest


def test_the_newest_is_built_again_only_if_a_package_of_it_has_changed(
    environments: Environments, toy: Toy, index: Index, home: Path
) -> None:
    source = dataclasses.replace(toy.source, requirements=("toy", "companion"))

    def latest() -> Installation:
        return environments.build("toy", source, job="install-1", version="latest")

    shipped = build(environments, toy)
    assert latest() == latest() == shipped, "of the same files, though the lock says so in other words"
    index.add("companion", "2.1", {"companion.py": b"HELP = 3\n"})
    newer = latest()
    assert (newer.version, newer.id == shipped.id) == ("1.0", False)
    assert "companion==2.1" in (folder_of(home, newer) / "lock.txt").read_text()
    assert latest() == newer
    assert len(environments.installed.look("toy")) == 2


def test_a_version_that_does_not_exist_is_permanent(environments: Environments, toy: Toy) -> None:
    for version in ("99.0", "-r /etc/passwd", "LATEST", "1..0", "nonsense", "a" * 300):
        with pytest.raises(JobFailed) as caught:
            build(environments, toy, version=version)
        failure = caught.value.failure
        assert (failure.kind, failure.code) == ("permanent", "no_such_version")
        assert len(failure.message) < 120
        if version == "99.0":
            assert failure.message == "toy 99.0 is not on the package index."


def test_a_version_whose_needs_cannot_be_met_is_not_called_missing(
    environments: Environments, make_toy: Callable[..., Toy], index: Index
) -> None:
    toy = make_toy("toy")
    index.add("toy", "2.0", {"toy/__init__.py": b""}, requires=("nowhere>=1",))
    with pytest.raises(JobFailed) as caught:
        build(environments, toy, version="2.0")
    failure = caught.value.failure
    assert failure.message == "No set of packages makes toy 2.0 work here."
    assert "nowhere" in failure.detail


def test_removing_frees_the_measured_bytes_and_only_what_nothing_else_needs(
    environments: Environments, make_toy: Callable[..., Toy], index: Index
) -> None:
    toy, other = make_toy("toy", size=3_000_000), make_toy("other", size=1_000_000)
    build(environments, toy)
    kept = build(environments, other)
    [installed] = environments.installed.look("toy")
    freed = environments.remove(installed)
    # The wheel and what was unpacked of it, which lies in the cache and in the environment under one inode.
    assert 6_000_000 < freed < 7_000_000
    assert environments.installed.look("toy") == []
    assert environments.installed.look("other") == [kept]
    assert environments.store.missing(other.files) == []
    assert environments.store.has(toy.files[1]), "the companion is needed by the other backend"
    assert not environments.store.has(toy.files[0])


def test_dropping_what_was_fetched_takes_what_came_to_nothing_and_only_that(
    environments: Environments, make_toy: Callable[..., Toy]
) -> None:
    failing = make_toy("failing", size=3_000_000, body=b"import libmissing\n")
    good = make_toy("good", size=1_000_000)
    build(environments, good)
    with pytest.raises(JobFailed, match="libmissing"):
        build(environments, failing)
    environments.sweep()
    assert environments.store.has(failing.files[0]), "the next attempt goes on with it, for a while"
    # The wheel, and what was unpacked of it in the cache.
    assert 6_000_000 < environments.drop_fetched() < 7_000_000
    assert not environments.store.has(failing.files[0])
    assert environments.store.missing(good.files) == [], "the companion is one of both"
    assert environments.installed.look("good")[0].broken == ""
    assert environments.drop_fetched() == 0


def test_removing_one_of_two_equal_installations_frees_what_is_its_own(
    environments: Environments, make_toy: Callable[..., Toy]
) -> None:
    toy = make_toy("toy", size=3_000_000)
    build(environments, toy)
    second = build(environments, toy)
    freed = environments.remove(environments.installed.look("toy")[0])
    assert freed < 1_000_000
    assert environments.installed.look("toy") == [second]


def test_a_find_links_folder_alone_is_enough(home: Path, index: Index, toy: Toy, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    for wheels in index.wheels.values():
        for name, data in wheels.items():
            (folder / name).write_bytes(data)
    sources = PackageSources(
        find_links=(Setting(str(folder), "test"),), no_index=Setting("1", "test"), index=Setting("x:", "test")
    )
    environments = Environments(home, sources)
    assert build(environments, toy).version == "1.0"
    assert build(environments, toy, version="latest").version == "1.0"
    assert index.requests == []


def test_further_indexes_of_a_declaration_are_asked_too(
    home: Path, index: Index, make_index: Callable[[], Index], make_toy: Callable[..., Toy]
) -> None:
    wheels_elsewhere = make_index()
    toy = make_toy("toy", on=wheels_elsewhere)
    source = dataclasses.replace(toy.source, indexes=(f"{wheels_elsewhere.url}/simple",))
    built = Environments(home, index.sources).build("toy", source, job="x")
    assert built.version == "1.0"


def test_a_version_the_declaration_rules_out_is_not_blamed_on_the_index(
    environments: Environments, toy: Toy, index: Index
) -> None:
    source = dataclasses.replace(toy.source, requirements=("toy>=1.0", "companion"))
    with pytest.raises(JobFailed) as caught:
        environments.plan("toy", source, "0.9")
    assert caught.value.failure.code == "version_not_taken"
    assert caught.value.failure.message == (
        "toy 0.9 does not work with this release of Greenroom, which needs toy>=1.0."
    )
    assert index.requests == []


@pytest.mark.parametrize("version", ["9" * 5_000, "1!" + "9" * 4_400, "1." + "0." * 9_000 + "1", "not one"])
def test_an_impossible_version_is_refused_without_asking_an_index(
    environments: Environments, toy: Toy, index: Index, version: Any
) -> None:
    with pytest.raises(JobFailed, match="is not a version") as caught:
        environments.plan("toy", toy.source, version)
    assert caught.value.failure.code == "no_such_version"
    assert len(caught.value.failure.message) < 200
    assert index.requests == []


def test_a_version_brought_from_another_release_is_built_from_what_it_brought(
    environments: Environments, make_toy: Callable[..., Toy], home: Path, tmp_path: Path, index: Index
) -> None:
    theirs = Environments(tmp_path / "theirs", index.sources)
    other = make_toy(companion=False)
    carried = io.BytesIO()
    (record,) = [theirs.installed.record(theirs.build("toy", other.source, job="install-1"))]
    archive.write(tmp_path / "theirs", record, "toy", carried)
    carried.seek(0)
    archive.read(home, carried)
    offline = Environments(home, PackageSources(index=Setting("http://127.0.0.1:9/simple", "test")))
    ours = make_toy()  # this release's lock of the same version wants a companion too
    assert offline.plan("toy", ours.source, "1.0").packages == ("toy==1.0",)
    built = offline.build("toy", ours.source, job="install-2", version="1.0")
    assert built.digest == record.digest
    # Not what is wanted by default, nor where this release's packages are present as well.
    assert offline.plan("toy", ours.source).packages == ("toy==1.0", "companion==2.0")
    environments.build("toy", ours.source, job="install-3")
    assert environments.plan("toy", ours.source, "1.0").packages == ("toy==1.0", "companion==2.0")
