"""The file of the store's index, the one before it, and what to do without either."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from greenroom.runner.errors import JobFailed
from greenroom.runner.models.durable import TEMPORARY, write_atomically
from greenroom.runner.models.errors import from_os_error
from greenroom.runner.models.files import children
from greenroom.runner.models.layout import Index, IndexDamaged
from greenroom.runner.models.recovery import with_what_is_here
from greenroom.runner.models.references import blob_name

log = logging.getLogger(__name__)

_DAMAGED = "index.damaged.json"


class IndexFile:
    """`index.json` of one store. Changed only by whoever holds the store's lock."""

    def __init__(self, root: Path, blobs: Path, bundles: Path) -> None:
        self.file = root / "index.json"
        self.previous = root / "index.previous.json"
        self._blobs = blobs
        self._bundles = bundles

    def read(self) -> tuple[Index, bool]:
        """The index, and whether it is the last one: without it, it is the one before the last.

        Raises:
            JobFailed: permanent, `store_damaged`: neither can be read.
        """
        try:
            return Index.decode(self.file.read_bytes()), True
        except FileNotFoundError:
            if not self.previous.exists() and not children(self._blobs):
                return Index(), True  # a new store
            reason = "is gone"
        except IndexDamaged as error:
            reason = f"is damaged: {error}"
        except OSError as error:
            raise from_os_error(error, "reading the model store") from error
        try:
            return Index.decode(self.previous.read_bytes()), False
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                raise from_os_error(error, "reading the model store") from error
            lost: Exception = error
        except IndexDamaged as error:
            lost = error
        raise JobFailed.permanent(
            "store_damaged",
            f"{self.file} {reason}.",
            advice="Restart the daemon (greenroom stop, greenroom serve): it rebuilds the index.",
        ) from lost

    def whole(self) -> Index:
        """The last index, built again if it is lost.

        Raises:
            JobFailed: the disk does not let it be read.
            OSError: it could not be written.
        """
        return self.read()[0] if self._is_whole() else self._recover()

    def write(self, index: Index) -> None:
        """Replace it at once; the last one that could be read stays beside it.

        Raises:
            OSError: it is as before.
        """
        if self.file.exists():
            spare = self.previous.with_name(f"{TEMPORARY}previous")
            spare.unlink(missing_ok=True)
            try:
                os.link(self.file, spare)
            except OSError:
                shutil.copyfile(self.file, spare)
            # Only a readable index may become the one to fall back to.
            if self._is_whole():
                spare.replace(self.previous)
            spare.unlink(missing_ok=True)
        write_atomically(self.file, index.encode())

    def _recover(self) -> Index:
        """Build the index again, from the one before it and from what is here."""
        try:
            known = self.read()[0]
        except JobFailed as failed:
            if failed.failure.code != "store_damaged":
                raise
            known = Index()
        log.warning("%s is gone or damaged and is rebuilt", self.file)
        self._bundles.mkdir(parents=True, exist_ok=True)
        index = with_what_is_here(known, self._blobs, self._blob, self._bundles)
        with suppress(FileNotFoundError):
            self.file.replace(self.file.with_name(_DAMAGED))
        self.write(index)
        return index

    def _is_whole(self) -> bool:
        try:
            return self.read()[1]
        except JobFailed as failed:
            if failed.failure.code != "store_damaged":
                raise
            return False

    def _blob(self, digest: str) -> Path:
        return self._blobs / blob_name(digest)
