"""A model as an OCI artifact (layers, configuration, manifest), and as the files that engines get.

Media types and annotations are Docker Model Runner's, so that stored models can be pushed to a registry
unchanged, and pulled ones stored unchanged. A model's id is the SHA-256 of its manifest; nothing in it varies
between two imports of the same files.

Engines get a bundle: the folder `bundles/sha256/<hex>/model/` with properly named hard links to blobs
(symbolic links where the file system has none). It can be rebuilt from the blobs at any time; it is built
beside its place and renamed, so that concurrent users both find a whole one.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from greenroom.actors.limits import CONTEXT
from greenroom.runner.models.errors import not_a_model
from greenroom.runner.models.metadata import Metadata
from greenroom.runner.models.references import BadReference, digest_of, relative_name
from greenroom.runner.models.templates import JINJA, of_folder
from greenroom.runner.units import format_size, size_text

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPED = "application/vnd.docker.ai.model.config.v0.1+json"
"""The layers' media types say what they are (GGUF)."""
CONFIG_FILES = "application/vnd.docker.ai.model.config.v0.2+json"
"""One layer per file, each with its path (safetensors)."""
GGUF = "application/vnd.docker.ai.gguf.v3"
SAFETENSORS = "application/vnd.docker.ai.safetensors"
MMPROJ = "application/vnd.docker.ai.mmproj"
CHAT_TEMPLATE = "application/vnd.docker.ai.chat.template.jinja"
MODEL_FILE = "application/vnd.docker.ai.model.file"
LICENSE = "application/vnd.docker.ai.license"

ARCHIVES = frozenset({"application/vnd.docker.ai.vllm.config.tar", "application/vnd.docker.ai.dir.tar"})
"""Layers that are tars of small files, in older artifacts."""
CONFIGS = (CONFIG_TYPED, CONFIG_FILES, "application/vnd.cncf.model.config.v1+json")
"""The configuration types of models; an artifact with another is something else."""

_SYNONYMS = {
    "application/vnd.cncf.model.weight.v1.raw": MODEL_FILE,
    "application/vnd.cncf.model.weight.config.v1.raw": MODEL_FILE,
    "application/vnd.cncf.model.doc.v1.raw": MODEL_FILE,
    "application/vnd.cncf.model.weight.v1.gguf": GGUF,
    "application/vnd.cncf.model.weight.v1.safetensors": SAFETENSORS,
}

FILEPATH = "org.cncf.model.filepath"
_UNTESTED = "org.cncf.model.file.mediatype.untested"

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_MANIFEST_LIMIT = 4 * 2**20

COMPANIONS = {".json", ".jinja", ".txt", ".model", ".vocab", ".tiktoken", ".md"}
"""Suffixes of files beside the weights: configuration, tokenizer, chat template, texts."""
_WEIGHTS = {".gguf", ".safetensors", ".mmproj"}
ARCHIVE_LIMIT = 256 * 2**20
"""Bytes of all files of one archive, and of the archive itself."""
_ARCHIVED_FILES = 1_000


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """OCI's reference to a blob."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = {}


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """OCI's image manifest, as far as models use it."""

    schema_version: int
    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = {}

    def blobs(self) -> tuple[Descriptor, ...]:
        """All blobs it refers to, the configuration first."""
        return (self.config, *self.layers)


@dataclass(frozen=True)
class Layer:
    """One hashed file of a model."""

    name: str
    """Relative path within the model."""
    digest: str
    size: int

    @property
    def media_type(self) -> str:
        """The file's type, by its name."""
        lower = self.name.lower()
        if is_projector(self.name):
            return MMPROJ
        if lower.endswith(".gguf"):
            return GGUF
        if lower.endswith(".safetensors"):
            return SAFETENSORS
        if lower.endswith(".jinja"):
            return CHAT_TEMPLATE
        return MODEL_FILE


@dataclass(frozen=True)
class Artifact:
    """A model ready to be stored: the bytes of its configuration and manifest."""

    manifest: Manifest
    manifest_bytes: bytes
    config_bytes: bytes
    texts: tuple[bytes, ...] = ()
    """The contents of layers that are no files on disk yet."""

    @property
    def small_blobs(self) -> tuple[bytes, ...]:
        """What is written with it, the manifest last."""
        return (*self.texts, self.config_bytes, self.manifest_bytes)

    @property
    def id(self) -> str:
        return digest_of(self.manifest_bytes)


def is_projector(name: str) -> bool:
    """Whether a file, by its name, is what turns images or sound into tokens for the model beside it."""
    file = PurePosixPath(name.lower())
    return file.suffix == ".mmproj" or (file.suffix == ".gguf" and "mmproj" in file.name)


def shard_of(name: str) -> tuple[str, int, int]:
    """A shard's common stem, number and count; `("", 0, 0)` for other names."""
    match = _SHARD.search(name)
    return (name[: match.start()], int(match[1]), int(match[2])) if match else ("", 0, 0)


def build(
    layers: Sequence[Layer], metadata: Metadata, *, licenses: Sequence[Layer] = (), context_size: int = 0
) -> Artifact:
    """Describe a model's files as an artifact. The same files always make the same one.

    `context_size`: tokens to load it with; 0 leaves that open.
    """
    # GGUF shards must keep their order; everything else is sorted by name.
    layers = sorted(layers, key=lambda layer: (layer.media_type != GGUF, shard_of(layer.name), layer.name))
    size = sum(layer.size for layer in layers)
    descriptors = [*map(describe, layers), *(describe(one, LICENSE) for one in licenses)]
    weights = "gguf" if metadata.format == "gguf" else "safetensors"
    config = {
        "format": weights,
        "quantization": metadata.quantization,
        "parameters": metadata.parameters,
        "architecture": metadata.architecture,
        "size": size_text(size),
        weights: dict(sorted(metadata.raw.items())),
        "context_size": context_size,
    }
    config_bytes = msgspec.json.encode(
        {
            "config": {key: value for key, value in config.items() if value},
            "descriptor": {},
            "rootfs": {"type": "rootfs", "diff_ids": [one.digest for one in descriptors]},
        }
    )
    manifest = Manifest(
        schema_version=2,
        media_type=MANIFEST,
        config=Descriptor(
            media_type=CONFIG_TYPED if metadata.format == "gguf" else CONFIG_FILES,
            digest=digest_of(config_bytes),
            size=len(config_bytes),
        ),
        layers=tuple(descriptors),
    )
    return Artifact(manifest, msgspec.json.encode(manifest), config_bytes)


def describe(layer: Layer, media_type: str = "") -> Descriptor:
    """A layer as a manifest has it; its type is that of its name where none is given."""
    return Descriptor(
        media_type=media_type or layer.media_type,
        digest=layer.digest,
        size=layer.size,
        annotations={FILEPATH: layer.name, _UNTESTED: "false"},
    )


def context_size(config_bytes: bytes) -> int:
    """The publisher's context size in tokens; 0 if the configuration leaves it open."""
    try:
        size = msgspec.json.decode(config_bytes)["config"]["context_size"]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return 0
    return size if isinstance(size, int) and 0 < size <= CONTEXT else 0


def size_of_layers(manifest: Manifest) -> int:
    """Bytes of a model's files. A layer may occur twice, but is one file."""
    return sum({layer.digest: layer.size for layer in manifest.layers}.values())


def decode(data: bytes, digest: str) -> Manifest:
    """Read a manifest, whose bytes must have this digest.

    Raises:
        ValueError: Not a manifest, or not this one.
    """
    if digest_of(data) != digest:
        raise ValueError("Its manifest has changed.")
    if len(data) > _MANIFEST_LIMIT:
        raise ValueError(f"The manifest is larger than {format_size(_MANIFEST_LIMIT)}.")
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"It is not a manifest: {error}.") from error


def kind_of(layer: Descriptor) -> str:
    """What a layer is, as one of our media types; its own media type if it is none of them.

    The CNCF's types and Docker's newer ones only mean "file": then the file's name decides.
    """
    kind = _SYNONYMS.get(layer.media_type, layer.media_type)
    name = layer.annotations.get(FILEPATH, "")
    if name and kind in (MODEL_FILE, GGUF):
        return Layer(name, layer.digest, layer.size).media_type
    return kind


def file_names(manifest: Manifest) -> list[tuple[Descriptor, str]]:
    """Each layer with its file's name in a bundle, from its annotation if it has one.

    Layers that are not files (tars, licences) are left out. The names are not validated.
    """
    plain = {GGUF: "model.gguf", MMPROJ: "model.mmproj", CHAT_TEMPLATE: "template.jinja"}
    kinds = [kind_of(layer) for layer in manifest.layers]
    seen = dict.fromkeys((GGUF, SAFETENSORS), 0)
    named: list[tuple[Descriptor, str]] = []
    for layer, kind in zip(manifest.layers, kinds, strict=True):
        if kind in seen:
            seen[kind] += 1
        suffix = "gguf" if kind == GGUF else "safetensors"
        if kind in ARCHIVES:
            continue
        if layer.annotations.get(FILEPATH):
            named.append((layer, layer.annotations[FILEPATH]))
        elif kind in seen and kinds.count(kind) > 1:
            named.append((layer, f"model-{seen[kind]:05d}-of-{kinds.count(kind):05d}.{suffix}"))
        elif kind in seen:
            named.append((layer, f"model.{suffix}"))
        elif kind in plain:
            named.append((layer, plain[kind]))
    return named


# bundles


def suffix_of(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def belongs(name: str) -> bool:
    """Whether engines may see a file: weights without code, and metadata."""
    suffix = suffix_of(name)
    return suffix in COMPANIONS or suffix in _WEIGHTS


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
    # Rarely needed, and not quick to import.
    from greenroom.runner.installations.tar_stream import BadTar, TarStream

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
