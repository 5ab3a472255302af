"""Resolves an image's name to bytes: reference, manifest for this platform, configuration.

A tag may come to mean another image, so what it meant is recorded with each installation: the same version of
a backend is the same manifest as long as any installation of it exists. What is read is kept in the
store under its digest, so that a repair needs no network.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import urllib3

from greenroom.runner.backends.base import Image, Platform
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.errors import os_failure
from greenroom.runner.installations.image_layers import GZIP
from greenroom.runner.installations.installed import InstallationStore
from greenroom.runner.installations.lock_file import FileStore, LockedFile, file_sha256
from greenroom.runner.installations.sources import PackageSources
from greenroom.runner.installations.web import Web
from greenroom.runner.models.references import BadReference, Reference
from greenroom.runner.registry import images
from greenroom.runner.registry.client import Registry
from greenroom.runner.setting_values import RegistrySettings
from greenroom.runner.threads import TookTooLong, bounded, stop_if

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

MANIFEST, CONFIG = "manifest.json", "config.json"
_CONFIG_LIMIT = 8 * 2**20
_CONFIG_SECONDS = 120.0
_TAG = 128
"""Characters of a tag, by the distribution specification."""
_NESTED = 3
"""Depth to which indexes may nest."""
_ADVICE = "Check the network; a mirror can be named in the config, under `[registries]`."


@dataclass(frozen=True)
class ResolvedImage:
    name: str
    """The reference as requested."""
    version: str
    digest: str
    """The digest of the manifest for this platform."""
    layers: tuple[tuple[LockedFile, str], ...]
    """From the lowest up, each with the digest of its unpacked content."""
    parts: tuple[LockedFile, ...]
    """Everything to fetch, once each."""
    registry: Registry

    def unpacked_size(self, layer: LockedFile) -> int:
        """Estimated unpacked bytes of a layer that is not cached, from its first and last bytes."""
        try:
            begin = self._bytes(layer, 0, 2)
            end = self._bytes(layer, layer.size - 4, 4) if begin == GZIP and layer.size >= 20 else b""
        except (JobFailed, urllib3.exceptions.HTTPError, OSError):
            return layer.size
        return max(layer.size, int.from_bytes(end, "little"))

    def _bytes(self, layer: LockedFile, offset: int, size: int) -> bytes:
        response = self.registry.blob(f"sha256:{layer.sha256}", offset)
        try:
            return (
                response.read(size)
                if response.status in (200, 206) and (response.status == 206) == bool(offset)
                else b""
            )
        finally:
            response.close()


class ImageResolver:
    """Resolves names, from the registry and from the cache."""

    def __init__(
        self,
        parts: FileStore,
        installed: InstallationStore,
        sources: PackageSources,
        platform: Platform,
        registries: Mapping[str, RegistrySettings],
    ) -> None:
        self._parts = parts
        self._installed = installed
        self._sources = sources
        self._platform = platform
        self._registries = registries

    def resolve(self, backend: str, source: Image, version: str, cancel: Event) -> ResolvedImage:
        """Resolve a name; asks the registry unless the recorded image is still cached.

        Raises:
            JobFailed: There is no such image, none for this platform, or the registry does not answer.
            JobCancelled: `cancel` was set.
        """
        reference, version, registry = self._named(source, version, cancel)
        wanted = images.ImagePlatform.of(self._platform.system, self._platform.machine)
        digest = reference.digest or self._recorded(backend, str(reference))
        try:
            data, found = self._chosen(registry, digest or reference.tag, wanted, str(reference), cancel)
            stop_if(cancel)
            config = self._config(registry, found.config, cancel)
            about = images.decode_config(config, found)
        except images.NotAnImage as error:
            raise JobFailed.permanent(
                "not_an_image",
                f"{reference} is not an image that {backend} can be installed from: {error}.",
                advice=f'Name another one in the config: [backends."{backend}"] image = "…".',
            ) from error
        if about.os and not images.fits(about.platform, wanted):
            raise images.wrong_platform(str(reference), wanted, [str(about.platform)])
        manifest = _file(MANIFEST, data)
        self._keep(manifest, data)
        layers = tuple(
            LockedFile(name=f"layer-{layer.sha256[:12]}", sha256=layer.sha256, size=layer.size)
            for layer in found.layers
        )
        parts = {part.sha256: part for part in (manifest, _file(CONFIG, config), *layers)}
        return ResolvedImage(
            name=str(reference),
            version=version,
            digest=f"sha256:{manifest.sha256}",
            layers=tuple(zip(layers, about.rootfs.diff_ids, strict=True)),
            parts=tuple(parts.values()),
            registry=registry,
        )

    def _named(self, source: Image, version: str, cancel: Event) -> tuple[Reference, str, Registry]:
        """The reference to ask for, its version, and the registry."""
        try:
            reference = Reference.parse(source.reference)
        except BadReference as error:
            raise _bad_name(str(error)) from error
        if reference.scheme != "oci":
            raise _bad_name(f'"{source.reference}" does not name an image in a registry.')
        web = Web(self._sources, advice=_ADVICE, cancel=cancel)
        registry = Registry(web, reference, settings=self._registries, thing="image")
        if version == "latest":
            version = _newest(registry.tags(), source, str(reference))
        if version in ("", "pinned", source.version):
            return reference, source.version, registry
        try:
            return reference.variant(source.tags.replace("{version}", version)), version, registry
        except BadReference as error:
            raise _no_such_version(str(error)) from error

    def _recorded(self, backend: str, name: str) -> str:
        """The digest this name stood for in an installation that still exists."""
        found = [
            (record.built_at, record.image.digest)
            for record in self._installed.records()
            if record.backend == backend and record.image is not None and record.image.name == name
        ]
        return max(found)[1] if found else ""

    def _chosen(
        self, registry: Registry, tag_or_digest: str, wanted: images.ImagePlatform, name: str, cancel: Event
    ) -> tuple[bytes, images.ImageManifest]:
        """The manifest for this platform: the one requested, or the one the requested index points to."""
        for _ in range(_NESTED):
            data = self._manifest(registry, tag_or_digest)
            found = images.decode(data)
            if isinstance(found, images.ImageManifest):
                return data, found
            tag_or_digest = images.choose(found, wanted, name).digest
            stop_if(cancel)
        raise images.NotAnImage("it is an index of indexes of indexes")

    def _manifest(self, registry: Registry, tag_or_digest: str) -> bytes:
        cached = self._cached(MANIFEST, tag_or_digest)
        return registry.manifest(tag_or_digest) if cached is None else cached

    def _config(self, registry: Registry, blob: images.ImageDescriptor, cancel: Event) -> bytes:
        if (cached := self._cached(CONFIG, blob.digest)) is not None:
            return cached
        if blob.size > _CONFIG_LIMIT:
            raise images.NotAnImage(f"its configuration has {blob.size} bytes")
        response = registry.blob(blob.digest)
        try:
            data = bounded(
                lambda: _read(response, blob.size),
                name="image-config",
                seconds=_CONFIG_SECONDS,
                cancel=cancel,
                left=response.shutdown,
            )
        except (urllib3.exceptions.HTTPError, OSError, TookTooLong) as error:
            raise registry.unreachable(error) from error
        finally:
            response.close()
        file = _file(CONFIG, data)
        if file.sha256 != blob.sha256:
            raise _strange(registry, "its configuration", f"expected {blob.digest}, got sha256:{file.sha256}")
        self._keep(file, data)
        return data

    def _cached(self, name: str, digest: str) -> bytes | None:
        """A cached small part, if its hash matches."""
        if not digest.startswith("sha256:"):
            return None
        path = self._parts.path(LockedFile(name=name, sha256=digest.removeprefix("sha256:"), size=0))
        try:
            data = path.read_bytes()
        except OSError:
            return None
        return data if _file(name, data).sha256 == digest.removeprefix("sha256:") else None

    def _keep(self, file: LockedFile, data: bytes) -> None:
        if self._parts.has(file) and file_sha256(self._parts.path(file)).hexdigest() == file.sha256:
            return
        with self._parts.only_one(file):
            try:
                part, target = self._parts.part(file), self._parts.path(file)
                target.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes(data)
                part.replace(target)
            except OSError as error:
                raise os_failure(error, "The image's manifest could not be stored") from error


class RegistryOrigin:
    """The parts of one image, as an `Origin` for the fetcher."""

    def __init__(self, image: ResolvedImage) -> None:
        self._image = image
        self._registry = image.registry

    def local(self, file: LockedFile) -> Path | None:  # noqa: ARG002 - as `Origin`
        return None

    def open(self, file: LockedFile, offset: int) -> BaseHTTPResponse:
        return self._registry.blob(f"sha256:{file.sha256}", offset)

    def broken(self, file: LockedFile, error: Exception) -> JobFailed:  # noqa: ARG002 - as `Origin`
        return self._registry.unreachable(error)

    def strange(self, file: LockedFile, detail: str) -> JobFailed:
        return _strange(self._registry, f"{file.name} of {self._image.name}", detail)


def _strange(registry: Registry, what: str, detail: str) -> JobFailed:
    return JobFailed.permanent(
        "hash_mismatch",
        f"{registry.host} sent bytes for {what} that do not match the image's manifest.",
        advice="Nothing was kept. A mirror or proxy on the way may be altering files.",
        detail=detail,
    )


def _bad_name(sentence: str) -> JobFailed:
    return JobFailed.permanent(
        "bad_image_name", sentence, advice="Write registry/repository:tag, or registry/repository@digest."
    )


def _newest(tags: list[str], source: Image, name: str) -> str:
    pattern = re.escape(source.tags).replace(re.escape("{version}"), "([0-9].*)")
    found = [match[1] for tag in tags if len(tag) <= _TAG and (match := re.fullmatch(pattern, tag))]
    if not found:
        raise _no_such_version(f"{name.rpartition(':')[0]} has no version at all: no tag like {source.tags}.")
    return max(found, key=lambda text: [int(number) for number in re.findall(r"\d+", text)])


def _no_such_version(message: str) -> JobFailed:
    return JobFailed.permanent(
        "no_such_version",
        message,
        advice="Leave the version out to get the one this release was tested with.",
    )


def _read(response: BaseHTTPResponse, size: int) -> bytes:
    """A response that should have `size` bytes, reading at most one more."""
    data = b""
    while len(data) <= size and (piece := response.read(size + 1 - len(data))):
        data += piece
    return data


def _file(name: str, data: bytes) -> LockedFile:
    return LockedFile(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
