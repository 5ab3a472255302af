"""What an engine's slots have read, as files: saved, restored and erased by the engine itself.

The engine writes and reads files in a folder of its own, `EngineFolder.slots`, which exists if the engine was
started with it. llama.cpp's server ends with SIGABRT at a truncated file and restores a damaged one without a
word: a file is checked before it is put there. Nothing stays in the folder: a saved file is for the caller to
move away, one that was restored is removed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from greenroom.runner.engines.folders import EngineFolder
from greenroom.runner.engines.reachability import EngineConnection

_ANSWER_LIMIT = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Saved:
    tokens: int
    size: int
    """Bytes."""
    path: Path


@dataclass(frozen=True)
class Restored:
    tokens: int


@dataclass(frozen=True)
class SlotFailure:
    """Why nothing was saved or restored. After a restore that failed, the slot may hold nothing any more."""

    kind: Literal["empty", "unsupported", "refused", "timeout", "gone"]
    """`empty`: the slot holds nothing. `unsupported`: this engine never can. `refused`: it cannot this time.
    `timeout`: it did not answer; it may yet do it. `gone`: it cannot be reached."""
    reason: str
    """A clause for people, such as `the slot is empty`."""


class SlotFiles:
    """Saves and restores the slots of one engine. Every call blocks, for `timeout` seconds at most for each
    part of the engine's answer; none raises. May be used from several threads.
    """

    def __init__(self, endpoint: Path, folder: Path, *, leader: int = 0) -> None:
        """`endpoint` is the engine's socket, `folder` its folder for slots, `leader` its process id, without
        which it is not checked who listens.
        """
        self._endpoint = str(endpoint)
        self._folder = folder
        self._leader = leader
        self._late: set[Path] = set()
        self._lock = threading.Lock()

    def path(self, name: str) -> Path:
        """The file of a name. Raises ValueError for a name that cannot be one."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a saved slot")
        return self._folder / name

    def size(self, name: str) -> int:
        """Bytes of the file of a name so far; 0 if there is none."""
        return _size(self.path(name))

    def save(self, slot: int, name: str, timeout: float) -> Saved | SlotFailure:
        """Have a slot written to a new file. Waits while the slot answers a request."""
        self._remove_late()
        path = self.path(name)
        found = self._ask(slot, "save", name, timeout)
        if isinstance(found, SlotFailure):
            self._discard(path, is_late=found.kind == "timeout")
            return found
        tokens, size = _count(found, "n_saved"), _size(path)
        if tokens <= 0:
            # llama.cpp reports success and writes a head of a few bytes.
            self._discard(path)
            return SlotFailure("empty", "the slot is empty")
        if size <= 0 or size != _count(found, "n_written"):
            self._discard(path)
            return SlotFailure("refused", "the engine's file is not as long as it says")
        with contextlib.suppress(OSError):
            path.chmod(0o600)
        return Saved(tokens, size, path)

    def restore(self, slot: int, name: str, timeout: float) -> Restored | SlotFailure:
        """Have a slot filled from a file of the folder, which is removed whatever happens."""
        self._remove_late()
        path = self.path(name)
        found: dict[str, Any] | SlotFailure = SlotFailure("timeout", "it was interrupted")
        try:
            found = self._ask(slot, "restore", name, timeout)
        finally:
            self._discard(path, is_late=isinstance(found, SlotFailure) and found.kind == "timeout")
        if isinstance(found, SlotFailure):
            return found
        tokens = _count(found, "n_restored")
        return Restored(tokens) if tokens > 0 else SlotFailure("refused", "the engine restored nothing")

    def erase(self, slot: int, timeout: float) -> SlotFailure | None:
        """Have a slot forget what it holds; None if it did."""
        found = self._ask(slot, "erase", "", timeout)
        return found if isinstance(found, SlotFailure) else None

    def _ask(self, slot: int, action: str, name: str, timeout: float) -> dict[str, Any] | SlotFailure:
        connection = EngineConnection(self._endpoint, timeout, self._leader)
        try:
            body = json.dumps({"filename": name} if name else {})
            connection.request(
                "POST", f"/slots/{slot}?action={action}", body, {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            return _read(response.status, response.read(_ANSWER_LIMIT))
        except TimeoutError:
            return SlotFailure("timeout", f"the engine did not answer within {timeout:g} s")
        except OSError as problem:
            return SlotFailure("gone", f"the engine cannot be reached: {problem}")
        except (http.client.HTTPException, ValueError):
            return SlotFailure("refused", "the engine's answer makes no sense")
        finally:
            connection.close()

    def _discard(self, path: Path, *, is_late: bool = False) -> None:
        """Remove a file; once more at the next call if the engine may still write or read it."""
        if is_late:
            with self._lock:
                self._late.add(path)
        else:
            with contextlib.suppress(OSError):
                path.unlink()

    def _remove_late(self) -> None:
        with self._lock:
            late, self._late = self._late, set()
        for path in late:
            self._discard(path)


def slot_files(folder: EngineFolder, endpoint: Path, leader: int) -> SlotFiles | None:
    """Those of an engine; None if it was started without."""
    return SlotFiles(endpoint, folder.slots, leader=leader) if folder.slots.is_dir() else None


def _read(status: int, body: bytes) -> dict[str, Any] | SlotFailure:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if status == 200 and isinstance(found, dict):
        return found
    if status in (404, 405, 501):
        return SlotFailure("unsupported", "this engine cannot save or restore slots")
    if status == 200:
        return SlotFailure("refused", "the engine's answer makes no sense")
    return SlotFailure("refused", f"the engine refused with status {status}: {_message(found)}")


def _message(found: object) -> str:
    error = found.get("error") if isinstance(found, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message[:200] if isinstance(message, str) else "without a reason"


def _count(found: dict[str, Any], name: str) -> int:
    value = found.get(name)
    return value if isinstance(value, int) else 0


def _size(path: Path) -> int:
    """Of a file; 0 if there is none, or something else."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
