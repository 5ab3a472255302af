"""The whole need is checked before the first byte comes, and what stays free stays free."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.environment import Environments
from greenroom.runner.installations.installed import need_space
from greenroom.runner.systems.disk_room import RESERVE, DiskRoom
from package_index import Index, Misbehaviour
from toys import Toy


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has the disk say that so much is free, beyond the reserve."""

    def make(beyond: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=RESERVE + beyond))

    return make


@pytest.fixture
def dense(make_toy: Callable[..., Toy]) -> Toy:
    """A toy of 20 kB that unpacks to 10 MB, and its lock."""
    return make_toy("toy", size=1, body=b"#" * 10_000_000, companion=False)


def fetched(index: Index, toy: Toy) -> int:
    return index.sent[toy.files[0].name]


def test_what_does_not_fit_unpacked_is_refused_before_it_is_fetched(
    environments: Environments, index: Index, dense: Toy, small: Callable[[int], None]
) -> None:
    small(50_000)  # room for the wheel, and for as much again
    with pytest.raises(JobFailed) as told:
        environments.build("toy", dense.source, job="install-1")
    failure = told.value.failure
    assert (failure.code, failure.blame) == ("no_space", "machine")
    needed, kept, there = (int(one) for one in re.findall(r"(\d+) MB", failure.message))
    assert (needed, kept, there) == (77, 67, 67)
    assert "free for the journal and the logs" in failure.message
    assert not environments.store.has(dense.files[0])
    assert fetched(index, dense) < dense.files[0].size * 2, "only its directory was asked for"


def test_what_fits_unpacked_is_installed(
    environments: Environments, dense: Toy, small: Callable[[int], None]
) -> None:
    small(10_000_000 + 2 * dense.files[0].size)
    assert environments.build("toy", dense.source, job="install-1").version == "1.0"


def test_a_server_that_gives_no_parts_of_files_is_believed_by_sizes_alone(
    environments: Environments,
    index: Index,
    dense: Toy,
    small: Callable[[int], None],
    misbehave: type[Misbehaviour],
) -> None:
    index.wrong[dense.files[0].name] = misbehave(ranges=False)
    small(50_000)
    with pytest.raises(JobFailed, match="the disk of") as told:
        environments.build("toy", dense.source, job="install-1")
    assert told.value.failure.code == "no_space"
    assert environments.store.has(dense.files[0]), "what it unpacks to was known when it was here"


def test_with_ample_room_no_sizes_are_requested(environments: Environments, index: Index, dense: Toy) -> None:
    environments.build("toy", dense.source, job="install-1")
    assert sum(path.startswith("/files/") for path in index.paths()) == 1


def test_a_second_model_of_the_same_files_needs_only_the_reserve(
    environments: Environments, dense: Toy, small: Callable[[int], None]
) -> None:
    environments.build("toy", dense.source, job="install-1")
    small(100_000)
    assert environments.build("toy", dense.source, job="install-2").id.endswith(".2")


def test_the_reserve_is_named_with_its_size(home: Path, small: Callable[[int], None]) -> None:
    small(0)
    with pytest.raises(
        JobFailed, match=r"needs 68 MB, including 67 MB kept free for the journal and the logs"
    ):
        need_space(DiskRoom(home), 1_000_000)


def test_a_disk_that_others_fill_while_bytes_come_stops_the_download_in_time(
    environments: Environments, toy: Toy, small: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    small(-1)
    monkeypatch.setattr("greenroom.runner.installations.environment.is_ample", lambda *_: True)
    with pytest.raises(JobFailed, match="free for the journal and the logs") as told:
        environments.build("toy", toy.source, job="install-1")
    assert told.value.failure.code == "no_space"
    assert not environments.store.has(toy.files[0])
