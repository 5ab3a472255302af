"""Installs trees from OCI images: resolve, fetch, unpack, probe, commit; by the same rules as environments.

Manifest, configuration and layers are cached by digest, so that an attempt continues where the last one
stopped, and a repair needs no network.

A backend may look for files below the user's home. vllm-metal keeps its compiled kernels in
`~/.cache/vllm-metal` and would otherwise compile them, which needs Apple's developer tools. An installation
of the user's own may share that folder, so files are copied there one by one, each atomically, and only those
that are still byte for byte ours are removed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Event
from typing import TYPE_CHECKING

import msgspec

from greenroom.actors.journal.fsync import force
from greenroom.actors.progress import ProgressReport
from greenroom.actors.values import Installation, Plan, Progress
from greenroom.runner.backends.base import Image, Platform
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.installed import (
    ATTEMPT,
    InstallationStore,
    Maker,
    folder_of,
    is_ample,
    keep_reserve,
    need_exec,
    need_space,
    usage,
)
from greenroom.runner.installations.lock_file import FileStore
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.installations.verification import (
    ENVIRONMENT,
    ImageOrigin,
    InstallationRecord,
    Interpreter,
    InterpreterFailed,
    Wheel,
    identity,
    interpreter,
    inventory,
    probe,
    sha256,
    write_record,
)
from greenroom.runner.setting_values import RegistrySettings
from greenroom.runner.threads import stop_if
from greenroom.runner.user_home import user_home

if TYPE_CHECKING:
    from greenroom.runner.installations.image_resolution import ResolvedImage


class Images(Maker):
    """Builds and removes the image installations of one data directory; thread-safe."""

    def __init__(
        self,
        home: Path,
        sources: PackageSources,
        *,
        installed: InstallationStore | None = None,
        platform: Platform | None = None,
        registries: Mapping[str, RegistrySettings] | None = None,
        user_home: Path | None = None,
    ) -> None:
        """`sources` are only for certificates and proxies."""
        store = FileStore(home / "cache" / "images")
        super().__init__(installed or InstallationStore(home), store, sources, platform)
        self._registries = registries or {}
        self._user_home = user_home

    def plan(self, backend: str, source: Image, version: str = "", cancel: Event | None = None) -> Plan:
        """What an installation would download. Asks the registry unless a recorded image is still cached.

        Raises:
            JobFailed: There is no such image, none for this platform, or the registry does not answer.
        """
        return self._plan(backend, self._resolve(backend, source, version, cancel or Event()))

    def build(
        self,
        backend: str,
        source: Image,
        *,
        job: str,
        variant: str = "",
        version: str = "",
        repair: bool = False,
        cancel: Event | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Installation:
        """Build one installation; blocks. Arguments and errors are those of `Environments.build`."""
        cancel = cancel or Event()
        need_exec(self.installed.home)
        report = ProgressReport(job, progress or (lambda _: None))
        report.phase("resolving", f"Looking up the image of {backend}")
        image = self._resolve(backend, source, version, cancel)
        plan = self._plan(backend, image)
        newest = version == "latest" and not repair
        digest = image.digest.removeprefix("sha256:")
        if newest and (
            here := self.installed.made_of(
                backend, image.version, variant, lambda record: record.digest == digest
            )
        ):
            return here
        with self.store.using(image.parts):
            if repair:
                report.phase("verifying", f"Verifying what is cached of {backend} {image.version}")
                self.store.check(image.parts, cancel)
            name = f"Downloading {backend} {image.version}"
            report.bytes(name, sum(self.store.arrived(part) for part in image.parts), plan.total_bytes)
            self._need_all(image, plan)
            with self._attempt(backend, image.version, digest, job, variant) as folder:
                self._fetch(image, cancel, lambda done, total: report.bytes(name, done, total))
                found = self._fill(folder, backend, source, image, cancel, report)
                found = msgspec.structs.replace(found, variant=variant)
                try:
                    _place_prebuilt(folder / ENVIRONMENT, source.prebuilt, self._home())
                    (folder / ATTEMPT).unlink()
                    write_record(folder, found)
                except BaseException:
                    _withdraw_prebuilt(folder / ENVIRONMENT, source.prebuilt, self._home())
                    raise
        return found.installation()

    def place(self, installation: Installation) -> list[Path]:
        """Put the installation's prebuilt files where its backend looks for them below the user's home, just
        before an engine starts: another version may have its own there. Returns the files that were written.

        Raises:
            JobFailed: A file cannot be written, or the installation is gone.
        """
        record = self.installed.record(installation)
        if record.image is None:
            return []
        tree = folder_of(self.installed.home, installation) / ENVIRONMENT
        return _place_prebuilt(tree, record.image.prebuilt, self._home())

    def _withdraw(self, folder: Path, record: InstallationRecord | None) -> int:
        if record is None or record.image is None:
            return 0
        return _withdraw_prebuilt(folder / ENVIRONMENT, record.image.prebuilt, self._home())

    def _resolve(self, backend: str, source: Image, version: str, cancel: Event) -> ResolvedImage:
        # Imported here: a daemon with nothing to install never needs it.
        from greenroom.runner.installations.image_resolution import ImageResolver

        resolver = ImageResolver(self.store, self.installed, self._sources, self._platform, self._registries)
        return resolver.resolve(backend, source, version, cancel)

    def _plan(self, backend: str, image: ResolvedImage) -> Plan:
        packages = [f"{image.name.partition('@')[0]}@{image.digest}"]
        return self._plan_for(backend, image.version, packages, image.parts)

    def _fetch(self, image: ResolvedImage, cancel: Event, on_bytes: Callable[[int, int], None]) -> None:
        from greenroom.runner.installations.image_resolution import RegistryOrigin
        from greenroom.runner.installations.verified_download import Fetcher

        largest_first = sorted(image.parts, key=lambda part: (-part.size, part.name))
        fetcher = Fetcher(self.store, RegistryOrigin(image), room=partial(keep_reserve, self.installed.room))
        fetcher.fetch(largest_first, cancel=cancel, on_bytes=on_bytes)

    def _need_all(self, image: ResolvedImage, plan: Plan) -> None:
        """Check that everything fits on the disk; in doubt, ask the registry how large it is."""
        from greenroom.runner.installations.image_layers import unpacked_size

        room = self.installed.room
        if is_ample(room, plan.download_bytes, plan.total_bytes):
            return
        need_space(room, plan.download_bytes + (plan.total_bytes if plan.download_bytes else 0))
        needed = 0
        for layer, _ in image.layers:
            if self.store.has(layer):
                needed += unpacked_size(self.store.path(layer))
            else:
                needed += image.unpacked_size(layer)
        need_space(room, plan.download_bytes + needed)

    def _fill(
        self,
        folder: Path,
        backend: str,
        source: Image,
        image: ResolvedImage,
        cancel: Event,
        report: ProgressReport,
    ) -> InstallationRecord:
        """Unpack, probe, and record the contents."""
        from greenroom.runner.installations.image_layers import Tree, unpacked_size

        tree = folder / ENVIRONMENT
        need_space(
            self.installed.room, sum(unpacked_size(self.store.path(layer)) for layer, _ in image.layers)
        )
        room = partial(keep_reserve, self.installed.room)
        with Tree(tree, source.tree, image.name, cancel, room) as laid:
            for number, (layer, diff_id) in enumerate(image.layers, 1):
                report.phase("unpacking", f"Unpacking layer {number} of {len(image.layers)}")
                laid.lay(self.store.path(layer), diff_id)
            laid.finish(source.executables)
        python = interpreter(folder)
        if not python.exists():
            raise JobFailed.permanent(
                "not_an_image",
                f"The image {image.name} has no {source.tree.rstrip('/')}/bin/python3.",
                advice=f'Name another one in the config: [backends."{backend}"] image = "…".',
            )
        report.phase("verifying", f"Testing whether {backend} starts")
        tag, version = _identity(python, image.name, cancel)
        probe(folder, f"{backend} {image.version}", source.probe, cancel)
        stop_if(cancel)
        files, links = inventory(folder)
        files.pop(ATTEMPT, None)
        return InstallationRecord(
            id=folder.name,
            backend=backend,
            version=image.version,
            digest=image.digest.removeprefix("sha256:"),
            built_at=time.time(),
            size=usage([folder]),
            python=Interpreter(version=version, tag=tag, base=str(python.relative_to(folder))),
            wheels=tuple(Wheel(name=p.name, sha256=p.sha256, size=p.size) for p in image.parts),
            probed=source.probe,
            files=files,
            links=links,
            sums={
                name: digest
                for path, digest in laid.sums.items()
                if (name := f"{ENVIRONMENT}/{path}") in files
            },
            image=ImageOrigin(name=image.name, digest=image.digest, prebuilt=dict(source.prebuilt)),
        )

    def _home(self) -> Path:
        return self._user_home or user_home()


def _identity(python: Path, name: str, cancel: Event) -> tuple[str, str]:
    try:
        return identity(python, cancel)
    except InterpreterFailed as error:
        if error.passing:
            raise JobFailed.transient(
                "probe_ended",
                f"The Python in the image {name} could not be started here: {error}.",
                advice="The machine may be out of memory or too busy. Downloads are kept.",
            ) from error
        raise JobFailed.permanent(
            "probe_failed",
            f"The Python in the image {name} does not run here ({error}).",
            advice="It may need a newer system, or be built for another one.",
        ) from error


def _place_prebuilt(tree: Path, folders: Mapping[str, str], home: Path) -> list[Path]:
    """Copy the files of these folders of the tree to where the backend expects them.

    Returns:
        The files that were missing or different and had to be copied.

    Raises:
        JobFailed: A file cannot be written.
    """
    placed = []
    for source, target in _prebuilt(tree, folders, home):
        if _is_same(source, target):
            continue
        try:
            _copy(source, target)
        except OSError as error:
            raise JobFailed.permanent(
                "cannot_place",
                f"{target} could not be written, where the backend looks for it: {error.strerror or error}.",
                advice="Make sure you can write there, and free some space if the disk is full.",
                detail=f"{type(error).__name__}: {error}",
            ) from error
        placed.append(target)
    return placed


def _withdraw_prebuilt(tree: Path, folders: Mapping[str, str], home: Path) -> int:
    """Remove the files that are still as the tree has them; returns the bytes of disk freed.

    Files that cannot be removed stay: they are small, and uninstalling must not fail because of them.
    """
    freed = 0
    emptied = set()
    for source, target in _prebuilt(tree, folders, home):
        if _is_same(source, target):
            with suppress(OSError):
                blocks = target.stat().st_blocks
                target.unlink()
                freed += blocks * 512
                emptied.add(target.parent)
    for folder in emptied:
        with suppress(OSError):
            folder.rmdir()
    return freed


def _prebuilt(tree: Path, folders: Mapping[str, str], home: Path) -> Iterator[tuple[Path, Path]]:
    for inside, below in folders.items():
        source, target = tree / _relative(inside), home / _relative(below)
        # Sorted: a stamp (`x.so.sha256`) must follow the file it vouches for.
        for file in sorted(source.rglob("*")):
            if file.is_file() and not file.is_symlink():
                yield file, target / file.relative_to(source)


def _relative(text: str) -> PurePosixPath:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{text!r} is not a path below a folder")
    return path


def _is_same(source: Path, target: Path) -> bool:
    try:
        return source.stat().st_size == target.stat().st_size and sha256(source) == sha256(target)
    except OSError:
        return False


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as out, source.open("rb") as content:
            shutil.copyfileobj(content, out)
            out.flush()
            force(out.fileno())
        shutil.copymode(source, draft)
        os.replace(draft, target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
