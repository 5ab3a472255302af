"""Eyes for smollm2: a projector of 600 kB with random weights, and small images that need no library.

Of llava's kind (llama.cpp, `tools/mtmd/models/llava.cpp`): an image is cut into squares, and each square
becomes one token as wide as smollm2's. What it sees means nothing; how many tokens it becomes is exact.
"""

from __future__ import annotations

import base64
import random
import struct
import zlib
from collections.abc import Sequence
from math import prod

TOKENS = 16
"""Tokens that every image becomes, whatever its size."""
_SQUARE = 14
_SIDE = 4
_WIDTH = 64
_OUT = 576
"""Elements of a token of smollm2."""
_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9
_ALIGNMENT = 32

_TENSORS: dict[str, tuple[int, ...]] = {
    "v.patch_embd.weight": (_SQUARE, _SQUARE, 3, _WIDTH),
    "v.position_embd.weight": (_WIDTH, TOKENS),
    "v.blk.0.attn_q.weight": (_WIDTH, _WIDTH),
    "v.blk.0.attn_k.weight": (_WIDTH, _WIDTH),
    "v.blk.0.attn_v.weight": (_WIDTH, _WIDTH),
    "v.blk.0.attn_out.weight": (_WIDTH, _WIDTH),
    "v.blk.0.ln1.weight": (_WIDTH,),
    "v.blk.0.ln2.weight": (_WIDTH,),
    "v.blk.0.ffn_up.weight": (_WIDTH, 2 * _WIDTH),
    "v.blk.0.ffn_down.weight": (2 * _WIDTH, _WIDTH),
    "mm.0.weight": (_WIDTH, _WIDTH),
    "mm.0.bias": (_WIDTH,),
    "mm.2.weight": (_WIDTH, _OUT),
    "mm.2.bias": (_OUT,),
}
_KEYS: dict[str, str | float | list[float]] = {
    "general.architecture": "clip",
    "general.type": "mmproj",
    "clip.has_vision_encoder": True,
    "clip.projector_type": "mlp",
    "clip.use_gelu": True,
    "clip.vision.image_size": _SIDE * _SQUARE,
    "clip.vision.patch_size": _SQUARE,
    "clip.vision.embedding_length": _WIDTH,
    "clip.vision.feed_forward_length": 2 * _WIDTH,
    "clip.vision.block_count": 2,
    "clip.vision.attention.head_count": 2,
    "clip.vision.attention.layer_norm_epsilon": 1e-5,
    "clip.vision.projection_dim": _OUT,
    "clip.vision.image_mean": [0.5, 0.5, 0.5],
    "clip.vision.image_std": [0.5, 0.5, 0.5],
}


def projector() -> bytes:
    """The GGUF file; always the same bytes."""
    tensors = _TENSORS | {
        name.replace(".0.", ".1."): shape for name, shape in _TENSORS.items() if name.startswith("v.blk.0.")
    }
    chance = random.Random(1)
    described, data = b"", b""
    for name, shape in tensors.items():
        described += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        described += struct.pack("<IQ", 0, len(data))
        count = prod(shape)
        data += _padded(struct.pack(f"<{count}f", *(chance.uniform(-0.05, 0.05) for _ in range(count))))
    keys = b"".join(_text(key) + _value(value) for key, value in _KEYS.items())
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(_KEYS))
    return _padded(head + keys + described) + data


def png(width: int = 8, height: int = 8, colour: Sequence[int] = (200, 30, 30)) -> bytes:
    """An image of one colour."""
    rows = (b"\0" + bytes(colour) * width) * height
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(rows))
        + _chunk(b"IEND", b"")
    )


def base64_png(width: int = 8, height: int = 8) -> str:
    return base64.b64encode(png(width, height)).decode()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | float | list[float]) -> bytes:
    match value:
        case str():
            return struct.pack("<I", _STRING) + _text(value)
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case int():
            return struct.pack("<II", _UINT32, value)
        case float():
            return struct.pack("<If", _FLOAT32, value)
        case list():
            return struct.pack(f"<IIQ{len(value)}f", _ARRAY, _FLOAT32, len(value), *value)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
