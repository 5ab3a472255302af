"""Space on the data directory's disk: the total need is checked before the first byte is fetched."""

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
from greenroom.runner.installations.blocking_calls import Beside, TookTooLong
from greenroom.runner.installations.lock_file import LockedFile

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


def existing(place: Path) -> Path:
    """The nearest existing folder above a path."""
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    return place


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
