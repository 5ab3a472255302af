"""What can be spared on a disk makes room for what is wanted there, and only then."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.installed import is_ample, keep_reserve, need_space
from greenroom.runner.systems.disk_room import RESERVE, DiskRoom
from saved import kept, store_in

MB = 10**6


class Disk:
    """A disk with so many bytes free, and so many more that can be spared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, spare: int = 0) -> None:
        self.free, self.spare = free, spare
        self.asked: list[int] = []
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=self.free))

    def make_room(self, wanted: int, where: Path) -> int:
        assert where.is_dir()
        self.asked.append(wanted)
        dropped = wanted if wanted <= self.spare else 0
        self.free, self.spare = self.free + dropped, self.spare - dropped
        return dropped


def test_nothing_is_dropped_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, free=RESERVE + 10 * MB, spare=10 * MB)
    room = DiskRoom(tmp_path / "not" / "yet", disk.make_room)
    assert room.free() == room.free(10 * MB) == RESERVE + 10 * MB
    need_space(room, 10 * MB)
    need_space(room, 0)
    keep_reserve(room)
    assert not is_ample(room, 10 * MB, 10 * MB)
    assert disk.asked == []


def test_what_is_missing_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, free=RESERVE + 10 * MB, spare=10 * MB)
    need_space(DiskRoom(tmp_path, disk.make_room), 15 * MB)
    assert disk.asked == [5 * MB]
    disk.free = RESERVE - 1
    keep_reserve(DiskRoom(tmp_path, disk.make_room))
    assert disk.asked == [5 * MB, 1]


def test_what_does_not_fit_even_so_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, free=RESERVE, spare=10 * MB)
    with pytest.raises(JobFailed, match="Installing needs"):
        need_space(DiskRoom(tmp_path, disk.make_room), 11 * MB)
    Disk(monkeypatch, free=0)
    with pytest.raises(JobFailed, match="must stay free"):
        keep_reserve(DiskRoom(tmp_path))


def test_conversations_are_dropped_for_what_is_on_their_disk_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    kept(store, tmp_path, "abc")
    other = SimpleNamespace(stat=lambda: SimpleNamespace(st_dev=-1))
    assert store.make_room(1_000, other) == 0  # type: ignore[arg-type]
    assert store.make_room(1_000, tmp_path / "missing") == 0
    Disk(monkeypatch, free=1_000)
    DiskRoom(tmp_path, store.make_room).free(2_000)
    assert store.entries() == []
