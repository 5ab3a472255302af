"""Where an engine's files lie, and where its sockets lie when that path would be too long."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from greenroom.runner.errors import JobFailed

SOCKET_BYTES = 100
"""Longest socket path in bytes; the systems' own limits begin at 104 (macOS), with the closing NUL."""

_SHORT = "greenroom-"
"""How folders for sockets are called that lie in a temporary folder."""
_ELSEWHERE = "sockets"
"""The file in an engine's folder that says where those are."""

_ENGINE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

_LOGGED = re.compile(
    r"^(?:\([\w -]+ pid=\d+\) )?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL):? +)?"
    r"(?:(?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)? )?(?:\[[\w.-]+:\d+\] )?"
)


@dataclass(frozen=True)
class EngineFolder:
    """The folder of one engine under `<home>/engines/`, mode 0700."""

    path: Path

    @classmethod
    def of(cls, engines_dir: Path, engine_id: str) -> EngineFolder:
        """The folder of this id: the one way in which an id becomes a path."""
        if not _ENGINE_ID.fullmatch(engine_id):
            raise ValueError(f"engine id {engine_id!r} cannot name a folder")
        return cls(engines_dir / engine_id)

    @property
    def engine_id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def claim(self) -> Path:
        """Who has claimed this start: keeper, engine, boot."""
        return self.path / "claim"

    @property
    def log(self) -> Path:
        """The head of the engine's output; `log.tail.old` and `log.tail` follow."""
        return self.path / "log"

    @property
    def exit(self) -> Path:
        """How it ended; exists once it has."""
        return self.path / "exit.json"

    @property
    def capsule(self) -> Path:
        """All that is kept about the end: the exit, the command line, what it served."""
        return self.path / "capsule.json"

    def log_size(self) -> int:
        """Grows whenever the engine has said something (a ring that turns shrinks it: any change counts)."""
        size = 0
        for name in ("log", "log.tail.old", "log.tail"):
            with contextlib.suppress(OSError):
                size += (self.path / name).stat().st_size
        return size

    def read_log(self) -> str:
        """The kept output, head and tail; what was left out between is said."""
        parts = []
        for name in ("log", "log.tail.old", "log.tail"):
            with contextlib.suppress(OSError):
                data = (self.path / name).read_bytes()
                if name == "log.tail.old" and data:
                    parts.append(b"\n[... older output is not kept ...]\n")
                parts.append(data)
        return b"".join(parts).decode("utf-8", "replace")

    def keeper_said(self) -> str:
        """What the keeper itself complained of, such as a traceback; usually nothing."""
        with contextlib.suppress(OSError):
            return (self.path / "keeper.log").read_text("utf-8", "replace")[-4000:]
        return ""

    def last_line(self) -> str:
        """The newest whole line the engine has said, at most 300 characters; "" when there is none.

        Without what loggers put before it (process, level, time, source), which nobody waits to read.
        """
        for name in ("log.tail", "log.tail.old", "log"):
            with contextlib.suppress(OSError), (self.path / name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 2048))
                lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
                said = [line.strip() for line in lines if line.strip()]
                if said:
                    return _LOGGED.sub("", said[-1])[:300]
        return ""

    def create(self) -> Sockets:
        """Make the folder (private, also when it was there already) and say where its sockets go."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        inside = Sockets(self.path / "keeper.sock", self.path / "engine.sock")
        if inside.fits() and _takes_sockets(self.path):
            return inside
        short = self._elsewhere()
        if short is None:
            short = _make_short_folder()
            note = os.open(self.path / _ELSEWHERE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(note, "wb") as file:
                file.write(os.fsencode(short))
        return Sockets(short / "k.sock", short / "e.sock")

    def remove(self) -> None:
        """Remove the folder and, when they lie elsewhere, its sockets."""
        if (short := self._elsewhere()) is not None:
            shutil.rmtree(short, ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def _elsewhere(self) -> Path | None:
        """Where the sockets lie whose own path would be too long; None where that is not ours alone."""
        with contextlib.suppress(OSError):
            short = Path(os.fsdecode((self.path / _ELSEWHERE).read_bytes()))
            if short.name.startswith(_SHORT) and _is_private(short):
                return short
        return None


@dataclass(frozen=True)
class Sockets:
    """The keeper's socket and the engine's."""

    keeper: Path
    engine: Path

    def fits(self) -> bool:
        """Short enough for every system."""
        return all(len(os.fsencode(path)) <= SOCKET_BYTES for path in (self.keeper, self.engine))


def _make_short_folder() -> Path:
    """A folder of this user alone with a short path and a name that nobody could know before.

    In a shared temporary folder others may have taken any name that can be foreseen.
    """
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - see above
        if not base or len(os.fsencode(base)) > SOCKET_BYTES - len(f"/{_SHORT}12345678/k.sock"):
            continue
        with contextlib.suppress(OSError):
            mode = os.stat(base).st_mode
            # Where everybody may write and nothing is sticky, others could put their folder in its place.
            if stat.S_ISDIR(mode) and (mode & stat.S_ISVTX or not mode & 0o022):
                return Path(tempfile.mkdtemp(prefix=_SHORT, dir=base))
    raise JobFailed.permanent(
        "socket_path",
        "No unix socket can be made in the data directory (its path is too long, or its disk has no "
        "such sockets), nor in a temporary folder.",
        advice="Set XDG_RUNTIME_DIR or TMPDIR to a folder with a short path that only you can write to.",
    )


def _takes_sockets(folder: Path) -> bool:
    """Memory cards and some shares have no sockets."""
    place = folder / f".{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as trial, contextlib.suppress(OSError):
        trial.bind(os.fspath(place))
        place.unlink()
        return True
    return False


def _is_private(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
