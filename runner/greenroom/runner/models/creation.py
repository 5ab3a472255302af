"""Makes a model of files that clients have sent, or that other models have."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from greenroom.actors.values import Model
from greenroom.runner.errors import JobFailed
from greenroom.runner.models.arrival import Arrival
from greenroom.runner.models.errors import from_os_error, not_a_model
from greenroom.runner.models.gguf import read_header
from greenroom.runner.models.manifest import GGUF, SAFETENSORS, Layer, belongs, is_projector, shard_of
from greenroom.runner.models.recipe import Recipe
from greenroom.runner.models.references import blob_name, shown
from greenroom.runner.models.store import ModelStore


def absent(store: ModelStore, files: Mapping[str, str]) -> list[str]:
    """The names of the files (name → digest) that were not sent and belong to no model."""
    return [name for name, digest in files.items() if not is_here(store, digest)]


def is_here(store: ModelStore, digest: str) -> bool:
    """Whether a file was sent, or belongs to a model."""
    return store.uploads.find(digest) is not None or store.blob(digest).is_file()


def of_files(store: ModelStore, files: Mapping[str, str], *, tag: str, recipe: Recipe) -> Model:
    """Store a model of these files (name → digest), under a tag.

    Raises:
        JobFailed: A file is gone, or they are not one whole model; the store is unchanged.
    """
    with store.uploads.held(files.values()), store.arrival() as arrival:
        for name, digest in sorted(files.items()):
            if not _lay_out(store, arrival, name, digest):
                raise JobFailed.permanent(
                    "not_found",
                    f"The file {shown(name)} is not in the store any more.",
                    advice="Send it again.",
                )
        _check_one_model(arrival.layers)
        model = store.commit(arrival, tag=tag, recipe=recipe)
    store.uploads.drop(files.values())
    return model


def _lay_out(store: ModelStore, arrival: Arrival, name: str, digest: str) -> bool:
    uploaded, stored = store.uploads.find(digest), store.blob(digest)
    try:
        size = (uploaded or stored).stat().st_size
    except OSError:
        return False
    name = _fitting(name, uploaded or stored)
    if not belongs(name):
        raise not_a_model(f"{shown(name)} cannot be part of a model: it is neither weights nor metadata.")
    if uploaded is None:
        return arrival.reuse(digest, size, name) is not None
    ours = arrival.work / blob_name(digest)
    try:
        os.link(uploaded, ours)
    except OSError:  # no hard links here
        try:
            shutil.copyfile(uploaded, ours)
        except OSError as error:
            raise from_os_error(error, f"importing {name}") from error
    arrival.adopt(ours, name, digest)
    return True


def _check_one_model(layers: Sequence[Layer]) -> None:
    """Raise JobFailed, permanent, `not_a_model`, for the weights of several models."""
    weights = [one.name for one in layers if one.media_type in (GGUF, SAFETENSORS)]
    ggufs = [one for one in weights if one.lower().endswith(".gguf")]
    stems = {shard_of(name)[0] or name for name in ggufs}
    if ggufs and (len(stems) > 1 or len(ggufs) < len(weights)):
        raise not_a_model(
            f"These are the weights of several models: {', '.join(map(shown, weights[:4]))}. "
            "Send one model, or all shards of one."
        )


def _fitting(name: str, path: Path) -> str:
    """A name that says what the file is, as clients need not."""
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
    except OSError as error:
        raise from_os_error(error, f"reading {name}") from error
    if not is_gguf:
        return name
    try:
        header = read_header(path)
    except JobFailed:
        return name  # it is refused by this name, with the whole model
    if header.values.get("general.architecture") == "clip":
        return name if is_projector(name) else f"{name.removesuffix('.gguf')}.mmproj"
    return name if belongs(name) else f"{name}.gguf"
