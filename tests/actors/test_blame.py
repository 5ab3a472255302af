"""Whose failure it was: only what the engine itself did, or the model, counts against a model."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.actors.engine_runner.core import Runner
from greenroom.actors.engine_runner.events import (
    EngineExited,
    EngineReady,
    EngineSpawned,
    EngineStartRequested,
)
from greenroom.actors.engine_runner.messages import EngineStalled
from greenroom.actors.installer.messages import BackendStatus
from greenroom.actors.library.messages import NoteDamage
from greenroom.actors.reports import Happened
from greenroom.actors.scheduler.events import BreakerOpened, LoadFailed, ModelQuarantined
from greenroom.actors.scheduler.messages import Configure, Granted, Unload
from greenroom.actors.testing import given
from greenroom.actors.values import EngineExit, EngineSpec, Failure, Installation
from scheduler_stage import Stage, exited, installation, model

FAILURES = {
    "no_space": Failure(kind="transient", code="no_space", message="The disk is full.", blame="machine"),
    "too_many_files": Failure(kind="transient", code="too_many_files", message="None left.", blame="machine"),
    "keeper": Failure(kind="transient", code="keeper", message="No keeper.", blame="machine"),
    "internal": Failure(kind="permanent", code="internal", message="Greenroom failed.", blame="ours"),
    "cannot_start": Failure(
        kind="permanent", code="cannot_start", message="No such file.", blame="configuration"
    ),
}
NEW = installation("mlx", "0.33", built_at=2.0)
HALTED = Failure(kind="transient", code="engine_halted", message="it was stopped by SIGSTOP", blame="machine")


def upgraded() -> Stage:
    """Qwen has run on the old version and never on the new one, which is in use."""
    old = installation("mlx", "0.32", built_at=1.0)
    stage = Stage().begin(model("qwen", format="safetensors-mlx"), installed_ones=())
    stage.hear_installer(_mlx(old))
    spec = stage.loaded("qwen")
    stage.when(Unload(all=True)).rest()
    stage.engine_is(spec, "gone")
    return stage.hear_installer(_mlx(NEW, old))


def _mlx(*there: Installation) -> BackendStatus:
    return BackendStatus(name="mlx", state="installed", current=there[0], installations=there, wanted=True)


def never_ran(stage: Stage, spec: EngineSpec, failure: Failure) -> Stage:
    end = EngineExit(at=stage.now.wall, summary=failure.sentence(), failure=failure)
    return stage.engine_is(spec, "gone", exit=end)


def test_a_damaged_model_is_reported_to_the_library_with_the_answer() -> None:
    stage = upgraded()
    damaged = Failure(kind="permanent", code="model_damaged", message="It is damaged.", blame="model")
    stage.serve("r1", "qwen")
    spec = stage.spec_of("qwen")
    never_ran(stage, spec, damaged)
    assert stage.refused("r1").code == "model_damaged"
    assert stage.sent(NoteDamage, "library") == [NoteDamage(model_id=spec.model_id, reason="It is damaged.")]


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_load_that_fails_without_the_engines_doing_opens_no_breaker_and_quarantines_nothing(
    failure: Failure,
) -> None:
    stage = upgraded()
    for number in range(5):
        stage.serve(f"r{number}", "qwen")
        assert stage.spec_of("qwen").installation_id == NEW.id
        never_ran(stage, stage.spec_of("qwen"), failure)
        refusal = stage.refused(f"r{number}")
        assert refusal.code == failure.code
        assert refusal.retry_after > 0
        stage.pass_time(refusal.retry_after)
    assert not stage.stored(ModelQuarantined)
    assert not stage.stored(BreakerOpened)
    assert not stage.state.breakers
    assert {one.failure.blame for one in stage.stored(LoadFailed)} == {failure.blame}


def test_an_engine_that_was_never_seen_to_run_or_end_is_not_a_failure() -> None:
    stage = upgraded().serve("r1", "qwen")
    stage.dies(stage.spec_of("qwen"), code=None, summary="The engine's keeper cannot be started.")
    assert not stage.stored(ModelQuarantined)
    assert not stage.state.breakers
    assert stage.stored(LoadFailed)[-1].failure.blame == "machine"


def test_repeated_requests_meanwhile_get_the_same_refusal_and_store_nothing() -> None:
    stage = Stage().begin(model("one"))
    stage.serve("first", "one")
    never_ran(stage, stage.spec_of("one"), FAILURES["no_space"])
    stage.serve("again", "one")
    assert (stage.refused("again").code, stage.refused("again").kind) == ("no_space", "exhausted")
    stored = len(stage.history)
    for number in range(50):
        stage.serve(f"more-{number}", "one")
        assert stage.refused(f"more-{number}").code == "no_space"
    assert len(stage.history) == stored
    stage.pass_time(2.0).serve("later", "one")
    stage.engine_is(stage.spec_of("one"), "starting").engine_is(stage.spec_of("one"), "ready")
    assert isinstance(stage.outcomes["later"], Granted)


def test_a_model_that_is_configured_differently_is_retried_at_once() -> None:
    stage = Stage().begin(model("one"), model("two"))
    for name in ("one", "two"):
        stage.serve(f"first-{name}", name)
        never_ran(stage, stage.spec_of(name), FAILURES["cannot_start"])
    stage.when(Configure(model_id="sha256:one", model_ref="one", flags=("--mlock",))).rest()
    stage.serve("repaired", "one")
    assert stage.spec_of("one").flags == ("--mlock",)
    stage.serve("still broken", "two")
    assert stage.refused("still broken").code == "cannot_start"


def test_what_the_engine_itself_did_counts_as_before() -> None:
    stage = Stage().begin(model("one"))
    for number in range(3):
        stage.serve(f"r{number}", "one")
        stage.dies(stage.spec_of("one"))
    assert stage.stored(BreakerOpened)


def test_an_engine_that_was_stopped_from_outside_is_replaced_for_who_waits() -> None:
    stage = Stage().begin(model("one"))
    spec = stage.loaded("one")
    stage.engine_is(spec, "stopping", fault="it was stopped by SIGSTOP", failure=HALTED)
    (failed,) = stage.stored(LoadFailed)
    assert (failed.failure.code, failed.failure.blame) == ("engine_halted", "machine")
    stage.serve("next", "one")
    new = stage.spec_of("one")
    assert new.engine_id != spec.engine_id
    stage.engine_is(spec, "gone", exit=exited(expected=False, failure=HALTED))
    stage.engine_is(new, "starting").engine_is(new, "ready")
    assert stage.granted("next").engine_id == new.engine_id
    assert not stage.state.breakers


def test_a_runner_keeps_kind_code_and_blame_to_the_end() -> None:
    spec = EngineSpec(engine_id="e1", backend="llama.cpp", installation_id="i", model_id="m", model_ref="m")
    case: Any = given(Runner("llama.cpp"), EngineStartRequested(spec=spec))
    case.when(Happened(event=EngineSpawned(engine_id="e1", pid=7, started=1.0, endpoint="/e")))
    case.when(Happened(event=EngineReady(engine_id="e1"))).rest()
    case.when(EngineStalled(engine_id="e1", failure=HALTED))
    case.when(Happened(event=EngineExited(engine_id="e1", exit=exited(signal="SIGKILL"))))
    engine = case.state.engines["e1"]
    assert engine.failure.message == "The llama.cpp engine for m was stopped: it was stopped by SIGSTOP."
    assert (engine.exit.failure.code, engine.exit.failure.kind, engine.exit.failure.blame) == (
        "engine_halted",
        "transient",
        "machine",
    )
