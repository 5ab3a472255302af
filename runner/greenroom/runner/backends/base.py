"""What a backend declares: where it runs, what to install, how to start it, how it speaks.

A declaration is data and two pure functions (`verdict`, `command`). Everything that acts on it lives
elsewhere: `installations` builds it, `engines` starts it, the front door shapes requests by it.
"""

from __future__ import annotations

import platform as _platform
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from greenroom.actors.values import EngineSpec, Mode, ModelFormat
from greenroom.runner.backends import nvidia


@dataclass(frozen=True)
class Platform:
    """The machine, as far as a backend cares; a value, so that tests can be on any machine."""

    system: str
    """`linux`, `darwin` or `windows`."""
    machine: str
    """`x86_64` or `arm64`, whatever the system calls them."""
    python: tuple[int, int]
    macos: tuple[int, int] | None = None
    cuda: bool = False
    """True where an NVIDIA graphics processor can be used."""

    @classmethod
    def here(cls) -> Platform:
        """The machine this runs on."""
        machine = {"amd64": "x86_64", "aarch64": "arm64"}.get(
            _platform.machine().lower(), _platform.machine().lower()
        )
        release = _platform.mac_ver()[0]
        macos = None
        if release:
            parts = [*release.split("."), "0"]
            macos = (int(parts[0]), int(parts[1]))
        return cls(
            system=_platform.system().lower(),
            machine=machine,
            python=(sys.version_info.major, sys.version_info.minor),
            macos=macos,
            cuda=_platform.system() == "Linux" and nvidia.answers(),
        )


@dataclass(frozen=True)
class Environment:
    """Installed as a Python environment from a hash-locked requirement file that ships with us."""

    distribution: str
    """The distribution whose version is the installation's version, such as `mlx-lm`."""
    lock: str
    """Stem of the requirement file under `runner/installations/locks/`, such as `mlx`."""
    probe: tuple[str, ...]
    """Modules that must import in the finished environment."""
    requirements: tuple[str, ...]
    """What the lock was resolved from, and what `latest` resolves again."""
    indexes: tuple[str, ...] = ()
    """Further package indexes its wheels live on, beside the user's own; the user may name others instead."""
    excluded: tuple[str, ...] = ()
    """Distributions that are required by name but must not be there, such as builds for other processors."""
    universal: bool = True
    """One lock serves all platforms and Pythons; False: one for each, made on a machine of that kind."""


@dataclass(frozen=True)
class Image:
    """Installed by unpacking a tree out of an OCI image."""

    reference: str
    """Name and tag, or name and digest."""
    version: str
    """What the reference's tag stands for."""
    tree: str
    """Path of the tree inside the image, such as `/vllm-metal`. It must have a `bin/python3`."""
    executables: tuple[str, ...]
    """Globs below the tree whose execute bits the image has lost."""
    probe: tuple[str, ...] = ()
    """Modules that must import in the finished tree."""
    tags: str = "{version}"
    """How the tag of any version is made from it, such as `vllm-metal-v{version}`."""
    prebuilt: Mapping[str, str] = field(default_factory=dict)
    """Folders below the tree to copy to places under the user's home, where the backend looks for them."""

    def out_of(self, reference: str) -> Image:
        """The same tree out of another image, whose version is what its tag or digest says."""
        name, _, digest = reference.partition("@")
        tag = name.rpartition("/")[2].partition(":")[2]
        pattern = re.escape(self.tags).replace(re.escape("{version}"), "(.+)")
        if match := re.fullmatch(pattern, tag):
            version = match[1]
        elif tag or not digest:
            version = tag or "latest"
        else:
            version = f"sha256-{digest.removeprefix('sha256:')[:12]}"
        return replace(self, reference=reference, version=version)


@dataclass(frozen=True)
class Readiness:
    """How to tell loading from ready from dead."""

    path: str = "/health"
    loading: frozenset[int] = frozenset({503})
    """Statuses that mean: alive and still loading."""
    dead: frozenset[int] = frozenset()
    """Statuses that mean: alive as a process, but this load will never succeed."""
    proof: bool = False
    """True where 200 proves nothing: a one-token completion must succeed before the engine is ready."""
    counters: tuple[str, ...] = ()
    """Paths of the engine's own counters: what is told there changes with every batch it computes, and stands
    still while it does nothing."""


@dataclass(frozen=True)
class Cannot:
    """Something a request may ask for that an engine would ignore in silence, or die of. It is refused."""

    param: str
    """The field that asks for it."""
    asked: Callable[[Mapping[str, Any]], object]
    """Whether these fields ask for it; they have passed the checks of their family."""
    instead: str = ""
    """What to do instead, in a sentence."""


@dataclass(frozen=True)
class Dialect:
    """How requests and answers differ from what the client sent and expects."""

    model_name: str | None = None
    """Sent instead of the client's model name, and replaced by it again in answers; `{model_id}` in it stands
    for the model's id. None where any name will do."""
    dropped: frozenset[str] = frozenset()
    """Request fields the engine must never see, since they would load other weights."""
    cannot: tuple[Cannot, ...] = ()
    pools_by_header: bool = False
    """It makes embeddings only with a model whose header says how, or with `--pooling` among its flags."""

    def spoken(self, model_id: str) -> str | None:
        """What the engine calls the model, or None when it takes any name."""
        return None if self.model_name is None else self.model_name.replace("{model_id}", model_id)


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's bytes are, for an engine."""

    path: Path
    """The GGUF file (first shard), or the folder with safetensors, tokenizer and config."""
    format: ModelFormat
    name: str
    """The reference clients use."""
    context_length: int = 0
    """Tokens it was trained for; 0 when unknown."""
    kv_bytes_per_token: int = 0
    """Bytes of 16-bit key/value cache a token needs; 0 when unknown."""
    mmproj: Path | None = None
    chat_template: Path | None = None


@dataclass(frozen=True)
class Launch:
    """All that a command line depends on."""

    spec: EngineSpec
    root: Path
    """The installation's folder."""
    python: Path
    """The installation's own interpreter."""
    model: ModelFiles
    socket: Path
    """Where the engine must listen; at most 100 bytes."""
    binary: Path | None = None
    """A program of the user's own that is run instead of ours."""
    prompt_speed: float = 0.0
    """Tokens of a prompt that the last engine of this model has read in a second; 0 when unknown."""


@dataclass(frozen=True)
class CommandLine:
    """A program to start: argv and the variables added to a cleaned environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


class Backend(ABC):
    """One kind of inference software. Subclasses are declarations: class attributes and two functions."""

    name: ClassVar[str]
    title: ClassVar[str]
    """One line for people."""
    deferred: ClassVar[bool] = True
    """Installed only when it is asked for."""
    formats: ClassVar[tuple[ModelFormat, ...]]
    modes: ClassVar[tuple[Mode, ...]]
    preference: ClassVar[int]
    """Among backends that are installed and can serve a model, the lowest number serves."""
    install_preference: ClassVar[int]
    """Among backends that could be installed to serve a model, the lowest number is offered."""
    source: ClassVar[Environment | Image]
    readiness: ClassVar[Readiness] = Readiness()
    dialect: ClassVar[Dialect] = Dialect()
    allowed_flags: ClassVar[frozenset[str]] = frozenset()
    """User flags that pass; empty refuses all."""
    overhead_bytes: ClassVar[int] = 200 * 2**20
    """Memory an engine needs beyond weights and key/value cache."""
    slots: ClassVar[int] = 0
    """Requests an engine takes at once unless somebody says otherwise; `command` must see to it that it does
    (`EngineSpec.slots`). 0: it takes all that come, and its context is its own affair."""
    shares_cache: ClassVar[bool] = False
    """Its slots share the key/value cache of one context, and it makes requests wait when that is full."""
    keeps_prompts: ClassVar[bool] = False
    """It keeps prompts in memory after their requests, as many bytes as `EngineSpec.prompt_cache` says."""
    uses_devices: ClassVar[bool] = False
    """Its engines compute on a graphics device with memory of its own, where there is one."""

    def on(self, platform: Platform) -> Backend:  # noqa: ARG002 - the same everywhere, unless it says otherwise
        """The declaration of this backend for a platform: what is installed may depend on its processors."""
        return self

    @abstractmethod
    def verdict(self, platform: Platform) -> str:
        """Empty when this platform can run it, else one sentence that says what it would need."""

    def prompt_speed(self, log: str) -> float:  # noqa: ARG002 - most do not say
        """Tokens of a prompt read in a second, from what an engine has logged; 0.0 when it does not say."""
        return 0.0

    @abstractmethod
    def command(self, launch: Launch) -> CommandLine:
        """The program that serves this model on this socket, through a launcher of ours if need be."""


RESERVED_NAMES = frozenset({"v1", "status", "ps", "df", "unload", "requests"})
"""Path segments under `/engines` that no backend may be called."""
