"""Metadata of a model from its own files, whatever their format."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Literal, Protocol

from greenroom.actors.values import Medium, ModelFormat, ModelLayers
from greenroom.runner.models.purpose import Purpose

_MOST_PARAMETERS = 2**50
_LONGEST_CONTEXT = 2**27
_MOST_KEYS = 2_000
"""Header keys shown; models have a hundred."""


class Readable(Protocol):
    """A file: a path, or an open file."""

    @property
    def name(self) -> str: ...
    @property
    def suffix(self) -> str: ...
    def stat(self) -> os.stat_result: ...
    def open(self, mode: Literal["rb"]) -> BinaryIO: ...
    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class Metadata:
    """Metadata of a model; zero and empty mean unknown."""

    format: ModelFormat
    architecture: str = ""
    parameter_count: int = 0
    quantization: str = ""
    context_length: int = 0
    """Tokens it was trained for."""
    kv_bytes_per_token: int = 0
    """Bytes of 16-bit key/value cache per token of context, all layers together."""
    layers: ModelLayers = field(default_factory=ModelLayers)
    """Without numbers for formats whose engines do not divide a model."""
    projector_size: int = 0
    """Bytes of the files that turn images or sound into tokens."""
    reads: tuple[Medium, ...] = ()
    """What it reads beside text."""
    chat_template: bool = False
    purpose: Purpose = Purpose()  # noqa: RUF009 - a tuple
    raw: Mapping[str, str] = field(default_factory=dict)
    """Scalar header keys as text, for `inspect`."""

    @property
    def parameters(self) -> str:
        """The number of parameters as text: `134.52M`."""
        return count_text(self.parameter_count) if self.parameter_count else ""


def read_metadata(files: Sequence[Readable]) -> Metadata:
    """Read the headers of one model's files: GGUF shards in order with a projector, or safetensors with
    `config.json`.

    Raises:
        JobFailed: permanent, `not_a_model`: with the reason in one sentence.
    """
    from greenroom.runner.models import gguf, safetensors

    ggufs = [path for path in files if path.suffix.lower() in (".gguf", ".mmproj")]
    return _sane(gguf.read_shards(ggufs) if ggufs else safetensors.read_files(files))


def _sane(said: Metadata) -> Metadata:
    """Without impossible numbers: those count as unknown."""
    return replace(
        said,
        parameter_count=said.parameter_count if said.parameter_count <= _MOST_PARAMETERS else 0,
        context_length=said.context_length if said.context_length <= _LONGEST_CONTEXT else 0,
        raw=dict(list(said.raw.items())[:_MOST_KEYS]),
    )


def count_text(count: int) -> str:
    """`134.52M`, `7.24B`."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return str(count)
