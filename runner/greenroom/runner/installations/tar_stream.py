"""Reads a tar from an untrusted stream: one entry at a time, in bounded time and memory.

`tarfile` believes headers: it skips a size of 2^62 for years after the input has ended, reads headers of
headers recursively, waits for sparse maps without an end, and keeps every entry. Here

- a size beyond what can still come refuses the archive at once;
- the end of the input is an error except at the end of an entry;
- extended headers are read one after the other, limited in number and size;
- nothing of an entry is kept once the next one is requested.

`tarfile` parses the blocks themselves. POSIX pax, GNU and old formats, as Docker, BuildKit, Go, GNU tar and
bsdtar write them.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["file", "folder", "symlink", "hardlink", "other"]

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_HEADER = 1 << 20
"""Maximum bytes of one extended header, which is read into memory."""
_HEADERS = 16
"""Extended headers before one entry; writers use at most four."""
_SPARSE_BLOCKS = 10_000
_DIGITS = 19
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_BODILESS = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_KINDS: dict[bytes, Kind] = {
    **dict.fromkeys(_PLAIN, "file"),
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
}


class BadTar(Exception):
    """Not an archive, or an inconsistent one; the text is one clause."""


@dataclass(frozen=True)
class TarEntry:
    name: str
    kind: Kind
    """Sparse files are `other`."""
    size: int
    mode: int
    link: str


class TarStream:
    """One archive, read once from the front."""

    def __init__(self, read: Callable[[int], bytes], limit: int) -> None:
        """`read` returns up to so many bytes, none at the end, and may raise to abort. `limit` is the maximum
        size of the whole archive.
        """
        self._read = read
        self._room = limit
        self._body = 0
        """Bytes of the current entry's content still to come."""
        self._padding = 0

    def __iter__(self) -> Iterator[TarEntry]:
        """Every entry; unread content is skipped.

        Raises:
            BadTar: What is there is no archive that can be believed.
        """
        first = True
        while True:
            for _ in self.content():
                pass
            entry = self._next(first=first)
            if entry is None:
                return
            first = False
            yield entry

    def content(self) -> Iterator[bytes]:
        """The rest of the current entry's content, in pieces.

        Raises:
            BadTar: It ends before it should.
        """
        while self._body:
            piece = self._take(min(_CHUNK, self._body))
            self._body -= len(piece)
            yield piece
        padding, self._padding = self._padding, 0
        self._exactly(padding)

    def _next(self, *, first: bool) -> TarEntry | None:
        """The next entry, with its extended headers applied."""
        told: dict[str, str] = {}
        for number in range(_HEADERS):
            info = self._header(end=number == 0, empty=not first)
            if info is None:
                return None
            if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                text = self._extended(info.size).partition(b"\0")[0]
                key = "path" if info.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
                told[key] = text.decode("utf-8", "surrogateescape")
            elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                told |= _records(self._extended(info.size))
            elif info.type == tarfile.XGLTYPE:
                # Comments on the archive. No writer uses these to change every following entry.
                if told_of_all := _records(self._extended(info.size)):
                    raise BadTar(f"a global header sets {min(told_of_all)} for every entry")
            else:
                return self._entry(info, told)
        raise BadTar(f"more than {_HEADERS} headers describe one entry")

    def _entry(self, info: tarfile.TarInfo, told: dict[str, str]) -> TarEntry:
        sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in told)
        if info.type == tarfile.GNUTYPE_SPARSE:
            self._pass_sparse_map(info)
        name, link = told.get("path", info.name), told.get("linkpath", info.linkname)
        size = _size(told["size"]) if "size" in told else info.size
        kind = _KINDS.get(info.type, "other")
        if kind == "file" and info.type == tarfile.AREGTYPE and name.endswith("/"):
            kind = "folder"
        if info.type in _BODILESS or kind == "folder":
            size = 0
        if not 0 <= size <= self._room:
            raise BadTar(f"an entry claims {size} bytes")
        self._body, self._padding = size, -size % _BLOCK
        return TarEntry(name, "other" if sparse else kind, size, info.mode, link)

    def _pass_sparse_map(self, info: tarfile.TarInfo) -> None:
        # `frombuf` leaves these to `_proc_sparse`, which reads as many blocks as announce another.
        _, more, _ = info._sparse_structs  # type: ignore[attr-defined]  # noqa: SLF001
        for _ in range(_SPARSE_BLOCKS):
            if not more:
                return
            more = bool(self._exactly(_BLOCK)[504])
        raise BadTar("a sparse file has a map without an end")

    def _header(self, *, end: bool, empty: bool) -> tarfile.TarInfo | None:
        """The next header; None at the end of the archive.

        Args:
            end: The archive may end here.
            empty: It may also end without the blocks that mark the end.
        """
        block = self._up_to(_BLOCK)
        if end and (block.count(0) == _BLOCK or (empty and not block)):
            return None
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise BadTar(str(error)) from error

    def _extended(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER:
            raise BadTar(f"a header of {size} bytes")
        return self._exactly(size + -size % _BLOCK)[:size]

    def _take(self, most: int) -> bytes:
        piece = self._read(most)
        if not piece:
            raise BadTar("it ends in the middle of an entry")
        self._room -= len(piece)
        return piece

    def _exactly(self, size: int) -> bytes:
        data = self._up_to(size)
        if len(data) < size:
            raise BadTar("it ends in the middle of an entry")
        return data

    def _up_to(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (piece := self._read(size - len(data))):
            data += piece
        self._room -= len(data)
        return data


def _records(data: bytes) -> dict[str, str]:
    """The relevant records of an extended header, each `<its length> <key>=<value>\\n`."""
    told: dict[str, str] = {}
    place = 0
    while place < len(data):
        digits, space, _ = data[place : place + 9].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[place : place + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) != length or record[-1:] != b"\n":
            raise BadTar("an extended header is invalid")
        place += length
        if key in (b"path", b"linkpath", b"size") or key.startswith(b"GNU.sparse."):
            told[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    # GNU's names of sparse files.
    if "GNU.sparse.name" in told:
        told["path"] = told["GNU.sparse.name"]
    return told


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise BadTar(f"an entry claims {text[:40]!r} bytes")
    return int(text)
