"""Requests that want a larger context than their model is configured with."""

from __future__ import annotations

from greenroom.actors.scheduler.events import EvictionDecided, LoadAdmitted
from greenroom.actors.scheduler.messages import Configure
from scheduler_stage import begun, model

QWEN = model("qwen", context_length=32_768)


def test_a_larger_context_reloads_once_those_inside_are_done_and_a_smaller_one_never() -> None:
    stage = begun(QWEN)
    first = stage.loaded("qwen")
    stage.serve("inside", "qwen")
    stage.serve("large", "qwen", context_size=20_000)
    stage.serve("small", "qwen", context_size=2_000)
    (evicted,) = stage.stored(EvictionDecided)
    assert (evicted.engine_id, evicted.reason) == (first.engine_id, "larger_context")
    assert "inside" in stage.gates.inside(first.engine_id)
    spec = stage.spec_of("qwen")
    assert spec.context_size == 20_000
    stage.engine_is(spec, "starting").engine_is(spec, "ready")
    assert stage.granted("large").engine_id == stage.granted("small").engine_id == spec.engine_id
    # Two clients cannot make it swing.
    for number, size in enumerate((0, 20_000, 4_096, 19_999)):
        granted = stage.serve(f"r{number}", "qwen", context_size=size).granted(f"r{number}")
        assert granted.engine_id == spec.engine_id
        stage.leave(f"r{number}")
    assert len(stage.stored(EvictionDecided)) == 1


def test_the_next_load_has_the_largest_context_that_is_waited_for() -> None:
    stage = begun(QWEN)
    stage.serve("plain", "qwen")
    first = stage.spec_of("qwen")
    assert first.context_size == 0
    stage.serve("large", "qwen", context_size=9_000).serve("larger", "qwen", context_size=20_000)
    stage.engine_is(first, "starting").engine_is(first, "ready")
    second = stage.spec_of("qwen")
    assert second.context_size == 20_000
    assert len(stage.stored(LoadAdmitted)) == 2
    stage.engine_is(second, "starting").engine_is(second, "ready")
    for name in ("large", "larger"):
        assert stage.granted(name).engine_id == second.engine_id
    assert stage.granted("plain").engine_id == first.engine_id


def test_what_is_configured_stays_so_when_a_request_wants_less_or_more() -> None:
    stage = begun(QWEN)
    stage.when(Configure(model_id=QWEN.id, model_ref="qwen", context_size=16_384))
    stage.serve("less", "qwen", context_size=4_000)
    assert stage.spec_of("qwen").context_size == 16_384
    stage.dies(stage.spec_of("qwen"))
    stage.serve("more", "qwen", context_size=30_000)
    assert stage.spec_of("qwen").context_size == 30_000
    (config,) = stage.state.configs.values()
    assert config.context_size == 16_384
