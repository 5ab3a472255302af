"""Builds an artifact from files on disk for `greenroom package`, without a daemon or copies."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from threading import Event

from greenroom.runner.models.arrival import hash_file
from greenroom.runner.models.errors import from_os_error, not_a_model
from greenroom.runner.models.manifest import Artifact, Layer, build, is_projector
from greenroom.runner.models.metadata import read_metadata
from greenroom.runner.models.references import digest_of, is_text
from greenroom.runner.models.selection import choose_files, with_shards


@dataclass(frozen=True)
class Ingredients:
    weights: Path
    """A GGUF file (its other shards lie beside it), or a folder of safetensors."""
    licenses: Sequence[Path] = field(default_factory=tuple)
    chat_template: Path | None = None
    mmproj: Path | None = None
    context_size: int = 0
    """Tokens to load it with; 0 leaves that open."""


@dataclass(frozen=True)
class Package:
    artifact: Artifact
    files: dict[str, Path]
    """By digest, in the order of the manifest, without the configuration."""


def pack(ingredients: Ingredients, on_bytes: Callable[[int], None] = lambda _: None) -> Package:
    """Read headers and hash every file. `on_bytes` receives how many more bytes have been hashed.

    Raises:
        JobFailed: permanent, `not_a_model` or `not_found`.
    """
    try:
        named = _named(ingredients)
        for path in (*named.values(), *ingredients.licenses):
            if not S_ISREG(path.stat().st_mode):
                # Opening a pipe would block until it has a writer.
                raise not_a_model(f"{path.name} is not a regular file.")
    except OSError as error:
        raise from_os_error(error, "reading the model") from error
    metadata = read_metadata(list(named.values()))
    never = Event()

    def layer(name: str, path: Path) -> Layer:
        return Layer(name, hash_file(path, never, on_bytes), path.stat().st_size)

    layers = [layer(name, path) for name, path in named.items()]
    licenses = [layer(path.name, path) for path in ingredients.licenses]
    artifact = build(layers, metadata, licenses=licenses, context_size=ingredients.context_size)
    paths = dict(zip((one.digest for one in layers), named.values(), strict=True))
    paths |= dict(zip((one.digest for one in licenses), ingredients.licenses, strict=True))
    return Package(artifact, {one.digest: paths[one.digest] for one in artifact.manifest.layers})


def config_file(package: Package, folder: Path) -> dict[str, Path]:
    """All blobs with the configuration, which is written into a folder."""
    config = folder / "config"
    config.write_bytes(package.artifact.config_bytes)
    return {**package.files, digest_of(package.artifact.config_bytes): config}


def _named(ingredients: Ingredients) -> dict[str, Path]:
    weights = ingredients.weights
    if weights.is_dir():
        names = choose_files(
            [one.name for one in os.scandir(weights) if one.is_file() and is_text(one.name)], str(weights)
        )
        named = {name: weights / name for name in names}
    else:
        beside = [one.name for one in os.scandir(weights.parent) if is_text(one.name)]
        named = {name: weights.parent / name for name in with_shards(weights.name, beside)}
    if ingredients.mmproj is not None:
        named = {name: path for name, path in named.items() if not is_projector(name)}
        named["model.mmproj"] = ingredients.mmproj
    if ingredients.chat_template is not None:
        if ingredients.chat_template.suffix.lower() not in (".jinja", ".txt", ".j2"):
            raise not_a_model(f"{ingredients.chat_template.name} does not have a Jinja template's suffix.")
        named["template.jinja"] = ingredients.chat_template
    return named
