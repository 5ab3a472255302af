"""A restart folds every event there ever was, so no kind of event may cost more with each one before it.

100,000 events of any kind are folded in a second, reading included. Here it is processor time that counts, so
that a busy machine changes little, and the budget leaves room for slow ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from greenroom.actors.engine_runner.core import Runner
from greenroom.actors.engine_runner.events import (
    EngineExited,
    EngineReady,
    EngineSpawned,
    EngineStartRequested,
)
from greenroom.actors.idempotency import CommandAnswered, CommandKeyed, Idempotency
from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.installer.events import (
    InstallationCommitted,
    InstallationRemoved,
    InstallAttemptFailed,
    InstallRequested,
)
from greenroom.actors.kernel.core import Stored
from greenroom.actors.library.core import Library
from greenroom.actors.library.events import ModelCommitted, PullAttemptFailed, PullRequested
from greenroom.actors.scheduler.core import Scheduler
from greenroom.actors.scheduler.events import (
    BreakerClosed,
    BreakerOpened,
    EvictionDecided,
    LoadAdmitted,
    LoadFailed,
    LoadRefused,
)
from greenroom.actors.values import EngineExit, EngineSpec, Failure, Installation, Model

EVENTS = 10_000
BUDGET = 25.0
"""Microseconds an event; a quiet machine takes a fifth of it."""
MODELS = 100
FAILURE = Failure(kind="transient", code="unreachable", message="The index does not answer.")


def spec(number: int) -> EngineSpec:
    return EngineSpec(
        engine_id=f"e{number}",
        backend="llama.cpp",
        installation_id="1-aaaa.1",
        model_id=f"sha256:{number % MODELS}",
        model_ref=f"m{number % MODELS}",
        mode="completion",
        context_size=4096,
        flags=(),
        memory=1,
    )


def keys() -> Iterator[Any]:
    for n in range(EVENTS):
        yield CommandKeyed(key=f"{n:064x}", command="c" * 64, name="POST /models/create")
        yield CommandAnswered(key=f"{n:064x}", status=200, content_type="application/json", body="{}")


def loads() -> Iterator[Any]:
    for n in range(EVENTS):
        one = spec(n)
        about: dict[str, Any] = {"model_id": one.model_id, "model_ref": one.model_ref, "backend": one.backend}
        yield LoadAdmitted(spec=one, reserved=1, budget=2)
        if n % 2:
            ended: dict[str, Any] = {
                "installation_id": one.installation_id,
                "footprint": n + 1,
                "engine_id": one.engine_id,
            }
            yield EvictionDecided(reason="shutdown", idle_seconds=1.0, memory=1, **ended, **about)
        else:
            place: dict[str, Any] = {"engine_id": one.engine_id, "installation_id": one.installation_id}
            yield LoadFailed(failure=FAILURE, was_ready=True, footprint=n + 1, **place, **about)


def refusals() -> Iterator[Any]:
    for n in range(EVENTS):
        about: dict[str, Any] = {"model_id": f"sha256:{n}", "model_ref": f"m{n}", "mode": "completion"}
        yield LoadRefused(code="never_fits", message="no", numbers={}, count=1, **about)


def breakers() -> Iterator[Any]:
    for n in range(EVENTS):
        about: dict[str, Any] = {
            "model_id": f"sha256:{n % MODELS}",
            "backend": "mlx",
            "installation_id": "1-aaaa.1",
        }
        yield BreakerOpened(model_ref="m", failures=3, until=float(n), reason="it died", **about)
        yield BreakerClosed(reason="it runs", **about)


def engines() -> Iterator[Any]:
    for n in range(EVENTS):
        yield EngineStartRequested(spec=spec(n))
        yield EngineSpawned(engine_id=f"e{n}", pid=n, started=1.0, endpoint="/run/e.sock")
        yield EngineReady(engine_id=f"e{n}", seconds=1.0)
        yield EngineExited(engine_id=f"e{n}", exit=EngineExit(at=1.0, code=1, summary="It died."))


def pulls() -> Iterator[Any]:
    for n in range(EVENTS):
        model = Model(id=f"sha256:{n % MODELS}", tags=(f"m{n % MODELS}", "latest"), size=1)
        yield PullRequested(job=f"p{n}", reference=f"m{n % MODELS}", wanted_by="explicit")
        yield PullAttemptFailed(job=f"p{n}", attempt=1, failure=FAILURE, retry_at=1.0)
        yield ModelCommitted(job=f"p{n}", model=model)


def installs() -> Iterator[Any]:
    for n in range(EVENTS):
        job: dict[str, Any] = {"job": f"mlx.{n}", "backend": "mlx"}
        one = Installation(id=f"1-aaaa.{n}", backend="mlx", version="1", digest="aaaa")
        yield InstallRequested(version="1", wanted_by="explicit", **job)
        yield InstallAttemptFailed(attempt=1, failure=FAILURE, retry_at=1.0, **job)
        yield InstallationCommitted(installation=one, **job)
        yield InstallationRemoved(backend="mlx", installation_id=f"1-aaaa.{n - 1}")


@pytest.mark.parametrize(
    ("core", "history"),
    [
        (Idempotency(), keys),
        (Scheduler(()), loads),
        (Scheduler(()), refusals),
        (Scheduler(()), breakers),
        (Runner("llama.cpp"), engines),
        (Library(), pulls),
        (InstallerCore(()), installs),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_no_kind_of_event_makes_a_restart_slow(core: Any, history: Callable[[], Iterable[Any]]) -> None:
    stored = [
        Stored(event, f"s/{n}", n * 0.01, "") for n, event in zip(range(EVENTS), history(), strict=False)
    ]
    taken = []
    for _ in range(3):
        state, begun = core.initial(), time.process_time()
        for one in stored:
            state = core.apply(state, one)
        taken.append((time.process_time() - begun) / EVENTS * 1e6)
        if taken[-1] < BUDGET:
            return
    raise AssertionError(f"{min(taken):.1f} µs an event")
