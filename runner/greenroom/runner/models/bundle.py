"""A stored model as engines want it: files with proper names in one folder.

`bundles/sha256/<hex>/model/` holds hard links to blobs (links where the file system has none). A bundle is
derived: it can be made again from the blobs at any time, and is made beside and renamed, so two who need
it at once both find a whole one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from greenroom.runner.models.gguf import shard_of
from greenroom.runner.models.manifest import (
    ARCHIVES,
    CHAT_TEMPLATE,
    GGUF,
    MMPROJ,
    Manifest,
    file_names,
    kind_of,
)
from greenroom.runner.models.references import relative_name
from greenroom.runner.models.selection import belongs
from greenroom.runner.models.templates import JINJA, of_folder
from greenroom.runner.models.unpacking import unpack


@dataclass(frozen=True)
class Bundle:
    """The paths in one bundle."""

    path: Path
    """The first GGUF shard, or the folder."""
    mmproj: Path | None = None
    chat_template: Path | None = None


def open_bundle(folder: Path, manifest: Manifest, blob: Callable[[str], Path]) -> Bundle:
    """The bundle in `folder`, made first if it is missing or not whole. `blob` says where a digest lies.

    Raises:
        BadReference: the manifest names a file outside the bundle.
        JobFailed: permanent, `not_a_model`: an archive in the model is hostile.
        OSError: a blob is missing, or the disk refused.
    """
    # What else has been published, code above all, is kept for publishing it again, and never laid open.
    files = [(layer, relative_name(name)) for layer, name in file_names(manifest) if belongs(name)]
    model = folder / "model"
    archives = [blob(layer.digest) for layer in manifest.layers if kind_of(layer) in ARCHIVES]
    whole = model.is_dir() and all(_same(model / name, blob(layer.digest)) for layer, name in files)
    if not whole or not _template_is_known(model):
        names = {model.relative_to(folder) / name: blob(layer.digest) for layer, name in files}
        _make(folder, names, archives)
    weights = sorted(
        (str(name) for layer, name in files if kind_of(layer) == GGUF), key=lambda n: (shard_of(n), n)
    )
    kinds = {kind_of(layer): model / name for layer, name in files}
    return Bundle(
        path=model / weights[0] if weights else model,
        mmproj=kinds.get(MMPROJ),
        chat_template=kinds.get(CHAT_TEMPLATE) if weights else None,
    )


def remove_bundle(folder: Path) -> None:
    """Remove a bundle; the blobs stay."""
    shutil.rmtree(folder, ignore_errors=True)


def _make(folder: Path, files: dict[Path, Path], archives: list[Path]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
    try:
        fresh.chmod(0o755)
        for name, blob in files.items():
            target = fresh / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(blob, target)
        for archive in archives:
            unpack(archive, fresh / "model")
        _lay_out_template(fresh / "model")
        if folder.exists():
            # An engine that has the old files open keeps them; the name is free at once.
            folder.rename(fresh.with_name(f"{fresh.name}-old"))
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(fresh.with_name(f"{fresh.name}-old"), ignore_errors=True)


def _template_is_known(model: Path) -> bool:
    """Whether an engine finds the chat template of safetensors by itself, or there is none."""
    return (model / JINJA).exists() or not _unknown_template(model)


def _lay_out_template(model: Path) -> None:
    text = _unknown_template(model)
    if text and not (model / JINJA).exists():
        (model / JINJA).write_text(text, encoding="utf-8")


def _unknown_template(model: Path) -> str:
    files = [path for path in model.iterdir() if path.is_file()] if model.is_dir() else []
    if any(path.suffix.lower() == ".gguf" for path in files):
        return ""  # it is named on the command line
    found = of_folder(files)
    return found.text if found is not None else ""


def _link(blob: Path, target: Path) -> None:
    try:
        os.link(blob, target)
    except FileNotFoundError:
        raise
    except OSError:
        target.symlink_to(blob)


def _same(path: Path, blob: Path) -> bool:
    try:
        return path.samefile(blob)
    except OSError:
        return False
