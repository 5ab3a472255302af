"""HTTP/1.1 as bytes: what a request is, and how an answer is read, on sockets and on event loops alike.

The readers are generators. They yield when they need more bytes, are sent what has come, empty at its end,
and return what was asked for. So a blocking socket and an event loop share them.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
Reading = Generator[None, bytes, T]

SOCKET = "unix:"
"""Before the path of a socket, as the address of a server that listens there."""
PIECE = 65_536
"""Bytes that are asked of the system at once."""
_LINE_LIMIT = 65_536
_HEADER_LIMIT = 100
BODY_LINE_LIMIT = 2**28


_DIGITS = 18
_SIZE = re.compile(rb"[0-9a-fA-F]{1,15}")


class NotHttp(Exception):
    """The server does not speak HTTP."""


class BrokenOff(Exception):
    """The connection ended before the answer did."""


def request_bytes(
    url: str, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
) -> bytes:
    """The request to the server at `url`. It ends the connection unless `headers` have `Connection`."""
    parts = urlsplit(url)
    below, host = ("", "localhost") if url.startswith(SOCKET) else (parts.path.rstrip("/"), parts.netloc)
    lines = [f"{method} {below}{path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    lines += ["", ""] if "Connection" in headers else ["Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1", "replace") + (body or b"")


def _number(text: str) -> int | None:
    """None for what is no decimal number of a size that occurs."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _DIGITS else None


class AnswerReader:
    """Reads the answers of one connection, one after the other."""

    def __init__(self) -> None:
        self.status = 0
        self.reason = ""
        self.headers: Mapping[str, str] = {}
        """By lower-case name."""
        self._buffer = bytearray()
        self._ended = False
        self._left: int | None = None
        """Bytes of the body, or of its current chunk, that are still to come; None means until the end."""
        self._chunked = False
        self._over = False

    def head(self, method: str) -> Reading[None]:
        """Read up to the body. Raises NotHttp, BrokenOff."""
        self._left, self._chunked = None, False
        while True:
            version, _, rest = (yield from self._head_line(NotHttp)).decode("latin-1").partition(" ")
            code, _, self.reason = rest.partition(" ")
            status = _number(code)
            if not version.startswith("HTTP/1.") or status is None:
                raise NotHttp(f"it says {f'{version} {code}'[:40]!r}")
            self.status = status
            self.headers = yield from self._read_headers()
            if self.status != 100:
                break
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        if not self._chunked:
            self._left = _number(self.headers.get("content-length", ""))
        empty = method == "HEAD" or self.status in (204, 304)
        self._over = empty or (self._left == 0 and not self._chunked)

    def line(self) -> Reading[bytes]:
        """The next line with its end; what is left at the end of the body; empty after that.

        Raises BrokenOff for one of more than 256 MiB.
        """
        found: list[bytes] = []
        room = BODY_LINE_LIMIT
        while (yield from self._is_more()):
            part = yield from self._until_newline(room if self._left is None else min(room, self._left))
            self._account(part)
            found.append(part)
            room -= len(part)
            if part.endswith(b"\n"):
                break
            if room <= 0:
                raise BrokenOff("a line never ends")
        return b"".join(found)

    def rest(self, limit: int) -> Reading[bytes]:
        """The rest of the body, or its beginning when that is longer than the limit."""
        found: list[bytes] = []
        while limit > 0 and (yield from self._is_more()):
            if not self._buffer and not self._ended:
                yield from self._more()
            part = self._take(limit if self._left is None else min(limit, self._left))
            self._account(part)
            limit -= len(part)
            found.append(part)
        return b"".join(found)

    def _account(self, part: bytes) -> None:
        if not part:
            if self._left is not None:
                raise BrokenOff("the connection was closed")
            self._over = True
        elif self._left is not None:
            self._left -= len(part)
            if self._left == 0 and not self._chunked:
                self._over = True

    def _is_more(self) -> Reading[bool]:
        """Whether the body goes on; in a chunked one, go on to the next chunk when this one is used up."""
        if self._over or not self._chunked or self._left:
            return not self._over
        if self._left == 0:
            yield from self._head_line()
        size = (yield from self._head_line()).partition(b";")[0].strip()
        if not _SIZE.fullmatch(size):
            raise BrokenOff("a chunk has no size")
        self._left = int(size, 16)
        self._over = self._left == 0
        return not self._over

    def _read_headers(self) -> Reading[Mapping[str, str]]:
        headers: dict[str, str] = {}
        for _ in range(_HEADER_LIMIT):
            line = (yield from self._head_line()).decode("latin-1")
            if not line:
                return headers
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        raise NotHttp("its headers never end")

    def _head_line(self, otherwise: type[Exception] = BrokenOff) -> Reading[bytes]:
        line = yield from self._until_newline(_LINE_LIMIT)
        if not line:
            raise BrokenOff("the connection was closed")
        if not line.endswith(b"\n"):
            raise otherwise("a line never ends")
        return line.rstrip(b"\r\n")

    def _until_newline(self, most: int) -> Reading[bytes]:
        """A line, or its beginning if it has more bytes than that or the connection ends."""
        searched = 0
        while (at := self._buffer.find(b"\n", searched, most)) < 0:
            if len(self._buffer) >= most or self._ended:
                return self._take(most)
            searched = len(self._buffer)
            yield from self._more()
        return self._take(at + 1)

    def _take(self, most: int) -> bytes:
        taken = bytes(self._buffer[:most])
        del self._buffer[:most]
        return taken

    def _more(self) -> Reading[None]:
        came = yield
        self._ended = not came
        self._buffer += came
