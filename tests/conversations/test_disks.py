"""Disks that are full, read-only, broken or someone else's cost nothing but what could have been gained."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.runner.conversations import files
from mounts import Mounts, NotPermitted
from saved import chained, kept, put, store_in
from saver_stage import ASKED, READ, SAID, Stage

STRANGER = 65_534


@pytest.fixture
def mounts() -> Iterator[Mounts]:
    made = Mounts()
    yield made
    made.close()


def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")


def test_a_full_disk_is_not_even_tried_and_named_once(
    mounts: Mounts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    try:
        mounts.small(tmp_path / "disk", 8)
    except NotPermitted:
        pytest.skip("only who may mount file systems can have a small one: run it as root")
    stage = Stage(tmp_path / "disk")
    for number in range(20):
        stage.answered(f"r{number}", *READ, {"role": "user", "content": str(number)})
        stage.before_end("e")
    assert not stage.slots.names
    assert not (tmp_path / "disk" / "conversations").exists()
    assert len([one for one in caplog.messages if "the disk has only" in one]) == 1


def test_what_is_saved_is_restored_from_a_folder_that_is_read_only_now(
    mounts: Mounts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path)
    stage.answered("r1", *READ)
    stage.before_end("e")
    try:
        mounts.read_only(tmp_path / "conversations")
    except NotPermitted:
        pytest.skip("only who may mount file systems can have one that is read-only: run it as root")
    again = Stage(tmp_path)
    found = again.restores(again.enters("r2", *READ, SAID, ASKED), *READ, SAID, ASKED)
    assert found is not None
    assert found.tokens == 800
    again.gates.leave("r2")
    for number in range(5):
        again.answered(f"s{number}", {}, {"role": "user", "content": str(number) * 4_000})
        again.before_end("e")
    assert [one.reason for one in again.store.entries()] == ["stopping"]
    assert again.store.fails() == "the disk has just failed"
    assert len([one for one in caplog.messages if "Read-only file system" in one]) == 1
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == []


def test_a_file_that_the_disk_cannot_give_is_dropped_and_the_disk_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path)
    stage.answered("r1", *READ)
    stage.before_end("e")
    stage.gates.forget_content("e", stage.gates.contents("e")[0].serial)

    def broken(path: Path) -> tuple[int, str]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(files, "checksum", broken)
    found = stage.restores(stage.enters("r2", *READ), *READ)
    assert found is not None
    assert found.why() == "its file cannot be used"
    assert stage.store.entries() == []
    assert stage.store.may_write(1) == "the disk has just failed"


def test_a_folder_of_another_user_is_left_alone_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    as_root()
    kept(store_in(tmp_path), tmp_path, "abc")
    folder = tmp_path / "conversations"
    os.chown(folder, STRANGER, -1)
    before = sorted(folder.iterdir())
    store = store_in(tmp_path)
    said = "cannot be used: it belongs to user 65534; remove it, or change its owner"
    assert store.off == f"the folder {folder} {said}"
    assert store.may_write(1) == f"its folder {said}"
    assert put(store, tmp_path, "abcd") is None
    assert store.best("engine", "user:1", chained("abc")) is None
    store.sweep()
    assert sorted(folder.iterdir()) == before
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("kind", ["bin", "json"])
def test_a_file_of_another_user_is_not_used(tmp_path: Path, kind: str) -> None:
    """Such as one that was put there while the folder was open to all."""
    as_root()
    entry = kept(store_in(tmp_path), tmp_path, "abc")
    os.chown(tmp_path / "conversations" / f"{entry.id}.{kind}", STRANGER, -1)
    assert store_in(tmp_path).entries() == []
    assert list((tmp_path / "conversations").glob("c-*")) == []


@pytest.mark.parametrize("kind", ["bin", "json"])
def test_a_link_is_not_followed_and_what_it_leads_to_stays(tmp_path: Path, kind: str) -> None:
    store = store_in(tmp_path)
    entry = kept(store, tmp_path, "abc")
    place = tmp_path / "conversations" / f"{entry.id}.{kind}"
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    if kind == "bin":
        assert not store.lend(entry, tmp_path / "lent")
        assert not (tmp_path / "lent").exists()
    assert store_in(tmp_path).entries() == []
    assert (tmp_path / "elsewhere").exists()
    assert list((tmp_path / "conversations").glob("c-*")) == []
