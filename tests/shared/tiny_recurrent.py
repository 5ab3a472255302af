"""A model of 100 kB whose state is recurrent: one layer of the mamba architecture with random weights.

Written as `tiny_model` writes its own; it says bytes, which mean nothing.
"""

from __future__ import annotations

import random
import struct
from math import prod

from greenroom.runner.engines.launchers import tiny_model as tiny

WIDTH, INNER, STATE, RANK, KERNEL = 64, 128, 16, 4, 4
CONTEXT = 512
_UINT32, _INT32, _FLOAT32, _STRING = 4, 5, 6, 8
_TOKENS = ("<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256)))
_TENSORS: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (WIDTH, len(_TOKENS)),
    "output_norm.weight": (WIDTH,),
    "blk.0.attn_norm.weight": (WIDTH,),
    "blk.0.ssm_in.weight": (WIDTH, 2 * INNER),
    "blk.0.ssm_conv1d.weight": (KERNEL, INNER),
    "blk.0.ssm_conv1d.bias": (INNER,),
    "blk.0.ssm_x.weight": (INNER, RANK + 2 * STATE),
    "blk.0.ssm_dt.weight": (RANK, INNER),
    "blk.0.ssm_dt.bias": (INNER,),
    "blk.0.ssm_a": (STATE, INNER),
    "blk.0.ssm_d": (INNER,),
    "blk.0.ssm_out.weight": (INNER, WIDTH),
}


def gguf() -> bytes:
    """The whole file; always the same bytes."""
    sizes = {
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "block_count": 1,
        "ssm.conv_kernel": KERNEL,
        "ssm.inner_size": INNER,
        "ssm.state_size": STATE,
        "ssm.time_step_rank": RANK,
    }
    metadata = [
        tiny.entry("general.architecture", _STRING, "mamba"),
        *(tiny.entry(f"mamba.{name}", _UINT32, size) for name, size in sizes.items()),
        tiny.entry("mamba.attention.layer_norm_rms_epsilon", _FLOAT32, 1e-5),
        tiny.entry("tokenizer.ggml.model", _STRING, "llama"),
        tiny.array("tokenizer.ggml.tokens", _STRING, _TOKENS),
        tiny.array("tokenizer.ggml.scores", _FLOAT32, [0.0] * len(_TOKENS)),
        tiny.array("tokenizer.ggml.token_type", _INT32, [2, 3, 3] + [6] * 256),
    ]
    described, tensors = b"", b""
    chance = random.Random(2)
    for name, shape in _TENSORS.items():
        described += tiny.text(name) + struct.pack("<I", len(shape))
        described += struct.pack(f"<{len(shape)}QIQ", *shape, 0, len(tensors))
        low = -1.0 if name.endswith("ssm_a") else -0.1
        weights = (chance.uniform(low, 0.1 if low > -1 else -0.1) for _ in range(prod(shape)))
        tensors += tiny.padded(struct.pack(f"<{prod(shape)}f", *weights))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(_TENSORS), len(metadata))
    return tiny.padded(head + b"".join(metadata) + described) + tensors
