"""vllm for CUDA, and vllm-metal for Apple silicon."""

from __future__ import annotations

import math

from greenroom.runner.backends.declaration import (
    Backend,
    Command,
    Environment,
    Image,
    Launch,
    Platform,
    Readiness,
)
from greenroom.runner.backends.flags import VLLM
from greenroom.runner.engines.launchers import launcher

_MIN_MACOS = 15


def _serve_arguments(launch: Launch) -> list[str]:
    """vLLM's own server arguments, the same for both builds."""
    spec = launch.spec
    args = ["--uds", str(launch.socket), "--served-model-name", spec.model_id, launch.model.name]
    if launch.model.chat_template is not None:
        args += ["--chat-template", str(launch.model.chat_template)]
    if spec.mode == "embedding":
        args += ["--runner", "pooling"]
    if spec.context_size > 0:
        args += ["--max-model-len", str(spec.context_size)]
    if spec.device_total and not any(flag.startswith("--gpu-memory-utilization") for flag in spec.flags):
        # Left to itself it takes nine tenths of a device, whatever the model.
        share = math.floor(1000 * spec.device_memory / spec.device_total) / 1000
        args += ["--gpu-memory-utilization", str(max(0.01, share))]
    return [*args, *spec.flags]


class Vllm(Backend):
    """safetensors on Linux with an NVIDIA GPU."""

    name = "vllm"
    title = "vLLM (Linux, NVIDIA GPU)"
    formats = ("safetensors",)
    modes = ("completion", "embedding")
    preference = 10
    install_preference = 20
    source = Environment(distribution="vllm", lock="vllm", probe=("vllm",), requirements=("vllm",))
    readiness = Readiness(path="/health", loading=frozenset({503}))
    allowed_flags = VLLM
    overhead_bytes = 2 * 2**30
    uses_devices = True

    def verdict(self, platform: Platform) -> str:
        """Linux with a CUDA driver."""
        if platform.system != "linux":
            return f"vllm runs on Linux; this is {_named(platform)}."
        if not platform.cuda:
            return "vllm needs an NVIDIA GPU with its driver; none answers on this machine."
        return ""

    def command(self, launch: Launch) -> Command:
        """`vllm serve` as a module of the installation's own Python."""
        return Command(
            argv=(
                str(launch.python),
                "-I",
                str(launcher("vllm")),
                "vllm.entrypoints.cli.main",
                "serve",
                str(launch.model.path),
                *_serve_arguments(launch),
            ),
            env={"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
        )


class VllmMetal(Backend):
    """safetensors on Apple silicon, from an image with a self-contained Python."""

    name = "vllm-metal"
    title = "vLLM on Metal (macOS 15 or newer, Apple silicon)"
    formats = ("safetensors",)
    modes = ("completion", "embedding")
    preference = 20
    install_preference = 20
    source = Image(
        reference="docker.io/docker/model-runner:vllm-metal-v0.2.0-20260420-142150",
        version="0.2.0-20260420-142150",
        tree="/vllm-metal",
        executables=("bin/*",),
        probe=("vllm_metal",),
        tags="vllm-metal-v{version}",
        prebuilt={"prebuilt": ".cache/vllm-metal"},
    )
    readiness = Readiness(path="/health", loading=frozenset({503}))
    allowed_flags = VLLM
    overhead_bytes = 2 * 2**30

    def verdict(self, platform: Platform) -> str:
        """macOS 15 or newer on Apple silicon; it brings its own Python 3.12."""
        old_mac = platform.macos is not None and platform.macos[0] < _MIN_MACOS
        if platform.system != "darwin" or platform.machine != "arm64" or old_mac:
            return (
                f"vllm-metal needs macOS {_MIN_MACOS} or newer on Apple silicon only, and brings its own "
                f"Python 3.12; this is {_named(platform)}."
            )
        return ""

    def command(self, launch: Launch) -> Command:
        """A plain vLLM server; remote code stays off."""
        return Command(
            argv=(
                str(launch.python),
                "-I",
                str(launcher("vllm")),
                "vllm.entrypoints.openai.api_server",
                "--model",
                str(launch.model.path),
                "--enable-auto-tool-choice",
                "--tool-call-parser",
                "hermes",
                *_serve_arguments(launch),
            ),
            env={"VLLM_HOST_IP": "127.0.0.1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
        )


def _named(platform: Platform) -> str:
    if platform.macos is not None:
        # To a Python under Rosetta an Apple silicon Mac looks like this as well.
        emulated = " (or a Python for Intel on Apple silicon)" if platform.machine == "x86_64" else ""
        return f"macOS {platform.macos[0]}.{platform.macos[1]} on {platform.machine}{emulated}"
    return f"{platform.system} on {platform.machine}"
