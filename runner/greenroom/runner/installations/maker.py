"""What environments and images have in common: kept downloads, space on the disk, and removal.

The total need of space is checked before the first byte is fetched.

<store>/<sha256>/<file name>      a whole file: a wheel or an image layer
<store>/<sha256>.part             what has arrived so far
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import shutil
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

from greenroom.actors.values import Installation, Plan
from greenroom.runner.backends.base import Platform
from greenroom.runner.errors import JobFailed, blamed
from greenroom.runner.installations.errors import os_failure
from greenroom.runner.installations.installed import (
    InstallationStore,
    blocks,
    discard,
    existing,
    folder_of,
    freed,
    kept_if_unclear,
)
from greenroom.runner.installations.lock_file import LockedFile
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.installations.verification import InstallationRecord, Unclear, read_record
from greenroom.runner.threads import Beside, TookTooLong, stop_if

_KEPT_SECONDS = 7 * 86400.0
"""How long the downloads of an unfinished installation are kept."""


_CHUNK = 1 << 20


class FileStore:
    """The downloads of one data directory: whole ones by hash, and partial ones."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._guard = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}
        self._wanted: list[frozenset[str]] = []
        """The files of running builds."""

    def path(self, file: LockedFile) -> Path:
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


class Maker:
    """Builds and removes one kind of installation in one data directory; thread-safe."""

    def __init__(
        self,
        installed: InstallationStore,
        store: FileStore,
        sources: PackageSources,
        platform: Platform | None,
    ) -> None:
        """`installed` is shared by all makers of this data directory."""
        self.installed = installed
        self.store = store
        self._sources = sources
        self._platform = platform or Platform.here()

    def use(self, sources: PackageSources) -> None:
        """Use these package sources (or their transport) from now on."""
        self._sources = sources

    @contextmanager
    def _attempt(self, backend: str, version: str, digest: str, job: str, variant: str) -> Iterator[Path]:
        """A new folder to build in. It is gone unless the block ends well.

        Raises:
            JobFailed: It cannot be written.
        """
        folder = self.installed.new_folder(backend, version, digest, job, variant=variant)
        try:
            yield folder
        except BaseException as error:
            discard(folder)
            if isinstance(error, OSError):
                raise os_failure(error, "The installation could not be written") from error
            raise
        finally:
            self.installed.settled(folder)

    def _plan_for(
        self, backend: str, version: str, packages: Iterable[str], files: Sequence[LockedFile]
    ) -> Plan:
        return Plan(
            backend=backend,
            version=version,
            packages=tuple(packages),
            download_bytes=sum(file.size - self.store.arrived(file) for file in files),
            total_bytes=sum(file.size for file in files),
        )

    def remove(self, installation: Installation) -> int:
        """Remove an installation and what only it needs; returns the bytes freed, as measured.

        Raises:
            JobFailed: Its files cannot be removed.
        """
        folder = folder_of(self.installed.home, installation)
        before = blocks([folder, *self._caches()])
        try:
            record = read_record(folder)
        except (ValueError, Unclear):
            record = None
        elsewhere = self._withdraw(folder, record)
        try:
            discard(folder)
        except OSError as error:
            raise os_failure(error, f"{installation.backend} could not be removed") from error
        with kept_if_unclear():
            fetched = [file.locked() for file in record.wheels] if record is not None else []
            self._forget(self.store.release(fetched, self._needed()))
        return freed(before, blocks([folder, *self._caches()])) + elsewhere

    def sweep(self, older_than: float | None = None) -> None:
        """Remove what abandoned attempts downloaded, if last used before `older_than` (wall time; a week ago
        by default). Files of running builds are kept.
        """
        before = time.time() - _KEPT_SECONDS if older_than is None else older_than
        with kept_if_unclear():
            self._forget(self.store.sweep(self._needed(), before))

    def drop_fetched(self) -> int:
        """Remove all of it now; returns the bytes freed."""
        before = blocks(self._caches())
        self.sweep(math.inf)
        return freed(before, blocks(self._caches()))

    def _needed(self) -> set[str]:
        """Hashes of all files that some installation was made from."""
        records = self.installed.records(all_of_them=True)
        return {file.sha256 for record in records for file in record.wheels}

    def _caches(self) -> list[Path]:
        return [self.store.root]

    def _withdraw(self, folder: Path, record: InstallationRecord | None) -> int:  # noqa: ARG002 - images have some
        """Remove an installation's files outside of its folder; returns the bytes freed."""
        return 0

    def _forget(self, projects: Iterable[str]) -> None:
        """Clear other caches of projects whose files were dropped."""


RESERVE = 64 * 2**20
"""Bytes of the disk left free for the journal, logs and other programs."""
_AMPLE = 8
"""Packages unpack to three times their size; with room for this many times, sizes are not asked."""
_ASK_SECONDS = 30.0
_TAIL = 64 * 1024
_TAIL_MOST = 16 * 2**20
_END = struct.Struct("<4s8xII2x")
"""A zip's last record: its mark, and size and offset of the directory."""

Tail = Callable[[LockedFile, int], bytes | None]
"""Returns the last bytes of a remote file; None if its server does not support that."""


def free(home: Path) -> int:
    """Bytes that can be written to the data directory's disk."""
    return shutil.disk_usage(existing(home)).free


def need_space(home: Path, needed: int) -> None:
    """Raise if the data directory's disk lacks room for `needed` bytes besides the reserve.

    Raises:
        JobFailed: Permanent, `no_space`, with what is needed and what is there.
    """
    there = free(home)
    if needed and there < needed + RESERVE:
        raise _no_space(
            f"Installing needs {(needed + RESERVE) / 1e6:.0f} MB, including {RESERVE / 1e6:.0f} MB kept free "
            f"for the journal and the logs; the disk of {existing(home)} has {there / 1e6:.0f} MB left."
        )


def keep_reserve(home: Path) -> None:
    """Raise if the disk is down to the reserve; for use while writing.

    Raises:
        JobFailed: Permanent, `no_space`.
    """
    there = free(home)
    if there < RESERVE:
        raise _no_space(
            f"The disk of {existing(home)} has {there / 1e6:.0f} MB left; {RESERVE / 1e6:.0f} MB of it must "
            "stay free for the journal and the logs."
        )


def is_ample(home: Path, download: int, total: int) -> bool:
    """Whether there is room however much these packages unpack to."""
    return free(home) >= download + _AMPLE * total + RESERVE


def unpacked(
    files: Sequence[LockedFile], here: Callable[[LockedFile], Path | None], tail: Tail, cancel: Event
) -> int:
    """Bytes that wheels unpack to; for unreadable ones, their own size.

    Args:
        here: The path of an already fetched file.
        tail: Asks the server; called on several threads.
        cancel: Stops asking, with JobCancelled.
    """
    asked = [(file, Beside(lambda file=file: _unpacked(file, here, tail), "wheel-size")) for file in files]  # type: ignore[misc]
    total = 0
    for file, ask in asked:
        try:
            total += max(file.size, ask.result(cancel=cancel, seconds=_ASK_SECONDS))
        except (TookTooLong, JobFailed):
            total += file.size
    return total


def _unpacked(file: LockedFile, here: Callable[[LockedFile], Path | None], tail: Tail) -> int:
    if (path := here(file)) is not None:
        return unpacked_wheel(path, file.size)
    size = _TAIL
    for _ in range(2):
        end = tail(file, size)
        if end is None:
            return file.size
        place = end.rfind(b"PK\5\6")
        if place < 0 or place + _END.size > len(end):
            return file.size
        directory = _END.unpack_from(end, place)[1]
        if directory <= place:
            return unpacked_wheel(io.BytesIO(end), file.size)
        size = directory + _TAIL
        if size > _TAIL_MOST:
            break
    return file.size


def unpacked_wheel(wheel: Path | io.BytesIO, otherwise: int) -> int:
    """Unpacked bytes according to a wheel's directory."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError):
        return otherwise  # uv will report what is wrong with it


def _no_space(message: str) -> JobFailed:
    failed = JobFailed.permanent(
        "no_space", message, advice="Free some space, or set GREENROOM_HOME to a folder on another disk."
    )
    return JobFailed(blamed(failed.failure))
