"""Models on the user's disk: a GGUF file, or a folder with GGUF or safetensors files.

They are imported: linked into the store if the file system can, so that the bytes exist only once, else
copied. A file that is named by its hash (Hugging Face's cache, Ollama's blobs) must have that hash.
The original may then be deleted. If it is modified in place, the store notices (`IndexEntry.origin`), and the
model counts as damaged until it is pulled again.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path
from threading import Event

from greenroom.runner.errors import JobFailed
from greenroom.runner.models.arrival import Arrival
from greenroom.runner.models.elsewhere.digests import known_digest
from greenroom.runner.models.elsewhere.ollama import OllamaModel, is_manifest
from greenroom.runner.models.errors import from_os_error, not_a_model
from greenroom.runner.models.metadata import read_metadata
from greenroom.runner.models.references import Reference
from greenroom.runner.models.safe_open import HeldFile, HeldFolder, LinkedFile, hold
from greenroom.runner.models.selection import choose_files, projector_beside, with_shards
from greenroom.runner.models.sources.base import Offer, Report, Source


class PathSource(Source):
    def __init__(self, store: Path, *, sharing: bool = False) -> None:
        """With `sharing`, files are never copied; `fetch` fails with `needs_copy` instead."""
        self._store = store
        self._sharing = sharing
        self._folder: HeldFolder | None = None

    def describe(self, reference: Reference, cancel: Event) -> Offer:  # noqa: ARG002 - the port's
        """Reads the headers, so that a file that is not a model is refused before any work."""
        path = Path(reference.path)
        if not path.is_absolute():
            raise JobFailed.permanent(
                "not_absolute",
                f"{reference.path} is relative, and the daemon runs in another folder.",
                advice="Use the absolute path.",
            )
        try:
            folder, names = _files(path)
            self._folder = folder
            with folder.holding(names) as files:
                metadata = read_metadata(files)
                stamps = [(file.name, _stamp(file)) for file in files]
        except OSError as error:
            raise from_os_error(error, "reading the model") from error
        size = sum(stamp[0] for _, stamp in stamps)
        return Offer(
            reference=reference,
            source=str(path),
            fingerprint=f"path:{_fingerprint(folder, stamps)}",
            size=size,
            # On the store's own disk a link takes no space.
            writes=0 if self._sharing or folder.path.stat().st_dev == self._store.stat().st_dev else size,
            files=tuple(names),
            format=metadata.format,
            weights=sum(s[0] for name, s in stamps if name.lower().endswith((".gguf", ".safetensors"))),
        )

    def fetch(self, offer: Offer, arrival: Arrival, report: Report, cancel: Event) -> None:
        folder = self._folder
        assert folder is not None, "describe comes first"
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            report("importing", done, offer.size, "Importing")

        for name in offer.files:
            with folder.holding([name]) as (file,):
                arrival.take(
                    file,
                    file.name,
                    how="share" if self._sharing else "link",
                    expected=known_digest(file.path),
                    cancel=cancel,
                    count=count,
                )
        if isinstance(folder, OllamaModel):
            arrival.recipe = folder.recipe


def _files(path: Path) -> tuple[HeldFolder, list[str]]:
    if path.is_dir():
        folder = HeldFolder(path)
        return folder, choose_files(folder.names(), str(path))
    if not path.exists():
        raise JobFailed.permanent("not_found", f"There is no file {path}.", advice="Check the path.")
    if is_manifest(path):
        model = OllamaModel(path)
        return model, model.names()
    if not path.is_file():
        raise not_a_model(f"{path} is neither a file nor a folder.")
    if path.suffix.lower() == ".safetensors":
        raise not_a_model(
            f"{path.name} holds only weights. Name its folder, which has the tokenizer and config.json."
        )
    if path.suffix.lower() != ".gguf":
        # Its first bytes decide what it is; but engines go by the name.
        with closing(hold(path)) as file, file.open("rb") as content:
            if content.read(4) != b"GGUF":
                raise not_a_model(
                    f"{path.name} is not a model: it is neither GGUF nor a folder of safetensors."
                )
        raise not_a_model(f"{path.name} is a GGUF file without the suffix. Rename it to {path.name}.gguf.")
    folder = HeldFolder(path.parent)
    if path.is_symlink():
        # A named link means the file behind it, whose first bytes show that it is a model.
        folder = LinkedFile(path)
    names = folder.names()
    return folder, [*with_shards(path.name, names), *projector_beside(path.name, names)]


def _fingerprint(folder: HeldFolder, stamps: list[tuple[str, tuple[int, int, int]]]) -> str:
    place = (str(folder.path), folder.digest) if isinstance(folder, OllamaModel) else (str(folder.path),)
    return hashlib.sha256(repr((*place, stamps)).encode()).hexdigest()


def _stamp(file: HeldFile) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
