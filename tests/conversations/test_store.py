"""What the store keeps, finds, gives and drops."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.conversation_log import ConversationsFailed
from greenroom.runner.config import Settings
from greenroom.runner.conversations import files
from greenroom.runner.conversations.store import ConversationStore
from saved import HandClock, chained, kept, put, put_file, store_in
from waiting import until

DAY = 86_400.0


def data_of(folder: Path) -> list[str]:
    return sorted(one.stem for one in (folder / "conversations").glob("c-*"))


def test_what_was_put_is_found_and_lent_as_it_was(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    entry = kept(store, tmp_path, "abc", content=b"state of an engine")
    assert store.best("engine", "user:1", chained("abcd")) == (entry, 3)
    assert store.lend(entry, tmp_path / "lent")
    assert (tmp_path / "lent").read_bytes() == b"state of an engine"
    assert store.usage().bytes == entry.size == 18


def test_a_later_start_finds_it(tmp_path: Path) -> None:
    clock = HandClock()
    entry = kept(store_in(tmp_path, clock), tmp_path, "abc")
    store = store_in(tmp_path, clock)
    assert store.entries() == [entry]
    assert store.usage().written_today == entry.size
    assert store.lend(entry, tmp_path / "lent")


def test_only_its_owner_and_the_same_engine_find_it(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    kept(store, tmp_path, "abc")
    assert store.best("engine", "user:2", chained("abc")) is None
    assert store.best("other", "user:1", chained("abc")) is None
    assert store.why_not("engine", "user:2", chained("abc")) == ""


def test_nobody_else_can_read_the_files(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = store_in(tmp_path)
        file = tmp_path / "engine"
        file.write_bytes(b"x")
        file.chmod(0o666)
        kept(store, tmp_path, "abc")
    finally:
        os.umask(old)
    folder = tmp_path / "conversations"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()} == {0o600}


def test_a_folder_that_others_could_read_is_made_private(tmp_path: Path) -> None:
    (tmp_path / "conversations").mkdir(mode=0o755)
    store_in(tmp_path)
    assert stat.S_IMODE((tmp_path / "conversations").stat().st_mode) == 0o700


def test_the_next_turn_replaces_the_one_before(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    kept(store, tmp_path, "ab")
    longer = kept(store, tmp_path, "abcd")
    assert store.entries() == [longer]
    assert set(data_of(tmp_path)) == {longer.id}
    assert store.usage().bytes == longer.size


def test_what_two_conversations_share_stays_when_one_goes_on(tmp_path: Path) -> None:
    clock = HandClock()
    store = store_in(tmp_path, clock)
    agent = kept(store, tmp_path, "s")
    clock.now += 1
    other = kept(store, tmp_path, "t")
    clock.now += 1
    kept(store, tmp_path, "tx")
    assert store.entries()[-1] == agent
    assert other not in store.entries()


def test_an_expired_one_is_neither_found_nor_left_on_the_disk(tmp_path: Path) -> None:
    clock = HandClock()
    store = store_in(tmp_path, clock, expiry=DAY)
    kept(store, tmp_path, "abc")
    clock.now += DAY + 1
    assert store.best("engine", "user:1", chained("abc")) is None
    assert store.why_not("engine", "user:1", chained("abc")) == "it has expired"
    assert store.sweep().count == 1
    assert data_of(tmp_path) == []


def test_one_that_expired_while_nothing_ran_is_removed_at_the_start(tmp_path: Path) -> None:
    clock = HandClock()
    kept(store_in(tmp_path, clock), tmp_path, "abc")
    clock.now += DAY + 1
    assert store_in(tmp_path, clock).entries() == []
    assert data_of(tmp_path) == []


def test_use_puts_the_expiry_off_also_across_a_restart(tmp_path: Path) -> None:
    clock = HandClock()
    store = store_in(tmp_path, clock)
    entry = kept(store, tmp_path, "abc")
    clock.now += DAY - 1
    store.used(entry)
    clock.now += DAY - 1
    [again] = store_in(tmp_path, clock).entries()
    assert (again.restored, again.used_at) == (1, clock.now - DAY + 1)


def test_a_clock_that_was_ahead_makes_nothing_last_longer(tmp_path: Path) -> None:
    clock = HandClock()
    clock.now += 100 * DAY
    kept(store_in(tmp_path, clock), tmp_path, "abc")
    clock.now -= 100 * DAY
    store = store_in(tmp_path, clock)
    clock.now += DAY + 1
    assert store.best("engine", "user:1", chained("abc")) is None


def test_the_least_valuable_go_first(tmp_path: Path) -> None:
    clock = HandClock()
    store = store_in(tmp_path, clock, budget=lambda: 7_000)
    old = kept(store, tmp_path, "abc")
    clock.now += 600
    newer = kept(store, tmp_path, "xyz")
    clock.now += 600
    newest = kept(store, tmp_path, "mno")
    assert store.entries() == [newest, newer]
    assert store.why_not("engine", "user:1", old.chain) == "it was removed to make room"


def test_one_that_is_worth_less_than_all_others_is_not_kept_and_drops_none(tmp_path: Path) -> None:
    store = store_in(tmp_path, budget=lambda: 7_000)
    kept(store, tmp_path, "abc", seconds=100.0)
    kept(store, tmp_path, "xyz", seconds=100.0)
    assert put(store, tmp_path, "mno", seconds=0.001) is None
    assert store.usage().count == 2
    assert len(set(data_of(tmp_path))) == 2


def test_a_smaller_budget_holds_at_the_next_sweep(tmp_path: Path) -> None:
    budget = [10_000]
    store = store_in(tmp_path, budget=lambda: budget[0])
    kept(store, tmp_path, "abc")
    kept(store, tmp_path, "xyz")
    budget[0] = 3_500
    store.sweep()
    assert store.usage().bytes == 3_000
    budget[0] = 0
    store.sweep()
    assert data_of(tmp_path) == []


def test_room_is_made_only_if_it_helps(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    kept(store, tmp_path, "abc")
    kept(store, tmp_path, "xyz")
    assert store.make_room(6_001) == 0
    assert store.usage().count == 2
    assert store.make_room(10) == 3_000
    assert store.make_room(0) == 0
    assert store.usage().count == len(set(data_of(tmp_path))) == 1


def test_what_belongs_to_an_owner_or_a_model_is_dropped_together(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    mine = kept(store, tmp_path, "abc")
    theirs = kept(store, tmp_path, "abc", owner="user:2")
    other = kept(store, tmp_path, "abc", owner="user:2", model_id="other", compat="other")
    assert store.drop(owner="user:2", model_id="other").count == 1
    assert store.drop(entry_id=other.id).count == 0
    assert store.drop(owner="user:2").bytes == theirs.size
    assert store.why_not("engine", "user:2", theirs.chain) == "it was removed"
    assert store.entries() == [mine]
    assert store.sweep(models=["other"]).count == 1
    kept(store, tmp_path, "abc")
    assert store.drop().count == 1
    assert data_of(tmp_path) == []


def test_why_nothing_is_restored(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    kept(store, tmp_path, "pabc")
    asked = chained("pabx")
    assert store.why_not("engine", "user:1", asked) == "the prompt changed at message 3"
    assert "another version" in store.why_not("newer", "user:1", asked)
    assert store.why_not("newer", "user:1", asked, model_id="another") == ""
    assert store.why_not("engine", "user:1", chained("pxyz")) == "", "only what all prompts share"


def test_what_may_be_written_is_bounded(tmp_path: Path) -> None:
    clock = HandClock()
    store = store_in(tmp_path, clock, budget=lambda: 5_000, daily=lambda: 6_000)
    assert store.may_write(5_000) == ""
    assert "conversation_cache" in store.may_write(5_001)
    kept(store, tmp_path, "abc")
    assert "a day" in store.may_write(3_001)
    assert store.may_write(3_000) == ""
    clock.now += 2 * DAY
    assert store.may_write(5_000) == ""


def test_nothing_is_written_to_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    store = store_in(tmp_path, budget=lambda: 10**18, daily=lambda: 10**18)
    assert "the disk has only" in store.may_write(10**17)


def test_a_folder_that_cannot_be_made_costs_nothing_but_the_gain(tmp_path: Path) -> None:
    (tmp_path / "conversations").write_text("in the way")
    store = store_in(tmp_path)
    assert "cannot be used" in store.may_write(1)
    assert put(store, tmp_path, "abc") is None
    assert store.best("engine", "user:1", chained("abc")) is None
    assert store.counts().failures == 1


def test_a_disk_that_refuses_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_in(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write", full)
        for _ in range(3):
            assert put(store, tmp_path, "abc") is None
    assert store.may_write(1) == "the disk has just failed"
    assert [one for one in caplog.messages if "No space left" in one] == [
        "saved conversations: [Errno 28] No space left on device"
    ]
    assert store.counts().failures == 3
    told = list[object]()
    store.sums.send = told.append
    store.sums.flush_all()
    assert told == [ConversationsFailed(count=3, reason="No space left on device")]
    assert data_of(tmp_path) == []


def test_one_whose_file_cannot_be_removed_yet_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    kept(store, tmp_path, "abc")
    unlink = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".bin":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refused)
        assert store.drop().left == 1
    assert store.drop().count == 1
    assert data_of(tmp_path) == []


def test_an_engine_that_wrote_nothing_saves_nothing(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    (tmp_path / "secret").write_text("someone's")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "empty").touch()
    for name in ("missing", "link", "empty"):
        assert put_file(store, tmp_path / name, "abc") is None
    assert store.entries() == []
    assert data_of(tmp_path) == []
    assert (tmp_path / "secret").read_text() == "someone's"


def test_a_file_is_copied_where_it_cannot_have_a_second_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    entry = kept(store, tmp_path, "abc")

    def refused(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    (tmp_path / "lent").write_text("an earlier one")
    assert store.lend(entry, tmp_path / "lent")
    assert (tmp_path / "lent").read_bytes() == b"abc" * 1_000
    assert (tmp_path / "lent").stat().st_nlink == 1


def test_a_file_comes_in_from_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path)
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        raise OSError(18, "Invalid cross-device link")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refused)
        entry = kept(store, tmp_path, "abc")
    assert Path.rename is rename
    assert store.lend(entry, tmp_path / "lent")


def test_many_threads_at_once(tmp_path: Path) -> None:
    store = store_in(tmp_path, budget=lambda: 20_000)
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(8):
            parts = f"{number}{'x' * turn}"
            entry = put(store, tmp_path, parts)
            into = tmp_path / f"lent-{number}"
            if entry is not None and store.lend(entry, into) and into.read_bytes() != parts.encode() * 1_000:
                wrong.append(parts)
            if entry is not None:
                store.used(entry)
            store.best("engine", "user:1", chained(parts))
            store.drop(model_id="none")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    usage = store.usage()
    assert usage.bytes == sum(one.size for one in store.entries()) <= 20_000
    assert set(data_of(tmp_path)) == {one.id for one in store.entries()}


def test_an_unopened_store_keeps_nothing(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "conversations", lambda: 10**9)
    assert store.may_write(1) == "the store is not open yet"
    assert put(store, tmp_path, "abc") is None


def test_what_was_kept_goes_when_it_is_turned_off(tmp_path: Path) -> None:
    kept(store_in(tmp_path), tmp_path, "abc")
    store = store_in(tmp_path, off="the setting conversations is off")
    assert store.may_write(1) == "the setting conversations is off"
    assert put(store, tmp_path, "abc") is None
    assert data_of(tmp_path) == []


def test_nothing_lies_on_the_disk_before_something_is_kept(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert store.may_write(1) == ""
    assert list(tmp_path.iterdir()) == []
    kept(store, tmp_path, "abc")
    assert (tmp_path / "conversations").is_dir()


def test_it_is_opened_and_swept_on_a_thread(tmp_path: Path) -> None:
    clock = HandClock()
    kept(store_in(tmp_path, clock), tmp_path, "abc", model_id="gone")
    kept(store_in(tmp_path, clock), tmp_path, "abc", model_id="there", compat="other")
    models: list[str] = []
    store = ConversationStore(tmp_path / "conversations", lambda: 10**9, clock=clock)
    store.start(lambda: models, every=0.01)
    try:
        until(lambda: store.usage().count == 2)
        models.append("there")
        until(lambda: store.usage().count == 1)
        clock.now += DAY + 1
        until(lambda: data_of(tmp_path) == [])
    finally:
        store.close()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"conversations": "memory"}, 'the setting conversations is "memory"'),
        ({"conversations": "off"}, 'the setting conversations is "off"'),
        ({"conversation_cache": 0}, "the setting conversation_cache is 0"),
        ({"conversation_cache": 100}, "it needs 200 B, and conversation_cache is 100 B"),
        (
            {"conversation_cache": 1_000, "conversation_writes": 100},
            "0 B of at most 100 B a day have been written",
        ),
        ({}, ""),
    ],
)
def test_the_settings_decide_what_is_kept(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    store = ConversationStore.of(Settings(home=tmp_path, **settings))
    store.open()
    assert store.may_write(200) == expected


def test_a_file_that_was_checked_is_lent_unread_unless_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    entry = kept(store, tmp_path, "abc")
    assert store.check(entry)
    with monkeypatch.context() as patch:
        patch.setattr(files, "checksum", lambda _: (0, "it was read"))
        assert store.lend(entry, tmp_path / "lent")
    (tmp_path / "conversations" / f"{entry.id}.bin").write_bytes(b"damage")
    assert not store.lend(entry, tmp_path / "lent")
    assert not store.entries()
    assert not (tmp_path / "lent").exists()


def test_a_damaged_file_is_dropped_by_the_check(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    entry = kept(store, tmp_path, "abc")
    (tmp_path / "conversations" / f"{entry.id}.bin").write_bytes(b"damage")
    assert not store.check(entry)
    assert not store.entries()
