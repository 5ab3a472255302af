"""Opens files without leaving a folder, and holds them: the file checked is the file used.

A name can mean another file a moment later, and a link can lead anywhere. So each part of a path is opened
separately without following links; links are read and followed here as long as they stay inside. From then on
the descriptor stands for the file: it is checked, read, hashed and copied through it.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import BinaryIO, Literal

from greenroom.actors.characters import is_line
from greenroom.runner.errors import JobFailed
from greenroom.runner.models.errors import from_os_error, not_a_model
from greenroom.runner.models.references import is_text, shown
from greenroom.runner.systems import here

_LINKS = 16
_NAME = 255
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class HeldFile:
    """One open regular file. Not thread-safe."""

    def __init__(self, descriptor: int, path: Path, name: str) -> None:
        """Takes over the descriptor; `path` is where the file was when it was opened."""
        self._descriptor = descriptor
        self.path = path
        self.name = name
        self.suffix = PurePosixPath(name).suffix

    def close(self) -> None:
        os.close(self._descriptor)

    def stat(self) -> os.stat_result:
        return os.fstat(self._descriptor)

    def clone(self, target: Path) -> bool:
        """Make a file there that shares its bytes until one of both changes, where the file system can."""
        return here.clone(self._descriptor, target)

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """Its content from the beginning; one reader at a time."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return os.fdopen(os.dup(self._descriptor), mode)

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            return file.read()


class HeldFolder:
    """A folder the user named: only its files can be opened."""

    def __init__(self, folder: Path) -> None:
        """Links on the way to the folder are followed once, now."""
        self.path = Path(os.path.realpath(folder))
        self._root = _boundary(self.path)

    def names(self) -> list[str]:
        """The files in it whose names are one line of text.

        Raises:
            JobFailed: permanent, `not_a_model`: a weights file has another name.
            OSError: It cannot be read.
        """
        with os.scandir(self.path) as entries:
            names = [entry.name for entry in entries if entry.is_file()]
        for name in names:
            if not is_line(name, _NAME) and name.lower().endswith((".gguf", ".safetensors")):
                wrong = "not UTF-8" if not is_text(name) else "not one line of printable characters"
                raise not_a_model(f'The name of the file "{shown(name)}" is {wrong}. Rename it.')
        return [name for name in names if is_line(name, _NAME)]

    @contextmanager
    def holding(self, names: list[str]) -> Iterator[list[HeldFile]]:
        """Its files of these names, open meanwhile.

        Raises:
            JobFailed: permanent; one is not a regular file, is unreadable, or leads out of the folder.
        """
        with ExitStack() as stack:
            files = []
            for name in names:
                files.append(self.open(name))
                stack.callback(files[-1].close)
            yield files

    def open(self, name: str) -> HeldFile:
        """Open one of its files.

        Raises:
            JobFailed: permanent; it is not a regular file, is unreadable, or leads out of the folder.
        """
        try:
            return _open_below(self._root, (*self.path.relative_to(self._root).parts, name), name)
        except OSError as error:
            raise from_os_error(error, f"opening {shown(name)}") from error


class LinkedFile(HeldFolder):
    """A link to a file that the user named: it may lead anywhere; files beside it may not."""

    def __init__(self, link: Path) -> None:
        super().__init__(link.parent)
        self._link = link

    def open(self, name: str) -> HeldFile:
        return hold(self._link) if name == self._link.name else super().open(name)


def hold(path: Path) -> HeldFile:
    """Open a file the user named, following a link once.

    Raises:
        JobFailed: permanent; it is not a regular file, or is unreadable.
    """
    target = Path(os.path.realpath(path))
    if not target.exists():
        raise from_os_error(FileNotFoundError(errno.ENOENT, "", str(path)), "opening the model")
    held = HeldFolder(target.parent).open(target.name)
    held.name, held.suffix = path.name, path.suffix
    return held


def _boundary(folder: Path) -> Path:
    """Where links from a folder may lead: the folder, or the repository in Hugging Face's cache, whose
    snapshots are links to its blobs.
    """
    repository = folder.parent.parent
    cached = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository if cached else folder


def _open_below(root: Path, parts: tuple[str, ...], name: str) -> HeldFile:
    with ExitStack() as stack:
        folders = [os.open(root, _FLAGS | os.O_DIRECTORY)]
        stack.callback(_close, folders)
        way: list[str] = []
        left = deque(parts)
        links = 0
        while left:
            part = left.popleft()
            if part in ("", "."):
                continue
            if part == "..":
                if not way:
                    raise _leads_out(name)
                way.pop()
                os.close(folders.pop())
                continue
            mode = os.stat(part, dir_fd=folders[-1], follow_symlinks=False).st_mode
            if S_ISLNK(mode):
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
                target = PurePosixPath(os.readlink(part, dir_fd=folders[-1]))
                if target.is_absolute():
                    if not target.is_relative_to(root):
                        raise _leads_out(name)
                    target = target.relative_to(root)
                    while way:
                        way.pop()
                        os.close(folders.pop())
                left.extendleft(reversed(target.parts))
                continue
            if not (S_ISREG(mode) or S_ISDIR(mode)):
                # Not even opened: a pipe would block, and opening a device may have effects.
                raise _not_regular(name)
            folders.append(os.open(part, _FLAGS, dir_fd=folders[-1]))
            way.append(part)
            if not left and S_ISREG(os.fstat(folders[-1]).st_mode):
                return HeldFile(folders.pop(), root.joinpath(*way), name)
        raise _not_regular(name)


def _close(descriptors: list[int]) -> None:
    for one in descriptors:
        os.close(one)


def _leads_out(name: str) -> JobFailed:
    return not_a_model(
        f"{shown(name)} is a link that leads out of its folder. Put the file itself there, or name the "
        "folder that holds it."
    )


def _not_regular(name: str) -> JobFailed:
    return not_a_model(f"{shown(name)} is not a regular file.")
