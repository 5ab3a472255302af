"""The folders in which other programs keep models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from greenroom.runner.models.elsewhere import hub_cache, ollama
from greenroom.runner.models.elsewhere.folders import fetched, published
from greenroom.runner.models.elsewhere.scan import FoundModel
from greenroom.runner.user_home import expanded, user_home

_Scan = Callable[[Path, Event], Iterator[FoundModel]]
_SETTINGS_LIMIT = 2**20
"""Bytes of another program's settings or pointer that are read."""


@dataclass(frozen=True)
class ModelPlace:
    """A folder where a program keeps models."""

    program: str
    folder: Path
    scan: _Scan

    def models(self, cancel: Event) -> Iterator[FoundModel]:
        """The models in it. Raises JobCancelled."""
        return self.scan(self.folder, cancel)


def places(environment: Mapping[str, str]) -> list[ModelPlace]:
    """The folders that exist, sorted by program."""
    home = user_home(environment)
    cache = _first(environment, "XDG_CACHE_HOME") or home / ".cache"
    hub = _first(environment, "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    hub = hub or (_first(environment, "HF_HOME") or cache / "huggingface") / "hub"
    lm_studio, llama = partial(published, "LM Studio"), partial(fetched, "llama.cpp")
    known = [
        ModelPlace("Hugging Face", hub, hub_cache.models),
        ModelPlace("llama.cpp", _first(environment, "LLAMA_CACHE") or cache / "llama.cpp", llama),
        ModelPlace("llama.cpp", home / "Library" / "Caches" / "llama.cpp", llama),
        *(ModelPlace("LM Studio", folder, lm_studio) for folder in _of_lm_studio(home)),
        ModelPlace(
            "Ollama", _first(environment, "OLLAMA_MODELS") or home / ".ollama" / "models", ollama.models
        ),
        ModelPlace("Ollama", Path("/usr/share/ollama/.ollama/models"), ollama.models),
    ]
    return _distinct(place for place in known if _is_folder(place.folder))


def place_at(folder: Path) -> ModelPlace:
    """A folder that the user named; its content shows which program it belongs to."""
    if _is_folder(folder / "manifests") and _is_folder(folder / "blobs"):
        return ModelPlace("Ollama", folder, ollama.models)
    for hub in (folder, folder / "hub"):
        if hub_cache.is_cache(hub):
            return ModelPlace("Hugging Face", hub, hub_cache.models)
    return ModelPlace(folder.name, folder, partial(published, folder.name))


def _of_lm_studio(home: Path) -> Iterator[Path]:
    """Where LM Studio keeps its models: `downloadsFolder` of its settings, and `models` of its own folder,
    to which `.lmstudio-home-pointer` leads.
    """
    pointed = _text(home / ".lmstudio-home-pointer").strip()
    own = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    if pointed:
        own.insert(0, expanded(pointed))
    old = [home / ".config" / "LM Studio", home / "Library" / "Application Support" / "LM Studio"]
    for folder in (*own, *old):
        with suppress(ValueError, AttributeError):
            chosen = json.loads(_text(folder / "settings.json")).get("downloadsFolder")
            if isinstance(chosen, str) and chosen.strip():
                yield expanded(chosen.strip())
    yield from (folder / "models" for folder in own)


def _text(file: Path) -> str:
    """What a small file says; empty if it cannot be read."""
    with suppress(OSError), file.open("rb") as opened:
        return opened.read(_SETTINGS_LIMIT).decode("utf-8", "replace")
    return ""


def _first(environment: Mapping[str, str], *names: str) -> Path | None:
    """The folder in the first of these variables that is set."""
    value = next((environment[name].strip() for name in names if environment.get(name, "").strip()), "")
    return expanded(value) if value else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _distinct(found: Iterator[ModelPlace]) -> list[ModelPlace]:
    """Each folder once, even if several links lead to it."""
    return list({place.folder.resolve(): place for place in found}.values())
