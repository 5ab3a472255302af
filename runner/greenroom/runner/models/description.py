"""Models in the format of Docker Model Runner's API."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from greenroom.actors.values import Model
from greenroom.runner.models import manifest as artifacts
from greenroom.runner.models import templates
from greenroom.runner.models.gguf import Value, read_header
from greenroom.runner.models.store import ModelStore
from greenroom.runner.units import size_text

if TYPE_CHECKING:
    from greenroom.runner.models.puller import Published

_TEMPLATE = "tokenizer.chat_template"
_TEMPLATE_LIMIT = 8 * 2**20
"""Characters of a chat template that are read."""
_LICENSE_LIMIT = 2**20
"""Bytes of a licence that is shown."""
_MAPS = ("gguf", "safetensors", "diffusers")


def described(model: Model, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A stored model; `config`, as published, adds its header values."""
    about: dict[str, Any] = {
        "format": "safetensors" if model.format == "safetensors-mlx" else model.format,
        "quantization": model.quantization,
        "parameters": model.parameters,
        "architecture": model.architecture,
        "size": size_text(model.size) if model.size else "",
        "context_size": model.context_size or model.context_length,
        **{name: config[name] for name in _MAPS if config and isinstance(config.get(name), dict)},
    }
    told: dict[str, Any] = {"id": model.id}
    if model.tags:
        told["tags"] = list(model.tags)
    return told | {
        "created": int(model.created),
        "config": {name: value for name, value in about.items() if value},
    }


def files_of(store: ModelStore, model_id: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The files of a stored model, and its configuration as published.

    Raises:
        JobFailed: permanent, `no_such_model` or `model_damaged`.
    """
    manifest = store.manifest(model_id)
    names = {layer.digest: name for layer, name in artifacts.file_names(manifest)}
    files = [
        {
            "name": names.get(layer.digest, ""),
            "size": layer.size,
            "digest": layer.digest,
            "media_type": layer.media_type,
        }
        for layer in manifest.layers
    ]
    try:
        return files, flat_config(store.blob(manifest.config.digest).read_bytes())
    except OSError:
        return files, {}


def template_of(store: ModelStore, model_id: str) -> dict[str, Any] | None:
    """Where the chat template of a stored model is, and the names if there are several; None without one.

    Raises:
        JobFailed: permanent, `no_such_model`, `model_damaged` or `not_a_model`.
    """
    bundle = store.open_model(model_id)
    if bundle.path.is_file():
        own = bundle.chat_template
        about = bundle.path.stat()
        keys = _header_keys(bundle.path, about.st_ino, about.st_size, about.st_mtime_ns)
        found = templates.Templates(own.name) if own is not None else templates.of_header(keys)
    else:
        files = [path for path in bundle.path.iterdir() if path.is_file()]
        found = templates.of_folder(files)
        # Our copy for engines is not the origin.
        source = templates.of_folder([path for path in files if path.name != templates.JINJA])
        ours = bundle.path / templates.JINJA
        text = ours.read_text("utf-8", "replace") if ours.is_file() else ""
        if source is not None and source.text and source.text == text:
            found = source
    return {"file": found.file, "names": list(found.names)} if found is not None else None


@lru_cache(maxsize=64)
def _header_keys(path: Path, _inode: int, _size: int, _changed: int) -> tuple[str, ...]:
    """The names in a GGUF file's header, which lists its whole vocabulary and is not quick to read."""
    return tuple(read_header(path).values)


def template_text(store: ModelStore, model_id: str) -> str:
    """All chat templates of a stored model, one after the other; empty without one.

    Raises:
        JobFailed: permanent, `no_such_model`, `model_damaged` or `not_a_model`.
    """
    bundle = store.open_model(model_id)
    if bundle.path.is_file() and bundle.chat_template is None:
        return templates.text_of_header(read_header(bundle.path).values)
    files = [path for path in bundle.path.iterdir() if path.is_file()] if bundle.path.is_dir() else []
    return templates.text_of_files([*files, *filter(None, [bundle.chat_template])])


def header_and_template(store: ModelStore, model_id: str) -> tuple[Mapping[str, Value], str]:
    """The header of a stored model and its chat template; both empty where there is none. Blocks.

    Raises:
        JobFailed: permanent, `model_damaged`.
    """
    files = store.open_model(model_id)
    header: Mapping[str, Value] = {}
    if files.path.is_file():
        header = read_header(files.path).values
    template = ""
    if files.path.is_dir():
        template = templates.text_of_folder([path for path in files.path.iterdir() if path.is_file()])
    elif (own := files.chat_template) is not None:
        with contextlib.suppress(OSError), own.open(encoding="utf-8", errors="replace") as file:
            template = file.read(_TEMPLATE_LIMIT)
    return header, template or str(header.get(_TEMPLATE) or "")


@dataclass(frozen=True)
class ModelText:
    """What the files of a stored model say; empty where they say nothing."""

    header: Mapping[str, Value]
    projector: Mapping[str, Value]
    """The header of what turns images or sound into tokens."""
    template: str
    license: str
    """All licences, one after the other."""


def model_text(store: ModelStore, model_id: str) -> ModelText:
    """Blocks. Raises JobFailed as `header_and_template`."""
    header, template = header_and_template(store, model_id)
    projector = store.open_model(model_id).mmproj
    licenses = []
    for layer in store.manifest(model_id).layers:
        if layer.media_type == artifacts.LICENSE and layer.size <= _LICENSE_LIMIT:
            with contextlib.suppress(OSError):
                licenses.append(store.blob(layer.digest).read_text("utf-8", "replace"))
    return ModelText(
        header, read_header(projector).values if projector is not None else {}, template, "\n".join(licenses)
    )


def flat_config(data: bytes) -> dict[str, Any]:
    """The inner `config` of a configuration, with the CNCF's keys renamed to Docker's; empty if there is
    none.
    """
    try:
        config = msgspec.json.decode(data)["config"]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return {}
    if not isinstance(config, dict):
        return {}
    if "paramSize" in config:
        size = config["paramSize"]
        known = ("format", "architecture", "quantization")
        return {name: config[name] for name in known if config.get(name)} | {"parameters": size, "size": size}
    return config


def described_remote(published: Published) -> dict[str, Any]:
    """A source's model: like a stored one, without tags."""
    offer = published.offer
    config = flat_config(published.config)
    config.setdefault("format", offer.format)
    if offer.size:
        config.setdefault("size", size_text(offer.size))
    told: dict[str, Any] = {
        "id": published.id,
        "created": _created(published.config),
        "config": {name: value for name, value in config.items() if value},
        "source": offer.source,
        "bytes": offer.size,
    }
    if offer.others:
        told["quantizations"] = dict(sorted(offer.others.items(), key=lambda one: one[1]))
    return told


def _created(config: bytes) -> int:
    try:
        descriptor = msgspec.json.decode(config)["descriptor"]
        text = descriptor.get("created") or descriptor.get("createdAt") or ""
        return int(datetime.fromisoformat(text).timestamp())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError):
        return 0
    except ValueError:
        return 0
