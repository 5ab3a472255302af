"""What llama.cpp's log says about where a model lies.

Its library prints these lines while it loads (`llama-model.cpp`, `llama-kv-cache.cpp`, `llama-context.cpp`,
`ggml-cuda.cu`, `ggml-vulkan.cpp`), at the level that its server calls trace.
"""

from __future__ import annotations

import re

from greenroom.actors.values import Loaded

_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_BUFFER = re.compile(r"(\S+) +(?:model|KV|RS|compute|output|LoRA) buffer size = +([\d.]+) MiB")
_MODEL = re.compile(r"(\S+) +model buffer size = +([\d.]+) MiB")
_OWN_MEMORY = re.compile(r"CPU|BLAS|.*_Host$|AMX|ACCEL")
"""Names of buffers in the machine's memory."""
_REASONS = (
    re.compile(r"(ggml_cuda_init: failed to initialize \S+: .+)"),
    re.compile(r"(ggml_vulkan: No devices found\.?)"),
    re.compile(r"(no usable GPU found[^\n]*)"),
    re.compile(r"(compiled without (?:support for )?GPU (?:support|offload)[^\n]*)"),
)
_MIB = 2**20


def loaded(log: str, overhead: int) -> Loaded | None:
    """None if it has not printed its buffers.

    Args:
        overhead: Bytes that a device's driver takes besides.
    """
    model = [(name, float(size)) for name, size in _MODEL.findall(log)]
    if not model:
        return None
    # "offloaded 37/37" is printed even without any device: what counts is whether one has weights.
    on_device = any(size for name, size in model if not _OWN_MEMORY.match(name))
    told = _OFFLOADED.search(log)
    layers, total = (int(told[1]), int(told[2])) if told else (0, 0)
    sizes = [(name, float(size)) for name, size in _BUFFER.findall(log) if not _OWN_MEMORY.match(name)]
    devices = {name.partition("_")[0] for name, _ in sizes}
    reason = next((found[1] for pattern in _REASONS if (found := pattern.search(log))), "")
    return Loaded(
        layers=layers if on_device else 0,
        total=total,
        size=int(sum(size for _, size in sizes) * _MIB) + overhead * len(devices),
        reason="" if on_device else reason.strip(),
    )
