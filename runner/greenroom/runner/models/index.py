"""The store's index: the stored models and their tags; its file, and how a lost one is rebuilt.

On disk it is an OCI image layout's `index.json`, one descriptor per tag (one without a name for an untagged
model), so that other OCI tools can read the folder. Our own measurements of a model lie in annotations, so
the index is the only file that changes, and it changes atomically. A lost one is rebuilt from its predecessor
and the manifests.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from greenroom.actors.journal.fsync import TEMPORARY, write_atomically
from greenroom.actors.values import Model
from greenroom.runner.errors import JobFailed
from greenroom.runner.models import manifest as artifacts
from greenroom.runner.models.errors import from_os_error
from greenroom.runner.models.files import children
from greenroom.runner.models.manifest import (
    CONFIGS,
    MANIFEST,
    Artifact,
    Descriptor,
    Manifest,
    ModelBundle,
    open_bundle,
)
from greenroom.runner.models.metadata import Metadata, read_metadata
from greenroom.runner.models.recipe import defaults_of
from greenroom.runner.models.references import BadReference, blob_name, is_id

LAYOUT_VERSION = "1.0.0"
INDEX = "application/vnd.oci.image.index.v1+json"
_NAME = "org.opencontainers.image.ref.name"
_FACTS = "greenroom.model"
_RECOVERED = "greenroom.recovered"
_FINGERPRINTS = 8


class IndexDamaged(ValueError):
    """The index cannot be read; the message says why."""


class _Document(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: int
    manifests: tuple[Descriptor, ...]
    media_type: str = INDEX
    annotations: Mapping[str, str] = {}


class IndexEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model of the index; as JSON, without tags and size, an annotation of its descriptors."""

    model: Model
    manifest_size: int = 0
    origin: Mapping[str, tuple[int, int]] = {}
    """For files imported by hard link: digest → (size, mtime in ns) when they were hashed, since their owner
    can still write to them."""
    fingerprints: tuple[str, ...] = ()
    """How sources identified it before it was fetched: the same again means it need not be fetched."""

    @property
    def id(self) -> str:
        return self.model.id


@dataclass(frozen=True)
class Index:
    """All models in order of arrival. Immutable; a tag is never on two models."""

    entries: tuple[IndexEntry, ...] = ()
    recovered: bool = False
    """It was lost and rebuilt and may be incomplete, so only the user may remove files it does not name."""

    def find(self, model_id: str) -> IndexEntry | None:
        return next((entry for entry in self.entries if entry.id == model_id), None)

    def tagged(self, tag: str) -> IndexEntry | None:
        return next((entry for entry in self.entries if tag in entry.model.tags), None)

    def with_model(self, new: IndexEntry) -> Index:
        """Add a model, or merge tags and newer values into a stored one."""
        old = self.find(new.id)
        tags = new.model.tags
        if old is None:
            entries = (*_without_tags(self.entries, tags), new)
        else:
            merged = tuple(dict.fromkeys((*old.model.tags, *tags)))
            changed = msgspec.structs.replace(
                new,
                model=msgspec.structs.replace(
                    new.model, tags=merged, created=old.model.created, source=old.model.source
                ),
                fingerprints=_newest((*old.fingerprints, *new.fingerprints)),
            )
            rest = _without_tags(self.entries, tags)
            entries = tuple(changed if e.id == new.id else e for e in rest)
        return replace(self, entries=entries)

    def with_tag(self, model_id: str, tag: str) -> Index:
        """Put a tag on a model, moving it from another one.

        Raises:
            KeyError: no such model.
        """
        entry = self.find(model_id)
        if entry is None:
            raise KeyError(model_id)
        if tag in entry.model.tags:
            return self
        return replace(
            self,
            entries=tuple(
                _tagged(e, (*e.model.tags, tag)) if e.id == model_id else e
                for e in _without_tags(self.entries, (tag,))
            ),
        )

    def without_tag(self, tag: str) -> Index:
        return replace(self, entries=_without_tags(self.entries, (tag,)))

    def without_model(self, model_id: str) -> Index:
        return replace(self, entries=tuple(entry for entry in self.entries if entry.id != model_id))

    def encode(self) -> bytes:
        manifests = []
        for entry in self.entries:
            bare = msgspec.structs.replace(_tagged(entry, ()), manifest_size=0)
            facts = msgspec.json.encode(bare).decode()
            for tag in entry.model.tags or ("",):
                annotations = {_FACTS: facts} | ({_NAME: tag} if tag else {})
                manifests.append(
                    Descriptor(
                        media_type=MANIFEST,
                        digest=entry.id,
                        size=entry.manifest_size,
                        annotations=annotations,
                    )
                )
        annotations = {_RECOVERED: "true"} if self.recovered else {}
        document = _Document(schema_version=2, manifests=tuple(manifests), annotations=annotations)
        return msgspec.json.format(msgspec.json.encode(document), indent=1)

    @classmethod
    def decode(cls, data: bytes) -> Index:
        """Read `index.json`.

        Raises:
            IndexDamaged: It is not one of ours.
        """
        try:
            document = msgspec.json.decode(data, type=_Document)
            entries: dict[str, IndexEntry] = {}
            taken: set[str] = set()
            for descriptor in document.manifests:
                tag = descriptor.annotations.get(_NAME, "")
                if tag in taken:
                    raise IndexDamaged(f"the tag {tag!r} is in it twice")
                taken |= {tag} if tag else set()
                known = entries.get(descriptor.digest)
                if known is None:
                    facts = msgspec.json.decode(descriptor.annotations[_FACTS], type=IndexEntry)
                    if facts.id != descriptor.digest:
                        raise IndexDamaged("a model's id is not its manifest's digest")
                    known = msgspec.structs.replace(facts, manifest_size=descriptor.size)
                entries[descriptor.digest] = _tagged(known, (*known.model.tags, tag)) if tag else known
        except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, RecursionError) as error:
            raise IndexDamaged(f"it cannot be read ({type(error).__name__}: {error})") from error
        return cls(tuple(entries.values()), recovered=_RECOVERED in document.annotations)


def _newest(fingerprints: tuple[str, ...]) -> tuple[str, ...]:
    """Bounded, the newest last: a file that changes every day must not grow the index without limit."""
    return tuple(reversed(dict.fromkeys(reversed(fingerprints))))[-_FINGERPRINTS:]


def _tagged(entry: IndexEntry, tags: Sequence[str]) -> IndexEntry:
    return msgspec.structs.replace(entry, model=msgspec.structs.replace(entry.model, tags=tuple(tags)))


def _without_tags(entries: tuple[IndexEntry, ...], tags: Sequence[str]) -> tuple[IndexEntry, ...]:
    return tuple(
        _tagged(e, [t for t in e.model.tags if t not in tags]) if set(tags) & set(e.model.tags) else e
        for e in entries
    )


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

    def with_all_facts(self, index: Index) -> Index:
        """An older version's index, with what that did not read of its models' files."""
        return replace(index, entries=tuple(map(self._with_all_facts, index.entries)))

    def _with_all_facts(self, entry: IndexEntry) -> IndexEntry:
        if None not in (entry.model.reads, entry.model.made_for):
            return entry
        try:
            manifest = artifacts.decode(self._blob(entry.id).read_bytes(), entry.id)
            bundle = open_bundle(self._bundles / blob_name(entry.id), manifest, self._blob)
            metadata = read_metadata(_files_of(bundle))
        except (OSError, ValueError, BadReference, JobFailed) as error:
            # Its layers then count as equal, and engines say what it can do.
            log.warning("the files of the model %s cannot be read: %s", entry.id[7:19], error)
            return entry
        model = msgspec.structs.replace(
            entry.model,
            layers=metadata.layers,
            kv_bytes_per_token=metadata.kv_bytes_per_token,
            projector_size=metadata.projector_size,
            reads=metadata.reads,
            made_for=metadata.purpose.made_for,
            pooling=metadata.purpose.pooling,
        )
        return msgspec.structs.replace(entry, model=model)

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
        size=artifacts.size_of_layers(manifest),
        created=created,
        architecture=metadata.architecture,
        context_size=artifacts.context_size(config),
        has_defaults=bool(defaults_of(config)),
        parameters=metadata.parameters,
        parameter_count=metadata.parameter_count,
        quantization=metadata.quantization,
        context_length=metadata.context_length,
        kv_bytes_per_token=metadata.kv_bytes_per_token,
        layers=metadata.layers,
        projector_size=metadata.projector_size,
        reads=metadata.reads,
        made_for=metadata.purpose.made_for,
        pooling=metadata.purpose.pooling,
        source=source,
    )


def made_of(base: Model, artifact: Artifact, *, created: float, tag: str) -> Model:
    """A model of another one's weights."""
    config = artifact.config_bytes
    return msgspec.structs.replace(
        base,
        id=artifact.id,
        tags=(tag,),
        size=artifacts.size_of_layers(artifact.manifest),
        created=created,
        context_size=artifacts.context_size(config),
        has_defaults=bool(defaults_of(config)),
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
        metadata = read_metadata(_files_of(bundle))
        config = blob(manifest.config.digest).read_bytes()
        model = model_of(digest, manifest, metadata, config, created=path.stat().st_mtime)
    except (ValueError, FileNotFoundError, BadReference, JobFailed) as error:
        if isinstance(error, JobFailed) and error.failure.kind == "transient":
            raise  # it may be complete, and was only unreadable
        # Most are configurations or tokenizers; an incomplete model can be pulled again.
        log.debug("%s is not a complete model: %s", digest[:19], error)
        return None
    return IndexEntry(model, len(data), origin)


def _files_of(bundle: ModelBundle) -> list[Path]:
    folder = bundle.path if bundle.path.is_dir() else bundle.path.parent
    return sorted(one for one in folder.rglob("*") if one.is_file())


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
