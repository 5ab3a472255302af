"""What a backend declares: where it runs, what to install, how to start it, how it communicates.

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
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from greenroom.actors.graphics import Graphics
from greenroom.actors.values import EngineSpec, Loaded, Mode, ModelFormat, Pooling
from greenroom.runner.backends.source_build import SourceBuild
from greenroom.runner.engines.launchers import launcher

if TYPE_CHECKING:
    from greenroom.runner.backends.variants import Variant


@dataclass(frozen=True)
class Platform:
    """The machine as backends see it; a value, so that tests can use any machine."""

    system: str
    """`linux`, `darwin` or `windows`."""
    machine: str
    """`x86_64` or `arm64`, whatever the system's names are."""
    python: tuple[int, int]
    macos: tuple[int, int] | None = None
    cuda: bool = False
    """Whether an NVIDIA graphics processor can be used."""
    graphics: Graphics = field(default_factory=Graphics)
    """Its graphics devices."""

    @classmethod
    def here(cls, graphics: Graphics | None = None) -> Platform:
        """`graphics`: what is known of the devices already; else they are read, which may take seconds."""
        if graphics is None:
            from greenroom.runner.devices import inventory

            graphics = inventory.read()
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
            cuda=any(one.runtime("cuda") is not None for one in graphics.usable),
            graphics=graphics,
        )


@dataclass(frozen=True)
class Environment:
    """Installed as a Python environment from a hash-locked requirements file that ships with us."""

    distribution: str
    """The distribution whose version is the installation's version, such as `mlx-lm`."""
    lock: str
    """Stem of the requirements file under `runner/installations/locks/`, such as `mlx`."""
    probe: tuple[str, ...]
    """Modules that must be importable in the finished environment."""
    requirements: tuple[str, ...]
    """What the lock was resolved from, and what `latest` resolves again."""
    indexes: tuple[str, ...] = ()
    """Package indexes for its wheels, after the user's own."""
    excluded: tuple[str, ...] = ()
    """Distributions to leave out although required, such as builds for other processors."""
    universal: bool = True
    """One lock serves all platforms and Pythons; otherwise each has its own."""
    build: str = ""
    """The variant it is of; empty for the usual one."""
    tested: str = ""
    """The version to resolve when none is named and no lock ships."""
    computes: str = ""
    """The launcher that computes once with the finished environment; empty if importing it must do."""
    on_device: bool = False
    """That must happen on a graphics device."""
    own_index: str = ""
    """The only index that has this build, asked before all others: elsewhere the same names and versions are
    other builds."""

    only_indexes: tuple[str, ...] = ()
    """Instead of the user's own indexes and folders of wheels."""
    python: str = ""
    """The version or the path of the Python it is made for; empty for Greenroom's own."""
    given_lock: str = ""
    """The text of a lock that does not ship: its files, and no others, are installed."""

    @property
    def kept_as(self) -> str:
        """Tells its locks from those of other variants."""
        return f"{self.distribution}-{self.build}" if self.build else self.distribution


@dataclass(frozen=True)
class Image:
    """Installed by unpacking a tree from an OCI image."""

    reference: str
    """Name and tag, or name and digest."""
    version: str
    """The version the reference's tag stands for."""
    tree: str
    """Path of the tree in the image, such as `/vllm-metal`. It must contain `bin/python3`."""
    executables: tuple[str, ...]
    """Globs below the tree for files whose execute bits the image has lost."""
    probe: tuple[str, ...] = ()
    """Modules that must be importable in the finished tree."""
    tags: str = "{version}"
    """The tag of a version, such as `vllm-metal-v{version}`."""
    prebuilt: Mapping[str, str] = field(default_factory=dict)
    """Folders below the tree, and where below the user's home to copy them for the backend."""

    def out_of(self, reference: str) -> Image:
        """The same tree from another image; the version comes from its tag or digest."""
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
    """How to distinguish loading, ready and dead."""

    path: str = "/health"
    loading: frozenset[int] = frozenset({503})
    """Statuses that mean alive and still loading."""
    dead: frozenset[int] = frozenset()
    """Statuses that mean the process is alive but its load will never succeed."""
    proof: bool = False
    """A status of 200 does not prove readiness: a one-token completion must succeed too."""
    counters: tuple[str, ...] = ()
    """Paths of the engine's own counters, which change with every batch and are constant while it is idle."""
    rests: bool = False
    """It uses no processor while it is idle: one that does although its client has left is replaced."""


@dataclass(frozen=True)
class Cannot:
    """A request parameter that an engine would silently ignore, or die of, and that is therefore refused."""

    param: str
    """The field's name."""
    asked: Callable[[Mapping[str, Any]], object]
    """Whether these validated fields ask for it."""
    instead: str = ""
    """What to do instead, one sentence."""
    code: str = "unsupported_parameter"
    """Of the refusal."""


@dataclass(frozen=True)
class Ignores:
    """A request parameter that an engine takes no notice of, which is reported: its client can do without."""

    param: str
    """The field's path, where `[]` stands for any index."""
    asked: Callable[[Mapping[str, Any]], object]
    """Whether these validated fields ask for it."""


def ignores(*names: str) -> tuple[Ignores, ...]:
    """The same for fields that count wherever they are given."""
    return tuple(Ignores(name, lambda fields, name=name: name in fields) for name in names)  # type: ignore[misc]


def has_media(fields: Mapping[str, Any]) -> bool:
    """Whether the messages of a checked chat have parts that are no text."""
    contents = [one.get("content") for one in fields.get("messages") or ()]
    return any(
        part["type"] not in ("text", "refusal")
        for content in contents
        for part in (content if isinstance(content, list) else ())
    )


LLAMA_CPP_SAMPLING = frozenset(
    {"typical_p", "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta", "n_keep"}
)
"""Fields that only llama.cpp knows; other engines ignore them in silence."""


@dataclass(frozen=True)
class Dialect:
    """How the engine's requests and responses differ from the client's."""

    model_name: str | None = None
    """Sent in place of the client's model name, which replaces it again in responses; `{model_id}` stands for
    the model's id. None if any name will do."""
    dropped: frozenset[str] = frozenset()
    """Request fields the engine does not receive: they would load other weights, or mean nothing to it."""
    cannot: tuple[Cannot, ...] = ()
    ignores: tuple[Ignores, ...] = ()
    completion_schema: str = ""
    """The field of a completion that takes a JSON schema, where `response_format` is read only in chats."""
    lacks: frozenset[str] = frozenset()
    """Routes of other engines that it does not have, such as `/infill`."""
    pools_by_header: bool = False
    """Makes embeddings only with models whose header says how, or with the flag `--pooling`."""

    def spoken(self, model_id: str) -> str | None:
        """The engine's name for the model; None if any name will do."""
        return None if self.model_name is None else self.model_name.replace("{model_id}", model_id)


@dataclass(frozen=True)
class ModelFiles:
    """The paths and properties of a model that an engine needs."""

    path: Path
    """The GGUF file (first shard), or the folder with safetensors, tokenizer and config."""
    format: ModelFormat
    name: str
    """The reference clients use."""
    context_length: int = 0
    """Tokens it was trained for; 0 if unknown."""
    kv_bytes_per_token: int = 0
    """Bytes of 16-bit key/value cache per token; 0 if unknown."""
    layers: int = 0
    """Its layers, the output included; 0 if unknown."""
    pooling: Pooling = ""
    """How it makes one vector of those of an input's tokens, or a score; empty if its files do not say."""
    mmproj: Path | None = None
    chat_template: Path | None = None


@dataclass(frozen=True)
class Launch:
    """What a backend makes the command line of an engine from."""

    spec: EngineSpec
    root: Path
    """The installation's folder."""
    python: Path
    """The installation's own interpreter."""
    model: ModelFiles
    socket: Path
    """Where the engine must listen; at most 100 bytes."""
    binary: Path | None = None
    """The user's own program, to run instead of ours."""
    built: Path | None = None
    """The installation's program, if it was compiled on this machine."""
    prompt_speed: float = 0.0
    """Tokens of a prompt per second, as read by the last engine of this model; 0 if unknown."""
    slot_files: Path | None = None
    """Its folder for what its slots hold; None if it is not to write that."""

    @property
    def program(self) -> Path | None:
        """The server itself, where it is a program; None if our launcher runs it."""
        return self.binary or self.built

    def launched(self, name: str, *args: str) -> tuple[str, ...]:
        """The argv of one of our launchers, run by the installation's own interpreter."""
        return (str(self.python), "-I", str(launcher(name)), *args)


@dataclass(frozen=True)
class CommandLine:
    """A program to start: argv and variables to add to a clean environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


class Backend(ABC):
    """One kind of inference software. Subclasses are declarations: class attributes and two functions."""

    name: ClassVar[str]
    title: ClassVar[str]
    """One line for display."""
    deferred: ClassVar[bool] = True
    """Installed only on request."""
    formats: ClassVar[tuple[ModelFormat, ...]]
    modes: ClassVar[tuple[Mode, ...]]
    preference: ClassVar[int]
    """Among installed backends that can serve a model, the lowest number serves it."""
    install_preference: ClassVar[int]
    """Among backends that could be installed to serve a model, the lowest number is offered."""
    source: ClassVar[Environment | Image]
    variants: ClassVar[tuple[Variant, ...]] = ()
    """Its builds for different devices; `source` is the one that says no other."""
    best_first: ClassVar[bool] = False
    """What requests install is the best variant for the machine, rather than the usual one first."""
    builds: ClassVar[Mapping[str, SourceBuild]] = {}
    """What can be compiled on the machine instead, by variant."""
    readiness: ClassVar[Readiness] = Readiness()
    dialect: ClassVar[Dialect] = Dialect()
    allowed_flags: ClassVar[frozenset[str]] = frozenset()
    """Permitted user flags; empty for none."""
    overhead_bytes: ClassVar[int] = 200 * 2**20
    """Memory an engine needs beyond weights and key/value cache."""
    slots: ClassVar[int] = 0
    """Default number of requests an engine serves at once; `command` must pass on `EngineSpec.slots`. 0 if
    the engine takes any number and manages its context itself."""
    shares_cache: ClassVar[bool] = False
    """Its slots share one key/value cache, and requests wait when that is full."""
    divides: ClassVar[bool] = False
    """Its engines can have some layers of a model on devices, by `EngineSpec.placement`, and the rest in
    memory."""
    device_overhead: ClassVar[int] = 0
    """Memory an engine of such a backend needs on each device beyond weights, cache and what it computes."""
    layer_flags: ClassVar[tuple[str, ...]] = ()
    """Its flags for the number of layers on devices."""
    one_batch: ClassVar[bool] = False
    """An input to embed or to rank must fit into one batch."""
    keeps_prompts: ClassVar[bool] = False
    """Keeps prompts in memory after their requests, up to `EngineSpec.prompt_cache` bytes."""
    keeps_prompts_alone: ClassVar[bool] = False
    """It has no use for them if it has several slots, since each request names its own."""
    conversations: ClassVar[Literal["slots", "engine", ""]] = ""
    """What becomes of the prompts that an engine has read: `slots` if it saves and restores its slots as
    files (`engines/slots.py`), `engine` if it keeps them for as long as it runs, empty if it keeps none."""
    slots_in_prompt_cache: ClassVar[bool] = False
    """What its slots have read lies in its memory for prompts: without that, nothing can be saved."""
    keeps_prompts_of_no_slot: ClassVar[bool] = False
    """Prompts of requests that name a slot are not among those that it keeps in memory."""
    limits_data: ClassVar[bool] = False
    """Without a device, the memory that its engines may write to is known, so the system can limit it."""
    uses_devices: ClassVar[bool] = False
    """Its engines compute on a graphics device with memory of its own, if there is one."""

    def on(self, platform: Platform) -> Backend:  # noqa: ARG002 - the same everywhere, unless it says otherwise
        """This backend's declaration for a platform: what is installed may depend on its processors."""
        return self

    def built(self, variant: str) -> Backend:  # noqa: ARG002 - most run all their variants alike
        """The declaration for engines of a variant."""
        return self

    @abstractmethod
    def verdict(self, platform: Platform) -> str:
        """Empty if this platform can run it, else a sentence that says what is missing."""

    def prompt_speed(self, log: str) -> float:  # noqa: ARG002 - most do not say
        """Tokens of a prompt read per second, according to an engine's log; 0.0 if unknown."""
        return 0.0

    def answer_speed(self, log: str) -> float:  # noqa: ARG002 - most do not say
        """Tokens of answers per second, according to an engine's log; 0.0 if unknown."""
        return 0.0

    def loaded(self, log: str) -> Loaded | None:  # noqa: ARG002 - most do not say
        """How much of its model an engine has on devices, according to its log; None if it does not say."""
        return None

    def slot_layout(self, spec: EngineSpec) -> str:  # noqa: ARG002 - most save files that fit any engine
        """What of an engine's settings the files of its slots depend on, besides model and installation: only
        an engine with the same can restore them.
        """
        return ""

    def why_not_saved(self, mode: Mode, no_restore: str | None, prompt_cache: int | None) -> str:
        """Why what an engine has read ends with it, to follow a colon; empty if it can be saved.

        Args:
            no_restore: `Builder.no_restore` of its installation.
            prompt_cache: Bytes of memory for prompts; None if that is decided when the model is loaded.
        """
        if mode != "completion":
            return "only those of chats and completions are saved"
        if not self.conversations:
            return f"{self.name} keeps nothing of what it has read"
        if self.conversations == "engine":
            return f"{self.name} keeps what it has read only while it runs"
        if no_restore:
            return f"this version of {self.name} does not go on with what it saves: {no_restore}"
        if self.slots_in_prompt_cache and prompt_cache == 0:
            return f"{self.name} has no memory for prompts here (the setting prompt-cache)"
        return ""

    @abstractmethod
    def command(self, launch: Launch) -> CommandLine:
        """The program that serves this model on this socket, possibly through one of our launchers."""


RESERVED_NAMES = frozenset(
    {"v1", "status", "ps", "df", "unload", "requests", "devices", "ledger", "queue", "remotes"}
)
"""Path segments under `/engines` that cannot be backend names."""
