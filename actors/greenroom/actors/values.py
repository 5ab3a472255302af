"""What the actors tell each other about the world: small frozen values, no behaviour.

Times are seconds since the epoch (wall clock), sizes are bytes. Everything here may be stored in
events, so a change of a field is a change of the journal's schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from greenroom.actors.kernel.core import Command
from greenroom.actors.limits import Id, Whole

Mode = Literal["completion", "embedding", "reranking"]
Pooling = Literal["", "mean", "cls", "last", "rank"]
"""How an embedding model makes one vector of those of an input's tokens: their mean, the first one's, or the
last one's. `rank` makes a score of the first or the last one's."""
ModelFormat = Literal["gguf", "safetensors", "safetensors-mlx"]
"""`safetensors-mlx` is safetensors quantised the MLX way, which only mlx can read."""
Medium = Literal["image", "audio"]
"""What a model may read beside text."""

InstallPolicy = Literal["ask", "auto", "never"]
WantedBy = Literal["default", "explicit", "request", "repair"]
"""Why a job runs: a non-deferred backend, a person's command, a request's need, a broken installation."""


Blame = Literal["", "client", "ours", "machine", "network", "configuration", "engine", "model"]
"""Whose failure it was; empty where older journals do not say."""


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A value that may be stored and sent."""


class Caller(Fact, frozen=True, kw_only=True):
    """Who asks. Made where a request comes in, and carried by all that it causes."""

    kind: Literal["key", "process", "address", "greenroom", ""] = ""
    """How it is known: by its key, as a process of this machine, by its address; Greenroom itself (a preload,
    a restart); or not at all."""
    id: Id = ""
    """Distinguishes callers; turns are counted by it."""
    name: Id = ""
    """For people, such as `curl (process 4711)`."""
    share: Id = ""
    """A connection, or the request's `user`: it divides the caller's share and never makes another."""

    @property
    def key(self) -> str:
        """One name for kind and id together."""
        return f"{self.kind}:{self.id}"

    def __str__(self) -> str:
        return self.name or self.id or "unknown"


class Failure(Fact, frozen=True, kw_only=True):
    """Why something did not work, told to the user in one sentence with what to do next."""

    kind: Literal["transient", "permanent", "cancelled"]
    """Transient failures are retried; permanent ones answer at once. Neither sticks."""
    code: str
    """Stable word for programs: `no_space`, `unreachable`, `unsupported_platform`, `hash_mismatch`, …"""
    message: str
    """One sentence: what happened."""
    advice: str = ""
    """What the user can do now, a command where there is one."""
    detail: str = ""
    """Raw tool output (redacted, bounded to 4,000 characters): for the log and `why`, not for clients."""
    blame: Blame = ""
    """Whose failure it was: only the engine's own and the model's count against a model."""
    numbers: Mapping[str, float] = {}
    """The figures behind it, such as bytes needed and free."""

    def sentence(self) -> str:
        """What happened, then what to do."""
        return f"{self.message} {self.advice}".strip()

    def __hash__(self) -> int:
        return hash((self.code, self.message))  # `numbers` has no hash of its own


class Part(Fact, frozen=True, kw_only=True):
    """How far one file of a transfer is. Never stored."""

    id: str
    """`sha256:<hex>`: the digest of its bytes, or of its name where the source knows none."""
    name: str
    """For people."""
    size: int
    """Bytes."""
    done: int
    """Bytes received (or sent, for a push), including those of earlier attempts."""


class Progress(Fact, frozen=True, kw_only=True):
    """How far a job is. Never stored."""

    job: str
    phase: str
    """`resolving`, `downloading`, `unpacking`, `verifying`, `loading`, `waiting_to_retry`, …"""
    message: str = ""
    done: int = 0
    """Bytes."""
    total: int = 0
    """Bytes; 0 when unknown."""
    rate: float = 0.0
    """Bytes a second, smoothed; 0 when unknown."""
    follows: str = ""
    """The board's key of another job that this one waits for: its progress says more."""
    place: int = 0
    """Of a request that waits: its place in the queue, the first is 1."""
    percent: int | None = None
    """Of a phase that moves no bytes, such as compiling; it says more than `done` and `total`."""
    parts: tuple[Part, ...] = ()
    """Of a transfer: each file that moves. What needs no moving is none of them, but is in `total`."""

    @property
    def seconds_left(self) -> float:
        """Until the last byte, at this rate; 0 when that cannot be told."""
        return max(0, self.total - self.done) / self.rate if self.rate > 0 else 0.0


class Plan(Fact, frozen=True, kw_only=True):
    """What an installation would do."""

    backend: str
    variant: str = ""
    version: str
    packages: tuple[str, ...] = ()
    """`name==version`."""
    download_bytes: int = 0
    """What is not in the cache yet."""
    total_bytes: int = 0
    """All files of the plan, cached or not."""


class Installation(Fact, frozen=True, kw_only=True):
    """One version of one variant of a backend on disk, complete and verified."""

    id: str
    """Folder name under `backends/<backend>/`, `[<variant>-]<version>-<digest8>.<n>`; or `external` for the
    user's own."""
    backend: str
    variant: str = ""
    """Which build of the backend, such as one for other processors; empty for the usual one."""
    version: str
    digest: str = ""
    """SHA-256 of the lock it was built from."""
    size: int = 0
    """Bytes on disk, hard links counted once."""
    built_at: float = 0.0
    managed: bool = True
    """False for an environment or binary the user named in the config: used, never touched."""
    root: str = ""
    """Absolute path for unmanaged ones; managed ones lie in the data directory under their id."""
    broken: str = ""
    """Why it cannot be used; empty when whole."""
    built_with: str = ""
    """Compilers and options, if it was compiled on this machine."""


class DeclaredEnvironment(Fact, frozen=True, kw_only=True):
    """What an environment that a program asked for is made of."""

    requirement: str
    """Such as `black>=26,<27`."""
    python: str = ""
    """A version or a path, as asked for; empty for the program's own Python."""
    indexes: tuple[str, ...] = ()
    """The indexes to use instead of the user's own, without credentials."""
    lock: str = ""
    """SHA-256 of the lock that names its files; empty if the newest versions that satisfy it are resolved."""


class Reservation(Fact, frozen=True, kw_only=True):
    """Memory reserved for an engine in one pool, by what it is for. Bytes."""

    device: str = ""
    """Id of the graphics device whose memory it is; empty for the machine's."""
    weights: int = 0
    projector: int = 0
    """What turns images into tokens."""
    cache: int = 0
    """Key/value cache of one slot, for the whole of its context."""
    slots: int = 1
    prompt_cache: int = 0
    """Prompts that have left their slot and are kept to be continued; a bound that the engine is given."""
    batch: int = 0
    """What it computes of an input that fills its context, where an input must fit into one batch."""
    compute: int = 0
    """Buffers, and what the program itself needs."""
    learned: int = 0
    """What engines of this kind were measured to hold beyond all that; negative when it was less."""

    @property
    def claimable(self) -> int:
        """What the engine may take at any time, whatever was measured."""
        return self.weights + self.projector + self.cache * self.slots + self.prompt_cache + self.batch

    @property
    def total(self) -> int:
        return self.claimable + self.compute + self.learned


RESERVED_IN_JSON = {"reserved": "promised", "device_reserved": "device_promised"}
"""The stored names of these fields, which clients know, too."""


class LayersOn(Fact, frozen=True, kw_only=True):
    """Layers of a model that lie on one device."""

    device: str
    layers: int


class EngineSpec(Fact, frozen=True, kw_only=True):
    """Everything needed to start one engine; fixed for its life."""

    engine_id: str
    backend: str
    installation_id: str
    model_id: str
    model_ref: str
    """The reference the load was asked by, for people."""
    mode: Mode = "completion"
    context_size: int = 0
    """Tokens that each request may fill; 0 lets the model decide."""
    slots: int = 0
    """Requests that are inside at once, each with a context of its own; 0 leaves that to the engine."""
    prompt_cache: int | None = None
    """Bytes of memory for prompts that have left their slot; None leaves that to the engine."""
    batch: int = 0
    """Tokens it must compute at once, since its inputs may be that long; 0 leaves that to the backend."""
    reservations: tuple[Reservation, ...] = msgspec.field(name="promises", default=())
    """What `memory` and `device_memory` are made of."""
    flags: tuple[str, ...] = ()
    """User flags, already checked against the backend's allow-list."""
    memory: int = 0
    """Bytes of the machine's memory reserved for it."""
    device: str = ""
    """Id of the graphics device it computes on, the first of several; empty for the processor alone."""
    device_memory: int = 0
    """Bytes of that device's memory reserved for it."""
    device_total: int = 0
    """Bytes that device has."""
    layers: int = 0
    """Layers of its model, the output included; 0 where the engine itself decides what lies where."""
    placement: tuple[LayersOn, ...] = ()
    """What of them lies on devices, the first layers first; the rest is in memory. `device` is the one with
    the most."""

    @property
    def on_devices(self) -> int:
        """How many layers lie on devices."""
        return sum(one.layers for one in self.placement)


class EngineExit(Fact, frozen=True, kw_only=True):
    """How an engine ended: a summary of its exit report."""

    at: float
    code: int | None = None
    """Exit code; None when it died of a signal or was never seen to exit."""
    signal: str = ""
    """Signal name, such as `SIGKILL`."""
    summary: str = ""
    """One sentence for the client."""
    first_lines: tuple[str, ...] = ()
    last_lines: tuple[str, ...] = ()
    memory: int = 0
    """Bytes resident when last measured."""
    expected: bool = False
    """True when we asked it to stop."""
    lost: bool = False
    """True if its end was not observed: then it says nothing about whether the model can run."""
    out_of_memory: bool = False
    """True when it could not get the memory it needed, or was killed for lack of memory."""
    speed: float = 0.0
    """Tokens a second of its answers that were made alone, by its own timings; 0 if it does not say."""
    failure: Failure | None = None
    """Why it never ran, or was given up, with kind, code and blame; None when it ended by itself."""


class Loaded(Fact, frozen=True, kw_only=True):
    """What an engine's own output says about where its model lies."""

    layers: int
    """Layers on devices."""
    total: int = 0
    """All layers as the engine counts them; 0 if it does not say."""
    size: int = 0
    """Bytes that it takes of devices, with what their drivers are reckoned to take."""
    reason: str = ""
    """What it says about a device that it does not use."""


EngineState = Literal["starting", "ready", "stopping", "gone"]


class Engine(Fact, frozen=True, kw_only=True):
    """One backend process that serves one model in one mode, as its runner knows it."""

    spec: EngineSpec
    state: EngineState
    since: float
    """When it entered this state."""
    pid: int = 0
    started: float = 0.0
    """Kernel start time of the pid, as `identity` reads it: tells a recycled pid from the real one."""
    endpoint: str = ""
    """Absolute path of its unix socket, or `http://127.0.0.1:PORT`."""
    exit: EngineExit | None = None
    cause: str = ""
    fault: str = ""
    """Why its runner gave it up; empty when it did not."""
    failure: Failure | None = None
    """The same with kind, code and blame."""
    loaded: Loaded | None = None
    """None if it does not say, or has no layers on devices to speak of."""

    @property
    def has_missed_layers(self) -> bool:
        """Fewer layers lie on devices than were placed there."""
        return self.loaded is not None and self.loaded.layers < self.spec.on_devices


class Measured(Fact, frozen=True, kw_only=True):
    """Memory that an engine's processes use together, in bytes. Never stored."""

    now: int
    peak: int
    """The most that was seen in this life of the daemon."""
    device: int | None = None
    """The same of its device's memory; None where that cannot be measured."""
    device_peak: int = 0


class ModelLayers(Fact, frozen=True, kw_only=True):
    """How a model is divided among its layers, each of which an engine can have on another device. Bytes.

    The last weights, which turn the result into tokens, count as one layer more.
    """

    weights: tuple[int, ...] = ()
    """Of each layer but the output, the first one first; empty if unknown."""
    cache: tuple[int, ...] = ()
    """Key/value cache a token of context needs in each of them."""
    input: int = 0
    """Weights that turn tokens into vectors; they stay in the machine's memory."""
    output: int = 0
    """Weights of the output, which may be those of the input again."""
    largest: int = 0
    """The largest matrix of a layer: a device has a copy of it while it computes what it does not hold."""
    activations: int = 0
    """What is computed for a token of a batch within a layer."""
    logits: int = 0
    """What the output computes for a token."""

    @property
    def count(self) -> int:
        """All layers, the output included; 0 if unknown."""
        return len(self.weights) + 1 if self.weights else 0


class Model(Fact, frozen=True, kw_only=True):
    """A model that lies in the store, whole and verified."""

    id: str
    """`sha256:<64 hex>`, the digest of its manifest."""
    tags: tuple[str, ...] = ()
    """Canonical references, such as `docker.io/ai/smollm2:latest`."""
    format: ModelFormat = "gguf"
    size: int = 0
    """Bytes of its files."""
    projector_size: int = 0
    """The part of them, in a file of its own, that turns images or sound into tokens."""
    reads: tuple[Medium, ...] | None = None
    """What it reads beside text; None if an older version stored it, which did not look."""
    created: float = 0.0
    architecture: str = ""
    parameters: str = ""
    """For people, such as `134.52M`."""
    parameter_count: int = 0
    quantization: str = ""
    made_for: Mode | None = None
    """By what its files say; None if an older version stored it, which did not look."""
    pooling: Pooling = ""
    """Empty if its files do not say, or it makes no vectors."""
    context_length: int = 0
    """Tokens the model was trained for; 0 when unknown."""
    context_size: int = 0
    """Tokens to load it with, as published or repackaged; 0 means unspecified."""
    has_defaults: bool = False
    """Its configuration has a system prompt, messages or parameters for requests that have none."""
    kv_bytes_per_token: int = 0
    """Bytes of key/value cache a token of context needs; 0 when unknown."""
    layers: ModelLayers | None = None
    """None if an older version stored it, which did not look."""
    source: str = ""
    """Where it came from, redacted."""
    in_place: str = ""
    """Absolute path when it is served from where the user keeps it, not from the store."""


class VariantFacts(Fact, frozen=True, kw_only=True):
    """What the actors need to know of a variant's declaration."""

    name: str
    title: str = ""
    runtime: str = ""
    """What it computes through, such as `cuda`; empty for the processor."""
    is_locked: bool = True
    """The hashes of its packages ship with this release; otherwise they are resolved at installation, and
    binding from then on."""
    version: str = ""
    """The version whose hashes ship; empty if that is not known before it is installed."""
    download_bytes: int = 0
    """About how much installing it fetches; 0 if unknown."""
    slots: int = 0
    """Requests an engine of it takes at once by default."""


class BackendFacts(Fact, frozen=True, kw_only=True):
    """What the actors need to know of a backend's declaration."""

    name: str
    deferred: bool
    formats: tuple[ModelFormat, ...]
    modes: tuple[Mode, ...]
    preference: int
    install_preference: int
    verdict: str = ""
    """Why this platform cannot run it; empty when it can."""
    overhead: int = 0
    """Bytes an engine needs beyond weights and key/value cache."""
    device: bool = False
    """Its engines compute on a graphics device with memory of its own, where there is one."""
    runtimes: tuple[tuple[str, str], ...] = ()
    """Variant → what its engines compute through, if not the processor; an empty name is the usual one's."""
    divides: bool = False
    """Its engines can have some layers of a model on devices and the rest in memory."""
    device_overhead: int = 0
    """Bytes an engine needs on each device beyond weights, cache and what it computes there."""
    layer_flags: tuple[str, ...] = ()
    """Its flags for the number of layers on devices."""
    slots: int = 0
    """Requests an engine takes at once by default; 0 means no limit."""
    shares_cache: bool = False
    """Its slots share one context's key/value cache, and it makes requests wait for it."""
    one_batch: bool = False
    """An input to embed or to rank must fit into one batch, so its engines for that have batches as long as
    their context."""
    prompt_cache: bool = False
    """It keeps prompts in memory after their requests, and can be told how many bytes of them."""
    prompt_cache_alone: bool = False
    """It has no use for that memory if it has several slots, since each request names its own."""
    version: str = ""
    """What is installed when no version is named, where known."""
    versions: Mapping[str, str] = {}
    """The same for variants that have a version of their own."""
    download_bytes: int = 0
    """What installing it would fetch, where known."""
    variants: tuple[VariantFacts, ...] = ()
    """Its builds for different devices, as declared for this system."""
    usual: str = ""
    """The variant whose installations have no name of a variant."""
    best_first: bool = False
    """What requests install is the best variant for the machine, rather than the usual one first."""
    variant: str = ""
    """The one that the configuration names."""

    def variant_of(self, installation: Installation) -> str:
        """The name of its variant; empty if the backend has none."""
        return installation.variant or self.usual


class RequestSnapshot(Command[None], frozen=True, kw_only=True):
    """Asks an owner to send its list again."""

    installations: Whole = -1
    """Version of the installer's list that the sender has acted on. Whatever it starts afterwards runs on
    nothing that is retiring there, and what it started before has reached the runner before this."""
    token: Id = ""
    """Comes back in the list that answers this request."""


class Cancelled(Fact, frozen=True, kw_only=True):
    """Whether there was something to end."""

    ended: bool
