"""A model that a new version of a backend breaks goes back to the version that served it."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.actors.installer.messages import BackendStatus
from greenroom.actors.scheduler.events import (
    BackendChosen,
    BreakerOpened,
    ModelQuarantined,
    QuarantineLifted,
)
from greenroom.actors.scheduler.messages import Abandon, Configure, LiftQuarantines, Unload
from greenroom.actors.values import Installation
from scheduler_stage import Stage, installation, model

QWEN, PHI = model("qwen", format="safetensors-mlx"), model("phi", format="safetensors-mlx")

OLD = installation("mlx", "0.32", built_at=1.0)
NEW = installation("mlx", "0.33", built_at=2.0)
NEWEST = installation("mlx", "0.34", built_at=3.0)


def mlx(current: Installation, *others: Installation, **more: Any) -> BackendStatus:
    return BackendStatus(
        name="mlx", state="installed", current=current, installations=(current, *others), wanted=True, **more
    )


def on_the_old_one() -> Stage:
    """Qwen has run on the old version."""
    stage = Stage().begin(QWEN, PHI, installed_ones=())
    stage.hear_installer(mlx(OLD))
    spec = stage.loaded("qwen")
    assert spec.installation_id == OLD.id
    stage.when(Unload(all=True)).rest()
    stage.engine_is(spec, "gone")
    return stage


def upgraded() -> Stage:
    return on_the_old_one().hear_installer(mlx(NEW, OLD))


def dies(stage: Stage, times: int, name: str = "qwen", **more: Any) -> Stage:
    for number in range(times):
        stage.serve(f"{name}-{stage.clock.now().monotonic}-{number}", name)
        stage.dies(stage.spec_of(name), summary="This version cannot read the model.", **more)
    return stage


def quarantined() -> Stage:
    """And unloaded again after it has run on the old version."""
    stage = dies(upgraded(), 1)
    assert stage.stored(ModelQuarantined)
    spec = stage.spec_of("qwen")
    stage.engine_is(spec, "starting").engine_is(spec, "ready")
    for request in sorted(stage.gates.inside(spec.engine_id)):
        stage.leave(request)
    stage.when(Unload(all=True)).rest()
    return stage.engine_is(spec, "gone")


def test_a_model_that_the_new_version_cannot_load_returns_to_the_old_one_unnoticed_by_clients() -> None:
    stage = upgraded().serve("r1", "qwen")
    assert stage.spec_of("qwen").installation_id == NEW.id
    stage.dies(stage.spec_of("qwen"), summary="This version cannot read the model.")
    (event,) = stage.stored(ModelQuarantined)
    assert (event.version, event.back_to_version, event.failures) == ("0.33", "0.32", 1)
    assert event.reason == "This version cannot read the model."
    # A request that waited for it is served by the old version, not refused.
    spec = stage.spec_of("qwen")
    assert spec.installation_id == OLD.id
    stage.engine_is(spec, "ready")
    assert stage.granted("r1").engine_id == spec.engine_id
    chosen = stage.stored(BackendChosen)[-1]
    assert chosen.reasons[-1] == ("mlx 0.32 serves it, since it failed once on 0.33")
    assert not stage.stored(BreakerOpened)


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_an_engine_that_was_killed_must_be_so_three_times_in_a_row(signal: str) -> None:
    stage = dies(upgraded(), 2, signal=signal)
    assert not stage.stored(ModelQuarantined)
    stage.serve("r1", "qwen")
    stage.dies(stage.spec_of("qwen"), summary="It was killed.", signal=signal)
    (event,) = stage.stored(ModelQuarantined)
    assert event.failures == 3
    assert stage.stored(BreakerOpened)
    spec = stage.spec_of("qwen")
    assert spec.installation_id == OLD.id
    stage.engine_is(spec, "ready")
    assert stage.granted("r1").engine_id == spec.engine_id
    chosen = stage.stored(BackendChosen)[-1]
    assert chosen.reasons[-1] == ("mlx 0.32 serves it, since it failed 3 times in a row on 0.33")


def test_an_engine_that_crashes_has_ended_by_itself() -> None:
    assert dies(upgraded(), 1, signal="SIGSEGV").stored(ModelQuarantined)


def test_an_engine_that_was_ready_must_die_three_times_in_a_row() -> None:
    stage = upgraded()
    for number in range(3):
        assert not stage.stored(ModelQuarantined)
        stage.pass_time(1.0).dies(stage.loaded("qwen"), summary=f"It died the {number}. time.")
    assert stage.stored(ModelQuarantined)


def test_every_other_model_goes_on_with_the_new_version() -> None:
    stage = quarantined()
    assert stage.loaded("phi").installation_id == NEW.id


def test_a_model_that_never_ran_on_the_old_version_is_only_left_alone() -> None:
    stage = dies(upgraded(), 3, "phi")
    assert not stage.stored(ModelQuarantined)
    stage.serve("r1", "phi")
    assert stage.refused("r1").code == "breaker_open"


def test_a_model_that_has_run_on_the_new_version_too_is_only_left_alone() -> None:
    stage = upgraded()
    spec = stage.loaded("qwen")
    stage.when(Unload(all=True)).rest()
    stage.engine_is(spec, "gone")
    dies(stage, 3)
    assert not stage.stored(ModelQuarantined)


def test_an_engine_that_ends_before_it_was_ready_proves_nothing() -> None:
    stage = Stage().begin(QWEN, installed_ones=()).hear_installer(mlx(OLD))
    stage.serve("r1", "qwen")
    spec = stage.spec_of("qwen")
    stage.engine_is(spec, "starting").when(Abandon(request_id="r1")).rest()
    stage.when(Unload(all=True)).rest()
    stage.engine_is(spec, "gone")
    dies(stage.hear_installer(mlx(NEW, OLD)), 3)
    assert not stage.stored(ModelQuarantined)


def test_what_was_ready_when_it_was_lost_with_its_daemon_has_run() -> None:
    stage = Stage().begin(QWEN, installed_ones=()).hear_installer(mlx(OLD))
    stage.dies(stage.loaded("qwen"), lost=True)
    dies(stage.hear_installer(mlx(NEW, OLD)), 3)
    assert stage.stored(ModelQuarantined)


def test_an_old_version_that_is_broken_or_being_removed_serves_no_requests() -> None:
    for gone in (mlx(NEW), mlx(NEW, OLD, retiring=(OLD.id,))):
        stage = dies(on_the_old_one().hear_installer(gone), 3)
        assert not stage.stored(ModelQuarantined)


def test_a_quarantine_outlives_a_restart() -> None:
    stage = quarantined().rebuild()
    stage.hear_installer(mlx(NEW, OLD)).serve("r1", "qwen")
    assert stage.spec_of("qwen").installation_id == OLD.id


def test_a_quarantine_says_what_it_is_about() -> None:
    (one,) = quarantined().state.quarantines.values()
    assert (one.model_ref, one.version, one.back_to_version, one.failures) == ("qwen", "0.33", "0.32", 1)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (mlx(NEWEST, NEW, OLD), "a newer installation of mlx (0.34) is in use"),
        (mlx(OLD), "mlx 0.33 is no longer installed"),
        (mlx(NEW), "mlx 0.32, which served it, is no longer installed"),
    ],
)
def test_a_quarantine_ends_by_itself(status: BackendStatus, reason: str) -> None:
    stage = quarantined().hear_installer(status)
    (event,) = stage.stored(QuarantineLifted)
    assert event.reason == reason
    assert not stage.state.quarantines
    stage.serve("r1", "qwen")
    assert status.current is not None
    assert stage.spec_of("qwen").installation_id == status.current.id


def test_going_back_and_forth_by_hand_has_the_model_tried_again() -> None:
    stage = quarantined().hear_installer(mlx(OLD, NEW))
    assert not stage.stored(QuarantineLifted)
    stage.hear_installer(mlx(NEW, OLD))
    (event,) = stage.stored(QuarantineLifted)
    assert event.reason == "mlx 0.33 was brought into use again"
    assert stage.serve("r1", "qwen").spec_of("qwen").installation_id == NEW.id


def test_asking_for_the_version_again_has_the_model_tried_again_at_once() -> None:
    stage = quarantined().when(LiftQuarantines(backend="llama.cpp")).rest()
    assert stage.state.quarantines
    stage.when(LiftQuarantines(backend="mlx")).rest()
    assert not stage.state.quarantines
    assert stage.serve("r1", "qwen").spec_of("qwen").installation_id == NEW.id


def test_another_configuration_has_the_model_tried_again() -> None:
    stage = quarantined()
    stage.when(Configure(model_id=QWEN.id, model_ref="qwen", keep_alive=10.0)).rest()
    assert stage.state.quarantines
    stage.when(Configure(model_id=QWEN.id, model_ref="qwen", context_size=512)).rest()
    assert not stage.state.quarantines


def test_a_model_that_dies_on_the_old_version_too_was_not_broken_by_the_new_one() -> None:
    stage = dies(quarantined(), 3)
    (event,) = stage.stored(QuarantineLifted)
    assert event.reason == "it failed 3 times in a row on 0.32 too"
    # Nor does it go to and fro between the two.
    for _ in range(4):
        dies(stage.pass_time(300), 1)
    assert len(stage.stored(ModelQuarantined)) == 1


def test_failures_that_are_not_the_models_fault_quarantine_nothing() -> None:
    stage = upgraded()
    for number in range(4):
        stage.serve(f"r{number}", "qwen")
        stage.dies(stage.spec_of("qwen"), lost=True)
        stage.pass_time(120)  # after several in a row, loads pause
    assert not stage.stored(ModelQuarantined)
