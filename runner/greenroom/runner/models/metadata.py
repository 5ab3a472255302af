"""What a model's own files say about it, whatever their format."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Literal, Protocol

from greenroom.actors.values import ModelFormat

_MOST_PARAMETERS = 2**50
_LONGEST_CONTEXT = 2**27
_MOST_KEYS = 2_000
"""Of a header that are shown; models have a hundred."""


class Readable(Protocol):
    """A file: a path, or one that is open."""

    @property
    def name(self) -> str:
        """Without its folder."""
        ...

    @property
    def suffix(self) -> str:
        """The end of its name, from the last dot on."""
        ...

    def stat(self) -> os.stat_result:
        """As it is now."""
        ...

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """Its content."""
        ...

    def read_bytes(self) -> bytes:
        """All of it."""
        ...


@dataclass(frozen=True)
class Metadata:
    """Facts about a model; zero and empty mean: its files do not say."""

    format: ModelFormat
    architecture: str = ""
    parameter_count: int = 0
    quantization: str = ""
    context_length: int = 0
    """Tokens it was trained for."""
    kv_bytes_per_token: int = 0
    """Bytes of 16-bit key/value cache one token of context needs, all layers together."""
    chat_template: bool = False
    """True when it carries a chat template."""
    raw: Mapping[str, str] = field(default_factory=dict)
    """Scalar header keys as text, for `inspect`."""

    @property
    def parameters(self) -> str:
        """The number of parameters for people: `134.52M`."""
        return count_text(self.parameter_count) if self.parameter_count else ""


def read_metadata(files: Sequence[Readable]) -> Metadata:
    """Read the headers of one model's files: GGUF shards in order, or safetensors with `config.json`.

    Raises:
        JobFailed: permanent, `not_a_model`: with the reason in one sentence.
    """
    from greenroom.runner.models import gguf, safetensors

    ggufs = [path for path in files if path.suffix.lower() == ".gguf" and "mmproj" not in path.name.lower()]
    return _sane(gguf.read_shards(ggufs) if ggufs else safetensors.read_files(files))


def _sane(said: Metadata) -> Metadata:
    """What headers say, without what cannot be: numbers that nothing could hold are as good as unknown."""
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
