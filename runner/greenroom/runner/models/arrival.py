"""A model on its way into the store: its files are hashed here and become part of the store on commit.

Everything lies in one folder under `models/incoming/`, on the store's file system, so that the commit only
renames. A crash leaves that folder behind, and the next start sweeps it.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import IO, Literal

from greenroom.actors.journal.fsync import sync_file
from greenroom.runner.models.errors import from_os_error, hash_mismatch, nearly_full, needs_copy, not_a_model
from greenroom.runner.models.manifest import Artifact, Layer
from greenroom.runner.models.recipe import Recipe
from greenroom.runner.models.references import BadReference, blob_name, relative_name, shown
from greenroom.runner.models.safe_open import HeldFile, hold
from greenroom.runner.systems.disk_room import RESERVE, DiskRoom
from greenroom.runner.threads import stop_if

_CHUNK = 2**20

Count = Callable[[int], None]
"""Receives how many more bytes have been handled."""


class Arrival:
    """Collects one model's files and hashes them. Not thread-safe."""

    def __init__(
        self, incoming: Path, partial: Path, stored: Callable[[str, int], Path | None], room: DiskRoom
    ) -> None:
        incoming.mkdir(parents=True, exist_ok=True)
        self._partial = partial
        self._stored = stored
        self._room = room
        self.folder = Path(tempfile.mkdtemp(dir=incoming))
        self.work = self.folder / "work"
        """For the source's own use, such as a download cache."""
        self.work.mkdir()
        self._files = self.folder / "files"
        self._files.mkdir()
        self.layers: list[Layer] = []
        self.artifact: Artifact | None = None
        """The published manifest, for sources that have one: the model keeps its id."""
        self.extras: list[Path] = []
        """Files from archives among the layers: read for metadata, not stored."""
        self.origin: dict[str, tuple[int, int]] = {}
        self.recipe: Recipe | None = None
        """What the model gets beside its files."""

    def take(
        self,
        path: Path | HeldFile,
        name: str,
        *,
        how: Literal["move", "link", "share"],
        expected: str = "",
        cancel: Event,
        count: Count = lambda _: None,
    ) -> Layer:
        """Add a file from the disk, and hash it.

        `move` is for our own files; `link` leaves the original in place and shares its bytes if the file
        system can (else copies them), so the original's size and time are recorded; `share` never copies.

        Raises:
            JobFailed: Unreadable, not a regular file, no space, modified meanwhile, not the `expected` hash,
                or `needs_copy`.
            JobCancelled: `cancel` was set.
        """
        target = self._place(name)
        try:
            if how == "move":
                assert isinstance(path, Path)
                shutil.move(path, target)
                digest = _hash(target, cancel, count)
            elif isinstance(path, Path):
                with closing(hold(path)) as held:
                    digest = self._share(held, target, cancel, count, copies=how == "link")
            else:
                digest = self._share(path, target, cancel, count, copies=how == "link")
            size = target.stat().st_size
            sync_file(target)
        except OSError as error:
            raise from_os_error(error, f"importing {path.name}") from error
        if expected and digest != expected:
            raise hash_mismatch(name, expected, digest)
        return self._add(Layer(name=name, digest=digest, size=size))

    def reuse(self, digest: str, size: int, name: str) -> Layer | None:
        """Share a file of another stored model; None if there is none."""
        blob = self._stored(digest, size)
        if blob is None:
            return None
        target = self._place(name)
        try:
            os.link(blob, target)
        except OSError:  # removed meanwhile, or no hard links here
            return None
        return self._add(Layer(name=name, digest=digest, size=size))

    def adopt(self, path: Path, name: str, digest: str) -> Layer:
        """Add a file of ours whose bytes were hashed when written.

        Raises:
            JobFailed: It could not be moved.
        """
        target = self._place(name)
        try:
            sync_file(path)
            path.replace(target)
            return self._add(Layer(name=name, digest=digest, size=target.stat().st_size))
        except OSError as error:
            raise from_os_error(error, f"importing {name}") from error

    def partial(self, digest: str) -> Path:
        """Where a download lies until it is complete; a broken-off one there is resumed."""
        self._partial.mkdir(parents=True, exist_ok=True)
        return self._partial / blob_name(digest)

    def check_room(self) -> None:
        """Raise JobFailed, permanent, `no_space`, when the disk is down to the reserve."""
        free = self._room.free(RESERVE)
        if free < RESERVE:
            raise nearly_full(free, str(self._partial.parent))

    def path_of(self, layer: Layer) -> Path:
        """Where a layer's file lies until the commit."""
        return self._files / layer.name

    def paths(self) -> list[Path]:
        return [self.path_of(layer) for layer in self.layers]

    def discard(self) -> None:
        """Remove what is left; after a commit, only the source's work."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _add(self, layer: Layer) -> Layer:
        self.layers.append(layer)
        return layer

    def _place(self, name: str) -> Path:
        try:
            relative = relative_name(name)
        except BadReference as error:
            raise not_a_model(str(error)) from error
        target = self._files / relative
        if target.exists():
            raise not_a_model(f"The model has two files named {name}.")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise not_a_model(
                f"The model has a file and a folder of the same name: {shown(name)}."
            ) from error
        return target

    def _share(self, original: HeldFile, target: Path, cancel: Event, count: Count, *, copies: bool) -> str:
        """Link or copy a file; returns its digest. Uses one descriptor throughout, since the name may be
        replaced.
        """
        before = original.stat()
        if not _linked(original, before, target):
            if original.clone(target):
                return _hash(target, cancel, count)
            if not copies:
                raise needs_copy(original.name, before, self._partial.parent)
            # The copy is ours: engines need neither mode nor owner of the original.
            with original.open("rb") as reader, target.open("xb") as writer:
                while chunk := reader.read(_CHUNK):
                    stop_if(cancel)
                    if not writer.tell() // _CHUNK % 16:
                        self.check_room()
                    writer.write(chunk)
            return _hash(target, cancel, count)
        with original.open("rb") as reader:
            digest = _hash_of(reader, cancel, count)
        after = original.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise not_a_model(
                f"{original.name} was modified while it was read. Try again when it is complete."
            )
        self.origin[digest] = (after.st_size, after.st_mtime_ns)
        return digest


def _linked(original: HeldFile, known: os.stat_result, target: Path) -> bool:
    try:
        os.link(original.path, target, follow_symlinks=False)
    except OSError:  # another file system, or one without hard links, or not our file
        return False
    found = target.lstat()
    if os.path.samestat(found, known):
        return True
    target.unlink()  # the file was replaced
    return False


def hash_file(path: Path, cancel: Event, count: Count = lambda _: None) -> str:
    """`sha256:<hex>` of a file.

    Raises:
        JobFailed: unreadable.
        JobCancelled: `cancel` was set.
    """
    try:
        return _hash(path, cancel, count)
    except OSError as error:
        raise from_os_error(error, f"reading {path.name}") from error


def _hash(path: Path, cancel: Event, count: Count) -> str:
    with path.open("rb", buffering=0) as file:
        return _hash_of(file, cancel, count)


def _hash_of(file: IO[bytes] | io.FileIO, cancel: Event, count: Count) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        stop_if(cancel)
        digest.update(chunk)
        count(len(chunk))
    return f"sha256:{digest.hexdigest()}"
