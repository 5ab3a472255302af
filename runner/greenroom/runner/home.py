"""Checks the data directory, makes it private, explains what is wrong with it, and watches it.

`HomeWatch` notices when it is removed under the daemon, or its disk stops answering.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_MODELS = "models"
_FOLDERS = (_MODELS, "backends", "cache", "engines")
_FILES = (
    "secret",
    "instance",
    "daemon.json",
    "daemon.lock",
    "daemon.log",
    "journal.db",
    "journal.db-wal",
    "responses.db",
)
_OTHERS_WRITE = 0o022
_ELSEWHERE = "Set GREENROOM_HOME to a folder you may write to."
_OR_ELSEWHERE = _ELSEWHERE.replace("Set", "or set")
_GIVEN_AS = {"argument home": "the argument home", "flag --home": "--home"}


class HomeUnusable(OSError):
    """The data directory cannot be used; `sentence` says why, `advice` what to do."""

    sentence: str
    advice: str

    def __init__(self, error: OSError, home: Path, origin: str = "") -> None:
        """`origin` is where the setting `home` comes from, as `Settings` has it: the advice names that."""
        super().__init__(error.errno, error.strerror, error.filename or str(home))
        told = (error.sentence, error.advice) if isinstance(error, HomeUnusable) else complaint(error, home)
        self.sentence, advice = told
        self.advice = advice.replace("GREENROOM_HOME", _GIVEN_AS.get(origin, "GREENROOM_HOME"))

    def __str__(self) -> str:
        return f"{self.sentence} {self.advice}"


def prepare_home(home: Path, folders: Sequence[str] = _FOLDERS) -> None:
    """Create it and these folders, writable only by their owner whatever the umask, and check them.

    Raises:
        HomeUnusable: It cannot be used; nothing was changed except what could be created.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(home.stat().st_mode)
        if mode & _OTHERS_WRITE:
            home.chmod(mode & ~_OTHERS_WRITE)
        for name in folders:
            (home / name).mkdir(mode=0o700, exist_ok=True)
        for path in _parts(home, folders):
            _expect_usable(path)
    except OSError as error:
        raise HomeUnusable(error, home) from error


def _parts(home: Path, folders: Sequence[str]) -> Iterator[Path]:
    """What is checked: enough to find another user's files without walking through everything."""
    yield home
    yield from (home / name for name in _FILES)
    for name in folders:
        yield home / name
        with os.scandir(home / name) as entries:
            yield from (Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))


def _expect_usable(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    is_folder = stat.S_ISDIR(status.st_mode)
    if path.name in _FILES and is_folder:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # Read-only models can be served; storing one fails with a reason.
    written = 0 if _MODELS in (path.name, path.parent.name) else os.W_OK
    if not os.access(path, os.R_OK | written | (os.X_OK if is_folder else 0)):
        number = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
        raise PermissionError(number, os.strerror(number), str(path))


def complaint(error: OSError, home: Path) -> tuple[str, str]:
    """What is wrong with the data directory, and what to do about it."""
    named = error.filename if isinstance(error.filename, str | os.PathLike) else home
    path = Path(named)
    begin = f"The data directory {home} cannot be used: "
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return _forbidden(path, home, begin)
        case errno.EROFS:
            return f"{begin}{path} is on a file system that is mounted read-only.", _ELSEWHERE
        case errno.ENOSPC | errno.EDQUOT:
            return f"{begin}the disk of {path} is full.", f"Make room, {_OR_ELSEWHERE}"
        case errno.EMFILE | errno.ENFILE:
            return f"{begin}too many files are open.", "Raise the limit (ulimit -n), then try again."
        case errno.EISDIR:
            return f"{begin}{path} is a folder and should be a file.", "Move it away, then try again."
        case errno.ENOTDIR | errno.EEXIST | errno.ENOENT | errno.ELOOP:
            culprit = _not_a_folder(path, home)
            if culprit:
                return f"{begin}{culprit}.", f"Move it away, {_OR_ELSEWHERE}"
            return f"{begin}{path} cannot be made there.", _ELSEWHERE
    return f"{begin}{error.strerror or error} ({path}).", _ELSEWHERE


def _forbidden(path: Path, home: Path, begin: str) -> tuple[str, str]:
    """It belongs to another user, or its mode excludes its owner."""
    culprit = path
    for one in (home, *reversed([parent for parent in path.parents if home in parent.parents]), path):
        if _is_others(one) or not os.access(one, os.R_OK | os.W_OK):
            culprit = one
            break
    if _is_others(culprit) and (home in culprit.parents or culprit == home):
        owner, you = _user_name(culprit.stat().st_uid), _user_name(os.geteuid())
        return (
            f"{begin}{culprit} belongs to {owner}, and you are {you}: another user has used it before.",
            f'Take it back: sudo chown -R {os.geteuid()} "{home}". Or set GREENROOM_HOME to another folder.',
        )
    if home not in culprit.parents and culprit != home:
        return (
            f"{begin}you may not write to {culprit.parent}.",
            "Set GREENROOM_HOME to a folder you may write to.",
        )
    return (
        f"{begin}you may not read and write {culprit}.",
        f'Allow it: chmod -R u+rwX "{home}". Or set GREENROOM_HOME to another folder.',
    )


def _not_a_folder(path: Path, home: Path) -> str:
    """What is in the way; empty if nothing is."""
    for one in (*reversed(path.parents), path, home):
        if one.is_symlink() and not one.exists():
            return f"{one} is a link to {os.readlink(one)}, which does not exist"
        if one.exists() and not one.is_dir() and one.name not in _FILES:
            return f"{one} is {'a file and should be' if one.is_file() else 'not'} a folder"
    return ""


def _is_others(path: Path) -> bool:
    try:
        return path.stat().st_uid != os.geteuid()
    except OSError:
        return False


def _user_name(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


_EVERY = 1.0
_PATIENCE = 5.0
"""Seconds a check may take before the disk counts as hung."""


class HomeWatch:
    """Checks regularly, on a thread of its own: a check may hang as long as the disk does."""

    def __init__(self, home: Path, is_in_place: Callable[[], bool], *, every: float = _EVERY) -> None:
        self._home = home
        self._is_in_place = is_in_place
        self._every = every
        self._closed = threading.Event()
        self._looking_since = 0.0
        """When the current check began; 0 between checks."""
        self._is_gone = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="home-watch", daemon=True).start()

    def close(self) -> None:
        """Stop checking. Does not wait for a check that hangs."""
        self._closed.set()

    @property
    def problem(self) -> str:
        """What is wrong with the data directory; empty if nothing is."""
        if self._is_gone:
            return (
                f"The data directory {self._home} was removed, replaced or unmounted while the daemon runs: "
                "nothing it stores is kept. Put it back, or stop the daemon: greenroom stop"
            )
        since = self._looking_since
        if since and time.monotonic() - since > _PATIENCE:
            return (
                f"The disk of the data directory {self._home} has not answered for "
                f"{time.monotonic() - since:.0f}s."
            )
        return ""

    def _run(self) -> None:
        while not self._closed.wait(self._every):
            self._looking_since = time.monotonic()
            is_gone = not self._is_in_place()
            self._looking_since = 0.0
            if is_gone != self._is_gone and not self._closed.is_set():
                self._is_gone = is_gone
                # Every command imports this module, and only the daemon comes here.
                import logging

                _log = logging.getLogger(__name__)
                _log.error("%s", self.problem or f"The data directory {self._home} is back.")
