"""Models as tar files in Docker Model Runner's layout: `blobs/sha256/<hex>` and `manifest.json`.

Reading goes through a stream, so an archive may come out of a pipe; every blob is hashed on its way, and
nothing that is not named by the manifest is kept.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import IO

from greenroom.actors.values import Model
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.tar_stream import BadTar, TarStream
from greenroom.runner.models.arrival import Arrival
from greenroom.runner.models.errors import from_os_error, not_a_model
from greenroom.runner.models.manifest_checks import blobs_of, checked, complete
from greenroom.runner.models.references import blob_name
from greenroom.runner.models.store import ModelStore
from greenroom.runner.threads import stop_if
from greenroom.runner.units import format_size

_CHUNK = 2**20
_MANIFEST_LIMIT = 4 * 2**20
_BLOBS_LIMIT = 10_000
_ENTRIES_LIMIT = 100_000
_ARCHIVE_LIMIT = 2**42
_BLOB = re.compile(r"(?:\./)?blobs/sha256/([0-9a-f]{64})")
_BLOCK = tarfile.BLOCKSIZE


def load(store: ModelStore, stream: IO[bytes], cancel: Event) -> Model:
    """Store the model in an archive, without a tag. Blocks until the stream ends.

    Raises:
        JobFailed: permanent, `not_a_model`: the archive is damaged, cut off, or holds something else.
        JobCancelled: `cancel` was set.
    """
    try:
        with store.arrival() as arrival:
            manifest_bytes, blobs = _read(stream, arrival, cancel)
            manifest = checked(manifest_bytes, "The archive")
            for blob, name in blobs_of(manifest):
                path = blobs.get(blob.digest)
                if path is None:
                    if arrival.reuse(blob.digest, blob.size, name) is None:
                        raise not_a_model(
                            f"The archive has no blob {blob.digest[:19]}, which its manifest names."
                        )
                    continue
                if path.stat().st_size != blob.size:
                    raise not_a_model(
                        f"The blob {blob.digest[:19]} does not have the size its manifest says."
                    )
                arrival.adopt(path, name, blob.digest)
            complete(arrival, manifest, manifest_bytes)
            stop_if(cancel)
            return store.commit(arrival, source="archive")
    except OSError as error:
        raise from_os_error(error, "storing the model") from error


def export(store: ModelStore, model_id: str) -> tuple[int, Iterator[bytes]]:
    """A model's archive: its size in bytes, and its content in pieces.

    Files removed meanwhile stay readable: all are open before the first byte.

    Raises:
        JobFailed: permanent, `no_such_model` or `model_damaged`.
    """
    manifest = store.manifest(model_id)
    problem = store.problem(model_id)
    if problem:
        raise JobFailed.permanent(
            "model_damaged", f"The model is damaged: {problem}", advice="Pull it again first."
        )
    manifest_bytes = store.blob(model_id).read_bytes()
    files = {blob.digest: store.blob(blob.digest) for blob in (*manifest.layers, manifest.config)}
    return archive_of(manifest_bytes, files)


def archive_of(manifest_bytes: bytes, files: dict[str, Path]) -> tuple[int, Iterator[bytes]]:
    """An archive of a manifest and its blobs (digest → file): its size, and its content in pieces.

    Raises:
        OSError: a file cannot be opened.
    """
    opened: list[tuple[tarfile.TarInfo, IO[bytes]]] = []
    try:
        for digest, path in files.items():
            file = path.open("rb")
            info = tarfile.TarInfo(f"blobs/sha256/{blob_name(digest)}")
            info.size = path.stat().st_size
            opened.append((info, file))
    except OSError:
        for _, one in opened:
            one.close()
        raise
    last = tarfile.TarInfo("manifest.json")
    last.size = len(manifest_bytes)
    opened.append((last, io.BytesIO(manifest_bytes)))
    folders = [tarfile.TarInfo("blobs"), tarfile.TarInfo("blobs/sha256")]
    for folder in folders:
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
    size = _BLOCK * len(folders) + sum(_BLOCK + _padded(info.size) for info, _ in opened) + 2 * _BLOCK
    return size, _pieces(folders, opened)


def _pieces(
    folders: list[tarfile.TarInfo], opened: list[tuple[tarfile.TarInfo, IO[bytes]]]
) -> Iterator[bytes]:
    try:
        for folder in folders:
            yield _header(folder)
        for info, file in opened:
            yield _header(info)
            left = info.size
            while left:
                chunk = file.read(min(_CHUNK, left))
                if not chunk:
                    raise OSError("a file became shorter while it was read")
                left -= len(chunk)
                yield chunk
            if info.size % _BLOCK:
                yield b"\0" * (_BLOCK - info.size % _BLOCK)
        yield b"\0" * (2 * _BLOCK)
    finally:
        for _, file in opened:
            file.close()


def _header(info: tarfile.TarInfo) -> bytes:
    # GNU format: PAX needs extra headers for files beyond 8 GiB, which change the size.
    return info.tobuf(tarfile.GNU_FORMAT)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _read(stream: IO[bytes], arrival: Arrival, cancel: Event) -> tuple[bytes, dict[str, Path]]:
    manifest = b""
    blobs: dict[str, Path] = {}

    def read(size: int) -> bytes:
        stop_if(cancel)
        return stream.read(size)

    tar = TarStream(read, _ARCHIVE_LIMIT)
    try:
        for number, entry in enumerate(tar):
            if number >= _ENTRIES_LIMIT:
                raise not_a_model("The archive has too many entries for a model.")
            if ".." in entry.name.split("/"):
                raise not_a_model(f"The archive names a file outside of it: {entry.name[:80]!r}.")
            if entry.kind == "other":
                raise not_a_model(f"{entry.name[:80]!r} in the archive is not a file, folder or link.")
            if entry.kind != "file":
                continue
            found = _BLOB.fullmatch(entry.name)
            if entry.name.removeprefix("./") == "manifest.json":
                if entry.size > _MANIFEST_LIMIT:
                    raise not_a_model(f"The manifest is larger than {format_size(_MANIFEST_LIMIT)}.")
                manifest = b"".join(tar.content())
            elif found is not None and len(blobs) < _BLOBS_LIMIT:
                blobs[f"sha256:{found[1]}"] = _keep(tar, arrival, found[1])
    except BadTar as error:
        raise not_a_model(f"It is not a complete archive: {error}.") from error
    if not manifest:
        raise not_a_model("It is not an archive of a model: it has no manifest.json.")
    return manifest, blobs


def _keep(tar: TarStream, arrival: Arrival, name: str) -> Path:
    sums = hashlib.sha256()
    target = arrival.work / name
    with target.open("wb") as file:
        for chunk in tar.content():
            if not file.tell() // _CHUNK % 16:
                arrival.check_room()
            file.write(chunk)
            sums.update(chunk)
    if sums.hexdigest() != name:
        raise not_a_model(f"The blob sha256:{name[:12]} in the archive does not match its name.")
    return target
