"""Installations on the disk: finds, checks, sweeps and removes them; what all kinds of them share. Needs no
network. The total need of space is checked before the first byte is fetched.

<home>/backends/<backend>/[<variant>-]<version>-<digest8>.<n>/
    attempt.json         during a build: which process builds it
    env/                 the Python environment, or the tree from an image
    lock.txt             the lock an environment was built from
    installation.json    written last: the commit mark
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Literal
from uuid import uuid4

import msgspec

from greenroom.actors.journal.fsync import write_atomically
from greenroom.actors.values import Installation, Plan
from greenroom.runner.backends.base import Platform
from greenroom.runner.errors import JobCancelled, JobFailed, blamed
from greenroom.runner.installations.errors import os_failure
from greenroom.runner.installations.lock_file import FileStore, LockedFile
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.installations.verification import (
    MARK,
    InstallationRecord,
    Unclear,
    changed,
    complaint,
    interpreter,
    read_record,
    walk,
)
from greenroom.runner.systems.disk_room import RESERVE, DiskRoom, existing
from greenroom.runner.systems.processes import ProcessIdentity, of_folder
from greenroom.runner.systems.programs import kill_all
from greenroom.runner.threads import Beside, TookTooLong

_log = logging.getLogger(__name__)

ATTEMPT = "attempt.json"
LOCK = "lock.txt"
BUILD_FOLDER = "GREENROOM_BUILD_FOLDER"
"""The variable that names an attempt's folder to every process of a build from source."""

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,120}")
_ID = re.compile(r"(?P<build>.+)-(?P<digest>[0-9a-f]{8})\.(?P<number>\d+)")
LOOK_SECONDS = 60.0
UNREADABLE = "Check the disk and the owner of the data directory. Greenroom keeps checking."
_AMPLE = 8
"""Packages unpack to three times their size; with room for this many times, sizes are not asked."""
_KEPT_SECONDS = 7 * 86400.0
"""How long the downloads of an unfinished installation are kept."""


class BuildAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """`attempt.json`: the program that writes into a folder without a commit mark."""

    job: str
    pid: int = 0
    """The running uv's; start time and boot distinguish it from a later process with the same number."""
    started: float = 0.0
    boot: str = ""


def segment(name: str) -> str:
    """Validate a name as one folder name; the only way from a name to a path.

    Raises:
        JobFailed: It could lead to another folder.
    """
    if not _SEGMENT.fullmatch(name) or ".." in name:
        raise JobFailed.permanent(
            "bad_name", f"{name!r} is not a valid folder name.", advice="Use letters, digits, `-`, `.`, `_`."
        )
    return name


def folder_of(home: Path, installation: Installation) -> Path:
    """Where an installation lies, including one the user named in the config."""
    if not installation.managed:
        return Path(installation.root)
    return home / "backends" / segment(installation.backend) / segment(installation.id)


def python_of(home: Path, installation: Installation) -> Path:
    """The interpreter an installation runs with; if the user named a program, that program."""
    folder = folder_of(home, installation)
    if installation.managed:
        return interpreter(folder)
    return folder / "bin" / "python" if folder.is_dir() else folder


class InstallationStore:
    def __init__(self, home: Path, room: DiskRoom | None = None) -> None:
        self.home = home
        self.root = home / "backends"
        self.room = room or DiskRoom(home)
        self._guard = threading.Lock()
        self._live: set[Path] = set()

    def look(self, backend: str) -> list[Installation]:
        """Committed installations of a backend, oldest first; broken ones carry the reason.

        Raises:
            OSError: The backend's folder cannot be read.
        """
        return list(self.judged(backend)[0])

    def made_of(
        self,
        backend: str,
        version: str,
        variant: str,
        is_same: Callable[[InstallationRecord], bool] = lambda _: True,
    ) -> Installation | None:
        """The latest intact installation of a version whose record says that it is made of the same."""
        wanted = (variant, version)
        for one in reversed(self.look(backend)):
            if (one.variant, one.version) == wanted and not one.broken and is_same(self.record(one)):
                return one
        return None

    def judged(self, backend: str) -> tuple[tuple[Installation, ...], dict[str, str]]:
        """As `look`, and the installations that cannot be judged now, with the reason.

        Checks presence and size of every file and starts each Python once: some tens of milliseconds.

        Raises:
            OSError: The backend's folder cannot be read.
        """
        folders = sorted(self._folders(backend), key=_age)
        looks = [Beside(partial(_seen, backend, folder), f"look-{folder.name}") for folder in folders]
        found: list[Installation] = []
        unclear: dict[str, str] = {}
        for folder, look in zip(folders, looks, strict=True):
            try:
                one = look.result(seconds=LOOK_SECONDS)
            except Unclear as error:
                unclear[folder.name] = str(error)
            except TookTooLong:
                unclear[folder.name] = f"its disk has not answered for {LOOK_SECONDS:.0f}s"
            else:
                found += [one] if one is not None else []
        return tuple(found), unclear

    def backends(self) -> list[str]:
        """Names of all backends that have a folder."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        return []

    def record(self, installation: Installation) -> InstallationRecord:
        """The contents of an installation's `installation.json`.

        Raises:
            JobFailed: The installation is gone, or its mark is damaged or unreadable.
        """
        try:
            found = read_record(folder_of(self.home, installation))
        except ValueError as error:
            raise JobFailed.permanent(
                "broken", f"{installation.id} of {installation.backend} is broken: {error}."
            ) from error
        except Unclear as error:
            raise _unreadable(installation, error) from error
        if found is None:
            raise JobFailed.permanent(
                "not_installed", f"{installation.backend} has no installation {installation.id}."
            )
        return found

    def kind(self, installation: Installation) -> Literal["environment", "image", "program"]:
        """What was installed; an environment where there is no record.

        Raises:
            JobFailed: No installation can have that name.
        """
        with suppress(ValueError):
            if (found := read_record(folder_of(self.home, installation))) is not None:
                return "program" if found.program else "image" if found.image is not None else "environment"
        return "environment"

    def records(self, *, all_of_them: bool = False) -> Iterator[InstallationRecord]:
        """The readable records of all backends' committed installations.

        Args:
            all_of_them: Fail rather than skip an unreadable one, for callers that delete what no record
                names.

        Raises:
            Unclear: With `all_of_them`, one cannot be read now.
            OSError: A backend's folder cannot be read.
        """
        for backend in self.backends():
            for folder in self._folders(backend):
                try:
                    found = read_record(folder)
                except ValueError:
                    continue
                except Unclear:
                    if all_of_them:
                        raise
                    continue
                if found is not None:
                    yield found

    def verify(self, installation: Installation, cancel: Event | None = None) -> list[str]:
        """Read every file and describe those whose bytes have changed since the installation.

        Raises:
            JobFailed: There is no such installation, or it cannot be read now.
        """
        try:
            return changed(folder_of(self.home, installation), self.record(installation), cancel)
        except OSError as error:
            raise os_failure(error, f"{installation.id} of {installation.backend} cannot be read") from error
        except Unclear as error:
            raise _unreadable(installation, error) from error

    def new_folder(self, backend: str, version: str, digest: str, job: str, *, variant: str = "") -> Path:
        """A new folder for one attempt, marked as being built until `settled`.

        Raises:
            JobFailed: It cannot be created.
        """
        build = f"{variant}-{version}" if variant else version
        stem = f"{segment(re.sub(r'[^0-9A-Za-z._+!-]', '_', build))}-{digest[:8]}"
        place = self.root / segment(backend)
        # Created and marked in one step: a sweep in between would take it for a leftover.
        with self._guard:
            try:
                place.mkdir(parents=True, exist_ok=True)
                taken = [m for entry in os.scandir(place) if (m := _ID.fullmatch(entry.name))]
                numbers = [int(m["number"]) for m in taken if f"{m['build']}-{m['digest']}" == stem]
                folder = place / f"{stem}.{max(numbers, default=0) + 1}"
                folder.mkdir()
                write_attempt(folder, BuildAttempt(job=job))
            except OSError as error:
                raise os_failure(error, "The installation's folder could not be created") from error
            self._live.add(folder)
        return folder

    def settled(self, folder: Path) -> None:
        """The attempt is over: the folder is committed or gone."""
        with self._guard:
            self._live.discard(folder)

    def sweep(self) -> list[Path]:
        """Remove every folder without a commit mark that this process is not building; returns them.

        A uv that outlived a killed daemon may still write there, so it is killed first.

        Raises:
            OSError: It cannot be determined whether there is a mark.
        """
        swept = []
        for backend in self.backends():
            for folder in self._folders(backend):
                with self._guard:
                    if folder in self._live or _is_there(folder / MARK):
                        continue
                    _end_builder(folder)
                    discard(folder)
                swept.append(folder)
        return swept

    def _folders(self, backend: str) -> list[Path]:
        try:
            with os.scandir(self.root / segment(backend)) as entries:
                return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            if self.root.is_symlink() and not os.path.exists(self.root):
                # A link to a disk that is not mounted: its contents are unknown.
                raise
            return []


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


def _unreadable(installation: Installation, error: Unclear) -> JobFailed:
    message = f"{installation.id} of {installation.backend} cannot be read now: {error}."
    return JobFailed.transient("unreadable", message, advice=UNREADABLE)


def write_attempt(folder: Path, attempt: BuildAttempt) -> None:
    write_atomically(folder / ATTEMPT, msgspec.json.encode(attempt))


def discard(folder: Path) -> None:
    """Remove an installation's folder, the mark first, so that a half-removed one never counts.

    The folder is renamed before its contents go: its name may be taken again by the next attempt at once.

    Raises:
        OSError: Something in it cannot be removed.
    """
    with contextlib.suppress(NotADirectoryError):  # someone has put a file there
        (folder / MARK).unlink(missing_ok=True)
    going = folder.with_name(f"{folder.name}.going-{uuid4().hex[:8]}")
    try:
        folder.rename(going)
    except FileNotFoundError:
        return
    except OSError:
        going = folder  # a mount point, for example: what is in it can go
    if going.is_symlink() or going.is_file():
        going.unlink()
        return
    for _ in range(3):
        # A program that just ended may have created a file after its folder was listed.
        shutil.rmtree(going, ignore_errors=True)
        if not going.exists():
            return
    shutil.rmtree(going)


def no_exec(home: Path) -> str:
    """A clause saying that the data directory's disk is mounted noexec; empty when it is not."""
    place = existing(home)
    forbidden = getattr(os, "ST_NOEXEC", 0)
    if os.statvfs(place).f_flag & forbidden:
        return f"the disk of {place} is mounted noexec, so nothing on it can be run"
    return ""


def need_exec(home: Path) -> None:
    """Raise if programs in the data directory cannot run.

    Raises:
        JobFailed: Permanent, `noexec`: engines map their libraries as executable, wherever Python itself is.
    """
    if clause := no_exec(home):
        failed = JobFailed.permanent(
            "noexec",
            f"Nothing can be installed there: {clause}.",
            advice="Mount it without noexec, or set GREENROOM_HOME to a folder on another disk.",
        )
        raise JobFailed(blamed(failed.failure))


@contextmanager
def kept_if_unclear() -> Iterator[None]:
    """Clean-up never acts on a guess and never fails a job; what is left is cleaned up later."""
    try:
        yield
    except (Unclear, OSError) as error:
        _log.warning("downloads are not cleaned up: %s", error)
    except JobFailed as failed:
        _log.warning("the package cache could not be cleaned up: %s", failed)
    except JobCancelled:
        _log.info("the package cache is cleaned up later")


def usage(places: Iterable[Path]) -> int:
    """Bytes on disk below all places together; hard links between them count once."""
    return sum(blocks(places).values())


def blocks(places: Iterable[Path]) -> dict[tuple[int, int], int]:
    """Bytes on disk by device and inode."""
    found: dict[tuple[int, int], int] = {}
    for place in places:
        # Files that vanish meanwhile no longer count.
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in walk(place):
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found


def _seen(backend: str, folder: Path) -> Installation | None:
    try:
        found = read_record(folder)
    except ValueError as error:
        match = _ID.fullmatch(folder.name)
        # Without its mark, the name is all there is: it may begin with a variant.
        version = match["build"] if match else folder.name
        return Installation(id=folder.name, backend=backend, version=version, broken=str(error))
    if found is None:
        return None
    if (found.id, found.backend) != (folder.name, backend):
        # Copied or renamed by hand: environments contain their own path and do not survive that.
        return msgspec.structs.replace(
            found.installation(f"it was built as {found.backend}/{found.id} and has been moved"),
            id=folder.name,
            backend=backend,
        )
    return found.installation(complaint(folder, found))


def _is_there(path: Path) -> bool:
    """Unlike `exists`, raises for any error other than absence."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _age(folder: Path) -> tuple[float, str]:
    try:
        return (folder / MARK).stat().st_mtime, folder.name
    except OSError:
        return 0.0, folder.name


def _end_builder(folder: Path) -> None:
    # A compiler runs in a group of its own, and may have been started just before it could be recorded.
    builders = of_folder(folder.absolute(), BUILD_FOLDER)
    with suppress(OSError, msgspec.MsgspecError):
        attempt = msgspec.json.decode((folder / ATTEMPT).read_bytes(), type=BuildAttempt)
        builder = ProcessIdentity(attempt.pid, attempt.started, attempt.boot)
        builder.send_group(signal.SIGKILL)
        builders.append(builder)
    kill_all(builders)


def freed(before: dict[tuple[int, int], int], after: dict[tuple[int, int], int]) -> int:
    """Bytes of the files whose last name is gone."""
    return sum(size for key, size in before.items() if key not in after)


# space on their disk


def need_space(room: DiskRoom, needed: int) -> None:
    """Raise if the disk lacks room for `needed` bytes besides the reserve, whatever can be spared on it.

    Raises:
        JobFailed: Permanent, `no_space`, with what is needed and what is there.
    """
    there = room.free(needed + RESERVE if needed else 0)
    if needed and there < needed + RESERVE:
        raise _no_space(
            f"Installing needs {(needed + RESERVE) / 1e6:.0f} MB, including {RESERVE / 1e6:.0f} MB kept free "
            f"for the journal and the logs; the disk of {room.folder} has {there / 1e6:.0f} MB left.",
            needed + RESERVE,
            there,
        )


def keep_reserve(room: DiskRoom) -> None:
    """Raise if the disk is down to the reserve; for use while writing.

    Raises:
        JobFailed: Permanent, `no_space`.
    """
    there = room.free(RESERVE)
    if there < RESERVE:
        raise _no_space(
            f"The disk of {room.folder} has {there / 1e6:.0f} MB left; {RESERVE / 1e6:.0f} MB of it must "
            "stay free for the journal and the logs.",
            RESERVE,
            there,
        )


def is_ample(room: DiskRoom, download: int, total: int) -> bool:
    """Whether there is room however much these packages unpack to."""
    return room.free() >= download + _AMPLE * total + RESERVE


def _no_space(message: str, needed: int, free: int) -> JobFailed:
    failed = JobFailed.permanent(
        "no_space", message, advice="Free some space, or set GREENROOM_HOME to a folder on another disk."
    )
    numbers = {"needed": float(needed), "free": float(free)}
    return JobFailed(msgspec.structs.replace(blamed(failed.failure), numbers=numbers))
