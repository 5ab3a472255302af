"""Downloads of a model's files: parallel, resumable, hashed while streaming, cancellable at once.

Hugging Face's own client restarts a file from zero after its process has ended, and OCI clients for Python
keep whole layers in memory; so both are fetched here, over urllib3. A broken-off file stays in the store's
`partial` folder under its digest and is resumed by the next attempt; a concurrent pull of the same file
fetches its own copy, since two must never write to one file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import IO, TYPE_CHECKING, Any

from greenroom.actors.progress import FileProgress
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.models.arrival import Arrival
from greenroom.runner.models.errors import NO_ANSWER, TOO_SLOW, from_os_error, hash_mismatch
from greenroom.runner.models.sources.base import Report
from greenroom.runner.threads import side_by_side
from greenroom.runner.units import format_size

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

    from greenroom.runner.installations.web import Web

_CHUNK = 256 * 1024
_AT_ONCE = 4
SILENCE = 60.0
_LEAST = 16_000
"""Bytes that must arrive within that time, since a slower server blocks other pulls."""
_UNKNOWN_MOST = 2**40
"""Maximum bytes of a file of unknown size."""


@dataclass(frozen=True)
class FileToFetch:
    url: str
    name: str
    """In the model."""
    size: int
    """0 if the source gives none, unless it is `exact`."""
    digest: str = ""
    """`sha256:<hex>`; empty if the source gives none."""
    git_oid: str = ""
    """Git's SHA-1 of the file, if there is no digest."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    begin: Callable[[int], BaseHTTPResponse] | None = field(default=None, repr=False)
    """Requests the bytes from an offset on, where a URL is not enough: registries have mirrors, and tokens
    that live for minutes while downloads take hours. Responds with status 200, 206 or 416."""
    exact: bool = False
    told: bool = True
    """Counts as one of the model's files; a manifest's configuration does not."""


class Transfer:
    """Fetches pieces into one arrival."""

    def __init__(
        self,
        web: Web,
        arrival: Arrival,
        report: Report,
        cancel: Event,
        refused: Callable[[FileToFetch, int], JobFailed],
    ) -> None:
        """`refused` maps an unsuccessful status to a failure."""
        self._web = web
        self._arrival = arrival
        self._report = report
        self._cancel = cancel
        self._refused = refused
        self._stop = Event()
        self._lock = threading.Lock()
        self._open: set[BaseHTTPResponse] = set()
        self._locks = ExitStack()
        self._done = 0
        self._total = 0
        self._come = 0
        """Bytes received, or found in the partial file."""
        self._seen = 0
        self._seen_at = 0.0
        self._told_at = 0.0
        self._moving: dict[str, FileProgress] = {}

    def bring(self, pieces: Sequence[FileToFetch]) -> None:
        """Fetch all pieces; stored ones are not fetched.

        Raises:
            JobFailed: The first failure; partial files serve the next attempt.
            JobCancelled: `cancel` was set.
        """
        self._total = sum(piece.size for piece in pieces if piece.told)
        missing = []
        for piece in pieces:
            if piece.digest and self._arrival.reuse(piece.digest, piece.size, piece.name):
                self._done += piece.size if piece.told else 0
            else:
                missing.append(piece)
        self._moving = {one.name: FileProgress(one.digest, one.name, one.size) for one in missing if one.told}
        self._report("downloading", self._done, self._total, "", self._moving.values())
        # Locks are held until the end: no one else may write to an adopted file.
        with ExitStack() as self._locks:
            arrived = self._fetch_all(missing)
            # Only when all have arrived: a complete piece serves the next attempt if another fails.
            for piece, (path, digest) in zip(missing, arrived, strict=True):
                self._arrival.adopt(path, piece.name, digest)

    def _fetch_all(self, pieces: Sequence[FileToFetch]) -> list[tuple[Path, str]]:
        self._seen, self._seen_at = 0, time.monotonic()
        calls = [partial(self._fetch, piece) for piece in pieces]
        return side_by_side(calls, _AT_ONCE, "download", tick=self._look, halt=self._halt)

    def _look(self) -> None:
        """Called regularly: check for cancellation, progress and disk space."""
        if self._cancel.is_set():
            raise JobCancelled
        now = time.monotonic()
        if self._come - self._seen >= _LEAST:
            self._seen, self._seen_at = self._come, now
        elif now - self._seen_at > SILENCE:
            raise JobFailed.transient(
                TOO_SLOW,
                f"Only {self._come - self._seen} bytes of the model arrived within {SILENCE:.0f}s.",
                advice=NO_ANSWER,
            )
        if now - self._told_at >= 1.0:
            self._arrival.check_room()
            self._tell()

    def _fetch(self, piece: FileToFetch) -> tuple[Path, str]:
        try:
            file = self._writing(piece)
            with self._lock:
                self._locks.callback(file.close)
            digest = self._fill(piece, file)
            return Path(file.name), digest
        except OSError as error:
            raise from_os_error(error, f"downloading {piece.name}") from error

    def _writing(self, piece: FileToFetch) -> IO[bytes]:
        """The locked file to write to: the partial one, unless another pull has it."""
        own = self._arrival.work / f"{len(piece.name)}-{hashlib.sha256(piece.name.encode()).hexdigest()[:16]}"
        if piece.digest:
            file = self._arrival.partial(piece.digest).open("a+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
            else:
                # The previous holder may have removed it meanwhile: then this is not the one with that name.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), os.stat(file.name)):
                        return file
                file.close()
        return own.open("w+b")

    def _fill(self, piece: FileToFetch, file: IO[bytes]) -> str:
        size, sums = self._present(piece, file)
        resumed = size
        if size < piece.size or not piece.size:
            response = self._begin(piece, size)
            try:
                if size and response.status != 206:  # the server cannot resume
                    self._count(piece, -size)
                    file.truncate(0)
                    size, resumed, sums = 0, 0, _Sums(piece)
                while chunk := response.read1(_CHUNK):
                    self._check()
                    file.write(chunk)
                    sums.update(chunk)
                    size += len(chunk)
                    self._count(piece, len(chunk))
                    _check_size(piece, file, size)
            except OSError as error:
                raise self._broken(piece, error) from error
            except Exception as error:
                from urllib3.exceptions import HTTPError

                if isinstance(error, HTTPError):
                    raise self._broken(piece, error) from error
                raise
            finally:
                file.flush()
                self._end(response)
        self._check()
        if piece.size and size < piece.size:
            if sums.sha256() == piece.digest:
                raise _other_size(piece, "smaller")
            raise self._broken(piece, EOFError(f"{size} of {piece.size} bytes came"))
        return self._verified(piece, file, sums, resumed=bool(resumed))

    def _present(self, piece: FileToFetch, file: IO[bytes]) -> tuple[int, _Sums]:
        """The bytes of an earlier attempt, hashed again: they were never synced and may be garbage."""
        sums = _Sums(piece)
        size = file.seek(0, os.SEEK_END)
        if piece.size and size > piece.size:
            file.truncate(0)
            size = 0
        file.seek(0)
        while chunk := file.read(_CHUNK):
            self._check()
            sums.update(chunk)
            self._count(piece, len(chunk))
        return size, sums

    def _begin(self, piece: FileToFetch, offset: int) -> BaseHTTPResponse:
        wanted = {"Range": f"bytes={offset}-"} if offset else {}
        if piece.begin is not None:
            response = piece.begin(offset)
        else:
            # The user's pip settings and ~/.netrc are not meant for models.
            response = self._web.send(piece.url, headers={**piece.headers, **wanted}, anonymous=True)
        with self._lock:
            self._open.add(response)
        if response.status == 206 and offset:
            start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
            if start != str(offset):
                self._end(response)
                raise JobFailed.transient("bad_answer", f"The server sent the wrong part of {piece.name}.")
        elif response.status == 416 and offset:
            # It has fewer bytes than the partial file, which is thus of another file.
            self._end(response)
            self._arrival.partial(piece.digest).unlink(missing_ok=True)
            raise JobFailed.transient("changed", f"{piece.name} has changed at its source.")
        elif response.status != 200:
            self._end(response)
            raise self._refused(piece, response.status)
        return response

    def _verified(self, piece: FileToFetch, file: IO[bytes], sums: _Sums, *, resumed: bool) -> str:
        found = sums.sha256()
        right = found == piece.digest if piece.digest else piece.git_oid in ("", sums.git_oid())
        if right:
            return found
        Path(file.name).unlink(missing_ok=True)
        if resumed:
            # The partial file was damaged, not the source: restart from zero next time.
            raise JobFailed.transient("hash_mismatch", f"A partial download of {piece.name} was damaged.")
        raise hash_mismatch(piece.name, piece.digest or piece.git_oid, found)

    def _broken(self, piece: FileToFetch, error: Exception) -> JobFailed | JobCancelled:
        if self._stop.is_set() or self._cancel.is_set():
            return JobCancelled()
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            return from_os_error(error, f"downloading {piece.name}")
        return self._web.failure(piece.url, error)

    def _count(self, piece: FileToFetch, size: int) -> None:
        with self._lock:
            self._come += max(0, size)
        if not piece.told:
            return
        with self._lock:
            self._done += size
            self._moving[piece.name].done += size
        self._tell()

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        self._report("downloading", self._done, self._total, "", self._moving.values())

    def _check(self) -> None:
        if self._stop.is_set() or self._cancel.is_set():
            raise JobCancelled

    def _halt(self) -> None:
        """Wake all threads that wait for bytes; those still connecting find `_stop` set afterwards."""
        self._stop.set()
        with self._lock:
            for response in self._open:
                with suppress(OSError, ValueError, RuntimeError, NotImplementedError):
                    response.shutdown()

    def _end(self, response: BaseHTTPResponse) -> None:
        with self._lock:
            self._open.discard(response)
        response.close()


def _check_size(piece: FileToFetch, file: IO[bytes], size: int) -> None:
    if size <= (piece.size if piece.size or piece.exact else _UNKNOWN_MOST):
        return
    Path(file.name).unlink(missing_ok=True)
    raise _other_size(piece, "larger")


def _other_size(piece: FileToFetch, how: str) -> JobFailed:
    return JobFailed.permanent(
        "hash_mismatch",
        f"{piece.name} is {how} where it is published than the {format_size(piece.size)} it is listed with; "
        "nothing was kept.",
        advice="The file was changed or damaged where it is published, or on the way.",
    )


class _Sums:
    """The hashes needed of one file."""

    def __init__(self, piece: FileToFetch) -> None:
        self._sha256 = hashlib.sha256()
        # Git's own name of a file: SHA-1 is no proof against an attacker, but the hub gives no other.
        self._sha1: Any = None
        if piece.git_oid and not piece.digest:
            self._sha1 = hashlib.sha1(f"blob {piece.size}\0".encode(), usedforsecurity=False)

    def update(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        if self._sha1 is not None:
            self._sha1.update(chunk)

    def sha256(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"

    def git_oid(self) -> str:
        return "" if self._sha1 is None else str(self._sha1.hexdigest())
