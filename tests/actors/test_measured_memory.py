"""What the cores make of measured memory, of engines that are given up, of pins and of interrupted loads."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.actors.daemon_log import DaemonStarted
from greenroom.actors.engine_runner.core import Runner
from greenroom.actors.engine_runner.events import (
    EngineExited,
    EngineReady,
    EngineSpawned,
    EngineStartRequested,
    EngineStopRequested,
)
from greenroom.actors.engine_runner.messages import (
    EngineList,
    EngineMeasured,
    EngineStalled,
    StopEngine,
)
from greenroom.actors.reports import Happened
from greenroom.actors.scheduler.events import EvictionDecided, KeepAliveWished, LoadFailed
from greenroom.actors.scheduler.ledger import Account, Capacity, Memory, expected, reckoned, reservation_for
from greenroom.actors.scheduler.messages import SCHEDULER, Drain, Keep, LedgerReading, ReadLedger, Unload
from greenroom.actors.testing import Case, given
from greenroom.actors.values import Engine, EngineSpec, Failure, Measured
from scheduler_stage import GIB, Stage, exited, model

MIB = 2**20
SPEC = EngineSpec(
    engine_id="e1", backend="llama.cpp", installation_id="i", model_id="m", model_ref="m", memory=GIB
)

DEAD = Failure(kind="permanent", code="engine_stalled", message="it does nothing", blame="engine")


def measure(stage: Stage, spec: EngineSpec, peak: int, now: int = 0) -> None:
    size = Measured(now=now or peak, peak=peak)
    stage.when(
        EngineList(
            backend=spec.backend,
            engines=tuple(stage.engines[spec.backend].values()),
            version=1,
            measured={spec.engine_id: size},
        )
    ).rest()


def serve_times(stage: Stage, name: str, times: int) -> None:
    for number in range(times):
        stage.serve(f"{name}-{number}", name).leave(f"{name}-{number}")


def ledger(stage: Stage) -> LedgerReading:
    reading = stage.when(ReadLedger()).reply
    assert isinstance(reading, LedgerReading)
    return reading


@pytest.mark.parametrize(
    ("peak", "served", "holds"),
    [
        (0, 9, 100),  # not measured: the estimate
        (140, 0, 140),  # more than reserved: at once
        (60, 2, 100),  # less: not yet
        (60, 3, 80),  # less, after several requests: but never less than weights and cache
        (90, 3, 90),
    ],
)
def test_a_measured_peak_raises_at_once_and_lowers_late(peak: int, served: int, holds: int) -> None:
    assert reckoned(100, 80, peak, served) == holds


def test_measured_excess_keeps_other_models_out_but_never_the_model_itself() -> None:
    alone = Account(memory=Memory(budget=100, available=90), reserved=0, unclaimed=0)
    crowd = Account(memory=Memory(budget=100, available=90), reserved=10, unclaimed=0)
    assert expected(50, 40, 0, alone) == 50
    assert expected(50, 40, 30, alone) == 40
    assert expected(50, 40, 95, alone) == 90
    assert expected(50, 40, 95, crowd) == 95
    assert expected(50, 40, 500, crowd) == 100


def test_a_negative_context_is_all_the_model_can_take() -> None:
    one = model("m", 1000, context_length=100_000, kv_bytes_per_token=2)
    assert reservation_for(one, -1, 10, Capacity()).total == 1000 + 200_000 + 10
    assert reservation_for(one, 0, 10, Capacity()).total == 1000 + 2 * 8192 + 10
    assert reservation_for(one, 64, 10, Capacity()).total == 1000 + 128 + 10


def test_measured_memory_above_the_reserved_counts_at_once() -> None:
    stage = Stage().begin(model("one", 2 * GIB), model("two", 5 * GIB))
    spec = stage.loaded("one", keep_alive=-1)
    measure(stage, spec, 4 * GIB)
    assert ledger(stage).reserved == 4 * GIB
    stage.serve("r", "two")
    assert stage.refused("r").code == "no_room"
    assert stage.refused("r").numbers["pinned"] == 4 * GIB


def test_measured_memory_below_the_reserved_counts_later_and_never_below_weights_and_cache() -> None:
    stage = Stage().begin(model("one", 2 * GIB, context_length=1024, kv_bytes_per_token=2**20))
    spec = stage.loaded("one")
    assert spec.memory == 3 * GIB
    measure(stage, spec, GIB)
    assert ledger(stage).reserved == 3 * GIB
    serve_times(stage, "one", 3)
    # The stage's backend has no overhead, so weights and cache are all there is.
    assert ledger(stage).reserved == 3 * GIB


def test_measured_memory_is_remembered_for_the_next_engine_of_this_kind_also_after_a_restart() -> None:
    stage = Stage().begin(model("one", 2 * GIB))
    spec = stage.loaded("one")
    measure(stage, spec, 3 * GIB)
    stage.when(Unload(all=True)).rest()
    (evicted,) = stage.stored(EvictionDecided)
    assert (evicted.memory, evicted.footprint) == (3 * GIB, 3 * GIB)
    stage.engine_is(spec, "gone", exit=exited(expected=True))
    stage.rebuild()
    stage.serve("again", "one")
    assert stage.spec_of("one").memory == 3 * GIB


def test_remembered_memory_keeps_a_model_from_being_loaded_beside_others() -> None:
    stage = Stage().begin(model("one", 2 * GIB), model("other", 4 * GIB))
    spec = stage.loaded("one")
    measure(stage, spec, 5 * GIB)
    stage.when(Unload(all=True)).rest()
    stage.engine_is(spec, "gone", exit=exited(expected=True))
    stage.loaded("other")
    stage.serve("r", "one")
    # Two and four would fit into eight; five and four do not, so the other makes room.
    assert [one.model_ref for one in stage.stored(EvictionDecided)] == ["one", "other"]


def test_measured_memory_of_an_engine_that_died_of_it_is_remembered_too() -> None:
    stage = Stage().begin(model("one", 2 * GIB))
    spec = stage.loaded("one")
    measure(stage, spec, 6 * GIB)
    stage.dies(spec, code=None, signal="SIGKILL")
    (failed,) = stage.stored(LoadFailed)
    assert failed.footprint == 6 * GIB


def test_measured_memory_can_be_read_with_waiting_requests_and_when_engines_expire() -> None:
    stage = Stage().begin(model("one", 2 * GIB), model("two", 7 * GIB))
    spec = stage.loaded("one")
    measure(stage, spec, GIB, now=GIB // 2)
    stage.pass_time(60)
    reading = ledger(stage)
    (one,) = reading.engines
    assert (one.reserved, one.measured, one.peak) == (2 * GIB, GIB // 2, GIB)
    assert (one.inside, one.served, one.queue) == (0, 1, 0)
    assert (one.idle_seconds, one.expires_in, one.keep_alive) == (60.0, 240.0, 300.0)
    assert one.cause.startswith("scheduler/")
    assert (reading.budget, reading.reserved, reading.free, reading.waiting) == (
        *(8 * GIB, 2 * GIB, 6 * GIB, 0),
    )
    stage.serve("inside", "one").serve("waits", "two")
    (one,) = ledger(stage).engines
    assert (one.inside, one.idle_seconds, one.expires_in) == (1, None, None)
    assert ledger(stage).waiting == 1


def test_an_engine_that_is_given_up_has_failed_at_once_and_is_replaced_before_it_is_gone() -> None:
    stage = Stage().begin(model("one", GIB))
    spec = stage.loaded("one")
    stage.serve("stuck", "one")
    stage.engine_is(spec, "stopping", fault="it sent nothing for 60s")
    (failed,) = stage.stored(LoadFailed)
    assert failed.failure.code == "engine_stalled"
    assert "it sent nothing for 60s" in failed.failure.message
    stage.serve("next", "one")
    assert stage.spec_of("one").engine_id != spec.engine_id
    # What it holds is not reserved again before it is gone.
    assert ledger(stage).reserved == 2 * GIB


def test_an_engine_that_is_given_up_admits_no_more_requests() -> None:
    stage = Stage().begin(model("one", GIB))
    spec = stage.loaded("one")
    stage.engine_is(spec, "stopping", fault="it is dead")
    assert stage.gates.enter("sha256:one", "completion", "", "late") is None


def test_an_engine_that_is_given_up_counts_against_the_model() -> None:
    stage = Stage().begin(model("one", GIB))
    for number in range(3):
        spec = stage.serve(f"r{number}", "one").spec_of("one")
        stage.engine_is(spec, "starting").engine_is(spec, "stopping", fault="it is dead")
        assert stage.refused(f"r{number}").code == "engine_stalled"
        stage.engine_is(spec, "gone", exit=exited())
    stage.serve("again", "one")
    assert stage.refused("again").code == "breaker_open"


def ready() -> Case[Any, Any]:
    case = given(Runner("llama.cpp"), EngineStartRequested(spec=SPEC))
    case.when(Happened(event=EngineSpawned(engine_id="e1", pid=7, started=1.0, endpoint="/e")))
    return case.when(Happened(event=EngineReady(engine_id="e1"))).rest()


def test_a_runner_ends_an_engine_that_has_stalled_and_says_why() -> None:
    case = ready()
    case.when(EngineStalled(engine_id="e1", failure=DEAD))
    (stop,) = [one for one in case.events if isinstance(one, EngineStopRequested)]
    assert (stop.reason, stop.fault) == ("it does nothing", True)
    assert stop.failure is not None
    assert (stop.failure.code, stop.failure.blame) == ("engine_stalled", "engine")
    engine: Engine = case.state.engines["e1"]
    assert (engine.state, engine.fault) == ("stopping", "it does nothing")
    case.when(Happened(event=EngineExited(engine_id="e1", exit=exited(expected=True))))
    assert case.state.engines["e1"].exit.expected is False
    assert "it does nothing" in case.state.engines["e1"].exit.summary


def test_a_runner_does_not_end_one_twice_nor_one_that_is_not_ready() -> None:
    case = ready()
    case.when(StopEngine(backend="llama.cpp", engine_id="e1", reason="unload"))
    case.when(EngineStalled(engine_id="e1", failure=DEAD)).then()
    case.when(EngineStalled(engine_id="unknown", failure=DEAD)).then()


def test_a_runner_sends_measured_memory_with_its_list_and_at_once_when_it_is_new_or_has_grown() -> None:
    case = ready()
    for size, is_sent in (
        (Measured(now=MIB, peak=MIB), True),
        (Measured(now=2 * MIB, peak=2 * MIB), False),
        (Measured(now=GIB, peak=GIB), True),
        (Measured(now=GIB, peak=GIB, device=MIB, device_peak=MIB), False),
        (Measured(now=GIB, peak=GIB, device=GIB, device_peak=GIB), True),
    ):
        case.when(EngineMeasured(engine_id="e1", size=size)).rest()
        assert [one.measured["e1"] for one in case.told(SCHEDULER) if isinstance(one, EngineList)] == (
            [size] if is_sent else []
        )


def test_a_runner_forgets_the_memory_of_engines_that_are_gone() -> None:
    case = ready()
    case.when(EngineMeasured(engine_id="e1", size=Measured(now=GIB, peak=GIB))).rest()
    case.when(Happened(event=EngineExited(engine_id="e1", exit=exited()))).rest()
    assert case.volatile.measured == {}


def test_a_pin_by_request_survives_a_restart() -> None:
    stage = Stage().begin(model("one", GIB))
    stage.loaded("one", keep_alive=-1)
    stage.rebuild()
    stage.pass_time(3600)
    assert stage.stored(EvictionDecided) == []
    assert ledger(stage).engines[0].expires_in is None


def test_a_pin_by_request_is_stored_once_and_its_end_once() -> None:
    stage = Stage().begin(model("one", GIB))
    stage.loaded("one", keep_alive=-1)
    for number in range(5):
        stage.serve(f"r{number}", "one", keep_alive=-1).leave(f"r{number}")
    stage.when(Keep(model_id="sha256:one", keep_alive=60.0)).rest()
    stage.when(Keep(model_id="sha256:one", keep_alive=90.0)).rest()
    assert [one.keep_alive for one in stage.stored(KeepAliveWished)] == [-1, 60.0]
    stage.pass_time(91)
    assert [one.reason for one in stage.stored(EvictionDecided)] == ["idle"]


def test_only_an_infinite_keep_alive_is_stored() -> None:
    stage = Stage().begin(model("one", GIB))
    stage.loaded("one", keep_alive=60)
    assert stage.stored(KeepAliveWished) == []


def test_a_client_that_keeps_pinning_and_unpinning_does_not_fill_the_journal() -> None:
    stage = Stage().begin(model("one", GIB))
    stage.loaded("one")
    for number in range(100):
        stage.when(Keep(model_id="sha256:one", keep_alive=-1.0 if number % 2 else 60.0)).rest()
    assert len(stage.stored(KeepAliveWished)) == 16


def test_what_was_loaded_when_the_daemon_ended_is_remembered_until_it_is_loaded_again() -> None:
    stage = Stage().begin(model("one", GIB), model("two", GIB))
    stage.loaded("one", keep_alive=-1)
    spec = stage.loaded("two")
    stage.when(Drain()).rest()
    marks = stage.state.interrupted
    assert {one.spec.model_ref: one.kept for one in marks.values()} == {"one": True, "two": False}
    for each in list(stage.engines["llama.cpp"].values()):
        stage.engine_is(each.spec, "gone", exit=exited(expected=True))
    stage.rebuild()
    stage.serve("r", "two")
    assert stage.spec_of("two").engine_id != spec.engine_id
    assert [one.spec.model_ref for one in stage.state.interrupted.values()] == ["one"]


def test_an_engine_that_was_lost_with_the_daemon_counts_as_loaded_when_it_ended() -> None:
    stage = Stage().begin(model("one", GIB))
    spec = stage.loaded("one")
    stage.rebuild()
    stage.engine_is(spec, "gone", exit=exited(code=None, lost=True))
    assert [one.spec.model_ref for one in stage.state.interrupted.values()] == ["one"]


def test_an_engine_that_ended_for_another_reason_does_not_count_as_loaded_at_the_end() -> None:
    stage = Stage().begin(model("one", GIB), model("two", GIB))
    stage.dies(stage.loaded("one"))
    stage.loaded("two")
    stage.when(Unload(all=True)).rest()
    assert stage.state.interrupted == {}


def test_the_daemons_log_knows_when_the_one_before_started() -> None:
    from greenroom.actors.daemon_log import DaemonLog

    started = DaemonStarted(pid=1, version="1", platform="x")
    case = given(DaemonLog(started), started)
    first = case.now.wall
    case.advance(60).given(started)
    assert case.state.started_before == first
    assert case.state.started_at == first + 60
