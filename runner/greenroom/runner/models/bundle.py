"""A stored model as engines need it: files with proper names in one folder.

`bundles/sha256/<hex>/model/` holds hard links to blobs (symbolic links where the file system has none). A
bundle can be rebuilt from the blobs at any time; it is built beside its place and renamed, so that concurrent
users both find a whole one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from greenroom.runner.installations.tar_stream import BadTar, TarStream
from greenroom.runner.models.errors import not_a_model
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
from greenroom.runner.models.references import BadReference, relative_name
from greenroom.runner.models.selection import belongs
from greenroom.runner.models.templates import JINJA, of_folder

ARCHIVE_LIMIT = 256 * 2**20
"""Bytes of all files of one archive, and of the archive itself."""
_ARCHIVED_FILES = 1_000


@dataclass(frozen=True)
class ModelBundle:
    path: Path
    """The first GGUF shard, or the folder."""
    mmproj: Path | None = None
    chat_template: Path | None = None


def open_bundle(folder: Path, manifest: Manifest, blob: Callable[[str], Path]) -> ModelBundle:
    """The bundle in `folder`, built first if missing or incomplete. `blob` maps a digest to its path.

    Raises:
        BadReference: The manifest names a file outside the bundle.
        JobFailed: permanent, `not_a_model`: an archive in the model is unsafe.
        OSError: A blob is missing, or the bundle cannot be written.
    """
    # Other published files, above all code, are kept for publishing again, but never exposed to engines.
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
    return ModelBundle(
        path=model / weights[0] if weights else model,
        mmproj=kinds.get(MMPROJ),
        chat_template=kinds.get(CHAT_TEMPLATE) if weights else None,
    )


def remove_bundle(folder: Path) -> None:
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
            # An engine with the old files open keeps them; the name is free at once.
            folder.rename(fresh.with_name(f"{fresh.name}-old"))
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(fresh.with_name(f"{fresh.name}-old"), ignore_errors=True)


def _template_is_known(model: Path) -> bool:
    """Whether engines find the chat template of safetensors by themselves, or there is none."""
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


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack a tar inside a model below a folder; returns the files.

    Older artifacts keep `config.json` and the tokenizer in one. Only regular files with plain relative names
    are accepted; links, devices, sparse files, `..` and absolute names refuse the whole archive, and so does
    one that is larger than any configuration.

    Raises:
        JobFailed: permanent, `not_a_model`, for any other archive.
        OSError: A file cannot be written.
    """
    files: list[Path] = []
    left = ARCHIVE_LIMIT
    try:
        with archive.open("rb") as stream:
            tar = TarStream(stream.read, archive.stat().st_size)
            for entry in tar:
                if entry.kind == "folder":
                    continue
                left -= entry.size
                if entry.kind != "file" or left < 0 or len(files) >= _ARCHIVED_FILES:
                    raise not_a_model(
                        f"An archive in the model holds {entry.name[:80]!r}, which is not allowed."
                    )
                name = relative_name(entry.name.removeprefix("./"))
                if not belongs(name.name):
                    continue
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as out:
                    out.writelines(tar.content())
                files.append(target)
    except (BadTar, BadReference, FileExistsError) as error:
        raise not_a_model(f"An archive in the model is damaged or unsafe: {error}") from error
    return files
