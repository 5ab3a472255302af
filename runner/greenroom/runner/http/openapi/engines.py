"""The verbs under `/engines` about engines, and how models are loaded."""

from __future__ import annotations

import msgspec

from greenroom.actors.scheduler.messages import LedgerReading, QueueEntry
from greenroom.actors.values import EngineExit, EngineState, LayersOn, Loaded, Mode, Reservation
from greenroom.runner.http.configuring import ConfigureBody
from greenroom.runner.http.engine_slots import HeldSlot, SlotBody
from greenroom.runner.http.engines import UnloadBody
from greenroom.runner.http.openapi.daemon import NotNowAnswer
from greenroom.runner.http.openapi.operation import (
    COMMAND,
    NDJSON,
    SERVED,
    WITH_BODY,
    Operation,
    Parameter,
    Returns,
)
from greenroom.runner.remotes.reading import RemoteReading

_UNSET = msgspec.UNSET


class EnginePlacement(LayersOn, frozen=True, kw_only=True):
    name: str
    """The device's name, for display."""


class EngineReservation(Reservation, frozen=True, kw_only=True):
    total: int  # pyright: ignore[reportIncompatibleMethodOverride] - in JSON it is a field


class TakenSlot(msgspec.Struct):
    number: int
    request_id: str
    caller: str


class EngineRow(msgspec.Struct, kw_only=True):
    """An engine: Docker Model Runner's fields, then ours. Sizes are bytes."""

    backend_name: str
    model_name: str
    mode: Mode
    last_used: str
    """RFC 3339; the year 1 while it is in use or loading."""
    in_use: bool | msgspec.UnsetType = _UNSET
    loading: bool | msgspec.UnsetType = _UNSET
    keep_alive: str | msgspec.UnsetType = _UNSET
    """As configured."""
    pid: int
    state: EngineState
    since: float
    engine_id: str
    memory: int
    measured: int | None
    peak: int | None
    device: str
    device_memory: int
    device_measured: int | None
    layers: int
    placement: list[EnginePlacement]
    loaded: Loaded | None
    where: str
    shortfall: str
    inside: int
    """Requests that it is answering."""
    slots: int
    slots_used: int
    slots_taken: list[TakenSlot]
    context_size: int
    prompt_cache: int | None
    reservations: list[EngineReservation] = msgspec.field(name="promises")
    queue: int
    served: int
    idle_seconds: float | None
    expires_in: float | None
    stays: str | None
    installation: str
    cause: str
    conversations: int | None
    """How many its slots hold, those being answered included; null where slots cannot be saved."""
    restored_tokens: int
    """That it got from the disk since this daemon started, instead of reading them again."""
    fault: str | msgspec.UnsetType = _UNSET
    exit: EngineExit | msgspec.UnsetType = _UNSET


class QueueRow(QueueEntry, frozen=True, kw_only=True):
    progress: str


class UnloadedAnswer(msgspec.Struct):
    unloaded_runners: int
    ending: list[str]
    """Ids of the engines that are stopped."""
    in_use: list[str]
    """A sentence for each engine that was left alone, with the requests that use it."""
    unknown: list[str]
    """Names of models that are not in the store."""


class DeviceUse(msgspec.Struct):
    backend: str
    variant: str | None
    installed: bool
    reason: str


class DeviceProblem(msgspec.Struct):
    code: str
    message: str
    advice: str
    detail: str


class DeviceRow(msgspec.Struct):
    id: str
    maker: str
    name: str
    memory: int
    memory_free: int | None
    shared: bool
    driver: str
    runtimes: dict[str, str]
    target: str
    bus: str
    used_by: list[DeviceUse]
    problem: DeviceProblem | None


class DevicesAnswer(msgspec.Struct):
    devices: list[DeviceRow]
    problems: list[DeviceProblem]
    glibc: str | None


class ConfiguredRow(msgspec.Struct, rename="pascal", kw_only=True):
    backend: str
    model: str
    model_id: str = msgspec.field(name="ModelID")
    mode: Mode
    config: ConfiguredFields


class ConfiguredFields(msgspec.Struct, rename="kebab"):
    context_size: int | msgspec.UnsetType = _UNSET
    slots: int | msgspec.UnsetType = _UNSET
    prompt_cache: int | msgspec.UnsetType = _UNSET
    require_device: bool | msgspec.UnsetType = _UNSET
    runtime_flags: list[str] | msgspec.UnsetType = _UNSET
    keep_alive: str | msgspec.UnsetType = msgspec.field(name="keep_alive", default=_UNSET)


_BUSY = {503: Returns("The scheduler did not answer in time.", NotNowAnswer, headers=("Retry-After",))}

OPERATIONS = {
    "GET /engines/status": Operation(
        summary="Get the status of every backend",
        answers={200: Returns("The status by backend; `Running` means installed.", dict[str, str])},
    ),
    "GET /engines/ps": Operation(
        summary="List the running engines",
        query={"all": Parameter("Include the latest engines that stopped, and why.", bool)},
        answers={200: Returns("The engines.", list[EngineRow])},
    ),
    "GET /engines/devices": Operation(
        summary="List the graphics devices",
        query={"refresh": Parameter("Query the drivers again. This may take seconds.", bool)},
        answers={200: Returns("The devices and their problems.", DevicesAnswer)},
    ),
    "GET /engines/ledger": Operation(
        summary="Get total and reserved memory",
        answers={200: Returns("Memory in bytes, with each engine's reservation.", LedgerReading), **_BUSY},
    ),
    "GET /engines/remotes": Operation(
        summary="List the remote backends",
        answers={200: Returns("Whether each answers, and its models.", list[RemoteReading])},
    ),
    "GET /engines/queue": Operation(
        summary="List the requests that wait for an engine",
        answers={
            200: Returns("The requests, in the order in which they will be served.", list[QueueRow]),
            **_BUSY,
        },
    ),
    "POST /engines/unload": Operation(
        summary="Unload idle models",
        body=UnloadBody,
        needs_body=False,
        answers={200: Returns("The number of engines that were stopped.", UnloadedAnswer)},
        errors=WITH_BODY | COMMAND,
    ),
    "POST /engines/slots": Operation(
        summary="Hold a slot in an engine",
        detail=(
            "For programs on the daemon's machine that talk to an engine directly. Loads the model if "
            "needed. The first line says where the engine is; the slot is held until the connection closes."
        ),
        body=SlotBody,
        answers={200: Returns("The slot, as one line; then nothing.", streams={NDJSON: HeldSlot})},
        errors=WITH_BODY | SERVED | {403},
    ),
    "POST /engines/_configure": Operation(
        summary="Configure how a model is loaded",
        detail='Fields that are left out or `null` do not change; `0`, `""` and `[]` remove a setting.',
        body=ConfigureBody,
        answers={202: Returns("The configuration is stored; the model loads in the background.")},
        errors=WITH_BODY | COMMAND,
    ),
    "GET /engines/_configure": Operation(
        summary="List the configurations of models",
        query={"model": Parameter("Only this model.")},
        answers={200: Returns("One entry for each model and mode.", list[ConfiguredRow])},
        errors=frozenset({404}),
    ),
}
