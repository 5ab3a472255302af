"""The file of the store's index and its predecessor; rebuilds a lost index from the manifests."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from greenroom.actors.values import Model
from greenroom.runner.errors import JobFailed
from greenroom.runner.models import manifest as artifacts
from greenroom.runner.models.bundle import open_bundle
from greenroom.runner.models.errors import from_os_error
from greenroom.runner.models.files import TEMPORARY, children, write_atomically
from greenroom.runner.models.layout import Index, IndexDamaged, IndexEntry
from greenroom.runner.models.manifest import CONFIGS, Descriptor, Manifest
from greenroom.runner.models.metadata import Metadata, read_metadata
from greenroom.runner.models.references import BadReference, blob_name, is_id

log = logging.getLogger(__name__)

_DAMAGED = "index.damaged.json"
_MANIFEST_LIMIT = 4 * 2**20
_OWN_LINKS = 2
"""Our names of a blob: its own, and the one in a bundle. More may be another owner's."""


class IndexFile:
    """`index.json` of one store. Written only under the store's lock."""

    def __init__(self, root: Path, blobs: Path, bundles: Path) -> None:
        self.file = root / "index.json"
        self.previous = root / "index.previous.json"
        self._blobs = blobs
        self._bundles = bundles

    def read(self) -> tuple[Index, bool]:
        """The index, and whether it is the latest: if that is lost, the one before it is returned.

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
        """The latest index, rebuilt if it is lost.

        Raises:
            JobFailed: It cannot be read now.
            OSError: It could not be written.
        """
        return self.read()[0] if self._is_whole() else self._recover()

    def write(self, index: Index) -> None:
        """Replace it atomically; the last readable one stays beside it.

        Raises:
            OSError: Nothing has changed.
        """
        if self.file.exists():
            spare = self.previous.with_name(f"{TEMPORARY}previous")
            spare.unlink(missing_ok=True)
            try:
                os.link(self.file, spare)
            except OSError:
                shutil.copyfile(self.file, spare)
            # Only a readable index may become the fallback.
            if self._is_whole():
                spare.replace(self.previous)
            spare.unlink(missing_ok=True)
        write_atomically(self.file, index.encode())

    def _recover(self) -> Index:
        """Rebuild the index from its predecessor and the blobs."""
        try:
            known = self.read()[0]
        except JobFailed as failed:
            if failed.failure.code != "store_damaged":
                raise
            known = Index()
        log.warning("%s is gone or damaged and is rebuilt", self.file)
        self._bundles.mkdir(parents=True, exist_ok=True)
        index = _with_found_models(known, self._blobs, self._blob, self._bundles)
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


def _with_found_models(known: Index, blobs: Path, blob: Callable[[str], Path], bundles: Path) -> Index:
    """The known models and every complete model among the blobs, marked as recovered.

    Tags that only the lost index had are lost. Incomplete models stay where they are.
    """
    entries = list(known.entries)
    for digest in _candidates(blobs):
        if known.find(digest) is None and (entry := _entry(digest, blob, bundles)) is not None:
            log.warning("found the model %s in the store again", digest[7:19])
            entries.append(entry)
    return Index(tuple(entries), recovered=True)


def model_of(
    model_id: str,
    manifest: Manifest,
    metadata: Metadata,
    config: bytes,
    *,
    created: float,
    tag: str = "",
    source: str = "",
) -> Model:
    return Model(
        id=model_id,
        tags=(tag,) if tag else (),
        format=metadata.format,
        # A layer may occur twice, but is one file.
        size=sum({layer.digest: layer.size for layer in manifest.layers}.values()),
        created=created,
        architecture=metadata.architecture,
        context_size=artifacts.context_size(config),
        parameters=metadata.parameters,
        parameter_count=metadata.parameter_count,
        quantization=metadata.quantization,
        context_length=metadata.context_length,
        kv_bytes_per_token=metadata.kv_bytes_per_token,
        source=source,
    )


def _candidates(blobs: Path) -> Iterator[str]:
    """Digests of possible manifests, the oldest first."""
    found: list[tuple[float, str]] = []
    with os.scandir(blobs) as files:
        for file in files:
            digest = f"sha256:{file.name}"
            if not is_id(digest) or not file.is_file(follow_symlinks=False):
                continue
            status = file.stat(follow_symlinks=False)
            if status.st_size <= _MANIFEST_LIMIT:
                with open(file.path, "rb") as content:
                    if content.read(1) == b"{":
                        found.append((status.st_mtime, digest))
    return (digest for _, digest in sorted(found))


def _entry(digest: str, blob: Callable[[str], Path], bundles: Path) -> IndexEntry | None:
    """The model with this manifest, if it is one and complete."""
    path = blob(digest)
    try:
        data = path.read_bytes()
        manifest = artifacts.decode(data, digest)
        if manifest.config.media_type not in CONFIGS:
            return None
        origin = {one.digest: seal for one in manifest.blobs() if (seal := _seal(blob(one.digest), one))}
        bundle = open_bundle(bundles / path.name, manifest, blob)
        folder = bundle.path if bundle.path.is_dir() else bundle.path.parent
        metadata = read_metadata(sorted(one for one in folder.rglob("*") if one.is_file()))
        config = blob(manifest.config.digest).read_bytes()
        model = model_of(digest, manifest, metadata, config, created=path.stat().st_mtime)
    except (ValueError, FileNotFoundError, BadReference, JobFailed) as error:
        if isinstance(error, JobFailed) and error.failure.kind == "transient":
            raise  # it may be complete, and was only unreadable
        # Most are configurations or tokenizers; an incomplete model can be pulled again.
        log.debug("%s is not a complete model: %s", digest[:19], error)
        return None
    return IndexEntry(model, len(data), origin)


def _seal(file: Path, descriptor: Descriptor) -> tuple[int, int] | None:
    """The seal of a complete blob that may be hard-linked elsewhere, where its owner may write to it.

    Its time matches no file, so the blob is hashed at the next check and not while the daemon starts.

    Raises:
        ValueError: It has another size.
        OSError: It is missing.
    """
    status = file.stat()
    if status.st_size != descriptor.size:
        raise ValueError(f"{descriptor.digest[:19]} has another size")
    return (status.st_size, 0) if status.st_nlink > _OWN_LINKS else None
