"""An installer in one life after the other, told by a test what the disk shows and how builds end."""

from __future__ import annotations

from typing import Any

import msgspec

from greenroom.actors.engine_runner.messages import EngineList
from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.installer.events import InstallationCommitted, InstallRequested
from greenroom.actors.installer.messages import (
    BackendStatus,
    Ensure,
    InstallationsSeen,
)
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Recovered
from greenroom.actors.testing import Case, given
from greenroom.actors.values import Engine, EngineSpec, Failure, Installation, VariantFacts
from reports import attempt_failed
from scheduler_stage import METAL
from scheduler_stage import MLX as PLAIN_MLX

NOW = Moment(wall=1_700_000_000.0, monotonic=1_000.0)
KEY = "install/mlx"
MLX = msgspec.structs.replace(
    PLAIN_MLX,
    usual="cpu",
    variants=(
        VariantFacts(name="cuda", runtime="cuda", is_locked=False),
        VariantFacts(name="vulkan", runtime="vulkan", is_locked=False),
        VariantFacts(name="cpu"),
    ),
)


def built(name: str = "1-aaaa.1", backend: str = "mlx", **more: Any) -> Installation:
    """An installation whose id says its version and digest."""
    version, _, rest = name.partition("-")
    fields: dict[str, Any] = {
        "id": name,
        "version": version,
        "digest": rest.split(".")[0],
        "built_at": NOW.wall,
    }
    return Installation(backend=backend, **(fields | more))


def new_life(
    *history: Any, disk: tuple[Installation, ...] = (), looked: bool = True, mlx: Any = MLX, **options: Any
) -> Case[Any, Any]:
    """An installer of mlx and vllm-metal, in a life in which the disk shows this."""
    case = given(InstallerCore((mlx, METAL), **options), *history, now=NOW)
    case.when(Recovered()).rest()
    if looked:
        look(case, *disk)
    return case


def look(case: Case[Any, Any], *disk: Installation, backend: str = "mlx") -> Case[Any, Any]:
    for name in ("vllm-metal", "mlx"):
        found = tuple(disk) if name == backend else ()
        case.when(InstallationsSeen(backend=name, installations=found)).rest()
    return case


def ensure(case: Case[Any, Any], **more: Any) -> Any:
    """What the wish was answered, `Later` included; then let follow what follows."""
    case.when(Ensure(backend="mlx", **more))
    reply = case.reply
    case.rest()
    return reply


def committed(job: str = "mlx.1", one: Installation | None = None) -> InstallationCommitted:
    return InstallationCommitted(job=job, backend="mlx", installation=one or built())


def requested(job: str = "mlx.1", **more: Any) -> InstallRequested:
    fields: dict[str, Any] = {"version": "", "wanted_by": "explicit"}
    return InstallRequested(job=job, backend="mlx", **(fields | more))


def fails(
    case: Case[Any, Any], failure: Failure, job: str = "mlx.1", *, reached: bool = True
) -> Case[Any, Any]:
    ended = attempt_failed(job, failure, reached=reached)
    return case.when(ended).rest()


def engines(*ids: str, acted_on: int = 10_000, token: str = "", backend: str = "mlx") -> EngineList:
    running = tuple(
        Engine(
            spec=EngineSpec(
                engine_id=f"e-{one}", backend=backend, installation_id=one, model_id="m", model_ref="m"
            ),
            state="ready",
            since=0.0,
        )
        for one in ids
    )
    return EngineList(backend=backend, engines=running, version=1, installations=acted_on, token=token)


def status(case: Case[Any, Any], name: str = "mlx") -> BackendStatus:
    assert isinstance(case.core, InstallerCore)
    return case.core.status(case.state, name, case.now.wall)


def failure_of(case: Case[Any, Any], name: str = "mlx") -> Failure:
    """What a backend's status says that went wrong."""
    failure = status(case, name).failure
    assert failure is not None
    return failure
