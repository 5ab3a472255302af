"""Whatever happens to the files, a store offers what was saved or nothing, and leaves no rubbish."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greenroom.runner.conversations.entry import SavedConversation, decoded, encoded
from greenroom.runner.conversations.store import ConversationStore
from saved import HandClock, chained, kept, store_in

CONTENT = random.Random(1).randbytes(10_000)
Damage = Callable[[Path], None]


def offsets(size: int) -> list[int]:
    """One of each class: ends, both sides of the blocks of a file system, and the middle."""
    places = {0, 1, 7, size // 2, size - 2, size - 1}
    places |= {place for block in (512, 4_096, 8_192) for place in (block - 1, block, block + 1)}
    return sorted(place for place in places if 0 <= place < size)


def cut(place: int) -> Damage:
    return lambda path: os.truncate(path, place)


def flip(place: int) -> Damage:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 0x10
        path.write_bytes(data)

    return damage


def zeros(place: int) -> Damage:
    """As after a power failure: the length is right, and the blocks never came."""

    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[:place] + bytes(len(data) - place))

    return damage


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_link(path: Path) -> None:
    copy = path.with_name("copy")
    path.rename(copy)
    path.symlink_to(copy)


def damages(size: int) -> Iterator[tuple[str, Damage]]:
    for place in offsets(size):
        yield f"cut at {place}", cut(place)
        yield f"flip at {place}", flip(place)
        yield f"zeros from {place}", zeros(place)
    yield "extend", extend
    yield "delete", Path.unlink
    yield "a folder", to_folder
    yield "a link", to_link


@pytest.fixture
def saved(tmp_path: Path) -> tuple[SavedConversation, Path]:
    """A saved conversation, and the folder to copy."""
    folder = tmp_path / "original"
    folder.mkdir()
    return kept(store_in(folder), folder, "abc", content=CONTENT), folder / "conversations"


def never_lends_damage(store: ConversationStore, entry: SavedConversation, into: Path) -> None:
    found = store.best(entry.compat, entry.owner, entry.chain)
    if found is not None:
        assert not store.lend(found[0], into)
        assert store.best(entry.compat, entry.owner, entry.chain) is None, "it is not offered again"
    assert not into.exists()


@pytest.mark.parametrize("kind", ["bin", "json"])
def test_a_damaged_file_is_never_given_to_an_engine(
    tmp_path: Path, saved: tuple[SavedConversation, Path], kind: str
) -> None:
    entry, original = saved
    size = (original / f"{entry.id}.{kind}").stat().st_size
    for number, (name, damage) in enumerate(damages(size)):
        # Before the start, and while it runs: then the metadata in memory counts.
        for moment in ("before", "meanwhile"):
            home = tmp_path / f"{number}-{moment}"
            home.mkdir()
            shutil.copytree(original, home / "conversations")
            file = home / "conversations" / f"{entry.id}.{kind}"
            before = file.read_bytes()
            store = store_in(home) if moment == "meanwhile" else None
            damage(file)
            is_same = file.is_file() and not file.is_symlink() and file.read_bytes() == before
            if is_same:
                continue
            if store is None:
                store = store_in(home)
            elif kind == "json":
                continue
            never_lends_damage(store, entry, home / "lent")
            left = [one for one in (home / "conversations").glob("c-*") if not one.is_dir()]
            assert not left, f"{name}, {moment}: {left}"


def test_metadata_is_written_again_by_the_next_use(
    tmp_path: Path, saved: tuple[SavedConversation, Path]
) -> None:
    entry, original = saved
    store = store_in(original.parent)
    file = original / f"{entry.id}.json"
    file.write_bytes(b"")
    store.used(entry)
    assert decoded(file.read_bytes()).restored == 1


def test_metadata_of_another_conversation_under_its_name_is_refused(
    saved: tuple[SavedConversation, Path],
) -> None:
    entry, original = saved
    other = original / "c-ffffffffffff.json"
    other.write_bytes(encoded(entry))
    (original / "c-ffffffffffff.bin").write_bytes(CONTENT)
    store = store_in(original.parent)
    assert [one.id for one in store.entries()] == [entry.id]
    assert not other.exists()


def test_what_is_not_ours_in_the_folder_stays(saved: tuple[SavedConversation, Path]) -> None:
    entry, original = saved
    for name in ("notes.txt", "c-short.bin", "c-aaaaaaaaaaaa.bin.bak"):
        (original / name).write_text("theirs")
    (original / "c-aaaaaaaaaaaa.bin").write_text("never committed")
    (original / ".tmp-123").write_text("a crash left it")
    store = store_in(original.parent)
    assert store.entries() == [entry]
    assert sorted(one.name for one in original.iterdir() if not one.name.startswith(entry.id)) == [
        "c-aaaaaaaaaaaa.bin.bak",
        "c-short.bin",
        "notes.txt",
        "written.json",
    ]


WORK = """
import itertools, sys
from pathlib import Path
sys.path[:0] = [{shared!r}]
from saved import put, store_in
home = Path(sys.argv[1])
store = store_in(home, budget=lambda: 400_000)
print("begun", flush=True)
for turn in itertools.count():
    parts = f"{{turn % 7}}" + "x" * (turn % 5)
    entry = put(store, home, parts, content=parts.encode() * 20_000)
    if entry is not None:
        store.lend(entry, home / "lent")
        store.used(entry)
    if turn % 3 == 0 and entry is not None:
        store.drop(entry_id=entry.id)
"""


def killed_somewhere(home: Path, after: float) -> None:
    """A process that saves, lends and drops is killed."""
    code = WORK.format(shared=str(Path(__file__).parents[1] / "shared"))
    process = subprocess.Popen([sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    time.sleep(after)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    process.stdout.close()


def expect_whole(home: Path) -> None:
    """All that is offered is as it was saved, and nothing else lies there."""
    store = store_in(home, HandClock(), budget=lambda: 400_000)
    entries = store.entries()
    assert {one.stem for one in (home / "conversations").glob("c-*")} == {one.id for one in entries}
    assert not list((home / "conversations").glob(".tmp-*"))
    assert store.usage().bytes == sum(one.size for one in entries)
    for entry in entries:
        assert store.lend(entry, home / "lent")
        parts = (home / "lent").read_bytes()[: len(entry.chain)].decode()
        assert entry.chain == chained(parts)
        assert (home / "lent").read_bytes() == parts.encode() * 20_000


def test_a_kill_while_it_saves_lends_and_drops_leaves_a_whole_store(tmp_path: Path) -> None:
    for after in (0.01, 0.1):
        killed_somewhere(tmp_path, after)
        expect_whole(tmp_path)


@pytest.mark.slow
def test_a_hundred_kills_leave_a_whole_store(tmp_path: Path) -> None:
    moments = random.Random(7)
    for _ in range(100):
        killed_somewhere(tmp_path, moments.uniform(0, 0.15))
        expect_whole(tmp_path)
