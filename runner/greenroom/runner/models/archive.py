"""Models as tar files, in Docker Model Runner's layout: `blobs/sha256/<hex>` and `manifest.json`.

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
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.models.arrival import Arrival
from greenroom.runner.models.errors import from_os_error, not_a_model
from greenroom.runner.models.published import blobs_of, checked, complete
from greenroom.runner.models.references import blob_name
from greenroom.runner.models.store import Store
from greenroom.runner.models.unpacking import BoundedTar, Ending, headers

_CHUNK = 2**20
_MANIFEST_LIMIT = 4 * 2**20
_BLOBS_LIMIT = 10_000
_BLOB = re.compile(r"(?:\./)?blobs/sha256/([0-9a-f]{64})")
_BLOCK = tarfile.BLOCKSIZE


def load(store: Store, stream: IO[bytes], cancel: Event) -> Model:
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
                        raise not_a_model(f"The archive lacks the blob {blob.digest[:19]} of its manifest.")
                    continue
                if path.stat().st_size != blob.size:
                    raise not_a_model(f"The blob {blob.digest[:19]} has another size than its manifest says.")
                arrival.adopt(path, name, blob.digest)
            complete(arrival, manifest, manifest_bytes)
            if cancel.is_set():
                raise JobCancelled
            return store.commit(arrival, source="archive")
    except OSError as error:
        raise from_os_error(error, "storing the model") from error


def export(store: Store, model_id: str) -> tuple[int, Iterator[bytes]]:
    """A model's archive: how many bytes it has, and these bytes in pieces.

    What is removed while it is read stays readable: all files are open before the first byte.

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
    """An archive of a manifest and its blobs (digest → file): its size, and its bytes in pieces.

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
    # GNU's form: PAX would need headers of its own for files beyond 8 GiB, and change the size.
    return info.tobuf(tarfile.GNU_FORMAT)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _read(stream: IO[bytes], arrival: Arrival, cancel: Event) -> tuple[bytes, dict[str, Path]]:
    manifest = b""
    blobs: dict[str, Path] = {}
    try:
        with BoundedTar.open(fileobj=Ending(stream, cancel), mode="r|") as tar:
            for member in headers(tar):
                if ".." in member.name.split("/"):
                    raise not_a_model(f"The archive names a file outside of it: {member.name[:80]!r}.")
                if not member.isreg():
                    continue
                content = tar.extractfile(member)
                assert content is not None
                found = _BLOB.fullmatch(member.name)
                if member.name.removeprefix("./") == "manifest.json":
                    manifest = content.read(_MANIFEST_LIMIT + 1)
                elif found is not None and len(blobs) < _BLOBS_LIMIT:
                    digest = f"sha256:{found[1]}"
                    blobs[digest] = _keep(content, member.size, arrival, found[1], cancel)
    except (tarfile.TarError, EOFError, UnicodeError, ValueError, RecursionError) as error:
        raise not_a_model(f"It is no whole archive: {error}.") from error
    if not manifest:
        raise not_a_model("It is no archive of a model: there is no manifest.json in it.")
    return manifest, blobs


def _keep(content: IO[bytes], size: int, arrival: Arrival, name: str, cancel: Event) -> Path:
    sums = hashlib.sha256()
    left = size
    target = arrival.work / name
    with target.open("wb") as file:
        while chunk := content.read(_CHUNK):
            if cancel.is_set():
                raise JobCancelled
            if not left // _CHUNK % 16:
                arrival.check_room()
            file.write(chunk)
            sums.update(chunk)
            left -= len(chunk)
    if left:
        raise not_a_model("The archive ended early.")
    if sums.hexdigest() != name:
        raise not_a_model(f"The blob sha256:{name[:12]} in the archive is not what its name says.")
    return target
