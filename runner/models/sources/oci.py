"""Models from OCI registries: Docker Hub, and any other that keeps model artifacts.

The manifest is stored as it was published, so the model's id here is its digest there.
"""

from __future__ import annotations

import os
from threading import Event
from typing import Literal

from greenroom.actors.facts import ModelFormat
from greenroom.runner.failures import JobFailed
from greenroom.runner.models import manifest as artifacts
from greenroom.runner.models.arrival import Arrival
from greenroom.runner.models.failures import not_a_model
from greenroom.runner.models.manifest import ARCHIVES, CONFIGS, Artifact, Manifest, digest_of
from greenroom.runner.models.references import DEFAULT_TAG, BadReference, Reference, blob_name
from greenroom.runner.models.sources.base import Context, Offer, Report
from greenroom.runner.models.sources.transfer import Piece, Transfer
from greenroom.runner.models.unpacking import unpack
from greenroom.runner.registry.client import Registry

_CONFIG_LIMIT = 16 * 2**20
_WEIGHTS = (artifacts.GGUF, artifacts.SAFETENSORS)


class OciSource:
    """Fetches one artifact."""

    def __init__(self, context: Context) -> None:
        from greenroom.runner.installations.sources import PackageSources
        from greenroom.runner.installations.web import Web

        self._token = context.token
        self._settings = context.registries
        self._web = Web(context.packages or PackageSources.discover())
        self._registry: Registry | None = None
        self._manifest_bytes = b""

    def describe(self, reference: Reference, cancel: Event) -> Offer:  # noqa: ARG002 - one bounded request
        """Read the manifest: it says what there is, and how large."""
        self._registry = registry = Registry(
            self._web, reference, token=self._token, settings=self._settings, environment=os.environ
        )
        data = registry.manifest(reference.digest or reference.tag or DEFAULT_TAG)
        manifest = _checked(data, str(reference))
        self._manifest_bytes = data
        size = sum(layer.size for layer in manifest.layers)
        return Offer(
            reference=reference,
            source=f"{registry.host}/{registry.repository}@{digest_of(data)[:19]}",
            fingerprint=f"oci:{digest_of(data)}",
            size=size,
            writes=size,
            format=_format(manifest),
            weights=sum(one.size for one in manifest.layers if artifacts.kind_of(one) in _WEIGHTS),
            blobs=tuple({one.digest: one.size for one in manifest.layers}.items()),
        )

    def measure(self, offer: Offer, cancel: Event) -> Offer:  # noqa: ARG002 - the manifest has said it all
        """Nothing more to find out."""
        return offer

    def fetch(self, offer: Offer, arrival: Arrival, report: Report, cancel: Event) -> None:  # noqa: ARG002
        """Fetch the layers in parallel, and the configuration."""
        registry = self._registry
        assert registry is not None, "describe comes first"
        manifest = artifacts.decode(self._manifest_bytes, digest_of(self._manifest_bytes))
        names = {layer.digest: name for layer, name in artifacts.file_names(manifest)}

        def piece(blob: artifacts.Descriptor, name: str) -> Piece:
            return Piece(
                url=f"{registry.base}/blobs/{blob.digest}",
                name=name,
                size=blob.size,
                digest=blob.digest,
                headers=registry.headers(),
                renewed=registry.renewed,
            )

        # A layer that is in it twice is one blob.
        layers = {layer.digest: layer for layer in manifest.layers}
        pieces = [
            piece(layer, names.get(digest, f"other/{blob_name(digest)}")) for digest, layer in layers.items()
        ]
        pieces.append(piece(manifest.config, "other/config"))
        Transfer(self._web, arrival, report, cancel, lambda _, status: registry.refused(status, b"")).bring(
            pieces
        )
        paths = {layer.digest: arrival.path_of(layer) for layer in arrival.layers}
        config = paths[manifest.config.digest].read_bytes()
        arrival.layers = [layer for layer in arrival.layers if layer.name != "other/config"]
        arrival.artifact = Artifact(manifest, self._manifest_bytes, config)
        for layer in manifest.layers:
            if artifacts.kind_of(layer) in ARCHIVES:
                arrival.extras += unpack(paths[layer.digest], arrival.work / blob_name(layer.digest))


def _format(manifest: Manifest) -> ModelFormat | Literal[""]:
    kinds = {artifacts.kind_of(layer) for layer in manifest.layers}
    if artifacts.GGUF in kinds:
        return "gguf"
    return "safetensors" if artifacts.SAFETENSORS in kinds else ""


def _checked(data: bytes, name: str) -> Manifest:
    try:
        manifest = artifacts.decode(data, digest_of(data))
        for blob in manifest.blobs():
            blob_name(blob.digest)
    except (ValueError, BadReference) as error:
        raise not_a_model(f"{name} is not a model: {error}") from error
    if manifest.config.media_type not in CONFIGS:
        raise JobFailed.permanent(
            "unsupported_artifact",
            f'config type "{manifest.config.media_type}" is not supported (supported: {", ".join(CONFIGS)}).',
            advice="It may be a container image, or need a newer Greenroom.",
        )
    if manifest.config.size > _CONFIG_LIMIT or any(blob.size < 0 for blob in manifest.blobs()):
        raise not_a_model(f"{name} is not a model: its manifest has impossible sizes.")
    return manifest
