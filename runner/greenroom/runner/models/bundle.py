"""A stored model as engines need it: files with proper names in one folder.

`bundles/sha256/<hex>/model/` holds hard links to blobs (symbolic links where the file system has none). A
bundle can be rebuilt from the blobs at any time; it is built beside its place and renamed, so that concurrent
users both find a whole one.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.tar_stream import BadTar, TarStream
from greenroom.runner.models.errors import not_a_model
from greenroom.runner.models.manifest import (
    ARCHIVES,
    CHAT_TEMPLATE,
    GGUF,
    MMPROJ,
    Manifest,
    file_names,
    kind_of,
    shard_of,
)
from greenroom.runner.models.references import BadReference, relative_name
from greenroom.runner.models.templates import JINJA, of_folder

_COMPANIONS = {".json", ".jinja", ".txt", ".model", ".vocab", ".tiktoken", ".md"}
_QUANTIZATION = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d[A-Z0-9_]*|TQ\d_\d|BF16|F16|F32|MXFP4[A-Z0-9_]*|NVFP4))"
    r"(?:-\d{5}-of-\d{5})?\.gguf$",
    re.IGNORECASE,
)
_WEIGHTS = {".gguf", ".safetensors", ".mmproj"}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def belongs(name: str) -> bool:
    """Whether engines may see a file: weights without code, and metadata."""
    suffix = _suffix(name)
    return suffix in _COMPANIONS or suffix in _WEIGHTS


def choose_files(names: Sequence[str], where: str) -> list[str]:
    """The names that belong to the model: a GGUF with all its shards and its projector, or all safetensors
    with tokenizer and configuration.

    Raises:
        JobFailed: permanent, `not_a_model`, when there is none, or several.
    """
    names = sorted(name for name in names if "/" not in name and not name.startswith("."))
    ggufs = [name for name in names if _suffix(name) == ".gguf"]
    safetensors = [name for name in names if _suffix(name) == ".safetensors"]
    if ggufs and safetensors:
        raise not_a_model(
            f"{where} holds both GGUF and safetensors files. Name the GGUF file, or keep only one format."
        )
    if ggufs:
        return _one_gguf(ggufs, where)
    if safetensors:
        return [name for name in names if _suffix(name) in _COMPANIONS or name in safetensors]
    if any(_suffix(name) in _PICKLES for name in names):
        raise not_a_model(
            f"{where} holds only PyTorch weights, which can run code when loaded. "
            "Use a GGUF or safetensors version of the model."
        )
    raise not_a_model(f"{where} holds no model: neither .gguf nor .safetensors files.")


def with_shards(name: str, names: Sequence[str]) -> list[str]:
    """A GGUF file and, if it is one shard of several, the others beside it.

    Raises:
        JobFailed: permanent, `not_a_model`, when shards are missing.
    """
    stem, _, count = shard_of(name)
    if not stem:
        return [name]
    found = {shard_of(n)[1]: n for n in names if shard_of(n)[0] == stem and shard_of(n)[2] == count}
    missing = [number for number in range(1, count + 1) if number not in found]
    if missing:
        raise not_a_model(
            f"{name} is one of {count} parts, and {len(missing)} of them are missing from its folder "
            f"(the first is {stem}-{missing[0]:05d}-of-{count:05d}.gguf)."
        )
    return [found[number] for number in range(1, count + 1)]


def choose_from_repository(names: Sequence[str], quantisation: str, where: str) -> list[str]:
    """The paths in a published repository that belong to one quantisation (empty: the usual one).

    GGUF repositories hold one model in many quantisations, some in folders of their own. Names must match
    exactly: `Q4_K` is not `Q4_K_M`, and `f16` is not `bf16`. A missing one is never replaced by another.

    Raises:
        JobFailed: permanent; `no_such_quantisation` lists the existing ones.
    """
    models = [n for n in names if _suffix(n) == ".gguf" and "mmproj" not in PurePosixPath(n).name.lower()]
    if not models:
        if quantisation:
            raise JobFailed.permanent(
                "no_such_quantisation",
                f"{where} has no GGUF files, so there is no {quantisation} of it.",
                advice=f"Leave the tag out: hf.co/{where}.",
            )
        return _safetensors(names, where)
    groups: dict[str, list[str]] = {}
    for name in sorted(models):
        groups.setdefault(quantisation_of(name), []).append(name)
    chosen = _group(groups, quantisation)
    if chosen is None:
        raise JobFailed.permanent(
            "no_such_quantisation",
            f"{where} has no quantization {quantisation}.",
            advice=f"It has: {', '.join(sorted(filter(None, groups)))}.",
        )
    files = groups[chosen]
    # Several files of one quantisation are the shards of one model, or several models.
    whole = with_shards(files[0], files)
    if len(whole) != len(files):
        raise not_a_model(f"{where} holds several models with that quantization: {', '.join(files[:8])}.")
    projectors = [n for n in names if _suffix(n) == ".gguf" and n not in models]
    projectors.sort(key=_projector_order)
    return [*whole, *projectors[:1]]


def quantisation_of(name: str) -> str:
    """The quantisation in a GGUF file's name, in capitals: `Q4_K_M`, `BF16`; empty if none."""
    match = _QUANTIZATION.search(PurePosixPath(name).name)
    return match[1].upper() if match else ""


def quantisations_of(sizes: Mapping[str, int]) -> dict[str, int]:
    """The quantisations among published files, each with its bytes."""
    found: dict[str, int] = {}
    for name, size in sizes.items():
        if _suffix(name) == ".gguf" and "mmproj" not in PurePosixPath(name).name.lower():
            quantisation = quantisation_of(name)
            if quantisation:
                found[quantisation] = found.get(quantisation, 0) + size
    return found


def _group(groups: dict[str, list[str]], quantisation: str) -> str | None:
    wanted = quantisation.upper()
    if not wanted:
        return "Q4_K_M" if "Q4_K_M" in groups else next(iter(groups))
    if wanted in groups:
        return wanted
    # Unsloth's dynamic ones may be named without their prefix unless another has that name.
    return next((group for group in groups if group == f"UD-{wanted}"), None)


def _safetensors(names: Sequence[str], where: str) -> list[str]:
    chosen = choose_files([name for name in names if "/" not in name], where)
    # Mistral publishes the same weights a second time in one file.
    if any(not name.startswith("consolidated") for name in chosen if _suffix(name) == ".safetensors"):
        chosen = [name for name in chosen if not name.startswith("consolidated")]
    return chosen


def _projector_order(name: str) -> tuple[bool, str]:
    """Prefers the 16-bit projector, which is the usual one."""
    return ("f16" not in name.lower().replace("bf16", ""), name)


def _one_gguf(ggufs: list[str], where: str) -> list[str]:
    projectors = [name for name in ggufs if "mmproj" in name.lower()]
    models = [name for name in ggufs if name not in projectors]
    if not models:
        raise not_a_model(f"{where} holds only a projector ({projectors[0]}), not the model it belongs to.")
    chosen = with_shards(models[0], models)
    if len(chosen) != len(models):
        raise not_a_model(f"{where} holds several models: {', '.join(models[:8])}. Name one of these files.")
    projectors.sort(key=_projector_order)
    return [*chosen, *projectors[:1]]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


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
