"""The folders of engines: their files, their sockets (elsewhere if the path is too long), and their
removal.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenroom.actors.values import EngineSpec
from greenroom.runner.engines.exit_report import read_end
from greenroom.runner.errors import JobFailed
from greenroom.runner.systems.processes import ProcessIdentity

_log = logging.getLogger(__name__)

SOCKET_BYTES = 100
"""Longest socket path in bytes; the systems' limits start at 104 (macOS), with the closing NUL."""

_SHORT = "greenroom-"
"""Prefix of socket folders in a temporary folder."""
_ELSEWHERE = "sockets"
"""The file in an engine's folder that names its socket folder."""

_ENGINE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

_LOGGED = re.compile(
    r"^(?:\([\w -]+ pid=\d+\) )?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL):? +)?"
    r"(?:(?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)? )?(?:\[[\w.-]+:\d+\] )?"
)
KEPT_AT_SWEEP = 20
"""Folders of ended engines that a sweep keeps, newest first."""
KEPT_MEANWHILE = 64
"""The same between sweeps: more than runners list, so that every engine in `ps --all` has its logs."""
PRUNED_EVERY = 16
"""Prune after this many ends."""
_LOOKED_AT = 5
"""Maximum logs of earlier engines to read, latest first."""


@dataclass(frozen=True)
class EngineFolder:
    """The folder of one engine under `<home>/engines/`, mode 0700."""

    path: Path

    @classmethod
    def of(cls, engines_dir: Path, engine_id: str) -> EngineFolder:
        """The folder of an engine; the only way from an id to a path."""
        if not _ENGINE_ID.fullmatch(engine_id):
            raise ValueError(f"engine id {engine_id!r} cannot name a folder")
        return cls(engines_dir / engine_id)

    @property
    def engine_id(self) -> str:
        return self.path.name

    @property
    def claim(self) -> Path:
        """Who claimed this start: keeper, engine, boot."""
        return self.path / "claim"

    @property
    def log(self) -> Path:
        """The head of the engine's output; `log.tail.old` and `log.tail` follow."""
        return self.path / "log"

    @property
    def exit(self) -> Path:
        return self.path / "exit.json"

    @property
    def capsule(self) -> Path:
        """Everything recorded about the end: exit, command line, what it served."""
        return self.path / "capsule.json"

    @property
    def slots(self) -> Path:
        """Where the engine writes what its slots hold; exists only for an engine that was told of it."""
        return self.path / "slots"

    def make_slots(self) -> Path:
        """Create the folder for slots, private and empty."""
        self.forget_slots()
        self.slots.mkdir(mode=0o700)
        return self.slots

    def forget_slots(self) -> None:
        """Remove what an engine left there: users' text."""
        shutil.rmtree(self.slots, ignore_errors=True)

    def log_size(self) -> int:
        """Changes with every output (it shrinks when the ring turns)."""
        size = 0
        for name in ("log", "log.tail.old", "log.tail"):
            with contextlib.suppress(OSError):
                size += (self.path / name).stat().st_size
        return size

    def read_log(self) -> str:
        """The kept output, head and tail, with a note where some is missing."""
        parts = []
        for name in ("log", "log.tail.old", "log.tail"):
            with contextlib.suppress(OSError):
                data = (self.path / name).read_bytes()
                if name == "log.tail.old" and data:
                    parts.append(b"\n[... older output is not kept ...]\n")
                parts.append(data)
        return b"".join(parts).decode("utf-8", "replace")

    def keeper_said(self) -> str:
        """The keeper's own errors, such as a traceback; usually nothing."""
        with contextlib.suppress(OSError):
            return (self.path / "keeper.log").read_text("utf-8", "replace")[-4000:]
        return ""

    def last_line(self) -> str:
        """The engine's last complete line without the logger's prefix, at most 300 characters; "" if none."""
        for name in ("log.tail", "log.tail.old", "log"):
            with contextlib.suppress(OSError), (self.path / name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 2048))
                lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
                said = [line.strip() for line in lines if line.strip()]
                if said:
                    return _LOGGED.sub("", said[-1])[:300]
        return ""

    def create(self) -> Sockets:
        """Create the folder (private even if it exists) and choose where its sockets go."""
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
        if (short := self._elsewhere()) is not None:
            shutil.rmtree(short, ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def _elsewhere(self) -> Path | None:
        """The socket folder, if there is one and it is private to this user."""
        with contextlib.suppress(OSError):
            short = Path(os.fsdecode((self.path / _ELSEWHERE).read_bytes()))
            if short.name.startswith(_SHORT) and _is_private(short):
                return short
        return None


@dataclass(frozen=True)
class Sockets:
    keeper: Path
    engine: Path

    def fits(self) -> bool:
        return all(len(os.fsencode(path)) <= SOCKET_BYTES for path in (self.keeper, self.engine))


def _make_short_folder() -> Path:
    """A private folder with a short, unpredictable path.

    In a shared temporary folder others may have created any predictable name.
    """
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - see above
        if not base or len(os.fsencode(base)) > SOCKET_BYTES - len(f"/{_SHORT}12345678/k.sock"):
            continue
        with contextlib.suppress(OSError):
            mode = os.stat(base).st_mode
            # If it is world-writable without the sticky bit, others could replace our folder.
            if stat.S_ISDIR(mode) and (mode & stat.S_ISVTX or not mode & 0o022):
                return Path(tempfile.mkdtemp(prefix=_SHORT, dir=base))
    raise JobFailed.permanent(
        "socket_path",
        "A Unix socket can be created neither in the data directory (its path is too long, or its disk does "
        "not support sockets) nor in a temporary folder.",
        advice="Set XDG_RUNTIME_DIR or TMPDIR to a folder with a short path that only you can write to.",
    )


def _takes_sockets(folder: Path) -> bool:
    """False on memory cards and some network shares."""
    place = folder / f".{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as trial, contextlib.suppress(OSError):
        trial.bind(os.fspath(place))
        place.unlink()
        return True
    return False


def _is_private(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def read_claim(folder: EngineFolder) -> dict[str, Any]:
    """The current claim; empty if there is none."""
    try:
        value = json.loads(folder.claim.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def keeper_of(claim: dict[str, Any]) -> ProcessIdentity:
    return ProcessIdentity(
        int(claim.get("keeper_pid", 0)),
        float(claim.get("keeper_started", 0.0)),
        str(claim.get("boot_id", "")),
    )


class Folders:
    def __init__(self, engines_dir: Path, ours: Callable[[str], bool]) -> None:
        """`ours` says whether this host keeps an engine."""
        self._dir = engines_dir
        self._ours = ours
        self._ends = 0
        self._lock = threading.Lock()

    def has_ended(self) -> bool:
        """Count one more end; True when it is time to prune."""
        with self._lock:
            self._ends += 1
            return self._ends % PRUNED_EVERY == 0

    def sweep(self, known: Collection[str], end_unknown: Callable[[EngineFolder], bool]) -> list[str]:
        """End unknown engines and remove old folders of ended ones; returns the ids of the engines it
        ended.
        """
        ended: list[str] = []
        kept: list[tuple[float, EngineFolder]] = []
        for path in sorted(self._dir.iterdir()) if self._dir.is_dir() else ():
            if path.name in known or self._ours(path.name) or not path.is_dir():
                continue
            folder = EngineFolder(path)
            try:
                if read_end(folder.exit) is None and end_unknown(folder):
                    ended.append(folder.engine_id)
                folder.forget_slots()
                kept.append((path.stat().st_mtime, folder))
            except OSError as problem:
                _log.warning("engine folder %s is kept, because it cannot be read: %s", path.name, problem)
        _remove_beyond(KEPT_AT_SWEEP, kept)
        return ended

    def prune(self) -> None:
        """Remove the oldest folders of ended engines: a daemon may run for months.

        One without `exit.json` belongs to a failed start, unless its keeper is alive.
        """
        ended: list[tuple[float, EngineFolder]] = []
        with contextlib.suppress(OSError):
            for path in self._dir.iterdir():
                folder = EngineFolder(path)
                if self._ours(path.name) or (
                    not folder.exit.exists() and keeper_of(read_claim(folder)).alive()
                ):
                    continue
                with contextlib.suppress(OSError):
                    ended.append((path.stat().st_mtime, folder))
        _remove_beyond(KEPT_MEANWHILE, ended)


def _remove_beyond(kept: int, folders: list[tuple[float, EngineFolder]]) -> None:
    for _, folder in sorted(folders, key=lambda item: item[0], reverse=True)[kept:]:
        folder.remove()


def prompt_speed(engines_dir: Path, spec: EngineSpec, told_by: Callable[[str], float]) -> float:
    """Tokens a second at which the last engine of this model and installation read prompts; 0.0 if unknown.

    `told_by` finds it in a log.
    """
    folders: list[tuple[float, EngineFolder]] = []
    with contextlib.suppress(OSError):
        for path in engines_dir.iterdir():
            with contextlib.suppress(OSError):
                folders.append(((path / "claim").stat().st_mtime, EngineFolder(path)))
    folders.sort(key=lambda one: one[0], reverse=True)
    same = [folder for _, folder in folders if _is_alike(folder, spec)]
    return next((speed for one in same[:_LOOKED_AT] if (speed := told_by(one.read_log()))), 0.0)


def _is_alike(folder: EngineFolder, spec: EngineSpec) -> bool:
    try:
        about = read_claim(folder)["about"]["spec"]
        return all(
            about.get(name) == getattr(spec, name)
            for name in ("backend", "installation_id", "model_id", "mode", "device")
        ) and spec.on_devices == sum(one["layers"] for one in about.get("placement", ()))
    except (LookupError, TypeError, AttributeError):
        return False
