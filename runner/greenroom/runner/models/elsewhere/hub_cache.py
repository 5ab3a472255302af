"""Hugging Face's cache: `models--ORGANIZATION--MODEL/snapshots/REVISION/…` holds links to blobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event

from greenroom.runner.models.elsewhere.folders import models_in
from greenroom.runner.models.elsewhere.scan import FoundModel, folders, name_of
from greenroom.runner.models.selection import quantisation_of

_PREFIX = "models--"
_REVISION_LIMIT = 100


def is_cache(root: Path) -> bool:
    with suppress(OSError):
        return any(entry.name.startswith(_PREFIX) for entry in root.iterdir())
    return False


def models(root: Path, cancel: Event) -> Iterator[FoundModel]:
    """The models in the newest snapshot of each repository, by the names that `pull` takes."""
    with suppress(OSError):
        for repository in sorted(root.iterdir()):
            organization, between, model = repository.name.removeprefix(_PREFIX).partition("--")
            if not repository.name.startswith(_PREFIX) or not between:
                continue
            snapshot = _newest(repository)
            if snapshot is not None:
                yield from _in_snapshot(snapshot, f"hf.co/{organization}/{model}", cancel)


def _in_snapshot(snapshot: Path, name: str, cancel: Event) -> Iterator[FoundModel]:
    for folder, files, _ in folders(snapshot, cancel):
        for path in models_in(folder, files):
            quantisation = quantisation_of(path.name)
            tagged = f"{name}:{quantisation}" if quantisation else name
            yield FoundModel("Hugging Face", name_of(tagged), path)


def _newest(repository: Path) -> Path | None:
    """The snapshot of `main`, or else the one written last."""
    snapshots = repository / "snapshots"
    with suppress(OSError):
        revision = (repository / "refs" / "main").read_text(errors="replace")[:_REVISION_LIMIT].strip()
        if revision and "/" not in revision and revision not in (".", ".."):
            named = snapshots / revision
            if named.is_dir():
                return named
    with suppress(OSError):
        return max(snapshots.iterdir(), key=lambda one: one.stat().st_mtime, default=None)
    return None
