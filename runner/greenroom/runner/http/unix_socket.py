"""Listening on a unix socket that only its owner may use."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
from pathlib import Path
from typing import Self

_LONGEST = 103
"""Bytes of a path that every system's sockets can have."""
_BACKLOG = 1024


class SocketUnusable(Exception):
    """The path cannot be listened on; the text says why."""


class UnixListener:
    """Listens, without blocking. A context manager, which closes it and removes its file."""

    def __init__(self, path: Path) -> None:
        """Raises SocketUnusable. A socket that is left over from a program that has ended is replaced."""
        self.path = path.absolute()
        fresh = self.path.with_name(f".{secrets.token_hex(4)}")
        for one in (self.path, fresh):
            if len(os.fsencode(one)) > _LONGEST:
                raise SocketUnusable(
                    f"The path {self.path} is too long for a unix socket: at most {_LONGEST} bytes, of which "
                    f"{_LONGEST - 10} for its folder. Choose a shorter one."
                )
        _check_free(self.path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # No client can connect before it listens, and by then it is its owner's alone.
            self.socket.bind(str(fresh))
            fresh.chmod(0o600)
            self.socket.listen(_BACKLOG)
            self.socket.setblocking(False)
            fresh.replace(self.path)
            self._id = _id_of(self.path)
        except OSError as error:
            self.socket.close()
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise SocketUnusable(f"Greenroom cannot listen on {self.path}: {error.strerror}.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
        self.socket.close()

    def remove(self) -> None:
        """Remove the file, unless another program's has taken its place. Idempotent."""
        with contextlib.suppress(OSError):
            if _id_of(self.path) == self._id:
                self.path.unlink()


def _id_of(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _check_free(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketUnusable(f"{path} cannot be looked at: {error.strerror}.") from None
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketUnusable(f"{path} is there already and is no socket. Choose another path, or remove it.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(str(path))
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                return
            if error.errno != errno.EAGAIN:  # its queue is full, so it listens
                raise SocketUnusable(f"{path} cannot be used: {error.strerror}.") from None
    raise SocketUnusable(f"Another program listens on {path}. Stop it, or choose another path.")
