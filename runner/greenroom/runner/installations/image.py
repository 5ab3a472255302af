"""Installs trees out of OCI images: resolve, fetch, unpack, probe, commit; by the rules of environments.

Manifest, configuration and layers lie in the data directory's cache under their digests, so that an attempt
goes on where the last one ended, and a repair needs no network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from greenroom.actors.values import Installation, Plan, Progress
from greenroom.runner.backends.base import Image, Platform
from greenroom.runner.config import RegistrySettings
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.installations import prebuilt
from greenroom.runner.installations import record as records
from greenroom.runner.installations.disk import (
    ATTEMPT,
    InstallationStore,
    blocks,
    discard,
    folder_of,
    freed,
    kept_if_unclear,
    need_exec,
    usage,
)
from greenroom.runner.installations.progress import ProgressReport
from greenroom.runner.installations.record import (
    ENVIRONMENT,
    ImageOrigin,
    Interpreter,
    Record,
    Unclear,
    Wheel,
)
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.installations.space import is_ample, keep_reserve, need_space
from greenroom.runner.installations.uv import os_failure
from greenroom.runner.installations.verification import NotRunning, identity, inventory, probe
from greenroom.runner.installations.wheels import WheelStore
from greenroom.runner.user_home import user_home

if TYPE_CHECKING:
    from greenroom.runner.installations.image_resolution import ResolvedImage

_FETCHED_STAYS = 7 * 86400.0
"""Seconds for which parts of an installation that did not come about are kept."""


class Images:
    """Builds and removes the image installations of one data directory; safe to use from several threads."""

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
        """Touch nothing yet.

        Args:
            sources: For their transport only: certificates and proxies.
            installed: Shared with whoever else builds in this data directory.
            registries: Mirrors and insecure registries.
            user_home: Where backends look for what is prebuilt; the user's when not given.
        """
        self.installed = installed or InstallationStore(home)
        self.parts = WheelStore(home / "cache" / "images")
        self._sources = sources
        self._platform = platform or Platform.here()
        self._registries = registries or {}
        self._user_home = user_home

    def use(self, sources: PackageSources) -> None:
        """From now on with this transport."""
        self._sources = sources

    def plan(self, backend: str, source: Image, version: str = "", cancel: Event | None = None) -> Plan:
        """What an installation would fetch. Asks the registry, unless a recorded image is still cached.

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
        version: str = "",
        repair: bool = False,
        cancel: Event | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Installation:
        """Build one installation; blocks. The newest version is not built again where it is here.

        Args:
            version: Empty for the one the declaration names; `latest`, or a version.
            repair: Read everything that is cached before it is used again.
            cancel: Ends it, and removes what it has built; what was fetched stays for the next attempt.
            progress: Gets about ten reports a second while something moves.

        Raises:
            JobFailed: What went wrong; nothing is left but what was fetched.
            JobCancelled: `cancel` was set.
        """
        cancel = cancel or Event()
        need_exec(self.installed.home)
        report = ProgressReport(job, progress)
        report.phase("resolving", f"Looking up the image of {backend}")
        image = self._resolve(backend, source, version, cancel)
        plan = self._plan(backend, image)
        newest = version == "latest" and not repair
        if newest and (here := self.installed.whole(backend, image.version)) is not None:
            return here
        with self.parts.using(image.parts):
            if repair:
                report.phase("verifying", f"Verifying what is cached of {backend} {image.version}")
                self.parts.check(image.parts, cancel)
            name = f"Downloading {backend} {image.version}"
            report.bytes(name, sum(self.parts.arrived(part) for part in image.parts), plan.total_bytes)
            self._need_all(image, plan)
            folder = self.installed.new_folder(
                backend, image.version, image.digest.removeprefix("sha256:"), job
            )
            try:
                self._fetch(image, cancel, lambda done, total: report.bytes(name, done, total))
                found = self._fill(folder, backend, source, image, cancel, report)
                prebuilt.place(folder / ENVIRONMENT, source.prebuilt, self._home())
                (folder / ATTEMPT).unlink()
                records.write(folder, found)
            except BaseException as error:
                prebuilt.withdraw(folder / ENVIRONMENT, source.prebuilt, self._home())
                discard(folder)
                if isinstance(error, OSError):
                    raise os_failure(error, "The installation could not be written") from error
                raise
            finally:
                self.installed.settled(folder)
        return found.installation()

    def place(self, installation: Installation) -> list[Path]:
        """See that what the installation brings prebuilt lies where its backend looks for it, below the
        user's home; returns the files that had to be put there. For just before an engine starts: another
        version may have had its own there.

        Raises:
            JobFailed: It cannot be written, or the installation is gone.
        """
        record = self.installed.record(installation)
        if record.image is None:
            return []
        tree = folder_of(self.installed.home, installation) / ENVIRONMENT
        return prebuilt.place(tree, record.image.prebuilt, self._home())

    def remove(self, installation: Installation) -> int:
        """Remove an installation, what of the cache nothing else needs, and what it had put below the user's
        home; returns the bytes freed, measured.

        Raises:
            JobFailed: Its files cannot be removed.
        """
        folder = folder_of(self.installed.home, installation)
        before = blocks([folder, self.parts.root])
        try:
            record = records.read(folder)
        except (ValueError, Unclear):
            record = None
        elsewhere = 0
        if record is not None and record.image is not None:
            elsewhere = prebuilt.withdraw(folder / ENVIRONMENT, record.image.prebuilt, self._home())
        try:
            discard(folder)
        except OSError as error:
            raise os_failure(error, f"{installation.backend} could not be removed") from error
        with kept_if_unclear():
            self.parts.release([part.locked() for part in record.wheels] if record else [], self._needed())
        return freed(before, blocks([folder, self.parts.root])) + elsewhere

    def sweep(self, older_than: float | None = None) -> None:
        """Remove what was fetched for installations that did not come about: after a while, or as told."""
        before = time.time() - _FETCHED_STAYS if older_than is None else older_than
        with kept_if_unclear():
            self.parts.sweep(self._needed(), before)

    def drop_fetched(self) -> int:
        """Remove all of it now; returns the bytes freed."""
        before = blocks([self.parts.root])
        self.sweep(math.inf)
        return freed(before, blocks([self.parts.root]))

    def _needed(self) -> set[str]:
        records = self.installed.records(all_of_them=True)
        return {part.sha256 for record in records for part in record.wheels}

    def _resolve(self, backend: str, source: Image, version: str, cancel: Event) -> ResolvedImage:
        # Loaded when something is installed: a daemon whose backends are there never needs it.
        from greenroom.runner.installations.image_resolution import ImageResolver

        resolver = ImageResolver(self.parts, self.installed, self._sources, self._platform, self._registries)
        return resolver.resolve(backend, source, version, cancel)

    def _plan(self, backend: str, image: ResolvedImage) -> Plan:
        return Plan(
            backend=backend,
            version=image.version,
            packages=(f"{image.name.partition('@')[0]}@{image.digest}",),
            download_bytes=sum(part.size - self.parts.arrived(part) for part in image.parts),
            total_bytes=sum(part.size for part in image.parts),
        )

    def _fetch(self, image: ResolvedImage, cancel: Event, on_bytes: Callable[[int, int], None]) -> None:
        from greenroom.runner.installations.fetch import Fetcher
        from greenroom.runner.installations.image_resolution import RegistryOrigin

        largest_first = sorted(image.parts, key=lambda part: (-part.size, part.name))
        fetcher = Fetcher(self.parts, RegistryOrigin(image), room=partial(keep_reserve, self.installed.home))
        fetcher.fetch(largest_first, cancel=cancel, on_bytes=on_bytes)

    def _need_all(self, image: ResolvedImage, plan: Plan) -> None:
        """See that there is room for all of it; where that is in doubt, the registry is asked."""
        from greenroom.runner.installations.layers import unpacked_size

        home = self.installed.home
        if is_ample(home, plan.download_bytes, plan.total_bytes):
            return
        need_space(home, plan.download_bytes + (plan.total_bytes if plan.download_bytes else 0))
        needed = 0
        for layer, _ in image.layers:
            if self.parts.has(layer):
                needed += unpacked_size(self.parts.path(layer))
            else:
                needed += image.unpacked_size(layer)
        need_space(home, plan.download_bytes + needed)

    def _fill(
        self,
        folder: Path,
        backend: str,
        source: Image,
        image: ResolvedImage,
        cancel: Event,
        report: ProgressReport,
    ) -> Record:
        """Unpack, probe, and write down what is there."""
        from greenroom.runner.installations.layers import Tree, unpacked_size

        tree = folder / ENVIRONMENT
        need_space(
            self.installed.home, sum(unpacked_size(self.parts.path(layer)) for layer, _ in image.layers)
        )
        room = partial(keep_reserve, self.installed.home)
        with Tree(tree, source.tree, image.name, cancel, room) as laid:
            for number, (layer, diff_id) in enumerate(image.layers, 1):
                report.phase("unpacking", f"Unpacking layer {number} of {len(image.layers)}")
                laid.lay(self.parts.path(layer), diff_id)
            laid.finish(source.executables)
        python = records.interpreter(folder)
        if not python.exists():
            raise JobFailed.permanent(
                "not_an_image",
                f"The image {image.name} has no {source.tree.rstrip('/')}/bin/python3.",
                advice=f'Name another one in the config: [backends."{backend}"] image = "…".',
            )
        report.phase("verifying", f"Starting {backend} once")
        tag, version = _identity(python, image.name, cancel)
        probe(folder, f"{backend} {image.version}", source.probe, cancel)
        _unless(cancel)
        files, links = inventory(folder)
        files.pop(ATTEMPT, None)
        return Record(
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
    except NotRunning as error:
        if error.passing:
            raise JobFailed.transient(
                "probe_ended",
                f"The Python in the image {name} could not be started here: {error}.",
                advice="The machine may be out of memory or too busy. What was fetched is kept.",
            ) from error
        raise JobFailed.permanent(
            "probe_failed",
            f"The Python in the image {name} does not run here ({error}).",
            advice="It may need a newer system, or be made for another one.",
        ) from error


def _unless(cancel: Event) -> None:
    if cancel.is_set():
        raise JobCancelled
