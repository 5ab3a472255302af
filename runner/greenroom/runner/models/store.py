"""The content-addressed store: an OCI image layout under `<home>/models`.

```
oci-layout   index.json   index.previous.json   index.damaged.json   lock
blobs/sha256/<hex>                 layers, configurations, manifests
bundles/sha256/<hex>/model/…       a model's files under their names, linked to blobs
incoming/<random>/                 arrivals; swept at start
uploads/<hex>                      files that clients sent, of no model yet; a week
partial/<hex>                      downloads that broke off, for the next attempt; a week
unnamed/<hex>                      empty; since when the blob of that name is in no model; a week
```

Only the daemon writes; any process may read. A model is stored from the moment the index names it:
its blobs, hashed on arrival, and its bundle are on disk before. Removal goes the other way round. So a
crash anywhere leaves the old or the new, and files that no index names, which `sweep` removes after a week.
An index that is lost is built again from the manifests, and nothing is removed on its word.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from greenroom.actors.journal.fsync import sync_folder, write_atomically
from greenroom.actors.values import Model
from greenroom.runner.errors import JobFailed
from greenroom.runner.models import manifest as artifacts
from greenroom.runner.models.arrival import Arrival, Count, hash_file
from greenroom.runner.models.errors import check_pin, from_os_error, model_damaged, no_such_model, store_gone
from greenroom.runner.models.files import (
    check_no_other,
    check_writable,
    children,
    has_size,
    locked,
    place_of,
    unlink,
)
from greenroom.runner.models.index import LAYOUT_VERSION, Index, IndexEntry, IndexFile, made_of, model_of
from greenroom.runner.models.manifest import Artifact, Manifest, open_bundle, remove_bundle
from greenroom.runner.models.metadata import read_metadata
from greenroom.runner.models.recipe import Defaults, Recipe, defaults_of, made
from greenroom.runner.models.references import BadReference, blob_name, digest_of
from greenroom.runner.models.store_usage import StoreUsage, present
from greenroom.runner.models.sweep import UnreferencedBlobs, sweep_abandoned, sweep_partial
from greenroom.runner.models.uploads import Uploads
from greenroom.runner.systems.disk_room import DiskRoom, MakeRoom, spare_nothing

if TYPE_CHECKING:
    from greenroom.runner.backends.base import ModelFiles

log = logging.getLogger(__name__)

_KEPT = 7 * 86_400.0
"""Seconds for which partial downloads and unused blobs are kept."""


class ModelStore:
    """The models on disk. Thread-safe; changes are serialised, also between processes."""

    def __init__(
        self, root: Path, *, clock: Callable[[], float] = time.time, make_room: MakeRoom = spare_nothing
    ) -> None:
        self.root = root
        self.room = DiskRoom(root, make_room)
        self._clock = clock
        self._blobs = root / "blobs" / "sha256"
        self._bundles = root / "bundles" / "sha256"
        self._incoming = root / "incoming"
        self._partial = root / "partial"
        self.uploads = Uploads(root / "uploads", clock, self.room)
        self._unnamed = UnreferencedBlobs(root / "unnamed", self._blobs)
        self._index = IndexFile(root, self._blobs, self._bundles)
        self._lock = threading.Lock()
        self._arrivals: set[Path] = set()
        self._place: tuple[int, int] | None = None
        """Identity of the folder once prepared: another folder with its name is not this store."""

    # Reading

    def models(self) -> tuple[Model, ...]:
        """The models in the index, in order; files are not checked.

        Raises:
            JobFailed: permanent, `store_damaged`.
        """
        return tuple(entry.model for entry in self._index.read()[0].entries)

    def model(self, model_id: str) -> Model:
        """Raises JobFailed, permanent, `no_such_model`."""
        return self._entry(model_id).model

    def manifest(self, model_id: str) -> Manifest:
        """Raises JobFailed, permanent, `no_such_model` or `model_damaged`."""
        self._entry(model_id)
        return self._manifest(model_id)

    def defaults(self, model_id: str) -> Defaults:
        """What requests get that say nothing else. Raises JobFailed, permanent, as `manifest`."""
        config = self.manifest(model_id).config
        try:
            return defaults_of(self.blob(config.digest).read_bytes())
        except OSError as error:
            raise from_os_error(error, "reading the model") from error

    def look(self) -> tuple[Model, ...]:
        """The intact models: every file has its size, and files linked from elsewhere are unchanged.

        Raises:
            JobFailed: The store cannot be read, or its folder is not one.
        """
        check_no_other(self.root)
        self._check_place()
        return tuple(e.model for e in self._index.read()[0].entries if not self._damage(e))

    def recovered(self) -> bool:
        """Whether the index was lost and rebuilt, without some names."""
        return self._index.read()[0].recovered

    def damaged(self) -> tuple[tuple[Model, str], ...]:
        """The models that are not whole, each with the reason in one sentence."""
        return tuple((e.model, p) for e in self._index.read()[0].entries if (p := self._damage(e)))

    def problem(self, model_id: str) -> str:
        """Why a model is damaged, in one sentence; empty if it is intact, judging by sizes.

        Raises:
            JobFailed: permanent, `no_such_model`.
        """
        return self._problem(self._entry(model_id))

    def known(self, fingerprint: str) -> Model | None:
        """The intact model that a source identified by this fingerprint when it was fetched."""
        entries = (e for e in self._index.read()[0].entries if fingerprint and fingerprint in e.fingerprints)
        return next((e.model for e in entries if not self._problem(e)), None)

    def verify(
        self,
        model_id: str,
        *,
        cancel: threading.Event | None = None,
        count: Count = lambda _: None,
        condemn: bool = False,
    ) -> tuple[str, ...]:
        """Read every byte of a model; returns one sentence for each changed file.

        `condemn` removes such files, so that the model counts as damaged and the next pull repairs it.

        Raises:
            JobFailed: permanent, `no_such_model`.
            JobCancelled: `cancel` was set.
        """
        entry = self._entry(model_id)
        problem = self._problem(entry)
        if problem:
            return (problem,)
        cancel = cancel or threading.Event()
        problems = []
        for layer in self._manifest(model_id).blobs():
            blob = self.blob(layer.digest)
            # Looked at twice: what is condemned is removed, and memory and disks err too.
            if self._hash(blob, cancel, count) != layer.digest != self._hash(blob, cancel):
                name = layer.annotations.get(artifacts.FILEPATH, layer.digest[:19])
                problems.append(f"{name} has changed since it arrived.")
                if condemn:
                    blob.unlink(missing_ok=True)
        return tuple(problems)

    def blobs(self) -> frozenset[Path]:
        return frozenset(self.blob(one) for e in self._index.read()[0].entries for one in self._digests(e))

    def usage(self) -> StoreUsage:
        return StoreUsage.of(self.root, self.blobs())

    def present(self, blobs: Iterable[tuple[str, int]]) -> int:
        """Bytes of these blobs (digest, size) that need not be fetched: stored, or partially downloaded."""
        return sum(present(self.blob(digest), size, self._partial) for digest, size in blobs)

    # Writing

    def prepare(self) -> None:
        """Create the folders and remove what a crash left. Called once, by the daemon, before any pull."""
        try:
            for folder in (self._blobs, self._bundles, self._incoming):
                folder.mkdir(parents=True, exist_ok=True)
            marker = self.root / "oci-layout"
            if not marker.exists():
                write_atomically(marker, msgspec.json.encode({"imageLayoutVersion": LAYOUT_VERSION}))
            self._place = place_of(self.root)
            with self._changing("preparing the model store") as index:
                if not self._index.file.exists():
                    # From now on a missing index has been lost.
                    self._index.write(index)
                elif (completed := self._index.with_all_facts(index)) != index:
                    self._index.write(completed)
            self.sweep()
        except OSError as error:
            raise from_os_error(error, "preparing the model store") from error

    def check_writable(self) -> None:
        """Check whether models can be stored at all, before anything is fetched.

        Raises:
            JobFailed: They cannot.
        """
        with self._changing("storing the model"):
            for folder in (self.root, self._blobs, self._bundles):
                folder.mkdir(parents=True, exist_ok=True)
                check_writable(folder)

    @contextmanager
    def arrival(self) -> Iterator[Arrival]:
        """A place for a model's files to arrive; removed at the end in any case.

        Raises:
            JobFailed: The store cannot be written to, which is found before anything is fetched.
        """
        self.check_writable()
        with self._lock:  # a sweep sees it only once it is known
            arrival = Arrival(self._incoming, self._partial, self._whole_blob, self.room)
            self._arrivals.add(arrival.folder)
        try:
            yield arrival
        finally:
            arrival.discard()
            self._arrivals.discard(arrival.folder)

    def commit(
        self,
        arrival: Arrival,
        *,
        tag: str = "",
        source: str = "",
        fingerprint: str = "",
        pin: str = "",
        recipe: Recipe | None = None,
    ) -> Model:
        """Move an arrival's files into the store under their digests, and add the model to the index.

        The tag is moved from another model. Existing files are shared.

        Raises:
            JobFailed: The files are not a model, or not the pinned one, or cannot be written; the store is
                unchanged.
        """
        metadata = read_metadata([*arrival.paths(), *arrival.extras])
        artifact = arrival.artifact or artifacts.build(arrival.layers, metadata)
        if recipe is not None:
            artifact = made(artifact, recipe)
        check_pin(artifact.id, pin)
        model = model_of(
            artifact.id,
            artifact.manifest,
            metadata,
            artifact.config_bytes,
            created=self._clock(),
            tag=tag,
            source=source,
        )
        with self._changing("storing the model") as index:
            self._blobs.mkdir(parents=True, exist_ok=True)
            origin = dict(arrival.origin)
            for layer in arrival.layers:
                blob = self.blob(layer.digest)
                if self._is_fit(index, layer.digest, layer.size):
                    # The existing bytes are used, so what was recorded about them stays true.
                    origin.pop(layer.digest, None)
                    origin |= {k: v for k, v in _origins(index).items() if k == layer.digest}
                else:
                    arrival.path_of(layer).replace(blob)
            self._write(artifact)
            fingerprints = (fingerprint,) if fingerprint else ()
            self._index.write(
                index.with_model(IndexEntry(model, len(artifact.manifest_bytes), origin, fingerprints))
            )
        return self.model(model.id)

    def tag(self, model_id: str, tag: str) -> Model:
        """Put a tag on a model, moving it from another one.

        Raises:
            JobFailed: permanent, `no_such_model`.
        """
        with self._changing("naming the model") as index:
            self._entry(model_id)
            self._index.write(index.with_tag(model_id, tag))
        return self.model(model_id)

    def untag(self, tag: str) -> str:
        """Remove a tag; returns the id of its model, which stays even without tags.

        Raises:
            JobFailed: permanent, `no_such_model`.
        """
        with self._changing("naming the model") as index:
            entry = index.tagged(tag)
            if entry is None:
                raise no_such_model(tag)
            self._index.write(index.without_tag(tag))
            return entry.id

    def remove(self, model_id: str) -> int:
        """Remove a model, its tags, and the files no other model has; returns the bytes freed.

        Raises:
            JobFailed: permanent, `no_such_model`.
        """
        with self._changing("removing the model") as index:
            entry = index.find(model_id)
            if entry is None:
                raise no_such_model(model_id)
            mine = self._digests(entry)
            rest = index.without_model(model_id)
            self._index.write(rest)
            remove_bundle(self._bundle(model_id))
            try:
                gone = mine - self._named(rest)
            except JobFailed as failed:
                log.warning("the files of %s are kept for now: %s", model_id[7:19], failed)
                gone = {model_id}
            return sum(unlink(self.blob(digest)) for digest in gone)

    def repackage(self, model_id: str, *, tag: str, recipe: Recipe) -> Model:
        """Store a model again after a recipe, under a tag. Its files are shared.

        Raises:
            JobFailed: permanent, `no_such_model` or `model_damaged`; the store is unchanged.
        """
        with self._changing("storing the model") as index:
            entry = self._entry(model_id)
            manifest = self._manifest(model_id)
            try:
                config = self.blob(manifest.config.digest).read_bytes()
                artifact = made(Artifact(manifest, self.blob(model_id).read_bytes(), config), recipe)
            except (ValueError, FileNotFoundError) as error:
                raise model_damaged(entry.model, str(error)) from error
            self._write(artifact)
            model = made_of(entry.model, artifact, created=self._clock(), tag=tag)
            fresh = IndexEntry(model, len(artifact.manifest_bytes), entry.origin)
            self._index.write(index.with_model(fresh))
        return self.model(model.id)

    def sweep(self, *, kept: float = _KEPT, busy: Container[str] = ()) -> int:
        """Remove what no index names: abandoned arrivals, bundles, blobs, and partial downloads.

        Blobs and downloads are kept for `kept` seconds after their last use (0: the user asked for it), and
        downloads that are (in hex) `busy`. No blob is removed while a manifest is unreadable. Returns the
        bytes freed.
        """
        with self._changing("sweeping the model store") as index:
            freed = sweep_abandoned(self.root, self._incoming, self._arrivals)
            now = self._clock()
            before = now - kept
            freed += sweep_partial(self._partial, before, busy) + self.uploads.sweep(now, before)
            for folder in children(self._bundles):
                if index.find(f"sha256:{folder.name}") is None:
                    remove_bundle(folder)
            try:
                named = {self.blob(digest) for digest in self._named(index)}
            except JobFailed as failed:
                log.warning("no files are removed from the model store: %s", failed)
                return freed
            if index.recovered and kept > 0:
                return freed
            freed += self._unnamed.sweep(named, now, before)
            if index.recovered:
                self._index.write(replace(index, recovered=False))
            return freed

    def open_model(self, model_id: str, *, name: str = "") -> ModelFiles:
        """A model's files for an engine, under their own names.

        Raises:
            JobFailed: permanent, `no_such_model` or `model_damaged`.
        """
        from greenroom.runner.backends.base import ModelFiles  # `adopt` uses a store and no backend

        entry = self._entry(model_id)
        problem = self._problem(entry)
        if problem:
            raise model_damaged(entry.model, problem)
        model = entry.model
        try:
            with self._lock:
                bundle = open_bundle(self._bundle(model_id), self._manifest(model_id), self.blob)
        except OSError as error:
            raise from_os_error(error, "opening the model") from error
        except BadReference as error:
            raise model_damaged(model, str(error)) from error
        return ModelFiles(
            path=bundle.path,
            format=model.format,
            name=name or (model.tags[0] if model.tags else model.id),
            context_length=model.context_length,
            kv_bytes_per_token=model.kv_bytes_per_token,
            layers=model.layers.count if model.layers is not None else 0,
            pooling=model.pooling,
            mmproj=bundle.mmproj,
            chat_template=bundle.chat_template,
        )

    # Internals

    def _write(self, artifact: Artifact) -> None:
        """Write what is no file of an arrival, and the bundle. The index does not name it yet."""
        for data in artifact.small_blobs:
            write_atomically(self.blob(digest_of(data)), data)
        sync_folder(self._blobs)
        open_bundle(self._bundle(artifact.id), artifact.manifest, self.blob)

    @contextmanager
    def _changing(self, doing: str) -> Iterator[Index]:
        """Exclusive access to the index, in this process and between processes."""
        try:
            with self._lock:
                self._check_place()
                self.root.mkdir(parents=True, exist_ok=True)
                with locked(self.root / "lock"):
                    yield self._index.whole()
        except OSError as error:
            raise from_os_error(error, doing) from error

    def _entry(self, model_id: str) -> IndexEntry:
        entry = self._index.read()[0].find(model_id)
        if entry is None:
            self._check_place()
            raise no_such_model(model_id)
        return entry

    def _check_place(self) -> None:
        if self._place is not None and place_of(self.root) != self._place:
            raise store_gone(self.root)

    def _manifest(self, model_id: str) -> Manifest:
        try:
            return artifacts.decode(self.blob(model_id).read_bytes(), model_id)
        except FileNotFoundError:
            self._check_place()
            problem = "its manifest is missing"
        except OSError as error:
            # Too many open files, say: not being able to look is no damage.
            raise from_os_error(error, "reading the model") from error
        except ValueError as error:
            problem = str(error)
        raise JobFailed.permanent(
            "model_damaged",
            f"The stored model {model_id[7:19]} is damaged: {problem}",
            advice="Pull it again.",
        )

    def _damage(self, entry: IndexEntry) -> str:
        """Why a model is not whole; empty when it is, and when it cannot be looked at now."""
        try:
            return self._problem(entry)
        except JobFailed as failed:
            log.warning("the model %s cannot be checked now: %s", entry.id[7:19], failed)
            return ""

    def _problem(self, entry: IndexEntry) -> str:
        """Why a model is not whole; empty when it is. Raises JobFailed when it cannot be looked at now."""
        try:
            manifest = self._manifest(entry.id)
        except JobFailed as error:
            if error.failure.code != "model_damaged":
                raise
            return error.failure.message
        for layer in manifest.blobs():
            name = layer.annotations.get(artifacts.FILEPATH, layer.digest[:19])
            blob = self.blob(layer.digest)
            try:
                status = blob.stat()
            except (FileNotFoundError, NotADirectoryError):
                self._check_place()
                return f"{name} is missing."
            except OSError as error:
                raise from_os_error(error, "reading the model") from error
            if status.st_size != layer.size:
                return f"{name} has {status.st_size} bytes and should have {layer.size}."
            sealed = entry.origin.get(layer.digest)
            if sealed and sealed != (status.st_size, status.st_mtime_ns):
                # The original was touched: only its content can tell whether it was written to.
                if self._hash(blob) != layer.digest:
                    return f"{name} was imported without a copy, and its original has been written to since."
                try:
                    self._reseal(entry.id, layer.digest, (status.st_size, status.st_mtime_ns))
                except JobFailed as failed:  # it is intact, and is hashed again the next time
                    log.warning("%s cannot be noted as unchanged: %s", name, failed)
        return ""

    def _hash(self, blob: Path, cancel: threading.Event | None = None, count: Count = lambda _: None) -> str:
        try:
            return hash_file(blob, cancel or threading.Event(), count)
        except OSError as error:
            raise from_os_error(error, "reading the model") from error

    def _reseal(self, model_id: str, digest: str, seal: tuple[int, int]) -> None:
        with self._changing("checking the model store") as index:
            entry = index.find(model_id)
            if entry is not None:
                fresh = msgspec.structs.replace(entry, origin={**entry.origin, digest: seal})
                entries = tuple(fresh if e.id == model_id else e for e in index.entries)
                self._index.write(replace(index, entries=entries))

    def _written_to(self, index: Index, digest: str) -> bool:
        """Whether a blob that is hard-linked elsewhere has changed."""
        sealed = _origins(index).get(digest)
        blob = self.blob(digest)
        status = blob.stat()
        if sealed is None or sealed == (status.st_size, status.st_mtime_ns):
            return False
        return hash_file(blob, threading.Event()) != digest

    def _named(self, index: Index) -> set[str]:
        """The digests of all blobs of an index's models.

        Raises:
            JobFailed: A manifest cannot be read, so its blobs are unknown.
        """
        manifests = [self._manifest(entry.id) for entry in index.entries]
        return {entry.id for entry in index.entries} | {
            blob.digest for manifest in manifests for blob in manifest.blobs()
        }

    def _digests(self, entry: IndexEntry) -> set[str]:
        try:
            manifest = self._manifest(entry.id)
        except JobFailed:
            return {entry.id}
        return {entry.id, *(layer.digest for layer in manifest.blobs())}

    def _whole_blob(self, digest: str, size: int) -> Path | None:
        """A stored blob that can be part of another model."""
        blob = self.blob(digest)
        if not has_size(blob, size):
            return None
        if self._is_fit(self._index.read()[0], digest, size):
            return blob
        # A blob of no known model may be left of a crash, or of a lost index.
        return blob if hash_file(blob, threading.Event()) == digest else None

    def _is_fit(self, index: Index, digest: str, size: int) -> bool:
        """Whether a blob belongs to a model and is unchanged."""
        named = any(digest in self._digests(entry) for entry in index.entries)
        return named and has_size(self.blob(digest), size) and not self._written_to(index, digest)

    def blob(self, digest: str) -> Path:
        """Where a blob lies, for reading. Raises BadReference for anything but a digest."""
        return self._blobs / blob_name(digest)

    def _bundle(self, model_id: str) -> Path:
        return self._bundles / blob_name(model_id)


def _origins(index: Index) -> Mapping[str, tuple[int, int]]:
    return {digest: seal for entry in index.entries for digest, seal in entry.origin.items()}
