"""Models from OCI registries: Docker Hub, and any other that stores model artifacts.

The manifest is stored as it was published, so the model's id here is its digest there.
"""

from __future__ import annotations

import os
from functools import partial
from threading import Event

from greenroom.runner.errors import JobFailed
from greenroom.runner.models import manifest as artifacts
from greenroom.runner.models.arrival import Arrival
from greenroom.runner.models.errors import NO_ANSWER
from greenroom.runner.models.manifest_checks import blobs_of, checked, complete, format_of, weights_of
from greenroom.runner.models.references import DEFAULT_TAG, Reference, digest_of
from greenroom.runner.models.sources.base import Offer, Report, Source, SourceContext
from greenroom.runner.models.sources.transfer import FileToFetch, Transfer
from greenroom.runner.registry.client import Registry


class OciSource(Source):
    def __init__(self, context: SourceContext) -> None:
        from greenroom.runner.installations.sources import PackageSources
        from greenroom.runner.installations.web import Web

        self._token = context.token
        self._settings = context.registries
        packages = context.packages or PackageSources.discover()
        self._web = Web(packages, advice=NO_ANSWER, cancel=context.cancel)
        self._registry: Registry | None = None
        self._manifest_bytes = b""

    def describe(self, reference: Reference, cancel: Event) -> Offer:  # noqa: ARG002 - one bounded request
        self._registry = registry = Registry(
            self._web, reference, token=self._token, settings=self._settings, environment=os.environ
        )
        data = registry.manifest(reference.digest or reference.tag or DEFAULT_TAG)
        manifest = checked(data, str(reference))
        self._manifest_bytes = data
        size = sum(layer.size for layer in manifest.layers)
        return Offer(
            reference=reference,
            source=f"{registry.host}/{registry.repository}@{digest_of(data)[:19]}",
            fingerprint=f"oci:{digest_of(data)}",
            size=size,
            writes=size,
            format=format_of(manifest),
            weights=weights_of(manifest),
            blobs=tuple({one.digest: one.size for one in manifest.layers}.items()),
        )

    def fetch(self, offer: Offer, arrival: Arrival, report: Report, cancel: Event) -> None:  # noqa: ARG002
        registry = self._registry
        assert registry is not None, "describe comes first"
        manifest = artifacts.decode(self._manifest_bytes, digest_of(self._manifest_bytes))
        pieces = [
            FileToFetch(
                url=f"{registry.base}/blobs/{blob.digest}",
                name=name,
                size=blob.size,
                digest=blob.digest,
                exact=True,
                begin=partial(registry.blob, blob.digest),
                told=blob is not manifest.config,
            )
            for blob, name in blobs_of(manifest)
        ]
        refused = lambda _, status: registry.refused(status, b"")  # noqa: E731
        Transfer(self._web, arrival, report, cancel, refused).bring(pieces)
        complete(arrival, manifest, self._manifest_bytes)

    def published(self) -> tuple[str, bytes]:
        """The id of the described model, and the bytes of its configuration.

        Raises:
            JobFailed: The registry does not send it, or sends something else.
            JobCancelled: The context's `cancel` was set.
        """
        registry = self._registry
        assert registry is not None, "describe comes first"
        manifest = artifacts.decode(self._manifest_bytes, digest_of(self._manifest_bytes))
        data = registry.small_blob(manifest.config.digest)
        if digest_of(data) != manifest.config.digest:
            raise JobFailed.permanent(
                "hash_mismatch", f"{registry.host} sent a configuration other than the one it names."
            )
        return digest_of(self._manifest_bytes), data
