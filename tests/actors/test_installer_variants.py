"""Variants of a backend: which one is installed, which one is offered, and what follows a failure."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from greenroom.actors.installer.effects import BuildInstallation
from greenroom.actors.installer.events import (
    InstallationActivated,
    InstallationCommitted,
    InstallFailed,
    InstallRequested,
    VariantsRanked,
)
from greenroom.actors.installer.messages import Activate, CancelInstall, Ensured, RankVariants, Uninstall
from greenroom.actors.kernel.core import Later
from greenroom.actors.testing import Case
from greenroom.actors.values import Failure
from greenroom.actors.variants import RankedVariant
from installer_life import MLX, built, committed, ensure, fails, new_life, status
from reports import build_committed

BROKEN = Failure(kind="permanent", code="no_kernel", message="The build has no code for this device.")
AWAY = Failure(kind="transient", code="unreachable", message="The package index could not be reached.")
CPU = built("1-aaaa.1")
CUDA = built("1-bbbb.1", id="cuda-1-bbbb.1", variant="cuda")
VULKAN = built("1-cccc.1", id="vulkan-1-cccc.1", variant="vulkan")


def ranked(*usable: str) -> tuple[RankedVariant, ...]:
    names = [*usable, *(one for one in ("cuda", "vulkan", "cpu") if one not in usable)]
    return tuple(
        RankedVariant(
            name=name,
            usable=name in usable,
            reason="It runs on the card." if name in usable else "No NVIDIA device was found.",
        )
        for name in names
    )


def look_at_devices(
    case: Case[Any, Any], *usable: str, devices: tuple[str, ...] = ("a card",)
) -> Case[Any, Any]:
    return case.when(RankVariants(backend="mlx", devices=devices, variants=ranked(*usable))).rest()


def builds(case: Case[Any, Any]) -> list[tuple[str, str]]:
    return [(one.job, one.variant) for one in case.of(BuildInstallation)]


def test_the_order_is_stored_when_it_is_new() -> None:
    case = look_at_devices(new_life(disk=(CPU,)), "cuda", "cpu")
    case.then(VariantsRanked)
    assert status(case).variants == ranked("cuda", "cpu")
    look_at_devices(case, "cuda", "cpu")
    case.then()


def test_the_best_variant_is_installed_when_the_choice_is_left_open() -> None:
    case = look_at_devices(new_life(), "cuda", "vulkan", "cpu")
    assert ensure(case, variant="best") == Later("install/mlx@best/")
    assert builds(case) == [("mlx.1", "cuda")]
    case.when(build_committed("mlx.1", CUDA)).rest()
    assert case.answers["install/mlx@best/"] == Ensured(installation=CUDA, fresh=True)
    assert ensure(case, variant="best") == Ensured(installation=CUDA, fresh=False)


def test_without_a_look_at_the_devices_the_best_variant_is_the_usual_one() -> None:
    case = new_life()
    ensure(case, variant="best")
    assert builds(case) == [("mlx.1", "")]


def test_a_choice_that_is_left_open_joins_the_default_job_and_is_left_again() -> None:
    case = look_at_devices(new_life(mlx=replace(MLX, deferred=False)), "cpu")
    assert [one.event.wanted_by for one in case.history if isinstance(one.event, InstallRequested)] == [
        "default"
    ]
    assert ensure(case, variant="best") == Later("install/mlx@best/")
    assert status(case).job == "mlx.1"
    case.when(build_committed("mlx.1", CPU)).rest()
    assert case.answers["install/mlx@best/"] == Ensured(installation=CPU, fresh=True)

    case = look_at_devices(new_life(), "cuda", "cpu")
    ensure(case, variant="best", waiter="a")
    assert case.when(CancelInstall(backend="mlx", variant="best", waiter="a", leave=True)).reply.ended


def test_what_does_not_work_here_gives_way_to_the_next_in_order() -> None:
    case = look_at_devices(new_life(), "cuda", "vulkan", "cpu")
    ensure(case, variant="best")
    fails(case, BROKEN)
    case.then(InstallFailed, InstallRequested)
    assert builds(case) == [("mlx.2", "vulkan")]
    assert not case.answers.get("install/mlx@best/"), "who left the choice open waits on"
    assert status(case).tried == {"cuda": BROKEN}
    case.when(build_committed("mlx.2", VULKAN)).rest()
    assert case.answers["install/mlx@best/"] == Ensured(installation=VULKAN, fresh=True)
    assert ensure(case, variant="best").installation == VULKAN


def test_a_failure_beside_an_installation_that_works_ends_with_that_one() -> None:
    case = look_at_devices(new_life(disk=(CPU,)), "cuda", "cpu")
    ensure(case, variant="best")
    fails(case, BROKEN)
    case.then(InstallFailed)
    assert case.answers["install/mlx@best/"] == Ensured(installation=CPU, fresh=False)
    assert status(case).offered == ""


def test_a_variant_that_was_asked_for_by_name_has_no_stand_in() -> None:
    case = look_at_devices(new_life(disk=(CPU,)), "cuda", "cpu")
    assert ensure(case, variant="cuda") == Later("install/mlx@cuda/")
    fails(case, BROKEN)
    assert case.answers["install/mlx@cuda/"].code == "no_kernel"
    assert not builds(case)


def test_a_variant_that_cannot_run_here_is_refused_before_it_is_fetched() -> None:
    case = look_at_devices(new_life(disk=(CPU,)), "cpu")
    refused = ensure(case, variant="cuda")
    assert (refused.code, refused.message) == (
        "variant_unusable",
        "mlx cuda cannot run on this machine: No NVIDIA device was found.",
    )
    refused = ensure(case, variant="tpu")
    assert refused.code == "no_such_variant"
    assert "it has cuda, vulkan, cpu" in refused.message


def test_a_better_variant_is_offered_and_not_forced() -> None:
    case = look_at_devices(new_life(disk=(CPU,)), "cuda", "cpu")
    assert status(case).offered == "cuda"
    assert not builds(case)
    look_at_devices(case, "cpu", devices=())
    assert status(case).offered == ""


def test_where_it_is_allowed_a_better_variant_is_fetched_beside_the_one_that_answers() -> None:
    case = look_at_devices(new_life(disk=(CPU,), fetch_variants=True), "cuda", "cpu")
    assert builds(case) == [("mlx.1", "cuda")]
    assert status(case).current == CPU
    case.when(build_committed("mlx.1", CUDA)).rest()
    case.then(InstallationCommitted, InstallationActivated)
    assert status(case).current == CUDA


@pytest.mark.parametrize("failure", [BROKEN, AWAY])
def test_what_could_not_be_fetched_is_not_fetched_again_by_itself(failure: Failure) -> None:
    case = look_at_devices(new_life(disk=(CPU,), fetch_variants=True), "cuda", "cpu")
    while status(case).job:
        fails(case, failure).advance(3600).rest()
    assert status(case).tried.keys() == {"cuda"}
    case.rest()
    assert not status(case).job
    look_at_devices(case, "cuda", "cpu", devices=("a card with a new driver",))
    assert status(case).job, "other devices are a new chance"


def test_a_driver_that_comes_and_goes_does_not_have_a_failing_variant_installed_each_time() -> None:
    case = look_at_devices(new_life(disk=(CPU,), fetch_variants=True), "cuda", "cpu")
    for _ in range(8):
        if job := status(case).job:
            fails(case, BROKEN, job)
        look_at_devices(case, "cpu", devices=())
        look_at_devices(case, "cuda", "cpu")
    asked = [one.event.variant for one in case.history if isinstance(one.event, InstallRequested)]
    assert asked == ["cuda"] * 3
    assert status(case).tried == {"cuda": BROKEN}, "and it is said why"
    look_at_devices(case, "cuda", "cpu", devices=("a card with a new driver",))
    assert status(case).job, "other devices are a new chance"
    fails(case, BROKEN, status(case).job)
    look_at_devices(case, "cuda", "cpu")
    assert not status(case).job
    ensure(case, variant="cuda")
    assert status(case).job, "a user can have it tried at any time"
    fails(case, BROKEN, status(case).job)
    look_at_devices(case, "cpu", devices=())
    look_at_devices(case, "cuda", "cpu")
    assert status(case).job, "and it has as many chances again"


def test_what_a_user_has_cancelled_or_uninstalled_is_not_offered_again() -> None:
    case = look_at_devices(new_life(disk=(CPU,), fetch_variants=True), "cuda", "cpu")
    case.when(CancelInstall(backend="mlx", job="mlx.1")).rest()
    assert (status(case).job, status(case).offered) == ("", "")
    case = look_at_devices(new_life(disk=(CPU, CUDA), fetch_variants=True), "cuda", "cpu")
    case.when(Uninstall(backend="mlx", variant="cuda")).rest()
    assert (status(case).job, status(case).offered) == ("", "")
    assert isinstance(ensure(case, variant="cuda"), Later)


def test_the_configured_variant_is_fetched_and_used() -> None:
    configured = replace(MLX, variant="vulkan")
    case = look_at_devices(new_life(disk=(CPU,), mlx=configured), "cuda", "vulkan", "cpu")
    assert builds(case) == [("mlx.1", "vulkan")]
    case = new_life(disk=(VULKAN, replace(CPU, built_at=CPU.built_at + 1)), mlx=configured)
    assert status(case).current == VULKAN
    ensure(case, variant="cpu")
    current = status(case).current
    assert current is not None
    assert current.variant == "", "for the moment another one may be used"


def test_a_configured_variant_that_cannot_run_here_is_passed_over() -> None:
    case = look_at_devices(new_life(disk=(CPU,), mlx=replace(MLX, variant="cuda")), "vulkan", "cpu")
    assert status(case).offered == "vulkan"


def test_the_usual_variant_has_its_own_name() -> None:
    case = new_life(disk=(CUDA,))
    assert ensure(case, variant="cpu") == Later("install/mlx@usual/")
    assert builds(case) == [("mlx.1", "")]
    case.when(build_committed("mlx.1", CPU)).rest()
    assert case.answers["install/mlx@usual/"] == Ensured(installation=CPU, fresh=True)
    assert case.when(Activate(backend="mlx", variant="cuda")).reply.installation == CUDA
    case.rest()
    case.when(Uninstall(backend="mlx", variant="cpu")).rest()
    assert status(case).retiring == (CPU.id,)
    assert status(case).current == CUDA


def test_what_was_resolved_for_a_variant_binds_the_next_build_of_it() -> None:
    case = new_life(committed("mlx.1", CUDA), disk=(replace(CUDA, broken="a file is missing"),))
    ensure(case, variant="cuda")
    (build,) = case.of(BuildInstallation)
    assert build.digest == CUDA.digest
    ensure(case, variant="cuda", version="latest")
    assert not [one for one in case.of(BuildInstallation) if one.version == "latest" and one.digest]


def test_the_pinned_version_is_that_of_the_build_in_use() -> None:
    compiled = built("7-dddd.1", id="build-native-7-dddd.1", variant="build-native")
    facts = replace(MLX, version="1", versions={"build-native": "8"})
    case = new_life(disk=(compiled,), mlx=facts)
    ensure(case, version="pinned")
    (build,) = case.of(BuildInstallation)
    assert (build.variant, build.version) == ("build-native", "8")
    ensure(case, version="pinned", variant="cpu")
    assert status(case).queue == ("mlx.2",)


def test_a_build_is_uninstalled_by_its_variant() -> None:
    compiled = built("7-dddd.1", id="build-native-7-dddd.1", variant="build-native")
    case = new_life(disk=(CPU, compiled), mlx=replace(MLX, versions={"build-native": "7"}))
    case.when(Uninstall(backend="mlx", variant="build-native")).rest()
    assert status(case).retiring == (compiled.id,)


def test_a_cancelled_variant_is_started_again_by_its_name() -> None:
    case = new_life()
    ensure(case, variant="vulkan")
    case.when(CancelInstall(backend="mlx")).rest()
    assert "install-runner --backend mlx --variant vulkan" in case.answers["install/mlx@vulkan/"].advice
