"""Fill the disk under a journal, record what must be recorded, make space, go on; say how it went in JSON.

`full_disk.py limit FOLDER` limits the size of files; `full_disk.py disk FOLDER` fills a small disk that is
mounted there.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from greenroom.actors.journal.conformance import entry
from greenroom.actors.journal.port import JournalFull
from greenroom.actors.journal.reader import JournalReader
from greenroom.actors.journal.sqlite import SqliteJournal

DATA = '{"log":"' + "x" * 600 + '"}'


class Filled:
    """A journal, and what it acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.db"
        self.journal = SqliteJournal(self.path)
        self.acknowledged: list[str] = []
        self.versions: dict[str, int] = {}

    def append(self, stream: str, *, urgent: bool = False) -> bool:
        version = self.versions.get(stream, 0) + 1
        try:
            (record,) = self.journal.append([entry(stream, version, data=DATA)], urgent=urgent)
        except JournalFull:
            return False
        self.versions[stream] = version
        self.acknowledged.append(record.id)
        return True

    def append_until_full(self) -> int:
        count = 0
        while self.append("runner/mlx"):
            count += 1
            assert count < 100_000, "it never gets full"
        return count


def limit(folder: Path) -> tuple[Filled, Callable[[], None]]:
    """No file may grow beyond a mebibyte."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))

    def make_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    return Filled(folder), make_space


def disk(folder: Path) -> tuple[Filled, Callable[[], None]]:
    """Another program has filled the disk, but for a little."""
    filled = Filled(folder)
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        space = os.statvfs(folder)
        file.write(b"b" * (space.f_bavail * space.f_bsize - (200 << 10)))
    return filled, ballast.unlink


def main() -> None:
    folder = Path(sys.argv[2])
    filled, make_space = {"limit": limit, "disk": disk}[sys.argv[1]](folder)
    said: dict[str, object] = {"first": filled.append_until_full()}
    said["still_full"] = not filled.append("runner/mlx")
    said["stops"] = sum(filled.append(f"stop/{n}", urgent=True) for n in range(40))
    said["others_after_stops"] = filled.append("runner/mlx")
    with JournalReader(filled.path) as reader:
        said["read_while_full"] = [record.id for record in reader.read()] == filled.acknowledged
    make_space()
    said["again"] = sum(filled.append("runner/mlx") for _ in range(50))
    said["reserve"] = filled.journal.files.reserve.exists()
    # A second time, and this time it is closed and opened while there is no space.
    filled.journal.close()
    with JournalReader(filled.path) as reader:
        said["read_at_the_end"] = [record.id for record in reader.read()] == filled.acknowledged
    with contextlib.suppress(FileNotFoundError):
        said["log_is_gone"] = filled.journal.files.wal.stat().st_size == 0
    print(json.dumps(said))


main()
