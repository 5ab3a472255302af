"""A model that dies on one variant goes on to the next; idle engines of a variant no longer in use end."""

from __future__ import annotations

from greenroom.actors.installer.messages import BackendStatus
from greenroom.actors.scheduler.events import EvictionDecided, ModelQuarantined, QuarantineLifted
from greenroom.actors.values import Installation
from greenroom.actors.variants import RankedVariant
from scheduler_stage import Stage, installation, model

QWEN, PHI = model("qwen", format="safetensors-mlx"), model("phi", format="safetensors-mlx")


def variant(name: str, built_at: float) -> Installation:
    return Installation(
        id=f"{name}-1-aaaa.1", backend="mlx", variant=name, version="1", digest=name, built_at=built_at
    )


CPU = installation("mlx", "1", built_at=1.0)
VULKAN, CUDA = variant("vulkan", 2.0), variant("cuda", 3.0)


def mlx(current: Installation, *others: Installation) -> BackendStatus:
    names = ("cuda", "vulkan", "cpu")
    return BackendStatus(
        name="mlx",
        state="installed",
        current=current,
        installations=(current, *others),
        wanted=True,
        variants=tuple(RankedVariant(name=one, usable=True, reason="It runs.") for one in names),
    )


def on(*installations: Installation) -> Stage:
    return Stage().begin(QWEN, PHI, installed_ones=()).hear_installer(mlx(*installations))


def dies(stage: Stage, name: str = "qwen", times: int = 3) -> Stage:
    """So often in a row, with the pauses in between."""
    where = ""
    for number in range(times):
        stage.pass_time(400)
        stage.serve(f"{name}-{stage.clock.now().monotonic}-{number}", name)
        spec = stage.spec_of(name)
        assert where in ("", spec.installation_id), "it is tried in the same place"
        where = spec.installation_id
        stage.dies(spec, summary="The device is lost.")
    return stage


def test_a_model_that_dies_on_one_variant_goes_on_to_the_next_and_no_other_does() -> None:
    stage = dies(on(CUDA, CPU, VULKAN))
    (event,) = stage.stored(ModelQuarantined)
    assert (event.version, event.back_to, event.back_to_version) == ("cuda 1", VULKAN.id, "vulkan 1")
    assert stage.spec_of("qwen").installation_id == VULKAN.id, "its last request is served there"
    stage.serve("other", "phi")
    assert stage.spec_of("phi").installation_id == CUDA.id


def test_a_model_that_dies_there_too_goes_on_to_the_last_one() -> None:
    stage = dies(on(CUDA, CPU, VULKAN))
    stage.dies(stage.spec_of("qwen"))
    dies(stage, times=2)
    assert [one.back_to for one in stage.stored(ModelQuarantined)] == [VULKAN.id, CPU.id]
    assert stage.spec_of("qwen").installation_id == CPU.id


def test_without_another_variant_a_model_is_only_left_alone() -> None:
    assert not dies(on(CUDA)).stored(ModelQuarantined)


def test_a_quarantine_on_a_variant_ends_when_it_is_gone() -> None:
    stage = dies(on(CUDA, CPU))
    stage.hear_installer(mlx(CPU))
    assert [one.installation_id for one in stage.stored(QuarantineLifted)] == [CUDA.id]


def test_an_idle_engine_moves_to_the_variant_that_comes_into_use() -> None:
    stage = on(CPU)
    spec = stage.loaded("qwen")
    stage.hear_installer(mlx(CUDA, CPU))
    (evicted,) = stage.stored(EvictionDecided)
    assert (evicted.engine_id, evicted.reason) == (spec.engine_id, "superseded")
    stage.engine_is(spec, "gone")
    stage.serve("next", "qwen")
    assert stage.spec_of("qwen").installation_id == CUDA.id


def test_an_engine_that_answers_or_is_pinned_keeps_its_variant() -> None:
    stage = on(CPU)
    stage.serve("long", "qwen")
    spec = stage.spec_of("qwen")
    stage.engine_is(spec, "starting").engine_is(spec, "ready")
    stage.loaded("phi", keep_alive=-1.0)
    stage.hear_installer(mlx(CUDA, CPU))
    assert not stage.stored(EvictionDecided)
    stage.leave("long")
    assert [one.engine_id for one in stage.stored(EvictionDecided)] == [spec.engine_id]
