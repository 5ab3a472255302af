"""The verbs under `/engines` about engines, and how models are loaded."""

from __future__ import annotations

import msgspec

from greenroom.actors.scheduler.messages import LedgerReading, QueueEntry
from greenroom.actors.values import EngineExit, EngineState, LayersOn, Loaded, Mode, Reservation
from greenroom.runner.http.configuring import ConfigureBody
from greenroom.runner.http.engines import UnloadBody
from greenroom.runner.http.openapi.daemon import NotNowAnswer
from greenroom.runner.http.openapi.operation import COMMAND, WITH_BODY, Operation, Parameter, Returns

_UNSET = msgspec.UNSET


class EnginePlacement(LayersOn, frozen=True, kw_only=True):
    name: str
    """The device's, for people."""


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
    fault: str | msgspec.UnsetType = _UNSET
    exit: EngineExit | msgspec.UnsetType = _UNSET


class QueueRow(QueueEntry, frozen=True, kw_only=True):
    progress: str


class UnloadedAnswer(msgspec.Struct):
    unloaded_runners: int


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


_BUSY = {503: Returns("The scheduler does not answer now.", NotNowAnswer, headers=("Retry-After",))}

OPERATIONS = {
    "GET /engines/status": Operation(
        summary="Every backend in a few words",
        answers={200: Returns("By name; `Running` means installed.", dict[str, str])},
    ),
    "GET /engines/ps": Operation(
        summary="What is loaded",
        query={"all": Parameter("Also the engines that ended last, and how.", bool)},
        answers={200: Returns("The engines.", list[EngineRow])},
    ),
    "GET /engines/requests": Operation(
        summary="Refused: requests are not recorded",
        query={
            "model": Parameter("Has no meaning here."),
            "include_existing": Parameter("Has no meaning here."),
        },
        answers={},
        errors=frozenset({404}),
    ),
    "GET /engines/devices": Operation(
        summary="The graphics devices",
        query={"refresh": Parameter("Ask the drivers again, which may take seconds.", bool)},
        answers={200: Returns("The devices, and what is wrong.", DevicesAnswer)},
    ),
    "GET /engines/ledger": Operation(
        summary="How much memory there is, and what is reserved",
        answers={200: Returns("The ledger, in bytes.", LedgerReading), **_BUSY},
    ),
    "GET /engines/queue": Operation(
        summary="Requests that wait for an engine",
        answers={200: Returns("In the order in which they are served.", list[QueueRow]), **_BUSY},
    ),
    "POST /engines/unload": Operation(
        summary="End idle engines",
        body=UnloadBody,
        needs_body=False,
        answers={200: Returns("How many.", UnloadedAnswer)},
        errors=WITH_BODY | COMMAND,
    ),
    "POST /engines/_configure": Operation(
        summary="How a model is loaded from now on",
        detail='Fields that are left out stay as they were; `null`, `0`, `""` and `[]` remove a setting.',
        body=ConfigureBody,
        answers={202: Returns("It is stored, and the model is loaded in the background.")},
        errors=WITH_BODY | COMMAND,
    ),
    "GET /engines/_configure": Operation(
        summary="How models were configured",
        query={"model": Parameter("Only this one.")},
        answers={200: Returns("An entry for each model and mode.", list[ConfiguredRow])},
        errors=frozenset({404}),
    ),
}
