"""Models as plain files in folders, as LM Studio and llama.cpp keep them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event

from greenroom.runner.models.elsewhere.scan import FoundModel, folders, name_of, name_of_file
from greenroom.runner.models.manifest import is_projector, shard_of, suffix_of
from greenroom.runner.models.selection import quantisation_of

_FETCHED = re.compile(r"manifest=([^=]+)=([^=]+)=.+\.json")
"""The manifest that llama.cpp keeps beside each download: `manifest=ORGANIZATION=MODEL=TAG.json`."""


def models_in(folder: Path, files: Sequence[str]) -> Iterator[Path]:
    """What can be pulled from a folder with these files: GGUF files (the first of several shards), and the
    folder itself if it holds safetensors.
    """
    for name in files:
        if suffix_of(name) == ".gguf" and not is_projector(name) and shard_of(name)[1] in (0, 1):
            yield folder / name
    if "config.json" in files and any(suffix_of(name) == ".safetensors" for name in files):
        yield folder


def published(place: str, root: Path, cancel: Event) -> Iterator[FoundModel]:
    """Models in folders named `ORGANIZATION/MODEL`, as LM Studio names its downloads from Hugging Face."""
    for folder, files, _ in folders(root, cancel):
        for path in models_in(folder, files):
            parts = folder.relative_to(root).parts
            quantisation = quantisation_of(path.name)
            name = f"hf.co/{'/'.join(parts[:2])}{f':{quantisation}' if quantisation else ''}"
            own = name_of_file(path.name) if path != folder else name_of(folder.name)
            yield FoundModel(place, name_of(name) if len(parts) > 1 else own, path)


def fetched(place: str, root: Path, cancel: Event) -> Iterator[FoundModel]:
    """Models in files named `ORGANIZATION_MODEL_FILE.gguf`, as llama.cpp names its downloads."""
    for folder, files, _ in folders(root, cancel):
        known = {f"{found[1]}_{found[2]}_": found for name in files if (found := _FETCHED.fullmatch(name))}
        for path in models_in(folder, files):
            found = next((known[start] for start in known if path.name.startswith(start)), None)
            quantisation = quantisation_of(path.name)
            if found is not None:
                name = name_of(f"hf.co/{found[1]}/{found[2]}{f':{quantisation}' if quantisation else ''}")
            else:
                name = name_of_file(path.name) if path != folder else name_of(folder.name)
            yield FoundModel(place, name, path)
