"""Exports an installation as one file and imports it on a machine without a network.

The tar holds, in this order: `backend.json` (what it is), `lock.txt`, every wheel of the lock as
`wheels/<sha256>/<name>`, and the `sha256sum` lines of the first two. Environments contain their own path and
cannot be moved, so the archive carries the wheels; the other machine builds its own environment offline and
checks every hash.
"""

from __future__ import annotations

import hashlib
import io
import platform
import sys
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import msgspec

from greenroom.actors.journal.fsync import force
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.errors import os_failure
from greenroom.runner.installations.installed import LOCK, InstallationStore, need_space, segment
from greenroom.runner.installations.lock_file import FileStore, Lock, LockedFile
from greenroom.runner.installations.tar_stream import BadTar, TarEntry, TarStream
from greenroom.runner.installations.verification import InstallationRecord, Wheel
from greenroom.runner.systems.disk_room import DiskRoom

MANIFEST = "backend.json"
SUMS = "SHA256SUMS"
SCHEMA = 1
_SMALL = 16 * 2**20
"""Maximum bytes of a manifest or lock."""
_LARGEST = 2**40


class ArchiveManifest(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA
    backend: str
    variant: str = ""
    """Of which build it is; empty for the usual one."""
    distribution: str
    """What its lock is kept as: see `Environment.kept_as`."""
    version: str
    machine: str
    """The platform the wheels were chosen for, such as `linux x86_64 cpython-311`."""
    wheels: tuple[Wheel, ...]


def here() -> str:
    """The platform of this machine and Python, as it matters to wheels."""
    return f"{sys.platform} {platform.machine().lower()} {sys.implementation.cache_tag}"


def kept_lock(home: Path, distribution: str, version: str) -> Path:
    """Where the lock of an imported version is kept.

    Raises:
        JobFailed: The version is not a safe file name.
    """
    return home / "cache" / "locks" / f"{segment(f'{distribution}-{version}')}.txt"


def write(home: Path, found: InstallationRecord, distribution: str, out: IO[bytes]) -> None:
    """Write an installation's archive.

    Raises:
        JobFailed: The installation comes from an image, or a wheel is no longer in the cache.
        OSError: `out` cannot be written.
    """
    if found.program:
        raise JobFailed.permanent(
            "not_exportable",
            f"{found.backend} {found.version} was compiled for this machine.",
            advice=f"Compile it there too: greenroom install-runner {found.backend} --build",
        )
    if found.image is not None:
        raise JobFailed.permanent(
            "not_exportable",
            f"{found.backend} is installed from an image, not from packages.",
            advice="Copy the image to a registry that machine can reach, and name it in its config.toml.",
        )
    wheels = FileStore(home / "cache" / "wheels")
    if missing := wheels.missing([wheel.locked() for wheel in found.wheels]):
        raise JobFailed.permanent(
            "not_exportable",
            f"{missing[0].name} of {found.backend} {found.version} is no longer in the cache.",
            advice=f"Fetch it again: greenroom reinstall-runner --backend {found.backend}",
        )
    manifest = ArchiveManifest(
        backend=found.backend,
        variant=found.variant,
        distribution=f"{distribution}-{found.variant}" if found.variant else distribution,
        version=found.version,
        machine=here(),
        wheels=found.wheels,
    )
    lock = InstallationStore(home).root / segment(found.backend) / segment(found.id) / LOCK
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        first = {MANIFEST: msgspec.json.encode(manifest), LOCK: lock.read_bytes()}
        for name, content in first.items():
            _add(archive, name, content)
        for wheel in found.wheels:
            with wheels.path(wheel.locked()).open("rb") as file:
                _add(archive, f"wheels/{wheel.sha256}/{wheel.name}", file, wheel.size)
        _add(archive, SUMS, sums(first))


def sums(contents: Mapping[str, bytes]) -> bytes:
    """The `sha256sum` lines of files by name."""
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in contents.items())
    return "".join(lines).encode()


def read(home: Path, source: IO[bytes]) -> ArchiveManifest:
    """Store an archive's wheels and lock where the installer looks for them; installs nothing.

    Raises:
        JobFailed: Not one of our archives, made for another platform, truncated or damaged, or the disk is
            full. Nothing of it is kept.
    """
    wheels, kept = FileStore(home / "cache" / "wheels"), list[LockedFile]()
    try:
        try:
            return _read(home, TarStream(source.read, _LARGEST), wheels, kept)
        except BaseException:
            for file in kept:
                wheels.drop(file)
            raise
    except (BadTar, EOFError, ValueError, msgspec.MsgspecError) as error:
        raise _damaged(str(error)) from error
    except OSError as error:
        raise os_failure(error, "The backend could not be imported") from error


def _read(home: Path, archive: TarStream, wheels: FileStore, kept: list[LockedFile]) -> ArchiveManifest:
    """Fills `kept` with the wheels that are new to the cache."""
    members = iter(archive)
    first = {MANIFEST: _small(archive, next(members, None), MANIFEST)}
    manifest = msgspec.json.decode(first[MANIFEST], type=ArchiveManifest)
    if manifest.schema != SCHEMA:
        raise _damaged(f"it was written by another release of Greenroom (schema {manifest.schema})")
    if manifest.machine != here():
        raise JobFailed.permanent(
            "unsupported_platform",
            f"The archive was exported for {manifest.machine}; this machine is {here()}.",
            advice="Export it on a machine of the same kind, with the same Python.",
        )
    first[LOCK] = _small(archive, next(members, None), LOCK)
    lock = Lock(first[LOCK].decode())
    files = {one.sha256: one.locked() for one in manifest.wheels}
    need_space(DiskRoom(home), sum(file.size for file in wheels.missing(files.values())))
    whole = False
    for member in members:
        if member.name == SUMS:
            whole = _small(archive, member, SUMS) == sums(first)
            break
        _, _, rest = member.name.partition("wheels/")
        sha256, _, name = rest.partition("/")
        file = files.get(sha256)
        if file is None or (file.name, file.size, "file") != (name, member.size, member.kind):
            raise _damaged(f"{member.name[:200]!r} does not belong in this archive")
        if _keep(wheels, file, archive.content()):
            kept.append(file)
    if absent := wheels.missing(files.values()):
        raise _damaged(f"{absent[0].name} is not in it")
    if not whole:
        raise _damaged(f"{MANIFEST} and {LOCK} do not match their checksums")
    place = kept_lock(home, manifest.distribution, manifest.version)
    with _draft(place) as draft:
        draft.write(lock.text.encode())
    return manifest


def _keep(wheels: FileStore, file: LockedFile, content: Iterator[bytes]) -> bool:
    """Store a wheel; False when it was already stored."""
    segment(file.sha256)
    segment(file.name)
    if wheels.has(file) and not wheels.check([file]):
        return False
    digest = hashlib.sha256()
    with _draft(wheels.path(file)) as draft:
        for chunk in content:
            digest.update(chunk)
            draft.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise _damaged(f"{file.name} does not match its hash")
    return True


@contextmanager
def _draft(place: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when complete: a daemon may be reading."""
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_name(f".{uuid.uuid4().hex}")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            force(file.fileno())
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)
        with suppress(OSError):
            place.parent.rmdir()  # only if it is empty


def _small(archive: TarStream, member: TarEntry | None, name: str) -> bytes:
    if member is None or (member.name, member.kind) != (name, "file") or member.size > _SMALL:
        raise _damaged(f"{name} is missing or misplaced")
    return b"".join(archive.content())


def _add(archive: tarfile.TarFile, name: str, content: bytes | IO[bytes], size: int = 0) -> None:
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    info.size = len(content) if isinstance(content, bytes) else size
    archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else content)


def _damaged(reason: str) -> JobFailed:
    return JobFailed.permanent(
        "bad_archive",
        f"This is not a complete backend archive: {reason}.",
        advice="Export it again: greenroom backends export NAME > NAME.tar",
    )
