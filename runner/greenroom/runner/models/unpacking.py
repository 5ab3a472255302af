"""Small tars inside models (older artifacts keep `config.json` and the tokenizer in one): out, safely.

Only regular files with plain relative names come out; links, devices, `..` and absolute names refuse the
whole archive, and so does one that is larger than any configuration, however small it is packed: sparse
files, a terabyte in a few bytes, and headers that would be read into memory whole.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import IO, Any

from greenroom.runner.errors import JobCancelled
from greenroom.runner.models.errors import not_a_model
from greenroom.runner.models.references import BadReference, relative_name
from greenroom.runner.models.selection import belongs

_FILES_LIMIT = 1_000
BYTES_LIMIT = 256 * 2**20
"""Of all files of one archive, and of the archive."""
_HEADER_LIMIT = 2**20
_HEADERS_LIMIT = 8
_SIZE_LIMIT = 2**41
"""Bytes of the largest file there may be."""
_LOOKS_BEYOND = 4
_MEMBERS_LIMIT = 100_000
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)


class BoundedTar(tarfile.TarFile):
    """An archive whose headers cost no more than they have bytes."""

    depth = 0
    """Headers that belong to the next one, and so on: tarfile reads them by recursion."""


class BoundedMember(tarfile.TarInfo):
    """A member that takes no more room than its archive does, in memory and on the disk."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        # The hook that tarfile has for subclasses. What is not a file's content is read into memory whole.
        if self.type == tarfile.GNUTYPE_SPARSE or (self.type not in _PLAIN and self.size > _HEADER_LIMIT):
            raise tarfile.ReadError("a member is larger than its archive, or has an endless header")
        if not 0 <= self.size <= _SIZE_LIMIT:
            raise tarfile.ReadError(f"an entry claims to have {self.size} bytes")
        assert isinstance(archive, BoundedTar)
        archive.depth += 1
        try:
            if archive.depth > _HEADERS_LIMIT:
                raise tarfile.ReadError("an entry has too many headers")
            member = super()._proc_member(archive)  # type: ignore[misc]
        finally:
            archive.depth -= 1
        # A header before it may have given it another size.
        if member.issparse() or not 0 <= member.size <= _SIZE_LIMIT:
            raise tarfile.ReadError("a member is larger than its archive")
        return member


BoundedTar.tarinfo = BoundedMember


def headers(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of an archive one by one, as many as any model has; none is kept, as tarfile does.

    Raises:
        tarfile.ReadError: it is damaged or hostile.
    """
    for _ in range(_MEMBERS_LIMIT):
        member = archive.next()
        if member is None:
            return
        archive.members.clear()  # type: ignore[attr-defined]
        yield member
    raise tarfile.ReadError("it has more entries than any model")


class Ending(io.RawIOBase):
    """A stream of bytes that ends: tarfile skips what never comes for as long as its header says."""

    def __init__(self, stream: IO[bytes], cancel: Event) -> None:
        super().__init__()
        self._stream = stream
        self._cancel = cancel
        self._over = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int = -1) -> bytes:
        """The next bytes.

        Raises:
            EOFError: it was over before, and is read on and on.
            JobCancelled: `cancel` was set.
        """
        if self._cancel.is_set():
            raise JobCancelled
        data = self._stream.read(size)
        # One look beyond the end is how tarfile finds it, and it may begin another member with it.
        self._over = 0 if data else self._over + 1
        if self._over > _LOOKS_BEYOND:
            raise EOFError("it ends in the middle of an entry")
        return data


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack an uncompressed tar below a folder; returns the files.

    Raises:
        JobFailed: permanent, `not_a_model`, for anything that is no plain bundle of files.
        OSError: the disk refused.
    """
    files: list[Path] = []
    left = BYTES_LIMIT
    try:
        with BoundedTar.open(archive, "r:") as tar:
            for member in headers(tar):
                if member.isdir():
                    continue
                left -= member.size
                if not member.isreg() or left < 0 or len(files) >= _FILES_LIMIT:
                    raise not_a_model(
                        f"An archive in the model holds {member.name[:80]!r}, which is not allowed."
                    )
                name = relative_name(member.name.removeprefix("./"))
                if not belongs(name.name):
                    continue
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                with content, target.open("xb") as out:
                    shutil.copyfileobj(content, out)
                files.append(target)
    except (tarfile.TarError, BadReference, FileExistsError, UnicodeError, RecursionError) as error:
        raise not_a_model(f"An archive in the model is damaged or hostile: {error}") from error
    return files
