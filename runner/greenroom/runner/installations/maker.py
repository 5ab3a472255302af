"""What environments and images have in common: kept downloads, and removal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path

from greenroom.actors.values import Installation
from greenroom.runner.backends.base import Platform
from greenroom.runner.installations import record as records
from greenroom.runner.installations.errors import os_failure
from greenroom.runner.installations.file_store import FileStore
from greenroom.runner.installations.installed import (
    InstallationStore,
    blocks,
    discard,
    folder_of,
    freed,
    kept_if_unclear,
)
from greenroom.runner.installations.record import InstallationRecord, Unclear
from greenroom.runner.installations.sources import PackageSources

_KEPT_SECONDS = 7 * 86400.0
"""How long the downloads of an unfinished installation are kept."""


class Maker:
    """Builds and removes one kind of installation in one data directory; thread-safe."""

    def __init__(
        self,
        installed: InstallationStore,
        store: FileStore,
        sources: PackageSources,
        platform: Platform | None,
    ) -> None:
        """`installed` is shared by all makers of this data directory."""
        self.installed = installed
        self.store = store
        self._sources = sources
        self._platform = platform or Platform.here()

    def use(self, sources: PackageSources) -> None:
        """Use these package sources (or their transport) from now on."""
        self._sources = sources

    def remove(self, installation: Installation) -> int:
        """Remove an installation and what only it needs; returns the bytes freed, as measured.

        Raises:
            JobFailed: Its files cannot be removed.
        """
        folder = folder_of(self.installed.home, installation)
        before = blocks([folder, *self._caches()])
        try:
            record = records.read(folder)
        except (ValueError, Unclear):
            record = None
        elsewhere = self._withdraw(folder, record)
        try:
            discard(folder)
        except OSError as error:
            raise os_failure(error, f"{installation.backend} could not be removed") from error
        with kept_if_unclear():
            fetched = [file.locked() for file in record.wheels] if record is not None else []
            self._forget(self.store.release(fetched, self._needed()))
        return freed(before, blocks([folder, *self._caches()])) + elsewhere

    def sweep(self, older_than: float | None = None) -> None:
        """Remove what abandoned attempts downloaded, if last used before `older_than` (wall time; a week ago
        by default). Files of running builds are kept.
        """
        before = time.time() - _KEPT_SECONDS if older_than is None else older_than
        with kept_if_unclear():
            self._forget(self.store.sweep(self._needed(), before))

    def drop_fetched(self) -> int:
        """Remove all of it now; returns the bytes freed."""
        before = blocks(self._caches())
        self.sweep(math.inf)
        return freed(before, blocks(self._caches()))

    def _needed(self) -> set[str]:
        """Hashes of all files that some installation was made from."""
        records = self.installed.records(all_of_them=True)
        return {file.sha256 for record in records for file in record.wheels}

    def _caches(self) -> list[Path]:
        return [self.store.root]

    def _withdraw(self, folder: Path, record: InstallationRecord | None) -> int:  # noqa: ARG002 - images have some
        """Remove an installation's files outside of its folder; returns the bytes freed."""
        return 0

    def _forget(self, projects: Iterable[str]) -> None:
        """Clear other caches of projects whose files were dropped."""
