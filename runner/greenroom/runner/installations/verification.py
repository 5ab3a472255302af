"""What an installation writes down about itself, `installation.json`, and whether it still is so.

This commit mark is written last, so a folder that has one is whole, and it lists every file, so that what is
missing later can be named without a network.
"""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import msgspec

from greenroom.actors.journal.fsync import sync_folder, write_atomically
from greenroom.actors.values import Failure, Installation
from greenroom.runner.engines.keeper_watch import cleaned
from greenroom.runner.errors import JobCancelled, JobFailed, is_machines, refused_by_machine
from greenroom.runner.installations.lock_file import LockedFile
from greenroom.runner.systems import System, here
from greenroom.runner.systems.packages import missing_library
from greenroom.runner.threads import stop_if

MARK = "installation.json"
ENVIRONMENT = "env"
"""The folder inside an installation's that holds its Python: an environment, or a tree out of an image."""
SCHEMA = 1
WITH_PROGRAM = 2
"""The schema of records with a program, which earlier releases leave alone."""


class Unclear(Exception):
    """Whether an installation is whole cannot be told now; the text is a clause that says why.

    Nothing may be concluded from that: neither that it is broken, nor that it is gone.
    """


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    """Such as `3.11.7`."""
    tag: str
    """Such as `cpython-311`: compiled packages run under this one only."""
    base: str
    """The program the environment's own Python is a link to."""

    @classmethod
    def here(cls) -> Interpreter:
        """The one this program's own environment was made from."""
        return cls(
            version=".".join(map(str, sys.version_info[:3])),
            tag=sys.implementation.cache_tag or sys.implementation.name,
            base=str(base_python()),
        )


class Wheel(msgspec.Struct, frozen=True, kw_only=True):
    """A fetched file the installation was made from: a wheel, or a part of an image."""

    name: str
    sha256: str
    size: int

    def locked(self) -> LockedFile:
        return LockedFile(name=self.name, sha256=self.sha256, size=self.size)


class ImageOrigin(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    """The reference it was asked for by, such as `docker.io/docker/model-runner:TAG`."""
    digest: str
    """Of its manifest, for its platform: what is installed under this name and version again is this."""
    prebuilt: dict[str, str] = {}
    """Folders in the tree, and where below the user's home the backend looks for what is in them."""


class InstallationRecord(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA
    id: str
    backend: str
    variant: str = ""
    version: str
    digest: str
    """SHA-256 of the lock, or of the image's manifest."""
    built_at: float
    size: int
    """Bytes of all files, hard links counted once."""
    python: Interpreter
    wheels: tuple[Wheel, ...]
    probed: tuple[str, ...]
    """Modules that imported when it was built."""
    files: dict[str, int]
    """Size by path below the installation's folder. Byte code is left out: Python writes it as it likes."""
    links: dict[str, str]
    """Target by path."""
    sums: dict[str, str]
    """SHA-256 of the files that no `RECORD` speaks for, the `RECORD`s themselves among them; of all files of
    an image."""
    image: ImageOrigin | None = None
    """None for an environment."""
    program: str = ""
    """Path of the program compiled on this machine; empty if a Python runs the engine."""
    built_with: str = ""
    """Compilers and options of that program."""
    no_restore: str | None = None
    """Why its engines cannot go on with what others have read and saved; empty if they can, None if that was
    never tried."""

    def installation(self, broken: str = "") -> Installation:
        """The fact others see."""
        return Installation(
            id=self.id,
            backend=self.backend,
            variant=self.variant,
            version=self.version,
            digest=self.digest,
            size=self.size,
            built_at=self.built_at,
            built_with=self.built_with,
            broken=broken,
        )


def interpreter(folder: Path) -> Path:
    """The Python of an installation's folder: trees out of images have a `python3` at least."""
    programs = folder / ENVIRONMENT / "bin"
    found = programs / "python"
    return found if os.path.lexists(found) else programs / "python3"


def base_python() -> Path:
    """The interpreter below every virtual environment: ours may be removed with its environment."""
    major, minor = sys.version_info[:2]
    for folder in (Path(sys.base_prefix, "bin"), Path(sys.base_exec_prefix, "bin")):
        for name in (f"python{major}.{minor}", "python3", "python"):
            if (candidate := folder / name).exists():
                return candidate
    return Path(getattr(sys, "_base_executable", None) or sys.executable)


def read_record(folder: Path) -> InstallationRecord | None:
    """The record of a folder; None when it has no commit mark.

    Raises:
        ValueError: The mark is damaged.
        Unclear: It cannot be read now, or was written by a newer Greenroom.
    """
    try:
        data = (folder / MARK).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unclear(f"{MARK} cannot be read: {error.strerror}") from error
    try:
        record = msgspec.json.decode(data, type=InstallationRecord)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{MARK} is damaged: {error}") from error
    if record.schema not in (SCHEMA, WITH_PROGRAM):
        # Of a newer one, which will find it as it left it.
        raise Unclear(f"{MARK} was written by another release of Greenroom (schema {record.schema})")
    return record


def write_record(folder: Path, record: InstallationRecord) -> None:
    """Make the folder an installation. Everything in it reaches the disk before the mark does."""
    flush(folder)
    write_atomically(folder / MARK, msgspec.json.format(msgspec.json.encode(record), indent=1))
    for place in (folder.parent, folder.parent.parent):
        sync_folder(place)


def flush(folder: Path, system: System = here) -> None:
    """Hand everything in a folder to the disk; the mark, which comes after, empties the drive's own cache.

    Raises:
        OSError: They cannot be written.
    """
    system.sync_tree(folder)


_IDENTITY = "import sys; print(sys.implementation.cache_tag, '%d.%d.%d' % sys.version_info[:3])"
IDENTITY_SECONDS = 20.0
_PROBE = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
_PROBE_SECONDS = 300.0
END_SECONDS = 5.0
_NOT_NOW = frozenset({errno.EIO, errno.ESTALE, errno.ETXTBSY, errno.EACCES, errno.EPERM, errno.ENOTCONN})
"""Once the disk or the permissions are repaired, the installation is intact."""
_OUTPUT_LIMIT = 64 * 1024


def inventory(folder: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Sizes of all files and targets of all links below a folder, by relative path; without byte code."""
    files: dict[str, int] = {}
    links: dict[str, str] = {}
    begin = len(str(folder)) + 1
    for entry in walk(folder):
        name = entry.path[begin:]
        if entry.is_symlink():
            links[name] = os.readlink(entry.path)
        elif not name.endswith(".pyc") and name != MARK:
            files[name] = entry.stat(follow_symlinks=False).st_size
    return files, links


def walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Every file and link below a folder; links are not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path)
            else:
                yield entry


def complaint(folder: Path, record: InstallationRecord, *, run: bool = True) -> str:
    """Why the installation cannot be used, from presence and size of every file; empty if it is intact.

    Args:
        run: Also start its Python and see that it is the one the packages were made for.

    Raises:
        Unclear: It cannot be told now.
    """
    if found := missing(folder, record):
        return found
    if not run:
        return ""
    return strange_program(folder / record.program) if record.program else strange_python(folder, record)


def missing(folder: Path, record: InstallationRecord) -> str:
    """A clause on the first file or link that is gone or has another size; empty if none is."""
    root = f"{folder}{os.sep}"
    regular, lstat = stat.S_IFREG, os.lstat
    for name, size in record.files.items():
        try:
            found = lstat(root + name)
        except (FileNotFoundError, NotADirectoryError):
            return f"{name} is missing"
        except OSError as error:
            raise Unclear(f"{name} cannot be read: {error.strerror}") from error
        if found.st_size != size or found.st_mode & 0o170000 != regular:
            return f"{name} has {found.st_size} bytes instead of {size}"
    for name, target in record.links.items():
        try:
            if os.readlink(root + name) != target:
                return f"{name} points elsewhere"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise Unclear(f"{name} cannot be read: {error.strerror}") from error
            return f"{name} is not a link any more"
    return ""


def strange_python(folder: Path, record: InstallationRecord) -> str:
    """Why the installation's Python is not the one its packages were built for; empty if it is.

    Another patch release is the same Python: system updates replace those in place.

    Raises:
        Unclear: It cannot be told now: a machine without descriptors or memory, or a busy one, says nothing
            about the installation.
    """
    python = interpreter(folder)
    try:
        os.stat(python)
    except (FileNotFoundError, NotADirectoryError):
        return f"its Python is gone: {record.python.base} no longer exists"
    except OSError as error:
        raise Unclear(f"its Python cannot be read: {error.strerror}") from error
    try:
        tag, version = identity(python)
    except InterpreterFailed as error:
        if error.passing:
            raise Unclear(f"its Python did not answer ({error})") from error
        return f"its Python does not run ({error})"
    if tag != record.python.tag:
        return f"its Python is now {version} and was {record.python.version}"
    return ""


def strange_program(program: Path) -> str:
    """Why a compiled program does not run any more, as without a library that is gone; empty if it runs.

    Raises:
        Unclear: It cannot be told now.
    """
    outcome = run_briefly([str(program), "--version"], env=cleaned({}), seconds=IDENTITY_SECONDS, both=True)
    if outcome.passing:
        raise Unclear(f"{program.name} did not answer ({outcome.ending})")
    if outcome.code != 0:
        last = outcome.output.strip().splitlines()[-1:] or [outcome.ending]
        lacks = missing_library(outcome.output)
        return f"{program.name} does not run ({lacks[0] if lacks else last[0][:200]})"
    return ""


class InterpreterFailed(Exception):
    """An interpreter does not run; the text says how it ended."""

    def __init__(self, how: str, *, passing: bool) -> None:
        """`passing`: the reason is the machine's current state, not the interpreter."""
        super().__init__(how)
        self.passing = passing


def identity(python: Path, cancel: Event | None = None) -> tuple[str, str]:
    """Tag and version of an interpreter, such as `cpython-312` and `3.12.9`.

    Raises:
        NotRunning: It does not run.
    """
    outcome = run_python(python, ["-S", "-c", _IDENTITY], seconds=IDENTITY_SECONDS, cancel=cancel)
    if outcome.code != 0:
        raise InterpreterFailed(outcome.ending, passing=outcome.passing)
    tag, _, version = outcome.output.strip().partition(" ")
    if not tag or not version:
        raise InterpreterFailed("it printed nothing", passing=True)
    return tag, version


def probe(folder: Path, name: str, modules: Sequence[str], cancel: Event) -> None:
    """Import an installation's modules, each in turn.

    Raises:
        JobFailed: Permanent, `probe_failed`, with Python's last output; transient if the machine was at
            fault.
        JobCancelled: `cancel` was set.
    """
    python = interpreter(folder)
    outcome = run_python(python, ["-c", _PROBE, *modules], seconds=_PROBE_SECONDS, cancel=cancel)
    if outcome.passing:
        raise JobFailed(_not_probed(name, outcome))
    if outcome.code != 0:
        if (lacks := missing_library(outcome.output)) is not None:
            raise JobFailed(
                Failure(
                    kind="permanent",
                    code="missing_library",
                    message=f"{name} was installed but does not start here: {lacks[0]}.",
                    advice=lacks[1],
                    detail=outcome.output[-4_000:],
                    blame="machine",
                )
            )
        reason = outcome.output.strip().splitlines()[-1:] or [outcome.ending]
        raise JobFailed.permanent(
            "probe_failed",
            f"{name} was installed but does not start here: {reason[0][:200]}.",
            advice="It may need a newer system or another Python; "
            "`greenroom why` with the backend's name shows the rest.",
            detail=outcome.output,
        )


def _not_probed(name: str, outcome: InterpreterRun) -> Failure:
    if outcome.refused is not None:
        return refused_by_machine(f"{name} was installed but could not be started", outcome.refused)
    return Failure(
        kind="transient",
        code="probe_ended",
        message=f"{name} was installed but could not be started here: {outcome.ending}.",
        advice="The machine may be out of memory or too busy. Downloads are kept.",
        detail=outcome.output[-4_000:],
        blame="machine",
    )


def changed(folder: Path, record: InstallationRecord, cancel: Event | None = None) -> list[str]:
    """Read everything and describe each file whose bytes have changed since it was installed.

    The sums come from the `RECORD` of each wheel, and the `RECORD`s' own from our record. For an image all
    sums are
    ours: its publisher may have changed files after installing them.

    Raises:
        OSError: A file cannot be read now; it may well be intact.
    """
    first = missing(folder, record)
    complaints = [first] if first else []
    sums = dict(record.sums)
    for name in record.sums:
        if record.image is None and name.endswith(".dist-info/RECORD"):
            # Without it there are no sums for the files it lists; a change of itself is reported below.
            with suppress(FileNotFoundError, csv.Error, ValueError):
                sums |= _recorded(folder, name)
    for name, expected in sums.items():
        stop_if(cancel)
        try:
            found = sha256(folder / name)
        except FileNotFoundError:
            if f"{name} is missing" not in complaints:
                complaints.append(f"{name} is missing")
        else:
            if found != expected:
                complaints.append(f"{name} has changed")
    return complaints


def own_sums(folder: Path, files: Sequence[str]) -> dict[str, str]:
    """Sums of the files that no `RECORD` lists, and of the `RECORD`s."""
    records = [name for name in files if name.endswith(".dist-info/RECORD")]
    spoken: set[str] = set()
    for name in records:
        spoken.update(path for path, _ in _rows(folder, name))
    return {name: sha256(folder / name) for name in files if name not in spoken}


def sha256(path: Path) -> str:
    """In hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recorded(folder: Path, name: str) -> dict[str, str]:
    """Sums listed in one `RECORD`, by path below the installation's folder."""
    return {path: base64.urlsafe_b64decode(f"{sum_}==").hex() for path, sum_ in _rows(folder, name)}


def _rows(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Path and SHA-256, as written there, of each file a `RECORD` lists."""
    base = os.path.dirname(os.path.dirname(name))
    with (folder / name).open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file):
            if len(row) != 3 or not row[1].startswith("sha256=") or row[0].endswith(".pyc"):
                continue
            path = os.path.normpath(f"{base}/{row[0]}")
            if not path.startswith(("..", "/")):
                yield path, row[1].removeprefix("sha256=")


@dataclass(frozen=True)
class InterpreterRun:
    """How a short run of an interpreter ended."""

    code: int | None
    """None when it was killed for taking too long."""
    output: str
    """Standard output; with a nonzero `code`, both streams."""
    refused: OSError | None = None
    """Why the system did not start it."""

    @property
    def passing(self) -> bool:
        """The reason is the machine's current state, not the program."""
        if self.refused is not None:
            return is_machines(self.refused.errno or 0) or self.refused.errno in _NOT_NOW
        return self.code is None or self.code == -signal.SIGKILL

    @property
    def ending(self) -> str:
        if self.refused is not None:
            return self.refused.strerror or str(self.refused)
        if self.code is None:
            return "it did not end in time"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        return f"exit code {self.code}"


def run_python(
    python: Path, args: Sequence[str], *, seconds: float, cancel: Event | None = None, cwd: Path | None = None
) -> InterpreterRun:
    """Run an interpreter isolated from the user's settings (`-I`), in a process group that ends with it.

    Raises:
        JobCancelled: `cancel` was set.
    """
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    env |= {"HF_HUB_OFFLINE": "1", "PYTHONNOUSERSITE": "1"}
    return run_briefly([str(python), "-I", *args], env=env, seconds=seconds, cancel=cancel, cwd=cwd)


def run_briefly(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    seconds: float,
    cancel: Event | None = None,
    cwd: Path | None = None,
    both: bool = False,
) -> InterpreterRun:
    """Run a program in a process group that ends with it; with `both`, its output is that of both streams.

    Raises:
        JobCancelled: `cancel` was set.
    """
    try:
        process = subprocess.Popen(
            argv,
            cwd=cwd or "/",
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return InterpreterRun(code=126, output=str(error), refused=error)
    deadline = time.monotonic() + seconds
    try:
        while True:
            try:
                out, err = process.communicate(timeout=0.1 if cancel is not None else seconds)
                break
            except subprocess.TimeoutExpired:
                if cancel is not None and cancel.is_set():
                    raise JobCancelled from None
                if time.monotonic() >= deadline:
                    return InterpreterRun(code=None, output="")
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            # Processes in a session of their own may hold the pipes, and hung storage may hold it.
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=END_SECONDS)
    text = out if process.returncode == 0 and not both else err + out
    return InterpreterRun(code=process.returncode, output=text[-_OUTPUT_LIMIT:].decode("utf-8", "replace"))
