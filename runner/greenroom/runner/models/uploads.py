"""Files that clients have sent, each under its digest, until a model is made of them.

An upload is hashed as it comes and gets its name when it is whole, so that a crash leaves no half file.
What is not used for a week is swept; a sweep that the user asks for leaves what was used in the last minutes,
since a client sends all files of a model before it makes one of them.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from greenroom.actors.journal.fsync import force, sync_folder
from greenroom.runner.errors import JobFailed
from greenroom.runner.models.errors import from_os_error, nearly_full, no_space
from greenroom.runner.models.files import children, unlink
from greenroom.runner.models.references import blob_name
from greenroom.runner.systems.disk_room import RESERVE, DiskRoom

MOST = 1_000
"""Files that may wait to be used."""
_BEING_SENT = 600.0
"""Seconds after its last use in which a file counts as part of what a client is about to do."""
_PART = ".part-"
_LOOK_EVERY = 64 * 2**20
"""Bytes after which the room on the disk is looked at."""


class Uploads:
    """Thread-safe."""

    def __init__(self, folder: Path, clock: Callable[[], float], room: DiskRoom | None = None) -> None:
        self._folder = folder
        self._room = room or DiskRoom(folder)
        self._clock = clock
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self._parts: set[Path] = set()

    def find(self, digest: str) -> Path | None:
        """Where an uploaded file lies; this counts as a use of it."""
        path = self._folder / blob_name(digest)
        now = self._clock()
        with suppress(OSError), self._lock:
            os.utime(path, (now, now))
            return path
        return None

    def begin(self, digest: str, size: int = 0) -> Upload:
        """A file that is about to come, `size` bytes as far as that is known.

        Raises:
            JobFailed: There is no room for it, or too many files wait to be used.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if len(children(self._folder)) >= MOST:
                raise JobFailed.transient(
                    "too_many_uploads",
                    f"{MOST} uploaded files wait to be used, and no more are kept.",
                    advice="Create models of them, or remove them: greenroom prune",
                )
            free = self._room.free(size + RESERVE)
            if free - size < RESERVE:
                raise no_space(size, max(0, free - RESERVE), str(self._folder.parent))
            part = self._folder / f"{_PART}{secrets.token_hex(8)}"
            self._parts.add(part)
            try:
                return Upload(part, self._folder / blob_name(digest), digest, self._ended, self._room)
            except OSError:
                self._parts.discard(part)
                raise
        except OSError as error:
            raise from_os_error(error, "receiving the file") from error

    @contextmanager
    def held(self, digests: Iterable[str]) -> Iterator[None]:
        """Keep these files from being swept."""
        names = [blob_name(one) for one in digests]
        with self._lock:
            self._held.update(names)
        try:
            yield
        finally:
            with self._lock:
                self._held -= Counter(names)

    def drop(self, digests: Iterable[str]) -> None:
        """Remove files that are part of a model now; one that another model is made of stays."""
        with self._lock:
            for name in map(blob_name, digests):
                if not self._held[name]:
                    unlink(self._folder / name)

    def sweep(self, now: float, before: float) -> int:
        """Remove files last used before a wall time; returns the bytes freed."""
        freed = 0
        with self._lock:
            for path in children(self._folder):
                if path in self._parts or self._held[path.name]:
                    continue
                with suppress(FileNotFoundError):
                    used = path.stat().st_mtime
                    # One from the future was written by a clock that was wrong.
                    if path.name.startswith(_PART) or used > now or used <= min(before, now - _BEING_SENT):
                        freed += unlink(path)
        return freed

    def _ended(self, part: Path) -> None:
        part.unlink(missing_ok=True)
        self._parts.discard(part)


class Upload:
    """One file on its way; it blocks. Only `close` may be called while another call goes on."""

    def __init__(
        self, part: Path, place: Path, digest: str, ended: Callable[[Path], None], room: DiskRoom
    ) -> None:
        self._part = part
        self._place = place
        self._digest = digest
        self._ended = ended
        self._room = room
        self._hash = hashlib.sha256()
        self._size = 0
        self._file = part.open("xb", buffering=0)
        # A descriptor that is closed during a write may be another file's by then.
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Raises JobFailed when the disk is full."""
        try:
            self._hash.update(data)
            with self._lock:
                view = memoryview(data)
                while view:
                    view = view[self._file.write(view) :]
            before, self._size = self._size, self._size + len(data)
            if before // _LOOK_EVERY != self._size // _LOOK_EVERY:
                free = self._room.free(RESERVE)
                if free < RESERVE:
                    raise nearly_full(free, str(self._part.parent))
        except OSError as error:
            raise from_os_error(error, "receiving the file") from error

    def finish(self) -> str:
        """Keep the file if it is the one that was announced; returns the digest that it has.

        Raises:
            JobFailed: It could not be written.
        """
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self._digest:
            return found
        try:
            with self._lock:
                force(self._file.fileno())
            self._part.replace(self._place)
            sync_folder(self._place.parent)
        except OSError as error:
            raise from_os_error(error, "receiving the file") from error
        return found

    def close(self) -> None:
        """In any case at the end; what was not finished is removed."""
        with self._lock:
            self._file.close()
        self._ended(self._part)
