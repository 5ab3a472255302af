"""What an installation writes down about itself: `installation.json`, the commit mark.

It is written last, so a folder that has one is whole, and it lists every file, so that what is missing
later can be named without a network.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from greenroom.actors.values import Installation
from greenroom.runner.installations.lock_file import LockedFile
from greenroom.runner.models.files import sync_folder, write_atomically
from greenroom.runner.systems import System, here

MARK = "installation.json"
ENVIRONMENT = "env"
"""The folder inside an installation's that holds its Python: an environment, or a tree out of an image."""
SCHEMA = 1


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
    """The image a tree was unpacked from."""

    name: str
    """The reference it was asked for by, such as `docker.io/docker/model-runner:TAG`."""
    digest: str
    """Of its manifest, for its platform: what is installed under this name and version again is this."""
    prebuilt: dict[str, str] = {}
    """Folders in the tree, and where below the user's home the backend looks for what is in them."""


class InstallationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of `installation.json`."""

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


def read(folder: Path) -> InstallationRecord | None:
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
    if record.schema != SCHEMA:
        # Of a newer one, which will find it as it left it.
        raise Unclear(f"{MARK} was written by another release of Greenroom (schema {record.schema})")
    return record


def write(folder: Path, record: InstallationRecord) -> None:
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
