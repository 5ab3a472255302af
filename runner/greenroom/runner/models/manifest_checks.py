"""Validates models that come with a manifest of their own, from a registry or an archive."""

from __future__ import annotations

from typing import Literal

from greenroom.actors.values import ModelFormat
from greenroom.runner.errors import JobFailed
from greenroom.runner.models import manifest as artifacts
from greenroom.runner.models.arrival import Arrival
from greenroom.runner.models.errors import not_a_model
from greenroom.runner.models.manifest import (
    ARCHIVE_LIMIT,
    ARCHIVES,
    CONFIGS,
    Artifact,
    Descriptor,
    Manifest,
    unpack,
)
from greenroom.runner.models.references import BadReference, blob_name, digest_of

CONFIG_NAME = "other/config"
"""The configuration's name on its way."""
CONFIG_LIMIT = 16 * 2**20
_MOST_LAYERS = 5_000
_LARGEST = 2**41
"""Bytes of one file."""
_WEIGHTS = (artifacts.GGUF, artifacts.SAFETENSORS)


def checked(data: bytes, name: str) -> Manifest:
    """Decode and validate a manifest; `name` is for messages.

    Raises:
        JobFailed: permanent; `not_a_model`, or `unsupported_artifact` for another kind of artifact.
    """
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
    if len(manifest.layers) > _MOST_LAYERS:
        raise not_a_model(f"{name} is not a model: it has {len(manifest.layers)} layers.")
    impossible = any(not 0 <= blob.size <= _LARGEST for blob in manifest.blobs())
    if manifest.config.size > CONFIG_LIMIT or impossible:
        raise not_a_model(f"{name} is not a model: its manifest has impossible sizes.")
    if any(
        artifacts.kind_of(layer) in ARCHIVES and layer.size > 2 * ARCHIVE_LIMIT for layer in manifest.layers
    ):
        raise not_a_model(f"{name} is not a model: an archive in it is too large for a configuration.")
    return manifest


def blobs_of(manifest: Manifest) -> list[tuple[Descriptor, str]]:
    """Each blob once, the configuration last, with its name on the way."""
    names = {layer.digest: name for layer, name in artifacts.file_names(manifest)}
    # A layer may occur twice, but is one blob.
    layers = {layer.digest: layer for layer in manifest.layers}
    named = [(layer, names.get(one, f"other/{blob_name(one)}")) for one, layer in layers.items()]
    return [*named, (manifest.config, CONFIG_NAME)]


def complete(arrival: Arrival, manifest: Manifest, manifest_bytes: bytes) -> None:
    """Once all blobs of `blobs_of` have arrived: keep the manifest and with it the model's id.

    Raises:
        JobFailed: permanent, `not_a_model`: a size differs from the manifest, or an archive is unsafe.
    """
    sizes = {layer.digest: layer.size for layer in arrival.layers}
    for blob in manifest.blobs():
        if sizes[blob.digest] != blob.size:
            raise not_a_model(
                f"The manifest gives a wrong size: {blob.digest[:19]} should have {blob.size} bytes, and has "
                f"{sizes[blob.digest]}."
            )
    paths = {layer.digest: arrival.path_of(layer) for layer in arrival.layers}
    config = paths[manifest.config.digest].read_bytes()
    arrival.layers = [layer for layer in arrival.layers if layer.name != CONFIG_NAME]
    arrival.artifact = Artifact(manifest, manifest_bytes, config)
    for layer in manifest.layers:
        if artifacts.kind_of(layer) in ARCHIVES:
            arrival.extras += unpack(paths[layer.digest], arrival.work / blob_name(layer.digest))


def format_of(manifest: Manifest) -> ModelFormat | Literal[""]:
    """From the layers' types; whether safetensors are quantised for MLX is in their configuration."""
    kinds = {artifacts.kind_of(layer) for layer in manifest.layers}
    if artifacts.GGUF in kinds:
        return "gguf"
    return "safetensors" if artifacts.SAFETENSORS in kinds else ""


def weights_of(manifest: Manifest) -> int:
    return sum(layer.size for layer in manifest.layers if artifacts.kind_of(layer) in _WEIGHTS)
