"""`GET /logs`: what the daemon and its engines have printed, for `docker model logs`.

Each log follows a line with its name, as with `tail` of several files. What an engine prints may quote its
clients, so callers on other machines get the daemon's log alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

from greenroom.actors.characters import visible
from greenroom.runner.engines.folders import EngineFolder
from greenroom.runner.http.bodies import invalid, is_true
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.port import TEXT, AnyResponse, Request, Response
from greenroom.runner.models.references import familiar

_POLL = 0.3
"""Seconds between two looks at logs that are followed."""
_PIECE = 64 * 1024
_MOST = 1_000_000
"""Lines that `tail` may ask for."""
_ELSEWHERE = "Logs of engines are only for callers on the daemon's machine: they may quote other clients.\n"


class Log:
    """A log that is read as it grows, whatever its files are renamed to meanwhile. Blocks."""

    def __init__(self, title: str, files: Sequence[Path]) -> None:
        """`files`: the oldest first."""
        self.title = title
        self._files = files
        self._read: dict[int, int] = {}
        """Bytes that were read of each file, by inode."""
        self._rest = b""

    def new_lines(self) -> list[str]:
        """The lines that have been completed since, harmless for a terminal."""
        data, read = self._rest, {}
        for path in self._files:
            try:
                with path.open("rb") as file:
                    inode = path.stat().st_ino
                    size = file.seek(0, 2)
                    begun = self._read.get(inode, 0)
                    file.seek(begun if begun <= size else 0)
                    data += file.read()
                    read[inode] = file.tell()
            except FileNotFoundError:
                continue
        self._read = read
        *whole, self._rest = data.split(b"\n")
        return [_harmless(line) for line in whole]

    def last_line(self) -> list[str]:
        """The line that was begun and has no end, at the end of all."""
        rest, self._rest = self._rest, b""
        return [_harmless(rest)] if rest else []


class Logs:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def logs(self, request: Request) -> AnyResponse:
        """All logs, or with `tail` the last lines of each; with `follow`, what is written from then on."""
        follow, no_engines = is_true(request, "follow"), is_true(request, "no-engines")
        last = _tail(request.query.get("tail", "all"))
        greenroom = self._context.greenroom
        files = [greenroom.home / name for name in ("daemon.log.1", "daemon.log")]
        if not await asyncio.to_thread(files[-1].exists):
            raise HttpRefusal(404, "no_log", "service log not found: no daemon writes one here.")
        own = Log("daemon", files)
        logs = {"": own}
        with_engines = not no_engines and request.is_local
        if request.method == "HEAD":
            return Response(content_type=TEXT)
        stream = await request.start(headers={"Content-Type": TEXT, "Cache-Control": "no-cache"})
        if follow:
            self._context.clients.goes_on(request, stream)
        if not no_engines and not with_engines:
            await stream.write(_ELSEWHERE.encode())
        shown, first = "", True
        while True:
            if with_engines:
                self._find_engines(logs)
            for log in logs.values():
                lines = await asyncio.to_thread(log.new_lines)
                if first and last is not None:
                    lines = lines[len(lines) - last :] if last < len(lines) else lines
                if not follow:
                    lines += log.last_line()
                if lines and len(logs) > 1 and log.title != shown:
                    await stream.write(f"{chr(10) if shown else ''}==> {log.title} <==\n".encode())
                    shown = log.title
                for piece in _pieces(lines):
                    await stream.write(piece)
            first = False
            if not follow:
                break
            await asyncio.sleep(_POLL)
        await stream.end()
        return stream

    def _find_engines(self, logs: dict[str, Log]) -> None:
        """Add the logs of engines there are, and of those that ended lately."""
        folder = self._context.greenroom.home / "engines"
        for engine in self._context.greenroom.engines():
            spec = engine.spec
            if spec.engine_id not in logs:
                head = EngineFolder.of(folder, spec.engine_id).log
                title = f"{spec.backend} {spec.engine_id} with {familiar(spec.model_ref)}"
                files = [head, *(head.with_name(f"log.{name}") for name in ("tail.old", "tail"))]
                logs[spec.engine_id] = Log(visible(title), files)


def _tail(text: str) -> int | None:
    """How many lines; None means all."""
    if text == "all":
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 7 or int(text) > _MOST:
        raise invalid(f'tail must be "all" or a number of lines up to {_MOST}', param="tail")
    return int(text)


def _harmless(line: bytes) -> str:
    # A carriage return redraws a progress bar: its last state is worth a line.
    return visible(line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace"), lines=True)


def _pieces(lines: Sequence[str]) -> Iterator[bytes]:
    piece: list[str] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= _PIECE:
            yield ("\n".join(piece) + "\n").encode()
            piece, size = [], 0
    if piece:
        yield ("\n".join(piece) + "\n").encode()
