"""T7: every death path leads to the desired-state decision (Xinference: two paths forgot to call it)."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from greenroom.actors.engine_runner.messages import EngineList
from greenroom.actors.scheduler.messages import Granted
from greenroom.actors.values import EngineExit, Measured
from scheduler_stage import GIB, Stage, exited, model
from waiting import until_async

DEATHS = ("killed", "crashed", "ended", "lost", "given_up", "forgotten")
MOMENTS = ("starting", "ready", "serving")


@pytest.mark.parametrize("how", ["SIGKILL", "SIGABRT", "SIGTERM", "keeper"])
async def test_however_an_engine_dies_the_next_request_is_served(make_daemon: Any, how: str) -> None:
    daemon = await make_daemon()
    await daemon.add("tiny")
    assert (await daemon.chat("tiny")).status == 200
    engine = await daemon.engine("tiny")
    claim = json.loads((daemon.home / "engines" / engine["engine_id"] / "claim").read_text())
    if how == "keeper":
        os.kill(claim["keeper_pid"], signal.SIGKILL)
    else:
        os.kill(engine["pid"], getattr(signal, how))
    await until_async(lambda: daemon.events("load_failed"))
    assert (await daemon.chat("tiny")).status == 200
    assert (await daemon.engine("tiny"))["pid"] != engine["pid"]
    assert engine["pid"] not in daemon.engine_pids()


@settings(max_examples=60, deadline=None)
@given(some.lists(some.tuples(some.sampled_from(DEATHS), some.sampled_from(MOMENTS)), max_size=6))
def test_after_any_deaths_at_any_moment_time_alone_brings_the_model_back(deaths: list[Any]) -> None:
    stage = Stage().begin(model("tiny", GIB))
    for number, (how, moment) in enumerate(deaths):
        _load(stage, f"r{number}", moment)
        _die(stage, how, moment)
    patience = 0
    for patience in range(100):
        stage.serve(f"last-{patience}", "tiny")
        if stage.loads:
            break
        # It has died or was lost too often lately: a refusal that says when to come back, and never silence.
        refusal = stage.refused(f"last-{patience}")
        assert refusal.kind == "unavailable"
        assert refusal.retry_after
        stage.pass_time(refusal.retry_after + 1.0)
    stage.engine_is(stage.spec_of("tiny"), "starting").engine_is(stage.spec_of("tiny"), "ready")
    assert isinstance(stage.outcomes[f"last-{patience}"], Granted)
    assert len(stage.loads) == 1


def _load(stage: Stage, request: str, moment: str) -> None:
    stage.serve(request, "tiny")
    if not stage.loads:
        return
    spec = stage.spec_of("tiny")
    stage.engine_is(spec, "starting")
    if moment != "starting":
        stage.engine_is(spec, "ready")
        stage.leave(request)
    if moment == "serving":
        stage.serve(f"{request}-inside", "tiny")


def _die(stage: Stage, how: str, moment: str) -> None:
    if not stage.loads:
        return
    spec = stage.spec_of("tiny")
    ends: dict[str, EngineExit] = {
        "killed": exited(stage.now.wall, code=None, signal="SIGKILL"),
        "crashed": exited(stage.now.wall, code=1),
        "ended": exited(stage.now.wall, code=0, expected=True),
        "lost": exited(stage.now.wall, code=None, lost=True),
    }
    if how == "forgotten":
        # Its runner has lost its own memory of it: the list comes without.
        stage.engines["fake" if "fake" in stage.engines else spec.backend].pop(spec.engine_id, None)
        # The runner first receives the order never to start it, and then reports that.
        stage.hear_runner(spec.backend).hear_runner(spec.backend)
    elif how == "given_up":
        stage.engine_is(spec, "stopping", fault="it sent nothing for 60s")
        assert spec.engine_id not in {one.engine_id for one in stage.loads}, "given up, and still counted on"
        stage.engine_is(spec, "gone", exit=ends["killed"])
    else:
        stage.engine_is(spec, "gone", exit=ends[how])
    assert spec.engine_id not in {one.engine_id for one in stage.loads}
    assert not any(spec.engine_id == one for one in stage.gates.readings()), (
        "the gate of a dead engine is open"
    )


def test_memory_of_ended_engines_is_forgotten() -> None:
    stage = Stage().begin(model("tiny", GIB))
    spec = stage.loaded("tiny")
    stage.when(
        EngineList(
            backend=spec.backend,
            engines=tuple(stage.engines[spec.backend].values()),
            version=2,
            measured={spec.engine_id: Measured(now=3 * GIB, peak=3 * GIB)},
        )
    ).rest()
    stage.dies(spec)
    assert stage.volatile.measured == {}
