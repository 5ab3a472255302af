"""The store of fetched files (wheels and image layers): whole ones by hash, and partial ones.

<store>/<sha256>/<file name>      whole
<store>/<sha256>.part             what has arrived so far
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

from greenroom.runner.installations.blocking_calls import stop_if
from greenroom.runner.installations.lock_file import LockedFile

_CHUNK = 1 << 20


class FileStore:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._guard = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}
        self._wanted: list[frozenset[str]] = []
        """The files of running builds."""

    def path(self, file: LockedFile) -> Path:
        """Where the file is, or would be."""
        return self.root / file.sha256 / file.name

    def part(self, file: LockedFile) -> Path:
        return self.root / f"{file.sha256}.part"

    def has(self, file: LockedFile) -> bool:
        """Judged by its size."""
        try:
            size = self.path(file).stat().st_size
        except OSError:
            return False
        return size == file.size or not file.size

    def arrived(self, file: LockedFile) -> int:
        """Bytes of the file that need not be fetched any more."""
        if self.has(file):
            return file.size
        try:
            return min(self.part(file).stat().st_size, file.size)
        except OSError:
            return 0

    def missing(self, files: Iterable[LockedFile]) -> list[LockedFile]:
        return [file for file in files if not self.has(file)]

    def check(self, files: Iterable[LockedFile], cancel: Event | None = None) -> list[LockedFile]:
        """Read every stored file and drop the damaged ones; returns these."""
        dropped = []
        for file in files:
            stop_if(cancel)
            if self.has(file) and file_sha256(self.path(file)).hexdigest() != file.sha256:
                self.drop(file)
                dropped.append(file)
        return dropped

    @contextmanager
    def using(self, files: Sequence[LockedFile]) -> Iterator[None]:
        """Meanwhile `release` and `sweep` keep these files."""
        mine = frozenset(file.sha256 for file in files)
        with self._guard:
            self._wanted.append(mine)
        try:
            yield
        finally:
            with self._guard:
                self._wanted.remove(mine)

    def release(self, files: Iterable[LockedFile], needed: Container[str]) -> list[str]:
        """Drop the files that neither `needed` nor a running build names; returns their projects."""
        with self._guard:
            gone = [file for file in files if file.sha256 not in needed and not self._in_use(file.sha256)]
            for file in gone:
                self.drop(file)
        return [file.project for file in gone]

    def drop(self, file: LockedFile) -> None:
        shutil.rmtree(self.root / file.sha256, ignore_errors=True)
        self.part(file).unlink(missing_ok=True)

    def sweep(self, needed: Container[str], older_than: float) -> list[str]:
        """Remove files last modified before a wall time, except those in `needed` or in use.

        Returns the projects of the whole ones.
        """
        projects: list[str] = []
        with self._guard, suppress(FileNotFoundError):
            for entry in list(os.scandir(self.root)):
                sha256 = entry.name.removesuffix(".part")
                with suppress(FileNotFoundError):
                    if (
                        sha256 in needed
                        or self._in_use(sha256)
                        or entry.stat(follow_symlinks=False).st_mtime >= older_than
                    ):
                        continue
                    if entry.is_dir():
                        projects += [LockedFile(one, sha256, 0).project for one in os.listdir(entry.path)]
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        Path(entry.path).unlink(missing_ok=True)
        return projects

    def _in_use(self, sha256: str) -> bool:
        return any(sha256 in files for files in self._wanted)

    def only_one(self, file: LockedFile) -> threading.Lock:
        """Held while fetching the file: two backends may share one."""
        with self._guard:
            return self._busy.setdefault(file.sha256, threading.Lock())


def file_sha256(path: Path) -> hashlib._Hash:
    """The running SHA-256 over all of a file, for continuing."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest
