"""Ollama's store: manifests under `manifests/HOST/…/MODEL/TAG`, files under `blobs/sha256-HEX`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any

import msgspec

from greenroom.actors.limits import CONTEXT
from greenroom.runner.errors import JobFailed
from greenroom.runner.models.elsewhere.scan import FoundModel, folders, name_of
from greenroom.runner.models.errors import from_os_error, not_a_model
from greenroom.runner.models.recipe import Recipe, StoredMessage
from greenroom.runner.models.references import digest_of, shown
from greenroom.runner.models.safe_open import HeldFile, HeldFolder

_KIND = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MANIFEST_LIMIT = 2**20
_TEXT_LIMIT = 2**20
_LAYERS = 1_000
_REGISTRY = "registry.ollama.ai/"
_LIBRARY = "library/"


class _Layer(msgspec.Struct):
    digest: str
    media_type: str = msgspec.field(name="mediaType", default="")


class _Manifest(msgspec.Struct):
    layers: tuple[_Layer, ...]


def is_manifest(path: Path) -> bool:
    """Whether a path is a manifest in an Ollama store."""
    return _root_of(path) is not None and path.is_file()


def models(root: Path, cancel: Event) -> Iterator[FoundModel]:
    manifests = root / "manifests"
    for folder, files, _ in folders(manifests, cancel):
        for tag in files:
            if folder != manifests and not tag.startswith("."):
                yield FoundModel("Ollama", _name(folder.relative_to(manifests), tag), folder / tag)


class OllamaModel(HeldFolder):
    """The files of one manifest, under readable names, and its `recipe` (prompts, parameters, licences)."""

    def __init__(self, manifest: Path) -> None:
        """Raises JobFailed (permanent) if the manifest cannot be read, or Greenroom cannot use its model."""
        root = _root_of(manifest)
        assert root is not None, "it is a manifest"
        super().__init__(root / "blobs")
        held = HeldFolder(manifest.parent).open(manifest.name)
        try:
            data = _read(held, _MANIFEST_LIMIT)
        finally:
            held.close()
        self.digest = digest_of(data)
        try:
            layers = msgspec.json.decode(data, type=_Manifest).layers
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise not_a_model(f"The manifest {shown(str(manifest))} cannot be read: {error}.") from error
        if len(layers) > _LAYERS or not all(_DIGEST.fullmatch(layer.digest) for layer in layers):
            raise not_a_model(f"The manifest {shown(str(manifest))} is not one of Ollama's.")
        name = f"{manifest.parent.name}-{manifest.name}"
        kinds = [(one.media_type.removeprefix(_KIND), one.digest) for one in layers]
        self._blobs = dict(_files(name, kinds))
        self.recipe = self._made(kinds)

    def names(self) -> list[str]:
        return list(self._blobs)

    def open(self, name: str) -> HeldFile:
        held = super().open(self._blobs[name])
        held.name, held.suffix = name, PurePosixPath(name).suffix
        return held

    def _made(self, kinds: list[tuple[str, str]]) -> Recipe:
        """The system prompt, messages, parameters and licences. Not the template: it is a Go template, and
        the chat template in the GGUF file is used instead.
        """
        texts: dict[str, list[bytes]] = {}
        for kind, digest in kinds:
            if kind in ("system", "params", "messages", "license"):
                held = super().open(_blob(digest))
                try:
                    texts.setdefault(kind, []).append(_read(held, _TEXT_LIMIT))
                finally:
                    held.close()
        parameters = _parameters(texts.get("params", []))
        size = parameters.pop("num_ctx", None)
        return Recipe(
            context_size=size if isinstance(size, int) and 0 < size <= CONTEXT else None,
            system="\n".join(_text(one) for one in texts.get("system", [])),
            messages=_messages(texts.get("messages", [])),
            parameters=parameters,
            licenses=tuple(_text(one) for one in texts.get("license", [])),
        )


def _root_of(manifest: Path) -> Path | None:
    """The store that a manifest lies in; None if the path is not below one."""
    for folder in manifest.parents:
        if folder.name == "manifests" and (folder.parent / "blobs").is_dir():
            return folder.parent
    return None


def _name(folder: Path, tag: str) -> str:
    name = folder.as_posix().removeprefix(_REGISTRY).removeprefix(_LIBRARY)
    return name_of(f"{name}:{tag}")


def _blob(digest: str) -> str:
    return digest.replace(":", "-")


def _files(name: str, kinds: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Pairs of readable file name and blob name."""
    weights = [digest for kind, digest in kinds if kind == "model"]
    if any(kind == "adapter" for kind, _ in kinds):
        raise not_a_model("Greenroom cannot apply its adapter. Merge the adapter into the model first.")
    if len(weights) != 1:
        raise not_a_model("Its weights are not in one GGUF file, so only Ollama can read them.")
    yield f"{name}.gguf", _blob(weights[0])
    for kind, digest in kinds:
        if kind == "projector":
            yield f"mmproj-{name}.gguf", _blob(digest)
            return


def _read(held: HeldFile, limit: int) -> bytes:
    try:
        with held.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise from_os_error(error, f"reading {held.name}") from error
    if len(data) > limit:
        raise not_a_model(f"{held.name} is larger than a manifest or a text of a model may be.")
    return data


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _parameters(texts: list[bytes]) -> dict[str, Any]:
    """Parameters with a number, a boolean or a list of texts. Requests later ignore unknown ones."""
    found: dict[str, Any] = {}
    for text in texts:
        for name, value in _decoded(text, dict[str, Any], {}).items():
            listed = isinstance(value, list) and all(isinstance(one, str) for one in value)
            if listed or isinstance(value, bool | int | float):
                found[name] = value
    return found


def _messages(texts: list[bytes]) -> tuple[StoredMessage, ...]:
    told: list[Mapping[str, Any]] = []
    for text in texts:
        told += _decoded(text, list[dict[str, Any]], [])
    return _converted(told)


def _converted(told: list[Mapping[str, Any]]) -> tuple[StoredMessage, ...]:
    try:
        fields = [{"role": one.get("role"), "content": one.get("content", "")} for one in told]
        return msgspec.convert(fields, tuple[StoredMessage, ...])
    except msgspec.ValidationError as error:
        raise _unreadable("messages", error) from error


def _decoded(text: bytes, kind: Any, empty: Any) -> Any:
    if not text.strip():
        return empty
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable("parameters", error) from error


def _unreadable(what: str, error: Exception) -> JobFailed:
    return not_a_model(f"Its {what} in Ollama's store cannot be read: {error}.")
