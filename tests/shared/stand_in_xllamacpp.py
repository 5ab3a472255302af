"""A stand-in for xllamacpp as a wheel: it reads the model, computes a token or fails as a test wants."""

from __future__ import annotations

SAID = {
    "no_kernel": "CUDA error: no kernel image is available for execution on the device",
    "ptx_too_new": "CUDA error: the provided PTX was compiled with an unsupported toolchain.",
    "forward_compatibility": (
        "ggml_cuda_init: failed to initialize CUDA: forward compatibility was attempted on non supported HW"
    ),
    "driver_too_old": (
        "ggml_cuda_init: failed to initialize CUDA: "
        "CUDA driver version is insufficient for CUDA runtime version"
    ),
    "driver_mismatch": "Failed to initialize NVML: Driver/library version mismatch",
    "device_out_of_memory": "ggml_vulkan: Device memory allocation failed: vk::Device::allocateMemory: "
    "ErrorOutOfDeviceMemory",
    "no_device": "",
    "does_not_compute": "GGML_ASSERT(buffer) failed",
}
"""What the real library prints, by the code that we make of it."""
_UNLISTED = ("no_device", "forward_compatibility", "driver_too_old", "driver_mismatch")
"""Without a device the real library goes on with the processor."""

_TEXT = """
import os
import struct
import sys

VARIANT, FAULT, SAID, LISTED = {variant!r}, {fault!r}, {said!r}, {listed!r}


def get_device_info():
    kind = "ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_"
    if SAID and not LISTED:
        sys.stderr.write(SAID + "\\n")
    card = [{{"name": "CUDA0", "description": "a card", "type": kind + "GPU"}}] if LISTED else []
    return [*card, {{"name": "CPU", "description": "a processor", "type": kind + "CPU"}}]


class CommonParams:
    def __init__(self):
        self.model = type("Model", (), {{"path": ""}})()


class Server:
    def __init__(self, params):
        with open(params.model.path, "rb") as file:
            self.weights = file.read()
        if self.weights[:4] != b"GGUF":
            raise RuntimeError("not a model")

    def handle_completions(self, body):
        if FAULT and LISTED:
            sys.stderr.write(SAID + "\\n")
            sys.stderr.flush()
            os.abort()
        last = struct.unpack("<64f", self.weights[-256:])
        token = max(range(64), key=last.__getitem__)
        usage = {{"completion_tokens": body["max_tokens"]}}
        return {{"choices": [{{"text": chr(65 + token % 26)}}], "usage": usage}}
"""


def module(variant: str, fault: str = "", *, on_device: bool = True) -> dict[str, bytes]:
    """The files of a wheel of that variant."""
    listed = on_device and fault not in _UNLISTED
    text = _TEXT.format(variant=variant, fault=fault, said=SAID.get(fault, ""), listed=listed)
    return {"xllamacpp/__init__.py": text.encode()}
