"""The content-addressed store: an OCI image layout under `<home>/models`.

```
oci-layout   index.json   index.previous.json   lock
blobs/sha256/<hex>                 layers, configurations, manifests
bundles/sha256/<hex>/model/…       a model's files under their names, linked to blobs
incoming/<random>/                 arrivals; swept at start
partial/<hex>                      downloads that broke off, for the next attempt; a week
```

Only the daemon writes; anybody may read, at any time. A model is here from the moment the index names it:
its blobs, hashed on arrival, and its bundle are on disk before. Removal goes the other way round. So a
crash anywhere leaves the old or the new, and files that no index names, which `sweep` removes.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from greenroom.actors.facts import Model
from greenroom.runner.backends.declaration import ModelFiles
from greenroom.runner.failures import JobFailed
from greenroom.runner.models import manifest as artifacts
from greenroom.runner.models.arrival import Arrival, Count, hash_file
from greenroom.runner.models.bundle import open_bundle, remove_bundle
from greenroom.runner.models.durable import TEMPORARY, sync_folder, write_atomically
from greenroom.runner.models.failures import check_pin, from_os_error
from greenroom.runner.models.layout import LAYOUT_VERSION, Entry, Index, IndexDamaged
from greenroom.runner.models.manifest import Manifest
from greenroom.runner.models.metadata import read_metadata
from greenroom.runner.models.partial import sweep_partial
from greenroom.runner.models.references import BadReference, blob_name, familiar

log = logging.getLogger(__name__)

_PARTIAL_KEPT = 7 * 86_400.0
"""Seconds that a download which broke off is kept for another attempt."""


@dataclass(frozen=True)
class Usage:
    """Bytes on disk, each counted once however many names it has."""

    models: int
    """What the index names."""
    other: int
    """Arrivals in flight, and what the next sweep removes."""


class Store:
    """The models on disk. Thread-safe; changes are made one at a time, also between processes."""

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.root = root
        self._clock = clock
        self._blobs = root / "blobs" / "sha256"
        self._bundles = root / "bundles" / "sha256"
        self._incoming = root / "incoming"
        self._partial = root / "partial"
        self._index_file = root / "index.json"
        self._previous_file = root / "index.previous.json"
        self._lock = threading.Lock()
        self._arrivals: set[Path] = set()

    # Reading

    def models(self) -> tuple[Model, ...]:
        """What the index names, in the order it came; files are not looked at.

        Raises:
            JobFailed: permanent, `store_damaged`.
        """
        return tuple(entry.model for entry in self._read()[0].entries)

    def model(self, model_id: str) -> Model:
        """One model by its id.

        Raises:
            JobFailed: permanent, `no_such_model`.
        """
        return self._entry(model_id).model

    def manifest(self, model_id: str) -> Manifest:
        """The stored manifest of a model.

        Raises:
            JobFailed: permanent, `no_such_model` or `model_damaged`.
        """
        self._entry(model_id)
        return self._manifest(model_id)

    def look(self) -> tuple[Model, ...]:
        """The models that are whole: every file is there with its size, and what was linked from elsewhere
        has not been written to since."""
        return tuple(e.model for e in self._read()[0].entries if not self._problem(e))

    def damaged(self) -> tuple[tuple[Model, str], ...]:
        """The models that are not whole, each with the reason in one sentence."""
        return tuple((e.model, p) for e in self._read()[0].entries if (p := self._problem(e)))

    def problem(self, model_id: str) -> str:
        """Why a model is not whole, in one sentence; empty when it is, as far as sizes tell.

        Raises:
            JobFailed: permanent, `no_such_model`.
        """
        return self._problem(self._entry(model_id))

    def known(self, fingerprint: str) -> Model | None:
        """The whole model that a source announced by this fingerprint when it was fetched."""
        entries = (e for e in self._read()[0].entries if fingerprint and fingerprint in e.fingerprints)
        return next((e.model for e in entries if not self._problem(e)), None)

    def verify(
        self,
        model_id: str,
        *,
        cancel: threading.Event | None = None,
        count: Count = lambda _: None,
        condemn: bool = False,
    ) -> tuple[str, ...]:
        """Read every byte of a model; one sentence for each file that is not what it was.

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
            blob = self._blob(layer.digest)
            if hash_file(blob, cancel, count) != layer.digest:
                name = layer.annotations.get(artifacts.FILEPATH, layer.digest[:19])
                problems.append(f"{name} has changed since it arrived.")
                if condemn:
                    blob.unlink(missing_ok=True)
        return tuple(problems)

    def blobs(self) -> frozenset[Path]:
        """The files that stored models consist of."""
        return frozenset(self._blob(one) for e in self._read()[0].entries for one in self._digests(e))

    def usage(self) -> Usage:
        """What the store takes on the disk."""
        index = self._read()[0]
        kept = {self._blob(d) for entry in index.entries for d in self._digests(entry)}
        seen: set[tuple[int, int]] = set()
        named = _size(kept, seen)
        return Usage(models=named, other=_size(_walk(self.root), seen))

    def blob(self, digest: str) -> Path:
        """Where a blob lies, for reading.

        Raises:
            BadReference: not a digest.
        """
        return self._blob(digest)

    def present(self, blobs: Iterable[tuple[str, int]]) -> int:
        """Bytes of these blobs (digest, size) that need not be fetched: stored, or left of an earlier try."""
        return sum(self._present(digest, size) for digest, size in blobs)

    def _present(self, digest: str, size: int) -> int:
        name = blob_name(digest)
        wheel = self._partial / "wheels" / f"{name}.part"
        for place in (self._blob(digest), self._partial / name, wheel):
            with suppress(OSError):
                return min(place.stat().st_size, size)
        return size if wheel.with_name(name).is_dir() else 0

    def free(self) -> int:
        """Bytes that may still be written to the store's disk."""
        folder = next(p for p in (self.root, *self.root.parents) if p.exists())
        return shutil.disk_usage(folder).free

    # Writing

    def prepare(self) -> None:
        """Make the folders and remove what a crash has left. Called once, by the daemon, before any pull."""
        try:
            for folder in (self._blobs, self._bundles, self._incoming):
                folder.mkdir(parents=True, exist_ok=True)
            marker = self.root / "oci-layout"
            if not marker.exists():
                write_atomically(marker, msgspec.json.encode({"imageLayoutVersion": LAYOUT_VERSION}))
            self.sweep()
        except OSError as error:
            raise from_os_error(error, "preparing the model store") from error

    @contextmanager
    def arrival(self) -> Iterator[Arrival]:
        """A place for a model's files to arrive in; removed at the end, whatever happened."""
        arrival = Arrival(self._incoming, self._partial, self._whole_blob)
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
    ) -> Model:
        """Take an arrival's files into the store under their digests, and name the model in the index.

        The tag is taken from whichever model had it. Files that are here already are kept, once.

        Raises:
            JobFailed: its files are no model, or not the one whose id is the `pin`, or the disk refused; the
                store is as before.
        """
        metadata = read_metadata([*arrival.paths(), *arrival.extras])
        artifact = arrival.artifact or artifacts.build(arrival.layers, metadata)
        check_pin(artifact.id, pin)
        model = Model(
            id=artifact.id,
            tags=(tag,) if tag else (),
            format=metadata.format,
            size=sum(layer.size for layer in arrival.layers),
            created=self._clock(),
            architecture=metadata.architecture,
            context_size=artifacts.context_size(artifact.config_bytes),
            parameters=metadata.parameters,
            parameter_count=metadata.parameter_count,
            quantization=metadata.quantization,
            context_length=metadata.context_length,
            kv_bytes_per_token=metadata.kv_bytes_per_token,
            source=source,
        )
        with self._changing("storing the model") as index:
            self._blobs.mkdir(parents=True, exist_ok=True)
            origin = dict(arrival.origin)
            for layer in arrival.layers:
                blob = self._blob(layer.digest)
                if _has_size(blob, layer.size) and not self._written_to(index, layer.digest):
                    # The bytes stay where they are, so what was remembered about them stays true too.
                    origin.pop(layer.digest, None)
                    origin |= {k: v for k, v in _origins(index).items() if k == layer.digest}
                else:
                    arrival.path_of(layer).replace(blob)
            for data in (artifact.config_bytes, artifact.manifest_bytes):
                write_atomically(self._blob(artifacts.digest_of(data)), data)
            sync_folder(self._blobs)
            open_bundle(self._bundle(model.id), artifact.manifest, self._blob)
            fingerprints = (fingerprint,) if fingerprint else ()
            self._write(index.with_model(Entry(model, len(artifact.manifest_bytes), origin, fingerprints)))
        return self.model(model.id)

    def tag(self, model_id: str, tag: str) -> Model:
        """Put a tag on a model; taken from whichever had it.

        Raises:
            JobFailed: permanent, `no_such_model`.
        """
        with self._changing("naming the model") as index:
            self._entry(model_id)
            self._write(index.with_tag(model_id, tag))
        return self.model(model_id)

    def untag(self, tag: str) -> str:
        """Take a tag off; returns the id of the model that had it. The model stays, with or without tags.

        Raises:
            JobFailed: permanent, `no_such_model`.
        """
        with self._changing("naming the model") as index:
            entry = index.tagged(tag)
            if entry is None:
                raise _unknown(tag)
            self._write(index.without_tag(tag))
            return entry.id

    def remove(self, model_id: str) -> int:
        """Remove a model, its tags, and the files no other model has; returns the bytes that are free now.

        Raises:
            JobFailed: permanent, `no_such_model`.
        """
        with self._changing("removing the model") as index:
            entry = index.find(model_id)
            if entry is None:
                raise _unknown(model_id)
            mine = self._digests(entry)
            rest = index.without_model(model_id)
            self._write(rest)
            remove_bundle(self._bundle(model_id))
            shared = {digest for other in rest.entries for digest in self._digests(other)}
            return sum(_unlink(self._blob(digest)) for digest in mine - shared)

    def repackage(self, model_id: str, *, tag: str, context_size: int | None) -> Model:
        """Store a model once more with another configuration, under a tag. Its files are shared.

        Raises:
            JobFailed: permanent, `no_such_model` or `model_damaged`; the store is as before.
        """
        with self._changing("storing the model") as index:
            entry = self._entry(model_id)
            config = self._blob(self._manifest(model_id).config.digest)
            try:
                artifact = artifacts.reconfigured(
                    self._blob(model_id).read_bytes(), config.read_bytes(), context_size=context_size
                )
            except ValueError as error:
                raise _damaged(entry.model, str(error)) from error
            for data in (artifact.config_bytes, artifact.manifest_bytes):
                write_atomically(self._blob(artifacts.digest_of(data)), data)
            sync_folder(self._blobs)
            open_bundle(self._bundle(artifact.id), artifact.manifest, self._blob)
            size = context_size if context_size is not None else entry.model.context_size
            model = msgspec.structs.replace(
                entry.model, id=artifact.id, tags=(tag,), created=self._clock(), context_size=size
            )
            fresh = Entry(model, len(artifact.manifest_bytes), entry.origin)
            self._write(index.with_model(fresh))
        return self.model(model.id)

    def sweep(self, *, partial_kept: float = _PARTIAL_KEPT, busy: Container[str] = ()) -> int:
        """Remove what no index names: dead arrivals, blobs, bundles, and downloads that broke off.

        These only if they have not been gone on with for `partial_kept` seconds and are not (in hex) `busy`.
        Returns the bytes freed.
        """
        with self._changing("sweeping the model store") as index:
            freed = 0
            for folder in _children(self._incoming):
                if folder not in self._arrivals:
                    freed += _size(_walk(folder), set())
                    shutil.rmtree(folder, ignore_errors=True)
            for path in _children(self.root):
                if path.name.startswith(TEMPORARY):
                    freed += _unlink(path)
            freed += sweep_partial(self._partial, self._clock() - partial_kept, busy)
            if self._read()[1]:
                return freed  # The index is an older one: what it does not name may be wanted.
            for folder in _children(self._bundles):
                if index.find(f"sha256:{folder.name}") is None:
                    remove_bundle(folder)
            kept = {self._blob(digest) for entry in index.entries for digest in self._digests(entry)}
            return freed + sum(_unlink(blob) for blob in _children(self._blobs) if blob not in kept)

    def open_model(self, model_id: str, *, name: str = "") -> ModelFiles:
        """A model's files for an engine, under their own names.

        Raises:
            JobFailed: permanent, `no_such_model` or `model_damaged`.
        """
        entry = self._entry(model_id)
        problem = self._problem(entry)
        if problem:
            raise _damaged(entry.model, problem)
        model = entry.model
        try:
            with self._lock:
                bundle = open_bundle(self._bundle(model_id), self._manifest(model_id), self._blob)
        except OSError as error:
            raise from_os_error(error, "opening the model") from error
        except BadReference as error:
            raise _damaged(model, str(error)) from error
        return ModelFiles(
            path=bundle.path,
            format=model.format,
            name=name or (model.tags[0] if model.tags else model.id),
            context_length=model.context_length,
            kv_bytes_per_token=model.kv_bytes_per_token,
            mmproj=bundle.mmproj,
            chat_template=bundle.chat_template,
        )

    # Inside

    def _read(self) -> tuple[Index, bool]:
        """The index, and whether it is the one before the last because the last is damaged."""
        try:
            return Index.decode(self._index_file.read_bytes()), False
        except FileNotFoundError:
            return Index(), False
        except IndexDamaged as error:
            reason = str(error)
        except OSError as error:
            raise from_os_error(error, "reading the model store") from error
        try:
            index = Index.decode(self._previous_file.read_bytes())
        except (OSError, IndexDamaged) as error:
            raise JobFailed.permanent(
                "store_damaged",
                f"{self._index_file} is damaged: {reason}.",
                advice="Move the file away and pull the models again; what is whole is not fetched twice.",
            ) from error
        log.warning("%s is damaged (%s); using the one before it", self._index_file, reason)
        return index, True

    def _write(self, index: Index) -> None:
        if self._index_file.exists():
            spare = self._previous_file.with_name(f"{TEMPORARY}previous")
            spare.unlink(missing_ok=True)
            try:
                os.link(self._index_file, spare)
            except OSError:
                shutil.copyfile(self._index_file, spare)
            # Only a readable index may become the one to fall back to.
            if not self._read()[1]:
                spare.replace(self._previous_file)
            spare.unlink(missing_ok=True)
        write_atomically(self._index_file, index.encode())

    @contextmanager
    def _changing(self, doing: str) -> Iterator[Index]:
        """Alone with the index, in this process and among processes."""
        try:
            with self._lock:
                self.root.mkdir(parents=True, exist_ok=True)
                with (self.root / "lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    yield self._read()[0]
        except OSError as error:
            raise from_os_error(error, doing) from error

    def _entry(self, model_id: str) -> Entry:
        entry = self._read()[0].find(model_id)
        if entry is None:
            raise _unknown(model_id)
        return entry

    def _manifest(self, model_id: str) -> Manifest:
        try:
            return artifacts.decode(self._blob(model_id).read_bytes(), model_id)
        except (OSError, ValueError) as error:
            raise JobFailed.permanent(
                "model_damaged",
                f"The stored model {model_id[7:19]} is damaged: {error}",
                advice="Pull it again.",
            ) from error

    def _problem(self, entry: Entry) -> str:
        """Why a model is not whole; empty when it is."""
        try:
            manifest = self._manifest(entry.id)
        except JobFailed as error:
            return error.failure.message
        for layer in manifest.blobs():
            name = layer.annotations.get(artifacts.FILEPATH, layer.digest[:19])
            blob = self._blob(layer.digest)
            try:
                status = blob.stat()
            except OSError:
                return f"{name} is missing."
            if status.st_size != layer.size:
                return f"{name} has {status.st_size} bytes and should have {layer.size}."
            sealed = entry.origin.get(layer.digest)
            if sealed and sealed != (status.st_size, status.st_mtime_ns):
                # The original was touched: only its content can tell whether it was written to.
                if hash_file(blob, threading.Event()) != layer.digest:
                    return f"{name} was imported without a copy, and its original has been written to since."
                self._reseal(entry.id, layer.digest, (status.st_size, status.st_mtime_ns))
        return ""

    def _reseal(self, model_id: str, digest: str, seal: tuple[int, int]) -> None:
        with self._changing("looking at the model store") as index:
            entry = index.find(model_id)
            if entry is not None:
                fresh = replace(entry, origin={**entry.origin, digest: seal})
                self._write(Index(tuple(fresh if e.id == model_id else e for e in index.entries)))

    def _written_to(self, index: Index, digest: str) -> bool:
        """True when a blob that is linked from elsewhere is no longer what it was."""
        sealed = _origins(index).get(digest)
        blob = self._blob(digest)
        status = blob.stat()
        if sealed is None or sealed == (status.st_size, status.st_mtime_ns):
            return False
        return hash_file(blob, threading.Event()) != digest

    def _digests(self, entry: Entry) -> set[str]:
        try:
            manifest = self._manifest(entry.id)
        except JobFailed:
            return {entry.id}
        return {entry.id, *(layer.digest for layer in manifest.blobs())}

    def _whole_blob(self, digest: str, size: int) -> Path | None:
        """A blob that is here and fit to be part of another model."""
        blob = self._blob(digest)
        index = self._read()[0]
        named = any(digest in self._digests(entry) for entry in index.entries)
        return blob if named and _has_size(blob, size) and not self._written_to(index, digest) else None

    def _blob(self, digest: str) -> Path:
        return self._blobs / blob_name(digest)

    def _bundle(self, model_id: str) -> Path:
        return self._bundles / blob_name(model_id)


def _origins(index: Index) -> Mapping[str, tuple[int, int]]:
    return {digest: seal for entry in index.entries for digest, seal in entry.origin.items()}


def _unknown(name: str) -> JobFailed:
    shown = name[7:19] if name.startswith("sha256:") else familiar(name)
    return JobFailed.permanent(
        "no_such_model", f"The model {shown} is not here.", advice="greenroom list shows what is."
    )


def _damaged(model: Model, problem: str) -> JobFailed:
    name = familiar(model.tags[0]) if model.tags else model.id[7:19]
    return JobFailed.permanent(
        "model_damaged", f"The stored model {name} is damaged: {problem}", advice=f"greenroom pull {name}"
    )


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _unlink(path: Path) -> int:
    """Remove a file; the bytes that are free now, none while another name holds them."""
    try:
        status = path.stat()
        path.unlink()
    except OSError:
        return 0
    return status.st_size if status.st_nlink == 1 else 0


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _walk(folder: Path) -> Iterator[Path]:
    for base, _, files in os.walk(folder):
        yield from (Path(base) / name for name in files)


def _size(paths: Iterator[Path] | set[Path], seen: set[tuple[int, int]]) -> int:
    total = 0
    for path in paths:
        try:
            status = path.lstat()
        except OSError:
            continue  # gone between listing and looking
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            total += status.st_size
    return total
