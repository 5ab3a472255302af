"""The store's index: the stored models and their tags. Pure.

On disk it is an OCI image layout's `index.json`, one descriptor per tag (one without a name for an untagged
model), so that other OCI tools can read the folder. Our own measurements of a model lie in annotations, so
the index is the only file that changes, and it changes atomically.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from greenroom.actors.values import Model
from greenroom.runner.models.manifest import MANIFEST, Descriptor

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
