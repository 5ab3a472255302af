"""A model of 300 kB, made on the spot: one layer of the llama architecture with random weights.

The format is GGUF 3 (ggml's `docs/gguf.md`): header, metadata, descriptions of the tensors, tensors.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

WIDTH = 64
FEED_FORWARD = 128
HEADS = 2
_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _STRING, _ARRAY = 4, 5, 6, 8, 9
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6
"""Kinds of tokens."""
_TOKENS = ("<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256)))


def gguf() -> bytes:
    """The whole file; always the same bytes."""
    metadata = [
        entry("general.architecture", _STRING, "llama"),
        entry("llama.context_length", _UINT32, 64),
        entry("llama.embedding_length", _UINT32, WIDTH),
        entry("llama.block_count", _UINT32, 1),
        entry("llama.feed_forward_length", _UINT32, FEED_FORWARD),
        entry("llama.attention.head_count", _UINT32, HEADS),
        entry("llama.attention.layer_norm_rms_epsilon", _FLOAT32, 1e-5),
        entry("tokenizer.ggml.model", _STRING, "llama"),
        array("tokenizer.ggml.tokens", _STRING, _TOKENS),
        array("tokenizer.ggml.scores", _FLOAT32, [0.0] * len(_TOKENS)),
        array("tokenizer.ggml.token_type", _INT32, [_UNKNOWN, _CONTROL, _CONTROL] + [_BYTE] * 256),
    ]
    described, tensors = b"", b""
    chance = random.Random(1)  # noqa: S311 - weights are no secret
    for name, shape in _SHAPES.items():
        described += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        described += struct.pack("<IQ", 0, len(tensors))
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors += padded(struct.pack(f"<{count}f", *(chance.uniform(-0.1, 0.1) for _ in range(count))))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(_SHAPES), len(metadata))
    return padded(head + b"".join(metadata) + described) + tensors


_SHAPES = {
    "token_embd.weight": (WIDTH, len(_TOKENS)),
    "output_norm.weight": (WIDTH,),
    "output.weight": (WIDTH, len(_TOKENS)),
    "blk.0.attn_norm.weight": (WIDTH,),
    "blk.0.attn_q.weight": (WIDTH, WIDTH),
    "blk.0.attn_k.weight": (WIDTH, WIDTH),
    "blk.0.attn_v.weight": (WIDTH, WIDTH),
    "blk.0.attn_output.weight": (WIDTH, WIDTH),
    "blk.0.ffn_norm.weight": (WIDTH,),
    "blk.0.ffn_gate.weight": (WIDTH, FEED_FORWARD),
    "blk.0.ffn_up.weight": (WIDTH, FEED_FORWARD),
    "blk.0.ffn_down.weight": (FEED_FORWARD, WIDTH),
}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: object) -> bytes:
    if kind == _STRING:
        return text(str(value))
    return struct.pack({_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f"}[kind], value)


def entry(key: str, kind: int, value: object) -> bytes:
    return text(key) + struct.pack("<I", kind) + _value(kind, value)


def array(key: str, kind: int, values: Sequence[object]) -> bytes:
    head = text(key) + struct.pack("<IIQ", _ARRAY, kind, len(values))
    return head + b"".join(_value(kind, one) for one in values)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
