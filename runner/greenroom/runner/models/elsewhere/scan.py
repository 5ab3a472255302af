"""A bounded walk through folders of other programs, and the models found there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from greenroom.runner.models.references import BadReference, Reference, familiar
from greenroom.runner.models.selection import quantisation_of
from greenroom.runner.threads import stop_if

_MOST = 200_000
"""Maximum files and folders to list below one root."""
_DEEPEST = 8


@dataclass(frozen=True)
class FoundModel:
    """A model that another program keeps."""

    place: str
    """The program's name."""
    name: str
    """The name it would have in our store."""
    path: Path
    """What to pull: a GGUF file, a folder of safetensors, or an Ollama manifest."""


def folders(root: Path, cancel: Event) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder below a root with the names of its files and folders, sorted.

    Links to folders are not followed. A folder that cannot be read, lies more than eight levels deep or comes
    after the first 200,000 names counts as empty.

    Raises:
        JobCancelled: `cancel` was set.
    """
    left = _MOST
    waiting = [(root, 0)]
    while waiting and left > 0:
        stop_if(cancel)
        folder, depth = waiting.pop()
        files: list[str] = []
        inner: list[str] = []
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    break
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(entry.name)
                    elif entry.is_file():
                        files.append(entry.name)
        yield folder, sorted(files), sorted(inner)
        if depth < _DEEPEST:
            waiting += [(folder / name, depth + 1) for name in sorted(inner, reverse=True)]


def name_of(text: str) -> str:
    """The valid model name nearest to a text, as displayed."""
    with suppress(BadReference):
        reference = Reference.parse(text)
        if reference.scheme in ("oci", "huggingface") and not reference.digest:
            return familiar(reference.stored_tag)
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:100]
    return plain or "model"


def name_of_file(file: str) -> str:
    """A name for a GGUF file, from the file's own, with the quantization as the tag."""
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", file.removesuffix(".gguf"))
    quantisation = quantisation_of(file)
    base = stem[: -len(quantisation)].rstrip("-._") if quantisation else stem
    plain = re.sub(r"[^a-z0-9]+", "-", base.lower()).strip("-")[:100] or "model"
    return f"{plain}:{quantisation.lower()}" if quantisation else plain
