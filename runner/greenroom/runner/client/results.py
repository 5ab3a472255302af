"""What the client's calls return. Sizes are in bytes, times in seconds."""

from __future__ import annotations

from typing import Any

import msgspec

from greenroom.runner.units import format_size


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Base of them all. Fields that a newer daemon adds are ignored."""


class ToolCall(Result, frozen=True):
    """The model wants a tool to be called."""

    id: str
    name: str
    arguments: str
    """JSON text, as the model wrote it."""


class TextResult(Result, frozen=True):
    """What a model has written. `str()` of it is the text."""

    text: str = ""
    reasoning: str = ""
    """What it has thought before; empty for models that do not reason."""
    tool_calls: tuple[ToolCall, ...] = ()
    finish: str = ""
    """`stop`, `length` (`max_tokens` or the context was reached), `tool_calls`; empty while it is written."""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    """Tokens written, the reasoning included."""
    first_token_after: float = 0.0
    """Seconds from the request to the first piece, loading included; 0 before."""
    seconds: float = 0.0
    """Seconds from the request to the end."""

    def __str__(self) -> str:
        return self.text


class JobProgress(Result, frozen=True):
    """How far a pull, an installation or the loading of a model is. `str()` of it is a line for users."""

    message: str = ""
    """What is being done, such as `loading smollm2 on llama.cpp`; may be empty."""
    phase: str = ""
    """`resolving`, `downloading`, `unpacking`, `verifying`, …; empty for a model that is being loaded."""
    done: int = 0
    total: int = 0
    """Bytes; 0 while it is not known."""
    rate: float = 0.0
    """Bytes a second; 0 if unknown."""

    def __str__(self) -> str:
        what = self.message or self.phase
        return f"{what}: {format_size(self.done)} of {format_size(self.total)}" if self.total else what


class StoredModel(Result, frozen=True):
    """A model in the store."""

    id: str
    tags: tuple[str, ...] = ()
    """Its names."""
    created: float = 0.0
    """When it was stored: seconds since 1970."""
    format: str = ""
    """`gguf`, `safetensors`."""
    architecture: str = ""
    parameters: str = ""
    """Such as `135M`."""
    quantization: str = ""
    context_size: int | None = None
    """Tokens; None if its files do not say."""
    size: int = msgspec.field(name="bytes", default=0)
    """Bytes of its files."""

    @property
    def name(self) -> str:
        """The first of its names as lists show it, such as `smollm2`; its id if it has none."""
        from greenroom.runner.models.references import familiar

        return familiar(self.tags[0]) if self.tags else self.id


class RunningEngine(Result, frozen=True):
    """A process that has a model loaded."""

    engine_id: str
    model: str = msgspec.field(name="model_name")
    backend: str = msgspec.field(name="backend_name")
    mode: str = "completion"
    """`completion`, `embedding`, `reranking`."""
    state: str = ""
    """`starting`, `ready`, `stopping`."""
    pid: int | None = None
    memory: int = 0
    """Bytes reserved for it in the machine's memory."""
    measured: int | None = None
    """Bytes it uses; None if that cannot be measured."""
    device_memory: int = 0
    """Bytes reserved on graphics devices."""
    context_size: int | None = None
    """Tokens each request may fill."""
    slots: int = 0
    """Requests that it answers at once; 0 if it takes all that come."""
    inside: int = 0
    """Requests in progress."""
    queue: int = 0
    """Requests that wait for it."""
    idle_seconds: float | None = None
    expires_in: float | None = None
    """Seconds until it is unloaded if no request comes; None if that is not decided by time."""


class GrantedSlot(Result, frozen=True):
    """A slot in an engine, and where the engine is."""

    engine_id: str
    backend: str
    socket: str


class InstalledBackend(Result, frozen=True):
    """A backend that is installed."""

    backend: str
    version: str
    variant: str = ""
    """Its build for certain devices; empty for the usual one."""
    root: str = ""
    """The folder it is in, or the program it is if that is the user's own."""
    already: bool = False
    """It was installed before."""


class UnloadResult(Result, frozen=True):
    """What an unload has done."""

    engines: int = msgspec.field(name="unloaded_runners", default=0)
    """Engines that are ending."""
    in_use: tuple[str, ...] = ()
    """A sentence for each engine that was left alone because requests use it."""


class WhyResult(Result, frozen=True):
    """Why a model, a backend, an engine or a request is as it is. `str()` of it is the text."""

    name: str
    kind: str
    """`model`, `backend`, `engine`, `request`."""
    state: str
    cause: str
    """The decisive reason as a word for programs."""
    answer: str
    """The reason as sentences."""
    also: tuple[str, ...] = ()
    """More sentences."""
    numbers: dict[str, float] = {}
    """The figures behind it."""
    steps: tuple[dict[str, Any], ...] = ()
    """The events that led to it, the oldest first, as in `GET /log`."""

    def __str__(self) -> str:
        return "\n".join((self.answer, *self.also))
