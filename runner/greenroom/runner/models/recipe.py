"""A model made of another's files: with defaults for requests, another chat template, licences.

Defaults lie in the inner `config` of the model's configuration, under `defaults`; a chat template and
licences are layers. So they are pushed, pulled and copied with the model, and its id depends on them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from greenroom.runner.models.manifest import (
    CHAT_TEMPLATE,
    FILEPATH,
    GGUF,
    LICENSE,
    Artifact,
    Layer,
    Manifest,
    describe,
    kind_of,
)
from greenroom.runner.models.references import digest_of
from greenroom.runner.models.templates import JINJA
from greenroom.runner.units import format_size

log = logging.getLogger(__name__)

_KEY = "defaults"
_LIMIT = 2 * 2**20
"""Bytes of defaults: they are added to every request. What is created here has less."""
_TEMPLATE = "template.jinja"
"""As a file beside GGUF, where its name means nothing to the engine."""


class StoredMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message that every chat with the model begins with."""

    role: Literal["system", "user", "assistant"]
    content: str


class Defaults(msgspec.Struct, frozen=True, omit_defaults=True):
    """What holds for a request that says nothing else."""

    system: str = ""
    messages: tuple[StoredMessage, ...] = ()
    parameters: Mapping[str, Any] = {}
    """Ollama's names, without `num_ctx`, which is the model's context size."""

    def __bool__(self) -> bool:
        return bool(self.system or self.messages or self.parameters)


@dataclass(frozen=True)
class Recipe:
    """What a model gets beside its files; where it says nothing, a base's own stays."""

    context_size: int | None = None
    """Tokens it is loaded with; 0 leaves that open."""
    system: str = ""
    messages: tuple[StoredMessage, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Added to those of the base."""
    template: str = ""
    """A chat template in Jinja."""
    licenses: tuple[str, ...] = ()
    """Texts, added to those of the base."""


def defaults_of(config_bytes: bytes) -> Defaults:
    """The defaults in a configuration; none where it has none that can be read."""
    try:
        found = msgspec.json.decode(config_bytes)["config"][_KEY]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return Defaults()
    if len(msgspec.json.encode(found)) > _LIMIT:
        log.warning("the defaults in a model's configuration are larger than %s", format_size(_LIMIT))
        return Defaults()
    try:
        return msgspec.convert(found, Defaults)
    except msgspec.ValidationError as error:
        log.warning("the defaults in a model's configuration cannot be read: %s", error)
        return Defaults()


def made(base: Artifact, recipe: Recipe) -> Artifact:
    """A model of the same files after a recipe; everything else stays as published.

    Its `texts` are the contents of the layers that are new.

    Raises:
        ValueError: The base is not a manifest with a configuration.
    """
    try:
        manifest, config = msgspec.json.decode(base.manifest_bytes), msgspec.json.decode(base.config_bytes)
        inner = config["config"]
        if recipe.context_size is not None:
            inner["context_size"] = recipe.context_size
        if defaults := _merged(defaults_of(base.config_bytes), recipe):
            inner[_KEY] = msgspec.to_builtins(defaults)
        texts = _with_layers(manifest, base.manifest, recipe)
        if texts and isinstance(config.get("rootfs"), dict):
            config["rootfs"]["diff_ids"] = [one["digest"] for one in manifest["layers"]]
        config_bytes = msgspec.json.encode(config)
        manifest["config"] |= {"digest": digest_of(config_bytes), "size": len(config_bytes)}
        data = msgspec.json.encode(manifest)
        return Artifact(msgspec.convert(manifest, Manifest), data, config_bytes, texts)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"It is not a manifest: {error}.") from error


def _merged(base: Defaults, recipe: Recipe) -> Defaults:
    return Defaults(
        system=recipe.system or base.system,
        messages=recipe.messages or base.messages,
        parameters=dict(sorted({**base.parameters, **recipe.parameters}.items())),
    )


def _with_layers(raw: dict[str, Any], manifest: Manifest, recipe: Recipe) -> tuple[bytes, ...]:
    """Put the template in the place of others, and add the licences; returns their bytes."""
    layers = list(zip(raw["layers"], manifest.layers, strict=True))
    texts: list[bytes] = []

    def add(text: str, name: str, media_type: str) -> None:
        data = text.encode()
        digest = digest_of(data)
        if any(one.digest == digest for _, one in layers):
            return
        texts.append(data)
        descriptor = describe(Layer(name, digest, len(data)), media_type)
        layers.append((msgspec.to_builtins(descriptor), descriptor))

    if recipe.template:
        is_gguf = any(kind_of(one) == GGUF for _, one in layers)
        layers = [both for both in layers if kind_of(both[1]) != CHAT_TEMPLATE]
        add(recipe.template, _TEMPLATE if is_gguf else JINJA, CHAT_TEMPLATE)
    for license_text in recipe.licenses:
        names = {one.annotations.get(FILEPATH) for _, one in layers}
        numbered = (f"LICENSE-{number}" for number in range(2, len(names) + 3))
        add(license_text, next(one for one in ("LICENSE", *numbered) if one not in names), LICENSE)
    raw["layers"] = [one for one, _ in layers]
    return tuple(texts)
