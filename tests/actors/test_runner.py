"""A runner: its engines from the intent to start them to how they ended."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.actors.engine_runner.core import (
    SECOND_LOOK,
    SILENT_RECOVERY,
    SILENT_START,
    SILENT_STOP,
    Runner,
)
from greenroom.actors.engine_runner.effects import EndEngine, RecoverEngines, SpawnEngine
from greenroom.actors.engine_runner.events import (
    EngineAdopted,
    EngineExited,
    EngineLost,
    EngineReady,
    EngineSpawned,
    EngineStartRequested,
    EngineStopRequested,
)
from greenroom.actors.engine_runner.messages import (
    EngineList,
    EngineMoved,
    ForbidStart,
    StartEngine,
    StopEngine,
)
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Recovered
from greenroom.actors.reports import Happened
from greenroom.actors.testing import Case, given
from greenroom.actors.values import EngineExit, EngineSpec, RequestSnapshot

NOW = Moment(wall=1_700_000_000.0, monotonic=1_000.0)
ENDED = EngineExit(at=NOW.wall, code=0, expected=True)


def spec(one: str = "e1") -> EngineSpec:
    return EngineSpec(
        engine_id=one, backend="mlx", installation_id="1-a.1", model_id="m", model_ref="smollm2"
    )


def runner(*history: Any) -> Case[Any, Any]:
    case = given(Runner("mlx"), *history, now=NOW)
    return case.when(Recovered()).rest()


def started(one: str = "e1") -> Case[Any, Any]:
    return runner().when(StartEngine(spec=spec(one))).rest()


def spawned(case: Case[Any, Any], one: str = "e1") -> Case[Any, Any]:
    report = Happened(event=EngineSpawned(engine_id=one, pid=42, started=7.0, endpoint="/run/e1.sock"))
    return case.when(report).rest()


def ready(case: Case[Any, Any], one: str = "e1") -> Case[Any, Any]:
    return spawned(case, one).when(Happened(event=EngineReady(engine_id=one))).rest()


def past(one: str = "e1", *, up_to: str = "ready") -> tuple[Any, ...]:
    """What an earlier life stored of an engine."""
    events = (
        EngineStartRequested(spec=spec(one)),
        EngineSpawned(engine_id=one, pid=42, started=7.0, endpoint="/run/e1.sock"),
        EngineReady(engine_id=one),
    )
    return events[: ("requested", "spawned", "ready").index(up_to) + 1]


def adopted(one: str = "e1", *, answers: bool = True) -> Happened:
    event = EngineAdopted(engine_id=one, pid=42, started=7.0, endpoint="/run/e1.sock", ready=answers)
    return Happened(event=event)


def state(case: Case[Any, Any], one: str = "e1") -> str:
    return str(case.state.engines[one].state)


def lists(case: Case[Any, Any]) -> list[EngineList]:
    return [one for one in case.told("scheduler") if isinstance(one, EngineList)]


def test_a_start_is_an_intent_before_it_is_a_process() -> None:
    case = started().then(EngineStartRequested(spec=spec()))
    assert case.of(SpawnEngine) == [SpawnEngine(spec=spec())]
    assert state(case) == "starting"


def test_a_start_that_comes_twice_is_harmless() -> None:
    case = started().when(StartEngine(spec=spec())).then()
    assert not case.of(SpawnEngine)


def test_a_start_that_was_forbidden_before_is_refused_for_good_and_the_list_says_so() -> None:
    case = runner().when(ForbidStart(backend="mlx", engine_id="e1"))
    case.then(EngineLost(engine_id="e1", reason="it was never started")).rest()
    assert lists(case)[-1].forbidden == ("e1",)
    case.when(ForbidStart(backend="mlx", engine_id="e1")).then().rest()
    assert lists(case)[-1].forbidden == ("e1",)
    case.when(StartEngine(spec=spec())).then()
    case.rebuild().when(Recovered()).rest()
    case.when(StartEngine(spec=spec())).then()
    assert not case.of(SpawnEngine)
    case.when(StartEngine(spec=spec("e2"))).then(EngineStartRequested(spec=spec("e2")))


def test_a_start_that_was_handled_first_is_not_undone_by_being_forbidden() -> None:
    case = ready(started()).when(ForbidStart(backend="mlx", engine_id="e1")).then().rest()
    assert state(case) == "ready"
    assert [one.spec.engine_id for one in lists(case)[-1].engines] == ["e1"]
    assert not case.of(EndEngine)


def test_a_start_of_an_engine_that_is_gone_is_not_repeated() -> None:
    case = ready(started())
    case.when(Happened(event=EngineExited(engine_id="e1", exit=ENDED))).rest()
    case.when(StartEngine(spec=spec())).then()


def test_a_start_leads_to_an_engine_that_has_proved_it_can_answer() -> None:
    case = spawned(started()).then(EngineSpawned)
    case.advance(2.5).when(Happened(event=EngineReady(engine_id="e1"))).rest()
    case.then(EngineReady(engine_id="e1", seconds=2.5))
    (told,) = lists(case)
    assert (told.engines[0].state, told.engines[0].pid) == ("ready", 42)


def test_a_start_that_is_reported_ready_before_its_spawn_is_ready_with_its_endpoint() -> None:
    case = started().when(Happened(event=EngineReady(engine_id="e1"))).rest().then()
    assert state(case) == "starting"
    spawned(case).then(EngineSpawned, EngineReady)
    assert case.state.engines["e1"].endpoint == "/run/e1.sock"


def test_a_start_that_fails_says_how() -> None:
    case = spawned(started())
    exit_ = EngineExit(at=NOW.wall, signal="SIGSEGV", summary="It crashed (SIGSEGV).")
    case.when(Happened(event=EngineExited(engine_id="e1", exit=exit_))).rest().then(EngineExited)
    assert lists(case)[-1].engines[0].exit == exit_


def test_a_start_that_makes_no_progress_for_long_is_given_up_and_counts_as_a_failure() -> None:
    case = spawned(started())
    case.wake().then()
    assert case.now.monotonic - NOW.monotonic == pytest.approx(SILENT_START)
    assert not case.of(EndEngine)
    case.wake().then(EngineStopRequested)
    assert case.now.monotonic - NOW.monotonic == pytest.approx(SILENT_START + SECOND_LOOK)
    assert case.of(EndEngine)
    case.when(Happened(event=EngineExited(engine_id="e1", exit=ENDED))).rest()
    end = case.state.engines["e1"].exit
    assert not end.expected
    assert end.summary == "The engine was stopped: no sign of progress for 900s while starting."


def test_a_start_that_makes_progress_is_given_all_the_time_it_needs() -> None:
    case = spawned(started())
    for _ in range(10):
        case.advance(SILENT_START - 1).when(EngineMoved(engine_id="e1")).rest().then()


def test_a_stop_is_an_intent_before_it_is_a_signal() -> None:
    case = ready(started()).when(StopEngine(backend="mlx", engine_id="e1", reason="idle")).rest()
    case.then(EngineStopRequested(engine_id="e1", reason="idle"))
    assert case.of(EndEngine) == [EndEngine(backend="mlx", engine_id="e1", reason="idle")]
    assert state(case) == "stopping"


def test_a_stop_that_is_repeated_is_passed_on_again_without_an_event() -> None:
    case = ready(started()).when(StopEngine(backend="mlx", engine_id="e1", reason="idle")).rest()
    case.when(StopEngine(backend="mlx", engine_id="e1", reason="idle")).then()
    assert case.of(EndEngine)


def test_a_stop_of_an_engine_that_is_gone_sends_the_list_again() -> None:
    case = ready(started()).when(Happened(event=EngineExited(engine_id="e1", exit=ENDED))).rest()
    case.when(StopEngine(backend="mlx", engine_id="e1", reason="idle")).rest().then()
    assert lists(case)


def test_a_stop_that_is_never_answered_makes_the_engine_lost() -> None:
    case = ready(started()).when(StopEngine(backend="mlx", engine_id="e1", reason="idle")).rest()
    case.advance(SILENT_STOP - 1).rest().then()
    assert case.advance(1).rest().then().of(EndEngine)
    assert not case.advance(SECOND_LOOK - 1).rest().then().of(EndEngine)
    case.advance(1).rest().then(EngineLost)
    end = case.state.engines["e1"].exit
    assert (end.lost, end.expected) == (True, True)


def test_a_stop_is_not_held_against_an_engine_whose_report_lies_unread() -> None:
    case = ready(started()).when(StopEngine(backend="mlx", engine_id="e1", reason="idle")).rest()
    case.advance(SILENT_STOP * 10).rest().then()
    case.when(Happened(event=EngineExited(engine_id="e1", exit=ENDED))).rest().then(EngineExited)
    assert not case.volatile.overdue


def test_a_stop_of_an_engine_that_ran_for_hours_is_given_its_time() -> None:
    case = ready(started()).advance(7200).rest()
    case.when(StopEngine(backend="mlx", engine_id="e1", reason="idle")).rest()
    case.then(EngineStopRequested)
    assert state(case) == "stopping"


@pytest.mark.parametrize(
    "report",
    [
        Happened(event=EngineSpawned(engine_id="e9", pid=1, started=1.0, endpoint="/x")),
        Happened(event=EngineReady(engine_id="e9")),
        Happened(event=EngineAdopted(engine_id="e9", pid=1, started=1.0, endpoint="/x", ready=True)),
    ],
)
def test_a_report_of_an_unwanted_process_ends_that_process(report: Any) -> None:
    case = runner().when(report).rest().then()
    assert [one.engine_id for one in case.of(EndEngine)] == ["e9"]


def test_reports_of_the_end_of_an_engine_that_was_never_ours_are_dropped() -> None:
    case = runner().when(Happened(event=EngineExited(engine_id="e9", exit=ENDED))).rest().then()
    assert not case.effects


def test_reports_of_an_end_count_once() -> None:
    case = ready(started())
    case.when(Happened(event=EngineExited(engine_id="e1", exit=ENDED))).rest().then(EngineExited)
    case.when(Happened(event=EngineExited(engine_id="e1", exit=ENDED))).rest().then()


def test_reports_carry_the_intent_they_belong_to() -> None:
    case = spawned(started())
    assert case.history[-1].cause == case.history[0].id


def test_engines_of_an_earlier_life_are_looked_for_before_anything_is_sent() -> None:
    case = runner(*past())
    assert not lists(case)
    case.when(adopted()).rest()
    assert lists(case)[-1].engines[0].state == "ready"


def test_a_new_life_looks_for_every_engine_that_is_not_gone() -> None:
    gone = EngineExited(engine_id="e1", exit=ENDED)
    case = given(Runner("mlx"), *past("e1"), gone, *past("e2"), now=NOW).when(Recovered())
    (recover,) = case.of(RecoverEngines)
    assert [one.spec.engine_id for one in recover.engines] == ["e2"]


def test_an_engine_of_an_earlier_life_that_still_runs_is_adopted() -> None:
    case = runner(*past()).when(adopted()).rest().then(EngineAdopted)
    assert state(case) == "ready"
    assert not case.of(SpawnEngine)


def test_an_engine_of_an_earlier_life_that_became_ready_meanwhile_is_recorded_as_ready() -> None:
    case = runner(*past(up_to="spawned")).when(adopted()).rest()
    case.then(EngineAdopted, EngineReady)


def test_an_engine_of_an_earlier_life_that_does_not_answer_now_is_not_ready() -> None:
    case = runner(*past()).when(adopted(answers=False)).rest()
    assert state(case) == "starting"
    case.when(Happened(event=EngineReady(engine_id="e1"))).rest().then(EngineReady)


def test_a_start_of_an_earlier_life_that_came_to_nothing_is_not_repeated() -> None:
    case = runner(*past(up_to="requested"))
    case.when(Happened(event=EngineLost(engine_id="e1", reason="it was never spawned"))).rest()
    case.then(EngineLost)
    assert not case.of(SpawnEngine)
    end = lists(case)[-1].engines[0].exit
    assert end is not None
    assert end.lost


def test_an_engine_of_an_earlier_life_that_is_never_reported_comes_to_an_end() -> None:
    case = runner(*past())
    case.advance(SILENT_RECOVERY - 1).rest().then()
    assert case.advance(1).rest().then().of(EndEngine)
    assert not lists(case.advance(SECOND_LOOK - 1).rest())
    case.advance(1).rest().then(EngineLost)
    assert lists(case)
    # Should it turn up after all, it is ended.
    case.when(adopted()).rest().then()
    assert case.of(EndEngine)


def test_a_runner_whose_process_was_stopped_takes_the_waiting_reports_first() -> None:
    case = runner(*past())
    assert not case.advance(SILENT_RECOVERY * 10).rest().of(EndEngine)
    case.when(adopted()).rest().then(EngineAdopted)
    assert not case.advance(1).rest().of(EndEngine)
    assert state(case) == "ready"


def test_a_rebuilt_runner_gets_the_engines_that_its_host_still_holds() -> None:
    case = ready(started())
    case.rebuild().when(Recovered()).rest()
    assert case.of(RecoverEngines)
    case.when(adopted()).rest().then(EngineAdopted)
    assert lists(case.advance(5).rest())
    assert state(case) == "ready"


def test_a_runner_rebuilt_while_an_engine_is_prepared_does_not_look_for_it() -> None:
    case = started()
    case.rebuild().when(Recovered()).rest()
    case.when(EngineMoved(engine_id="e1")).rest()
    assert lists(case.advance(5).rest())
    assert not case.advance(SILENT_RECOVERY + SECOND_LOOK).rest().of(EndEngine)
    spawned(case).then(EngineSpawned)


def test_an_engine_of_an_earlier_life_that_was_to_end_is_not_taken_for_a_working_one() -> None:
    stop = EngineStopRequested(engine_id="e1", reason="idle")
    case = runner(*past(), stop).when(adopted()).rest()
    assert state(case) == "stopping"


def test_the_list_goes_to_scheduler_and_installer_on_each_change_and_every_few_seconds() -> None:
    case = started()
    assert lists(case)
    assert case.told("installer") == lists(case)
    assert not lists(case.advance(4).rest())
    assert lists(case.advance(1).rest())


def test_the_list_says_what_the_scheduler_had_acted_on_behind_every_start_it_sent() -> None:
    case = runner().when(StartEngine(spec=spec())).when(RequestSnapshot(installations=7)).rest()
    (told,) = lists(case)
    assert told.installations == 7
    assert [one.spec.engine_id for one in told.engines] == ["e1"]
    case.when(RequestSnapshot()).rest()
    assert lists(case)[-1].installations == 7


def test_the_list_keeps_ended_engines_for_a_limited_time() -> None:
    case = runner()
    for number in range(40):
        one = f"e{number}"
        case.when(StartEngine(spec=spec(one))).rest()
        case.when(Happened(event=EngineExited(engine_id=one, exit=ENDED))).rest()
    assert list(case.state.engines) == [f"e{number}" for number in range(24, 40)]
    assert not case.volatile.moved


def test_the_list_is_sent_although_nothing_can_be_stored() -> None:
    case = spawned(started()).advance(SILENT_START).settle().advance(SECOND_LOOK).settle()
    assert case.decision.events
    if_not_stored = case.decision.if_not_stored
    assert if_not_stored is not None
    assert not if_not_stored.events
    assert len(if_not_stored.effects) == 2
