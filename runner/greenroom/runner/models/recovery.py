"""Rebuilds a lost index from the manifests in the store. Removes nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from greenroom.actors.values import Model
from greenroom.runner.errors import JobFailed
from greenroom.runner.models import manifest as artifacts
from greenroom.runner.models.bundle import open_bundle
from greenroom.runner.models.layout import Entry, Index
from greenroom.runner.models.manifest import CONFIGS, Descriptor, Manifest
from greenroom.runner.models.metadata import Metadata, read_metadata
from greenroom.runner.models.references import BadReference, is_id

log = logging.getLogger(__name__)

_MANIFEST_LIMIT = 4 * 2**20
_OWN_LINKS = 2
"""Names of ours that a blob has: its own, and the one in a bundle. More of them may be somebody else's."""


def with_what_is_here(known: Index, blobs: Path, blob: Callable[[str], Path], bundles: Path) -> Index:
    """An index with every whole model among the blobs beside those that are known; marked as recovered.

    The names of models that only the lost index had are lost. What is not whole is left where it is.
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
    """What is recorded of a model whose files are here."""
    return Model(
        id=model_id,
        tags=(tag,) if tag else (),
        format=metadata.format,
        # A layer that is in it twice is one file.
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
    """Digests of what may be a manifest, the oldest first."""
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


def _entry(digest: str, blob: Callable[[str], Path], bundles: Path) -> Entry | None:
    """The model with this manifest, if it is one and all of it is here."""
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
            raise  # it may be whole, and could only not be read
        # Most are configurations or tokenizers; a model that is not whole can be pulled again.
        log.debug("%s is not a complete model: %s", digest[:19], error)
        return None
    return Entry(model, len(data), origin)


def _seal(file: Path, descriptor: Descriptor) -> tuple[int, int] | None:
    """What is noted of a whole blob that may be linked from elsewhere, so that its owner may write to it.

    The time is none that a file has: the blob is hashed at the next look, and not while the daemon starts.

    Raises:
        ValueError: it is not what it was.
        OSError: it is not there.
    """
    status = file.stat()
    if status.st_size != descriptor.size:
        raise ValueError(f"{descriptor.digest[:19]} has another size")
    return (status.st_size, 0) if status.st_nlink > _OWN_LINKS else None
