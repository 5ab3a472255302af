"""A restart folds every event there ever was, so no kind of event may cost more with each one before it.

100,000 events of any kind are folded in a second, reading included. Here it is processor time that counts, so
that a busy machine changes little, and the budget leaves room for slow ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from greenroom.actors import events as ev
from greenroom.actors.facts import EngineExit, EngineSpec, Failure, Installation, Model
from greenroom.actors.idempotency import Idempotency
from greenroom.actors.installer import Installer
from greenroom.actors.kernel.core import Stored
from greenroom.actors.library import Library
from greenroom.actors.runner import Runner
from greenroom.actors.scheduler import Scheduler

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
        yield ev.CommandKeyed(key=f"{n:064x}", command="c" * 64, name="POST /models/create")
        yield ev.CommandAnswered(key=f"{n:064x}", status=200, content_type="application/json", body="{}")


def loads() -> Iterator[Any]:
    for n in range(EVENTS):
        one = spec(n)
        about = {"model_id": one.model_id, "model_ref": one.model_ref, "backend": one.backend}
        yield ev.LoadAdmitted(spec=one, promised=1, budget=2)
        if n % 2:
            ended = {"installation_id": one.installation_id, "footprint": n + 1, "engine_id": one.engine_id}
            yield ev.EvictionDecided(reason="shutdown", idle_seconds=1.0, memory=1, **ended, **about)
        else:
            place = {"engine_id": one.engine_id, "installation_id": one.installation_id}
            yield ev.LoadFailed(failure=FAILURE, was_ready=True, footprint=n + 1, **place, **about)


def refusals() -> Iterator[Any]:
    for n in range(EVENTS):
        about = {"model_id": f"sha256:{n}", "model_ref": f"m{n}", "mode": "completion"}
        yield ev.LoadRefused(code="never_fits", message="no", numbers={}, count=1, **about)


def breakers() -> Iterator[Any]:
    for n in range(EVENTS):
        about = {"model_id": f"sha256:{n % MODELS}", "backend": "mlx", "installation_id": "1-aaaa.1"}
        yield ev.BreakerOpened(model_ref="m", failures=3, until=float(n), reason="it died", **about)
        yield ev.BreakerClosed(reason="it runs", **about)


def engines() -> Iterator[Any]:
    for n in range(EVENTS):
        yield ev.EngineStartRequested(spec=spec(n))
        yield ev.EngineSpawned(engine_id=f"e{n}", pid=n, started=1.0, endpoint="/run/e.sock")
        yield ev.EngineReady(engine_id=f"e{n}", seconds=1.0)
        yield ev.EngineExited(engine_id=f"e{n}", exit=EngineExit(at=1.0, code=1, summary="It died."))


def pulls() -> Iterator[Any]:
    for n in range(EVENTS):
        model = Model(id=f"sha256:{n % MODELS}", tags=(f"m{n % MODELS}", "latest"), size=1)
        yield ev.PullRequested(job=f"p{n}", reference=f"m{n % MODELS}", wanted_by="explicit")
        yield ev.PullAttemptFailed(job=f"p{n}", attempt=1, failure=FAILURE, retry_at=1.0)
        yield ev.ModelCommitted(job=f"p{n}", model=model)


def installs() -> Iterator[Any]:
    for n in range(EVENTS):
        job = {"job": f"mlx.{n}", "backend": "mlx"}
        one = Installation(id=f"1-aaaa.{n}", backend="mlx", version="1", digest="aaaa")
        yield ev.InstallRequested(version="1", wanted_by="explicit", **job)
        yield ev.InstallAttemptFailed(attempt=1, failure=FAILURE, retry_at=1.0, **job)
        yield ev.InstallationCommitted(installation=one, **job)
        yield ev.InstallationRemoved(backend="mlx", installation_id=f"1-aaaa.{n - 1}")


@pytest.mark.parametrize(
    ("core", "history"),
    [
        (Idempotency(), keys),
        (Scheduler(()), loads),
        (Scheduler(()), refusals),
        (Scheduler(()), breakers),
        (Runner("llama.cpp"), engines),
        (Library(), pulls),
        (Installer(()), installs),
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
