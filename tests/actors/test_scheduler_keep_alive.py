"""How long a model stays loaded: keep-alive, unloading, another configuration, the end of the daemon."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.actors.engine_runner.messages import StopEngine
from greenroom.actors.kernel.core import Stored
from greenroom.actors.scheduler.events import ConfigChanged, EvictionDecided
from greenroom.actors.scheduler.messages import (
    CONFIG_FIELDS,
    Abandon,
    Configure,
    Drain,
    ForgetModel,
    Unload,
    Unloaded,
)
from greenroom.actors.scheduler.turn_context import Limits
from greenroom.actors.values import Caller
from scheduler_stage import Stage, begun, exited, model

QWEN, PHI = model("qwen"), model("phi")
PRELOAD = Caller(kind="greenroom", id="preload", name="preload")


def evicted(stage: Stage) -> list[str]:
    return [one.reason for one in stage.stored(EvictionDecided)]


def test_an_idle_engine_ends_when_its_keep_alive_is_over_and_not_before() -> None:
    stage = begun(QWEN, limits=Limits(keep_alive=300))
    spec = stage.loaded("qwen")
    stage.pass_time(299.9)
    assert not evicted(stage)
    stage.wake()
    (event,) = stage.stored(EvictionDecided)
    assert (event.reason, event.idle_seconds) == ("idle", 300.0)
    # This observation closes its gate; the next one confirms that no request has slipped in.
    stage.pass_time(0.01)
    assert stage.told("runner/llama.cpp") == [
        StopEngine(backend=spec.backend, engine_id=spec.engine_id, reason="it is no longer needed")
    ]


def test_a_request_restarts_the_keep_alive() -> None:
    stage = begun(QWEN, limits=Limits(keep_alive=300))
    stage.loaded("qwen")
    stage.pass_time(200).serve("r1", "qwen").pass_time(1000)
    assert not evicted(stage)
    stage.leave("r1").pass_time(299)
    assert not evicted(stage)
    stage.pass_time(1)
    assert evicted(stage) == ["idle"]


def test_a_keep_alive_of_zero_ends_the_engine_after_its_request() -> None:
    stage = begun(QWEN, limits=Limits(keep_alive=0))
    stage.serve("r1", "qwen")
    stage.engine_is(stage.spec_of("qwen"), "ready").pass_time(10)
    stage.granted("r1")
    assert not evicted(stage)
    stage.leave("r1")
    assert evicted(stage) == ["idle"]


def test_a_keep_alive_of_zero_does_not_end_the_engine_under_the_next_request() -> None:
    stage = begun(QWEN, limits=Limits(keep_alive=0))
    stage.serve("r1", "qwen")
    spec = stage.spec_of("qwen")
    stage.engine_is(spec, "ready")
    stage.gates.leave("r1")
    stage.serve("r2", "qwen")
    assert stage.granted("r2").engine_id == spec.engine_id
    assert not evicted(stage)


@pytest.mark.parametrize("seconds", [-1.0, -0.5])
def test_a_negative_keep_alive_is_infinite(seconds: float) -> None:
    stage = begun(QWEN, limits=Limits(keep_alive=seconds))
    stage.loaded("qwen")
    stage.pass_time(1e6)
    assert not evicted(stage)


def test_the_keep_alive_of_a_request_goes_before_the_configured_and_that_before_the_default() -> None:
    stage = begun(QWEN, limits=Limits(keep_alive=300))
    stage.when(Configure(model_id=QWEN.id, model_ref="qwen", keep_alive=50)).rest()
    stage.loaded("qwen")
    stage.pass_time(49)
    stage.serve("r1", "qwen", keep_alive=10.0).leave("r1")
    stage.pass_time(9)
    assert not evicted(stage)
    stage.pass_time(1)
    assert evicted(stage) == ["idle"]


def test_the_keep_alive_of_a_request_ends_with_the_engine_that_served_it() -> None:
    stage = begun(QWEN)
    spec = stage.loaded("qwen", keep_alive=-1.0)
    stage.when(Unload(all=True)).rest()
    stage.engine_is(spec, "gone")
    stage.loaded("qwen", "again")
    stage.pass_time(300)
    assert evicted(stage) == ["unload", "idle"]


def test_a_keep_alive_ignores_jumps_of_the_wall_clock() -> None:
    stage = begun(QWEN)
    stage.loaded("qwen")
    stage.clock.jump(86_400)
    stage.pass_time(1)
    assert not evicted(stage)


def test_unloading_ends_idle_engines_and_leaves_those_in_use() -> None:
    stage = begun(QWEN, PHI)
    stage.loaded("qwen")
    stage.loaded("phi")
    stage.serve("busy", "phi")
    stage.when(Unload(all=True))
    assert (stage.reply.engines, stage.reply.busy) == (1, ("phi is in use on llama.cpp (1 request: busy).",))
    assert [spec.model_ref for spec in stage.rest().loads] == ["phi"]


def test_a_forced_unload_ends_an_engine_in_use_once_its_request_is_done() -> None:
    stage = begun(QWEN)
    spec = stage.loaded("qwen")
    stage.serve("busy", "qwen").when(Unload(model_ids=(QWEN.id,), force=True))
    assert stage.reply == Unloaded(engines=1, ending=(spec.engine_id,))
    assert evicted(stage.rest()) == ["unload"]
    assert not stage.sent(StopEngine)
    stage.leave("busy").rest()
    assert stage.sent(StopEngine)


def test_a_configured_keep_alive_replaces_what_a_request_has_asked_for() -> None:
    stage = begun(QWEN)
    stage.loaded("qwen", keep_alive=-1.0)
    stage.when(Configure(model_id=QWEN.id, model_ref="qwen", keep_alive=20.0)).rest()
    stage.pass_time(19)
    assert not evicted(stage)
    stage.pass_time(1)
    assert evicted(stage) == ["idle"]


def test_a_keep_alive_that_is_reset_is_the_default_for_an_engine_that_runs_too() -> None:
    stage = begun(QWEN, limits=Limits(keep_alive=30))
    configure(stage, keep_alive=-1.0)
    stage.loaded("qwen", keep_alive=-1.0)
    configure(stage, reset=("keep_alive",))
    stage.pass_time(30)
    assert evicted(stage) == ["idle"]


def test_unloading_all_leaves_a_load_that_a_request_waits_for() -> None:
    stage = begun(QWEN).serve("r1", "qwen")
    stage.engine_is(stage.spec_of("qwen"), "starting")
    stage.when(Unload(all=True))
    assert stage.reply == Unloaded(engines=0, busy=("qwen is in use on llama.cpp (1 request: r1).",))


def test_unloading_a_model_ends_its_load_and_tells_the_requests_that_wait_for_it() -> None:
    stage = begun(QWEN).serve("r1", "qwen")
    stage.engine_is(stage.spec_of("qwen"), "starting")
    stage.when(Unload(model_ids=(QWEN.id,)))
    assert stage.reply.engines == 1
    assert stage.rest().refused("r1").code == "unloaded"
    assert stage.sent(StopEngine)


def test_unloading_models_leaves_others() -> None:
    stage = begun(QWEN, PHI)
    stage.loaded("qwen")
    stage.loaded("phi")
    stage.when(Unload(model_ids=(QWEN.id,))).rest()
    assert [spec.model_ref for spec in stage.loads] == ["phi"]


def test_unloading_a_backend_leaves_others() -> None:
    gemma = model("gemma", format="safetensors")
    stage = begun(QWEN, gemma, installed_ones=("llama.cpp", "mlx"))
    stage.loaded("qwen")
    stage.loaded("gemma")
    stage.when(Unload(backend="mlx")).rest()
    assert [spec.backend for spec in stage.loads] == ["llama.cpp"]


def test_unloading_ends_a_pinned_engine_too_since_a_person_asked() -> None:
    stage = begun(QWEN, limits=Limits(keep_alive=-1))
    stage.loaded("qwen")
    stage.when(Unload(all=True))
    assert stage.reply.engines == 1


def test_unloading_tells_an_engine_that_does_not_end_again() -> None:
    stage = begun(QWEN)
    spec = stage.loaded("qwen")
    stage.when(Unload(all=True)).rest().pass_time(0.01)
    assert len(stage.told("runner/llama.cpp")) == 1
    assert not stage.pass_time(4).told("runner/llama.cpp")
    assert len(stage.pass_time(1).told("runner/llama.cpp")) == 1
    assert not stage.engine_is(spec, "gone").pass_time(6).told("runner/llama.cpp")


def configure(stage: Stage, **what: Any) -> Any:
    stage.when(Configure(model_id=QWEN.id, model_ref="qwen", **what))
    reply = stage.reply
    stage.rest()
    return reply


def test_configuring_merges_and_says_whether_anything_changed() -> None:
    stage = begun(QWEN)
    assert configure(stage, context_size=4096).changed
    assert configure(stage, flags=("--flash-attn",)).changed
    assert not configure(stage, context_size=4096).changed
    stage.serve("r1", "qwen")
    spec = stage.spec_of("qwen")
    assert (spec.context_size, spec.flags) == (4096, ("--flash-attn",))


def test_a_configuration_survives_a_restart() -> None:
    stage = begun(QWEN)
    configure(stage, context_size=4096)
    stage.rebuild().serve("r1", "qwen")
    assert stage.spec_of("qwen").context_size == 4096


def test_configuring_ends_an_idle_engine_that_has_another_configuration() -> None:
    stage = begun(QWEN)
    stage.loaded("qwen")
    configure(stage, context_size=4096)
    (evicted,) = stage.stored(EvictionDecided)
    assert evicted.reason == "reconfigured"


def test_configuring_leaves_an_engine_alone_when_only_keep_alive_changes() -> None:
    stage = begun(QWEN)
    stage.loaded("qwen")
    assert configure(stage, keep_alive=5.0).changed
    assert stage.loads


def test_configuring_is_refused_while_the_model_is_in_use_and_changes_nothing() -> None:
    stage = begun(QWEN)
    stage.loaded("qwen")
    stage.serve("busy", "qwen")
    refusal = configure(stage, context_size=4096)
    assert (refusal.kind, refusal.code) == ("conflict", "in_use")
    assert refusal.message == "qwen is in use on llama.cpp (1 request: busy)."
    assert not stage.state.configs
    for number in range(5):
        stage.serve(f"more-{number}", "qwen")
    message = configure(stage, context_size=4096).message
    assert "in use on llama.cpp (6 requests, " in message
    assert message.endswith(" among them).")


def test_configuring_is_refused_while_a_request_waits_for_the_model_to_load() -> None:
    stage = begun(QWEN).serve("r1", "qwen").serve("preload", "qwen", caller=PRELOAD)
    (spec,) = stage.loads
    stage.engine_is(spec, "starting")
    assert configure(stage, context_size=4096).message == "qwen is in use on llama.cpp (1 request: r1)."


@pytest.mark.parametrize("waits", [True, False], ids=["for a preload", "for no client"])
def test_what_loads_for_no_client_is_loaded_again_with_a_new_configuration(waits: bool) -> None:
    stage = begun(QWEN).serve("preload", "qwen", caller=PRELOAD)
    if not waits:
        stage.when(Abandon(request_id="preload")).rest()
    (spec,) = stage.loads
    # Until its runner has listed it, its end would go unnoticed.
    assert configure(stage, context_size=4096).code == "begins_to_load"
    stage.engine_is(spec, "starting")
    assert configure(stage, context_size=4096).changed
    (evicted,) = stage.stored(EvictionDecided)
    assert evicted.reason == "reconfigured"
    stage.engine_is(spec, "gone", exit=exited(code=0))
    assert [load.context_size for load in stage.loads] == ([4096] if waits else [])


def test_a_configuration_can_be_taken_back_field_by_field() -> None:
    stage = begun(QWEN)
    configure(stage, context_size=4096, flags=("--mlock",), keep_alive=9.0)
    assert configure(stage, reset=("flags",)).changed
    (config,) = stage.state.configs.values()
    assert (config.context_size, config.flags, config.keep_alive) == (4096, None, 9.0)
    assert configure(stage, reset=CONFIG_FIELDS).changed
    assert not stage.state.configs
    assert not configure(stage, reset=CONFIG_FIELDS).changed


def test_one_field_of_a_configuration_may_be_set_and_the_others_taken_back_at_once() -> None:
    stage = begun(QWEN)
    configure(stage, context_size=4096, flags=("--mlock",))
    configure(stage, context_size=512, reset=CONFIG_FIELDS)
    (config,) = stage.state.configs.values()
    assert (config.context_size, config.flags) == (512, None)


def test_a_configuration_that_is_taken_back_ends_an_engine_that_has_it_and_no_other() -> None:
    packaged = model("qwen", context_size=2048)
    stage = begun(packaged)
    stage.loaded("qwen")
    configure(stage, context_size=4096)
    assert len(stage.stored(EvictionDecided)) == 1
    stage = begun(packaged)
    stage.loaded("qwen")
    configure(stage, context_size=2048)
    configure(stage, reset=("context_size",))
    assert not stage.stored(EvictionDecided)


def test_a_configuration_goes_with_the_model() -> None:
    stage = begun(QWEN)
    configure(stage, context_size=4096)
    configure(stage, keep_alive=-1.0, mode="embedding")
    stage.when(ForgetModel(model_id="sha256:other", model_ref="other")).rest()
    assert len(stage.state.configs) == 2
    stage.when(ForgetModel(model_id=QWEN.id, model_ref="qwen")).rest()
    assert not stage.state.configs
    assert not stage.rebuild().state.configs


def test_a_configuration_that_changes_ends_what_another_one_had_to_answer_for() -> None:
    stage = begun(QWEN)
    configure(stage, flags=("--cache-type-k", "q99"))
    for number in range(3):
        stage.serve(f"r{number}", "qwen")
        stage.dies(stage.spec_of("qwen"))
    assert stage.state.breakers
    configure(stage, reset=("flags",))
    assert not stage.state.breakers
    stage.serve("again", "qwen")
    assert stage.spec_of("qwen").flags == ()


@pytest.mark.parametrize(
    "what",
    [{"context_size": 10**26}, {"context_size": -7}, {"keep_alive": 1e300}, {"flags": ("x",) * 999}],
)
def test_a_configuration_that_an_older_version_let_in_without_bounds_counts_for_nothing(what: Any) -> None:
    stage = begun(QWEN)
    poison = ConfigChanged(model_id=QWEN.id, model_ref="qwen", mode="completion", **what)
    state = stage.core.apply(stage.state, Stored(poison, "scheduler/9", 0.0, ""))
    assert not state.configs


def test_a_configuration_of_too_many_flags_is_refused() -> None:
    stage = begun(QWEN)
    refusal = configure(stage, flags=("--grammar", "x" * 70_000))
    assert (refusal.kind, refusal.code) == ("invalid", "flags_too_long")
    assert not stage.state.configs


def test_draining_ends_every_engine_and_answers_when_none_is_left() -> None:
    stage = begun(QWEN, PHI)
    specs = [stage.loaded("qwen"), stage.loaded("phi")]
    stage.when(Drain()).rest()
    assert [one.reason for one in stage.stored(EvictionDecided)] == ["shutdown", "shutdown"]
    assert "drained" not in stage.outcomes
    for spec in specs:
        stage.engine_is(spec, "gone")
    assert stage.outcomes["drained"] == Unloaded(engines=0)


def test_draining_waits_for_a_start_that_is_on_its_way() -> None:
    stage = begun(QWEN).serve("r1", "qwen")
    spec = stage.spec_of("qwen")
    stage.when(Drain()).rest()
    assert stage.refused("r1").code == "stopping"
    assert "drained" not in stage.outcomes
    stage.engine_is(spec, "starting").engine_is(spec, "gone")
    assert "drained" in stage.outcomes


def test_draining_admits_nothing_more() -> None:
    stage = begun(QWEN)
    stage.when(Drain()).rest()
    stage.serve("r1", "qwen").then()
    assert (stage.refused("r1").kind, stage.refused("r1").code) == ("unavailable", "stopping")
