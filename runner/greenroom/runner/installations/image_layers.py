"""Unpacks the layers of an image over one another, limited to one tree inside it.

The bytes are not trusted, so nothing in them may choose where it is written: names with `..`, links that lead
out of the tree, devices, and anything below a link cause the whole image to be refused. Each path is walked
from the tree's own folder, one component at a time, without following links, so a link created by an earlier
entry leads nowhere. The unpacked size of a layer is bounded by its packed size.

OCI image specification 1.1, `layer`: whiteouts hide entries of lower layers, never of their own.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import posixpath
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event
from typing import IO, Protocol, Self

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.tar_stream import BadTar, TarEntry, TarStream
from greenroom.runner.threads import stop_if

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_CHUNK = 1 << 20
_ENTRIES = 500_000
LOOKS = 5_000_000
"""Names visited for whiteouts: those are quick to write and slow to follow."""
_DEPTH = 64
_PATH = 1_024
"""Bytes, also of a link's target: file systems differ in their limits, and programs need far less."""
_NAME = 255
_ROOM_EVERY = 32 * 2**20
_RATIO = 250
_FREE = 64 * 2**20
"""Bytes every layer may unpack to, plus `_RATIO` times its size."""
_REFUSED = frozenset({errno.ENAMETOOLONG, errno.EMLINK, errno.EILSEQ, errno.EINVAL, errno.ELOOP})
"""What a file system reports for names and links it cannot hold; the layer is at fault, not the disk."""
GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

Parts = tuple[str, ...]


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...

    def close(self) -> object: ...


class Tree:
    """A folder into which the layers of one image are unpacked, from the lowest up. Not thread-safe."""

    def __init__(
        self, folder: Path, inside: str, name: str, cancel: Event, room: Callable[[], None] | None = None
    ) -> None:
        """Create the folder.

        Args:
            inside: Path of the tree in the image, such as `/vllm-metal`.
            name: The image's, for messages.
            cancel: Stops the work when set.
            room: Called regularly while files are written; raises when the disk is too full.
        """
        self.sums: dict[str, str] = {}
        """SHA-256 of every regular file, by path in the tree."""
        self._folder = folder
        self._inside: Parts = tuple(part for part in inside.split("/") if part)
        self._name = name
        self._cancel = cancel
        self._room = room or (lambda: None)
        self._unlooked = 0
        """Bytes written since `room` was asked."""
        self._entries = 0
        self._looks = 0
        self._fresh: set[str] = set()
        """Paths created by the current layer."""
        folder.mkdir()
        self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    def lay(self, blob: Path, diff_id: str) -> None:
        """Unpack one layer.

        Args:
            diff_id: The digest of the unpacked layer, from the image's configuration.

        Raises:
            JobFailed: Permanent: the layer is damaged or unsafe.
            JobCancelled: `cancel` was set.
            OSError: It cannot be written.
        """
        self._fresh = set()
        limit = _FREE + _RATIO * blob.stat().st_size
        try:
            with closing(_opened(blob, self._go_on)) as raw:
                stream = _Stream(raw, limit, self._bomb)
                tar = TarStream(stream.read, limit)
                for entry in tar:
                    self._take(tar, entry)
                # What follows the archive's end belongs to the layer too.
                while stream.read(_CHUNK):
                    self._go_on()
        except (BadTar, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as error:
            raise self._unsafe("damaged_layer", f"one of its layers is not an archive: {error}") from error
        except OSError as error:
            if error.errno in _REFUSED:
                raise self._unsafe(
                    "unsafe_image", f"it has an entry that this disk cannot hold ({error.strerror})"
                ) from error
            raise
        if stream.digest() != diff_id:
            raise self._unsafe("hash_mismatch", "one of its layers is not the one its configuration names")

    def finish(self, executables: tuple[str, ...]) -> None:
        """Check where every link leads on this file system, and restore execute bits.

        Reads the disk, not our own records: on a case-insensitive file system it may differ from them.

        Raises:
            JobFailed: A link leads out of the tree.
        """
        root = os.path.realpath(self._folder)
        for folder, folders, files in os.walk(root):
            for place in (os.path.join(folder, name) for name in (*folders, *files)):
                if os.path.islink(place) and not _is_below(os.path.realpath(place), root):
                    path = os.path.relpath(place, root)
                    raise self._unsafe(
                        "unsafe_image", f"its link {path} leads out of the tree, to {os.readlink(place)}"
                    )
        for pattern in executables:
            for file in self._folder.glob(pattern):
                if file.is_file() and not file.is_symlink():
                    file.chmod(0o755)

    def _take(self, tar: TarStream, entry: TarEntry) -> None:
        self._go_on()
        self._entries += 1
        if self._entries > _ENTRIES:
            raise self._bomb()
        parts = self._parts(entry.name)
        name = parts[-1] if parts else ""
        if name.startswith(_WHITEOUT):
            self._whiteout(parts)
        elif parts[: len(self._inside)] == self._inside:
            below = parts[len(self._inside) :]
            if below:
                self._place(tar, entry, below)
            elif entry.kind != "folder":
                raise self._unsafe("unsafe_image", f"its {'/'.join(self._inside)} is not a folder")

    def _place(self, tar: TarStream, entry: TarEntry, parts: Parts) -> None:
        path = "/".join(parts)
        with _folder(self._parent(parts, make=True)) as folder:
            name = parts[-1]
            if entry.kind == "folder":
                if not _is_folder(folder, name):
                    self._remove(folder, name, path)
                    os.mkdir(name, 0o755, dir_fd=folder)
            elif entry.kind == "file":
                self._remove(folder, name, path)
                self.sums[path] = self._write(tar, entry, folder, name)
            elif entry.kind == "symlink":
                target = self._target(entry.link, parts)
                self._remove(folder, name, path)
                os.symlink(target, name, dir_fd=folder)
            elif entry.kind == "hardlink":
                self._link(entry, folder, name, path)
            else:
                raise self._unsafe("unsafe_image", f"its {path} is not a file, folder or link")
        self._fresh.add(path)

    def _write(self, tar: TarStream, entry: TarEntry, folder: int, name: str) -> str:
        # Owner and group permissions do not matter here.
        mode = 0o755 if entry.mode & 0o100 else 0o644
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        digest = hashlib.sha256()
        with os.fdopen(os.open(name, flags, mode, dir_fd=folder), "wb") as out:
            os.fchmod(out.fileno(), mode)
            for piece in tar.content():
                self._go_on()
                self._see_that_there_is_room(len(piece))
                digest.update(piece)
                out.write(piece)
        return digest.hexdigest()

    def _link(self, entry: TarEntry, folder: int, name: str, path: str) -> None:
        parts = self._parts(entry.link)
        below = parts[len(self._inside) :]
        if parts[: len(self._inside)] != self._inside or not below:
            raise self._unsafe("unsafe_image", f"its {path} is a link to {entry.link}, outside the tree")
        source = "/".join(below)
        if source == path:
            raise self._unsafe("unsafe_image", f"its {path} is a link to itself")
        if source not in self.sums:
            raise self._unsafe("unsafe_image", f"its {path} is a link to {source}, which is not a file in it")
        with _folder(self._parent(below, make=False)) as place:
            self._remove(folder, name, path)
            os.link(below[-1], name, src_dir_fd=place, dst_dir_fd=folder, follow_symlinks=False)
        self.sums[path] = self.sums[source]

    def _target(self, text: str, parts: Parts) -> str:
        """Validate a link's target: a path that, from the link, stays in the tree."""
        if not text or _length(text) > _PATH or not _plain(text):
            raise self._leads_out(parts, text)
        steps = [step for step in text.split("/") if step not in ("", ".")]
        if text.startswith("/"):
            if tuple(steps[: len(self._inside)]) != self._inside or ".." in steps:
                raise self._leads_out(parts, text)
            there = "/".join(steps[len(self._inside) :]) or "."
            return posixpath.relpath(f"/{there}", "/" + "/".join(parts[:-1]))
        depth = len(parts) - 1
        for step in steps:
            depth += -1 if step == ".." else 1
            if depth < 0:
                raise self._leads_out(parts, text)
        return "/".join(steps) or "."

    def _whiteout(self, parts: Parts) -> None:
        """Hide what lower layers created, in the tree or all of it."""
        hidden = parts[:-1] if parts[-1] == _OPAQUE else (*parts[:-1], parts[-1].removeprefix(_WHITEOUT))
        if hidden[-1:] in (("",), (".",), ("..",)):
            raise self._unsafe("unsafe_image", f"it has an invalid whiteout: {'/'.join(parts)}")
        below = hidden[len(self._inside) :]
        if hidden == self._inside[: len(hidden)] and (parts[-1] == _OPAQUE or hidden):
            for name in os.listdir(self._root):
                self._hide(self._root, name, name)
        elif hidden[: len(self._inside)] == self._inside and below:
            self._hide_below(below, opaque=parts[-1] == _OPAQUE)

    def _hide_below(self, parts: Parts, *, opaque: bool) -> None:
        try:
            place = self._parent(parts, make=False)
        except (FileNotFoundError, JobFailed):
            return  # nothing there, or the other end of a link, which is hidden under its own name
        path = "/".join(parts)
        with _folder(place) as folder:
            if not opaque:
                self._hide(folder, parts[-1], path)
            elif _is_folder(folder, parts[-1]):
                with _folder(_entered(folder, parts[-1])) as inner:
                    for name in os.listdir(inner):
                        self._hide(inner, name, f"{path}/{name}")

    def _hide(self, folder: int, name: str, path: str) -> None:
        self._go_on()
        self._looks += 1
        if self._looks > LOOKS:
            raise self._bomb()
        if not _exists(folder, name):
            return
        if not _is_folder(folder, name):
            if path not in self._fresh:
                self._remove(folder, name, path)
            return
        with _folder(_entered(folder, name)) as inner:
            for child in os.listdir(inner):
                self._hide(inner, child, f"{path}/{child}")
            empty = not os.listdir(inner)
        if empty and path not in self._fresh:
            os.rmdir(name, dir_fd=folder)

    def _remove(self, folder: int, name: str, path: str) -> None:
        if not _exists(folder, name):
            return
        self._go_on()
        if _is_folder(folder, name):
            with _folder(_entered(folder, name)) as inner:
                for child in os.listdir(inner):
                    self._remove(inner, child, f"{path}/{child}")
            os.rmdir(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
            self.sums.pop(path, None)

    def _parent(self, parts: Parts, *, make: bool) -> int:
        """The opened parent folder; no component of the path may be a link."""
        here = os.dup(self._root)
        for number, part in enumerate(parts[:-1], 1):
            try:
                try:
                    inner = _entered(here, part)
                except FileNotFoundError:
                    if not make:
                        raise
                    os.mkdir(part, 0o755, dir_fd=here)
                    self._fresh.add("/".join(parts[:number]))
                    inner = _entered(here, part)
            except NotADirectoryError:
                raise self._unsafe(
                    "unsafe_image", f"its {'/'.join(parts)} is below a file or a link"
                ) from None
            finally:
                os.close(here)
            here = inner
        return here

    def _parts(self, name: str) -> Parts:
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if ".." in parts:
            raise self._unsafe("unsafe_image", f"it has an entry with an invalid name, {name[:200]!r}")
        if (
            len(parts) > _DEPTH
            or _length(name) > _PATH
            or any(_length(part) > _NAME or not _plain(part) for part in parts)
        ):
            raise self._unsafe("unsafe_image", f"it has an entry with an invalid name, {name[:80]!r}")
        return parts

    def _see_that_there_is_room(self, size: int) -> None:
        self._unlooked += size
        if self._unlooked >= _ROOM_EVERY:
            self._unlooked = 0
            self._room()

    def _go_on(self) -> None:
        stop_if(self._cancel)

    def _leads_out(self, parts: Parts, text: str) -> JobFailed:
        return self._unsafe(
            "unsafe_image", f"its link {'/'.join(parts)} leads out of the tree, to {text[:200]!r}"
        )

    def _bomb(self) -> JobFailed:
        return self._unsafe("unsafe_image", "one of its layers unpacks to far more than any program needs")

    def _unsafe(self, code: str, clause: str) -> JobFailed:
        return JobFailed.permanent(
            code,
            f"The image {self._name} cannot be used: {clause}.",
            advice="Nothing was kept. Report it to the image's publisher.",
        )


@contextmanager
def _folder(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _Stream:
    """Counts and hashes a layer's unpacked bytes."""

    def __init__(self, raw: _Readable, limit: int, too_much: Callable[[], JobFailed]) -> None:
        self._raw = raw
        self._left = limit
        self._too_much = too_much
        self._sum = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._raw.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise self._too_much()
        self._sum.update(data)
        return data

    def digest(self) -> str:
        return f"sha256:{self._sum.hexdigest()}"


def unpacked_size(blob: Path) -> int:
    """Estimated unpacked bytes of a layer, to check in advance whether there is room.

    A gzip file ends with its size modulo 4 GiB; of others, the size packed is all that is known.
    """
    size = blob.stat().st_size
    with blob.open("rb") as file:
        if file.read(2) != GZIP or size < 20:
            return size
        file.seek(-4, os.SEEK_END)
        return max(size, int.from_bytes(file.read(4), "little"))


def _opened(blob: Path, go_on: Callable[[], None]) -> _Readable:
    """Detects the compression from the content, whatever the media type says."""
    file = _Blob(blob.open("rb"), go_on)
    begin = file.read(4)
    file.seek(0)
    if begin.startswith(GZIP):
        return _Gzip(file)
    if begin == _ZSTD:
        return _Zstd(file)
    return file


class _Blob(io.RawIOBase):
    """A packed layer. Every read checks `cancel`: a gigabyte may unpack to nothing at all."""

    def __init__(self, file: IO[bytes], go_on: Callable[[], None]) -> None:
        self._file = file
        self._go_on = go_on

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(place, whence)

    def read(self, size: int = -1, /) -> bytes:
        self._go_on()
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Gzip:
    """A gzip file that closes its source too."""

    def __init__(self, blob: _Blob) -> None:
        self._blob = blob
        self._file = gzip.GzipFile(fileobj=blob, mode="rb")

    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()
        self._blob.close()


class _Zstd:
    """A zstd file that reports damage as `BadTar`."""

    def __init__(self, blob: _Blob) -> None:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        self._damaged = zstd.ZstdError
        self._blob = blob
        self._file = zstd.ZstdFile(blob, "rb")

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._file.read(size)
        except self._damaged as error:
            raise BadTar(str(error)) from error

    def close(self) -> None:
        self._file.close()
        self._blob.close()


def _entered(folder: int, name: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        # For a link, some systems report ELOOP and others ENOTDIR.
        if error.errno == errno.ELOOP:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name) from error
        raise


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_folder(folder: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root + os.sep)


def _length(text: str) -> int:
    """Bytes, as file systems count them."""
    return len(text.encode("utf-8", "surrogatepass"))


def _plain(part: str) -> bool:
    """Whether text can be stored and shown: UTF-8 without control characters."""
    return not any(
        ord(letter) < 32 or ord(letter) == 127 or 0xD800 <= ord(letter) <= 0xDFFF for letter in part
    )
