"""Reads GGUF headers without trusting them.

Our own reader, for two reasons: the `gguf` library imports numpy (some 30 MiB in a daemon that has 80) and
materialises every token of the vocabulary; and it trusts counts and lengths, so a file of a hundred bytes can
make it allocate gigabytes. Here each count is checked against the bytes left before anything is read, arrays
are skipped, and the whole header is bounded, so a hostile file costs at most a few seconds and MiB. Format:
ggml's `docs/gguf.md`; type
sizes: `ggml.c`.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import BinaryIO

from greenroom.actors.characters import is_line
from greenroom.actors.values import Medium
from greenroom.runner.errors import JobFailed
from greenroom.runner.models.errors import from_os_error, not_a_model
from greenroom.runner.models.gguf_layers import WeightsByLayer, WeightsCounter, cache_by_layer, layers_of
from greenroom.runner.models.manifest import is_projector
from greenroom.runner.models.metadata import Metadata, Readable
from greenroom.runner.models.purpose import of_gguf

_HEADER_LIMIT = 256 * 2**20
_KEYS_LIMIT = 65_536
_TENSORS_LIMIT = 65_536
_ITEMS_LIMIT = 2_500_000
"""Items of all string arrays; real vocabularies have a quarter million tokens and twice the merges."""
_TEXT_LIMIT = 2 * 2**20
_NAME_LIMIT = 65_535
_NAMES_LIMIT = 4 * 2**20
"""Bytes of all keys together; models have some kilobytes."""
_BLOCK = 256 * 1024
_KEPT_ITEMS = 4_096
_KEPT_TEXT = 1_024
"""Characters kept of a string."""
_RAW_LIMIT = 200

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# ggml type → (elements in a block, bytes of a block)
_TYPES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),
    22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36),
    41: (128, 18),
}  # fmt: skip

# llama.cpp's `llama_ftype`, as stored in `general.file_type`
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0",
}  # fmt: skip

_GUESSED = 1024
"""llama.cpp's mark on a file type that was derived, not stored."""


Value = str | int | float | bool | tuple[int | float | bool, ...] | None
"""Only short arrays of numbers are kept; others are None."""


@dataclass(frozen=True)
class Header:
    """The keys of one GGUF file and the totals of its tensors."""

    values: dict[str, Value] = field(default_factory=dict)
    parameters: int = 0
    tensors: int = 0
    weights: WeightsByLayer = field(default_factory=WeightsByLayer)


def read_shards(paths: Sequence[Readable]) -> Metadata:
    """The metadata of one model in one or several GGUF files, in order, and of its projector.

    Raises:
        JobFailed: permanent, `not_a_model`.
    """
    headers: list[Header] = []
    shards: list[Readable] = []
    projectors: list[tuple[Readable, Header]] = []
    for path in paths:
        header = read_header(path)
        if header.values.get("general.architecture") == "clip" or is_projector(path.name):
            projectors.append((path, header))
        else:
            shards.append(path)
            headers.append(header)
    if not headers:
        raise not_a_model(f"{paths[0].name} is only a projector, not the model it belongs to.")
    paths, first = shards, headers[0].values
    declared = _whole(first.get("split.count"))
    if declared > 1 and declared != len(paths):
        raise not_a_model(
            f"{paths[0].name} is one part of a model in {declared} files, of which {len(paths)} are present."
        )
    architecture = _text(first.get("general.architecture"))
    if not architecture:
        raise not_a_model(
            f"{paths[0].name} is a GGUF file that names no architecture, so nothing can run it."
        )
    file_type = first.get("general.file_type")
    kv_bytes, cache = cache_by_layer(architecture, first)
    weights = sum((header.weights for header in headers), WeightsByLayer())
    return Metadata(
        format="gguf",
        architecture=architecture,
        parameter_count=sum(header.parameters for header in headers),
        quantization=_FILE_TYPES.get(_whole(file_type) & ~_GUESSED, "") if file_type is not None else "",
        context_length=_whole(first.get(f"{architecture}.context_length")),
        kv_bytes_per_token=kv_bytes,
        layers=layers_of(architecture, first, weights, cache),
        projector_size=sum(_size_of(path) for path, _ in projectors),
        reads=tuple(dict.fromkeys(medium for _, header in projectors for medium in _media(header.values))),
        chat_template=bool(first.get("tokenizer.chat_template")),
        purpose=of_gguf(architecture, first, has_ranking_head=weights.has_ranking_head),
        raw={k: _shown(v) for k, v in first.items() if v is not None and len(_shown(v)) <= _RAW_LIMIT},
    )


def read_header(path: Readable) -> Header:
    """Read one file's header and check its tensors against the file's size.

    Raises:
        JobFailed: permanent, `not_a_model`, for anything malformed, truncated or absurd.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file, path.name, path.stat().st_size).header()
    except OSError as error:
        raise from_os_error(error, "reading the model") from error


def _media(values: Mapping[str, Value]) -> Iterator[Medium]:
    """What a projector reads; the oldest do not say, and read images."""
    sound = bool(values.get("clip.has_audio_encoder"))
    if values.get("clip.has_vision_encoder", not sound):
        yield "image"
    if sound:
        yield "audio"


def _size_of(path: Readable) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise from_os_error(error, "reading the model") from error


class _Reader:
    """Reads forward only, within the header's budget."""

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self._file = file
        self._name = name
        self._size = size
        self._left = min(size, _HEADER_LIMIT)
        self._items = _ITEMS_LIMIT

    def header(self) -> Header:
        magic = self._file.read(4)
        if magic != b"GGUF":
            raise not_a_model(_what_it_is(self._name, magic))
        self._left -= 4
        version = self._number("I")
        if version & 0xFFFF == 0:
            raise self._bad("is a big-endian GGUF file, which no backend here can read")
        if version not in (2, 3):
            raise self._bad(f"is a GGUF file of version {version}; versions 2 and 3 are known")
        tensors, keys = self._number("Q"), self._number("Q")
        # A key takes at least 13 bytes and a tensor 24: larger counts are refused before any work.
        if keys > min(_KEYS_LIMIT, self._left // 13) or tensors > min(_TENSORS_LIMIT, self._left // 24):
            raise self._bad(f"claims {keys} keys and {tensors} tensors, more than fit into it")
        values: dict[str, Value] = {}
        names = 0
        for _ in range(keys):
            key = self._string(_NAME_LIMIT)
            names += len(key)
            if names > _NAMES_LIMIT:
                raise self._bad("has keys that are too long")
            if key in values:
                raise self._bad(f"has the key {key[:60]!r} twice")
            values[key] = self._value(self._number("I"))
        if not tensors:
            raise self._bad("holds no weights (it may be only a vocabulary)")
        alignment = _whole(values.get("general.alignment")) or 32
        if alignment > 2**20 or alignment & (alignment - 1):
            raise self._bad(f"has an alignment of {alignment}, which is not a valid power of two")
        return self._tensors(tensors, alignment, values)

    def _tensors(self, count: int, alignment: int, values: dict[str, Value]) -> Header:
        spans: list[tuple[int, int]] = []
        weights = WeightsCounter()
        parameters = 0
        for number in range(count):
            if not number % 1_000:
                _let_others_go_on()
            name = self._string(_NAME_LIMIT)
            dimensions = self._number("I")
            if dimensions > 8:
                raise self._bad(f"has a tensor of {dimensions} dimensions")
            elements = prod(self._number("Q") for _ in range(dimensions))
            if elements >= 2**63:
                raise self._bad("has a tensor that is too large for any memory")
            kind, offset = self._number("I"), self._number("Q")
            parameters += elements
            block, width = _TYPES.get(kind, (0, 0))
            # Newer types than this table have no known size and are left to the engine.
            size = -(-elements // block) * width if block else 0
            weights.add(name, size, elements)
            spans.append((offset, size))
        start = -(-self._file.tell() // alignment) * alignment
        end = 0
        for offset, length in sorted(spans):
            if offset < end:
                raise self._bad("has overlapping tensors")
            end = offset + length
        if start + end > self._size:
            raise self._bad(f"is truncated: it has {self._size} bytes and its weights end at {start + end}")
        return Header(values, parameters, count, weights.total())

    def _value(self, kind: int) -> Value:
        if kind in _SCALARS:
            number: int | float | bool = self._number(_SCALARS[kind])
            return number
        if kind == _STRING:
            return self._string(_TEXT_LIMIT)[:_KEPT_TEXT]
        if kind == _ARRAY:
            return self._array(1)
        raise self._bad(f"has a value of the unknown type {kind}")

    def _array(self, depth: int) -> tuple[int | float | bool, ...] | None:
        kind, count = self._number("I"), self._number("Q")
        if kind in _SCALARS:
            code = _SCALARS[kind]
            length = count * struct.calcsize(code)
            if count <= _KEPT_ITEMS:
                return struct.unpack(f"<{count}{code}", self._take(length))
            self._skip(length)
            return None
        self._items -= count
        if self._items < 0 or count > self._left // 8:
            raise self._bad(f"has an array of {count} items, more than fit into it")
        if kind == _STRING:
            self._skip_strings(count)
        elif kind == _ARRAY and depth < 4:
            for _ in range(count):
                self._array(depth + 1)
        else:
            raise self._bad("has an array of an invalid type")
        return None

    def _skip_strings(self, count: int) -> None:
        """Skip strings in memory: a file operation for each would block other threads for seconds."""
        length_at = struct.Struct("<Q").unpack_from
        while count:
            block = self._file.read(_BLOCK)
            at = 0
            while count and at + 8 <= len(block):
                end = at + 8 + length_at(block, at)[0]
                if end > len(block):
                    break
                at, count = end, count - 1
            self._file.seek(at - len(block), 1)
            self._spend(at)
            if count and not at:  # longer than a block, or truncated
                self._skip(self._number("Q"))
                count -= 1
            _let_others_go_on()

    def _string(self, limit: int) -> str:
        length = self._number("Q")
        if length > limit:
            raise self._bad(f"has a string of {length} bytes; the limit is {limit}")
        return self._take(length).decode("utf-8", "replace")

    def _number(self, code: str) -> int:
        (number,) = struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))
        return number  # type: ignore[no-any-return]

    def _take(self, length: int) -> bytes:
        self._spend(length)
        data = self._file.read(length)
        if len(data) != length:
            raise self._bad("is truncated in its header")
        return data

    def _skip(self, length: int) -> None:
        self._spend(length)
        self._file.seek(length, 1)

    def _spend(self, length: int) -> None:
        if length > self._left:
            raise self._bad("is truncated in its header, or has a wrong header length")
        self._left -= length

    def _bad(self, reason: str) -> JobFailed:
        return not_a_model(f"{self._name} {reason}.")


def _let_others_go_on() -> None:
    """Release the interpreter to other threads, such as the event loop's."""
    time.sleep(0.0005)


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _text(value: object) -> str:
    return value if isinstance(value, str) and is_line(value, 100) else ""


def _shown(value: Value) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) if len(value) <= 50 else " " * (_RAW_LIMIT + 1)
    return str(value)


def _what_it_is(name: str, magic: bytes) -> str:
    known = {
        b"PK\x03\x04": "a zip archive (perhaps PyTorch weights, which can run code and are not loaded)",
        b"ggml": "a model of the old GGML format, which llama.cpp dropped in 2023",
        b"ggjt": "a model of the old GGML format, which llama.cpp dropped in 2023",
        b"\x7fELF": "a program",
        b"vers": "a Git LFS pointer, not the file itself; run `git lfs pull` where it was cloned",
        b"<!DO": "a web page, not a model",
        b"<htm": "a web page, not a model",
        b"": "empty",
    }
    return f"{name} is {known.get(magic, 'not a model: it is neither GGUF nor safetensors')}."
