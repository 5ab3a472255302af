"""Images on registries: indexes, manifests, configurations, and the choice of a platform. Pure.

OCI image specification 1.1 and Docker's schema 2, which differ in their media types only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from greenroom.runner.errors import JobFailed

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LAYERS = 500
_SIZE = 2**40
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class ImagePlatform(msgspec.Struct, frozen=True, kw_only=True):
    os: str = ""
    architecture: str = ""
    variant: str = ""

    @classmethod
    def of(cls, system: str, machine: str) -> ImagePlatform:
        """From Python's names: `x86_64` is `amd64` here."""
        return cls(os=system, architecture=_MACHINES.get(machine, machine))

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part) or "unknown"


class ImageDescriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    media_type: str = ""
    digest: str
    size: int
    platform: ImagePlatform | None = None
    annotations: dict[str, str] | None = None

    @property
    def sha256(self) -> str:
        return self.digest.removeprefix("sha256:")


class ImageManifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One image: its configuration and its layers, from the lowest up."""

    media_type: str = ""
    config: ImageDescriptor
    layers: tuple[ImageDescriptor, ...]


class ImageIndex(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One image for several platforms."""

    media_type: str = ""
    manifests: tuple[ImageDescriptor, ...]


class _RootFs(msgspec.Struct, frozen=True, kw_only=True):
    diff_ids: tuple[str, ...] = ()


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    os: str = ""
    architecture: str = ""
    variant: str = ""
    rootfs: _RootFs = _RootFs()

    @property
    def platform(self) -> ImagePlatform:
        return ImagePlatform(os=self.os, architecture=self.architecture, variant=self.variant)


class _Shape(msgspec.Struct, frozen=True):
    """Enough to distinguish the kinds of manifests."""

    manifests: object = None
    layers: object = None


class NotAnImage(Exception):
    """The bytes describe no image; the text is a clause that says why."""


def decode(data: bytes) -> ImageManifest | ImageIndex:
    """Decode a manifest or index.

    Raises:
        NotAnImage: It is something else, or invalid.
    """
    try:
        shape = msgspec.json.decode(data, type=_Shape)
        if shape.manifests is not None:
            index = msgspec.json.decode(data, type=ImageIndex)
            _check(index.manifests)
            return index
        if shape.layers is None:
            raise NotAnImage("it lists neither layers nor platforms")
        manifest = msgspec.json.decode(data, type=ImageManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotAnImage(f"its manifest cannot be read: {error}") from error
    _check((manifest.config, *manifest.layers))
    return manifest


def decode_config(data: bytes, manifest: ImageManifest) -> ImageConfig:
    """Decode an image's configuration.

    Raises:
        NotAnImage: It is invalid, or belongs to other layers.
    """
    try:
        config = msgspec.json.decode(data, type=ImageConfig)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotAnImage(f"its configuration cannot be read: {error}") from error
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise NotAnImage("its configuration and its manifest name different layers")
    return config


def choose(index: ImageIndex, wanted: ImagePlatform, name: str) -> ImageDescriptor:
    """The image for a platform.

    Raises:
        JobFailed: Permanent, `wrong_platform`: there is none.
    """
    fitting = [one for one in index.manifests if one.platform is not None and fits(one.platform, wanted)]
    if not fitting:
        there = sorted({str(one.platform) for one in index.manifests if _is_image(one)})
        raise wrong_platform(name, wanted, there)
    # `arm64` means `arm64/v8`; other variants need more than every machine has.
    return min(fitting, key=lambda one: one.platform is not None and one.platform.variant not in ("", "v8"))


def fits(offered: ImagePlatform, wanted: ImagePlatform) -> bool:
    """Whether an image for `offered` runs on `wanted`."""
    return (offered.os, offered.architecture) == (wanted.os, wanted.architecture)


def wrong_platform(name: str, wanted: ImagePlatform, there: Sequence[str]) -> JobFailed:
    return JobFailed.permanent(
        "wrong_platform",
        f"The image {name} is not for {wanted}; it is for {', '.join(there) or 'no platform'}.",
        advice="Name an image for this machine, or use another backend: see `greenroom backends`.",
    )


def _is_image(one: ImageDescriptor) -> bool:
    """False for signatures and attestations, which are listed beside images."""
    return one.platform is not None and one.platform.os not in ("", "unknown")


def _check(blobs: Sequence[ImageDescriptor]) -> None:
    if len(blobs) > _LAYERS:
        raise NotAnImage(f"it has {len(blobs)} parts")
    for blob in blobs:
        if not _DIGEST.fullmatch(blob.digest):
            raise NotAnImage(f"it names a part by {blob.digest[:80]!r}, which is not a SHA-256 digest")
        if not 0 <= blob.size <= _SIZE:
            raise NotAnImage(f"it has a part of {blob.size} bytes")
