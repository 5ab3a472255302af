"""Room on the data directory's disk: the whole need is known before the first byte is fetched."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

from greenroom.runner.errors import JobFailed, blamed
from greenroom.runner.installations.bounded import Beside, TookTooLong
from greenroom.runner.installations.lock import LockedFile

RESERVE = 64 * 2**20
"""Bytes of the disk we never plan to use: journal, logs, and what else runs here."""
_AMPLE = 8
"""Packages unpack to three times their size; where there is room for so many times, nobody is asked."""
_ASK_SECONDS = 30.0
_TAIL = 64 * 1024
_TAIL_MOST = 16 * 2**20
_END = struct.Struct("<4s8xII2x")
"""Of a zip's last record: its mark, and size and place of the directory."""

Tail = Callable[[LockedFile, int], bytes | None]
"""Gives the last bytes of a file that is not here; None where that cannot be had."""


def existing(place: Path) -> Path:
    """The nearest folder above that is there."""
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    return place


def free(home: Path) -> int:
    """Bytes that may be written to the data directory's disk."""
    return shutil.disk_usage(existing(home)).free


def need_space(home: Path, needed: int) -> None:
    """See that the data directory's disk has room for so much, and for what stays free.

    Raises:
        JobFailed: Permanent, `no_space`, with what is needed and what is there.
    """
    there = free(home)
    if needed and there < needed + RESERVE:
        raise _no_space(
            f"Installing needs {(needed + RESERVE) / 1e6:.0f} MB, of which {RESERVE / 1e6:.0f} MB stay free "
            f"for the journal and the logs; the disk of {existing(home)} has {there / 1e6:.0f} MB left."
        )


def keep_reserve(home: Path) -> None:
    """See that what stays free is free; for in the middle of writing.

    Raises:
        JobFailed: Permanent, `no_space`.
    """
    there = free(home)
    if there < RESERVE:
        raise _no_space(
            f"The disk of {existing(home)} has {there / 1e6:.0f} MB left, and {RESERVE / 1e6:.0f} MB of it "
            "stay free for the journal and the logs."
        )


def is_ample(home: Path, download: int, total: int) -> bool:
    """Whether there is room however much these packages unpack to."""
    return free(home) >= download + _AMPLE * total + RESERVE


def unpacked(
    files: Sequence[LockedFile], here: Callable[[LockedFile], Path | None], tail: Tail, cancel: Event
) -> int:
    """Bytes that wheels unpack to; of those whose directory cannot be had, their own size.

    Args:
        here: Where a file lies that has been fetched already.
        tail: Asks a server; called on several threads.
        cancel: Ends the asking, with JobCancelled.
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
    """Bytes that a wheel says it unpacks to, of all of it or of its end."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError):
        return otherwise  # uv will say what is wrong with it


def _no_space(message: str) -> JobFailed:
    failed = JobFailed.permanent(
        "no_space", message, advice="Free some space, or set GREENROOM_HOME to a folder on another disk."
    )
    return JobFailed(blamed(failed.failure))
