"""The installer's jobs: one a backend, retried, cancelled, and gone on with after a restart."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from freezegun import freeze_time

from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.installer.effects import (
    BuildInstallation,
    CancelBuild,
    PublishInstallProgress,
    RemoveInstallation,
)
from greenroom.actors.installer.events import (
    InstallationCommitted,
    InstallationFound,
    InstallationMissing,
    InstallationRetiring,
    InstallAttemptBegun,
    InstallAttemptFailed,
    InstallCancelled,
    InstallFailed,
    InstallRequested,
)
from greenroom.actors.installer.messages import (
    CancelInstall,
    Ensure,
    Ensured,
    InstallationsSeen,
    LeaveInstall,
    PendingInstallRequests,
)
from greenroom.actors.kernel.clock import Moment, SystemClock
from greenroom.actors.kernel.core import Later, Recovered
from greenroom.actors.retry import NO_NETWORK_AFTER
from greenroom.actors.testing import Case, given
from greenroom.actors.values import Cancelled
from installer_life import KEY, NOW, built, committed, ensure, fails, look, new_life, requested, status
from reports import build_committed, removed
from scheduler_stage import MLX, NO_SPACE, OFFLINE


@pytest.mark.parametrize("wanted_by", ["request", "explicit"])
def test_a_rebuilt_actor_leaves_a_build_alone_and_takes_its_end(wanted_by: str) -> None:
    case = rebuilt(wanted_by=wanted_by)
    case.when(InstallationsSeen(backend="mlx", installations=(), building=(("mlx.1", 1),))).rest()
    case.then()
    assert case.of(BuildInstallation) == []
    assert ensure(case) == Later(KEY)
    case.when(build_committed("mlx.1", built())).rest()
    case.then(InstallationCommitted)
    assert case.answers[KEY] == Ensured(installation=built(), fresh=True)


def test_a_rebuilt_actor_retries_a_build_that_fails_afterwards() -> None:
    case = rebuilt()
    case.when(InstallationsSeen(backend="mlx", installations=(), building=(("mlx.1", 1),))).rest()
    fails(case, OFFLINE).then(InstallAttemptFailed)
    case.wake()
    assert [one.attempt for one in case.of(BuildInstallation)] == [2]


def test_a_build_that_succeeds_while_a_rebuilt_actor_looks_at_the_disk_is_not_missing() -> None:
    case = rebuilt()
    case.when(build_committed("mlx.1", built())).rest()
    # Begun before the commit, told after it.
    case.when(InstallationsSeen(backend="mlx", installations=(), building=(("mlx.1", 1),))).rest()
    assert status(case).current == built()
    assert not any(isinstance(one, InstallationMissing) for one in case.history)


def test_a_build_that_fails_while_a_rebuilt_actor_looks_at_the_disk_is_retried() -> None:
    case = rebuilt()
    fails(case, OFFLINE)
    case.when(InstallationsSeen(backend="mlx", installations=(), building=(("mlx.1", 1),))).rest()
    case.wake()
    assert [one.attempt for one in case.of(BuildInstallation)] == [2]


def test_a_rebuilt_actor_does_not_find_what_was_removed_while_it_looked_at_the_disk() -> None:
    retiring = InstallationRetiring(backend="mlx", installation_id=built().id, reason="old")
    case = new_life(committed(), retiring, looked=False)
    case.when(removed("mlx", built().id)).rest()
    look(case, built())
    assert built().id not in case.state.of("mlx").installations


def rebuilt(**more: Any) -> Case[Any, Any]:
    """An installer that has begun a build and was rebuilt since."""
    case = new_life()
    ensure(case, **more)
    assert case.of(BuildInstallation)
    return case.rebuild().when(Recovered()).rest()


def test_a_job_that_fails_for_good_answers_every_caller_and_does_not_stick() -> None:
    case = new_life()
    ensure(case)
    fails(case, NO_SPACE).then(InstallFailed)
    refusal = case.answers[KEY]
    assert (refusal.kind, refusal.code) == ("exhausted", "no_space")
    assert status(case).state == "failed"
    assert ensure(case) == Later(KEY)
    case.then(requested("mlx.2"))


def test_a_job_that_fails_for_a_while_is_retried_at_the_recorded_time() -> None:
    case = new_life()
    ensure(case)
    fails(case, OFFLINE)
    (event,) = case.events
    assert isinstance(event, InstallAttemptFailed)
    assert (event.attempt, event.retry_at) == (1, NOW.wall + 1.0)
    assert status(case).state == "waiting_to_retry"
    assert not case.of(BuildInstallation)
    assert not case.advance(0.9).rest().of(BuildInstallation)
    case.wake()
    (build,) = case.of(BuildInstallation)
    assert (build.job, build.attempt) == ("mlx.1", 2)
    assert status(case).state == "installing"


def test_a_job_shows_what_it_waits_for_until_it_is_cancelled() -> None:
    case = new_life()
    ensure(case)
    fails(case, OFFLINE)
    message = f"Waiting to try again (attempt 2): {OFFLINE.message}"
    line = PublishInstallProgress(backend="mlx", phase="waiting_to_retry", message=message)
    assert case.of(PublishInstallProgress) == [line]
    assert not case.wake().of(PublishInstallProgress), "an attempt that runs speaks for itself"
    fails(case, OFFLINE)
    case.when(CancelInstall(backend="mlx"))
    assert case.of(PublishInstallProgress) == [PublishInstallProgress(backend="mlx")]


def test_a_job_cancelled_in_the_queue_keeps_the_progress_line_of_the_one_under_way() -> None:
    case = new_life()
    ensure(case)
    ensure(case, version="2")
    case.when(CancelInstall(backend="mlx", version="2"))
    case.then(InstallCancelled)
    assert not case.of(PublishInstallProgress)


def test_a_job_is_given_up_after_five_attempts() -> None:
    case = new_life()
    ensure(case)
    for _ in range(4):
        fails(case, OFFLINE).then(InstallAttemptFailed)
        case.wake()
    fails(case, OFFLINE).then(InstallFailed)
    refusal = case.answers[KEY]
    assert (refusal.kind, refusal.code, refusal.retry_after) == ("unavailable", "unreachable", 30.0)


def test_a_job_whose_source_cannot_be_reached_is_answered_within_seconds_if_a_caller_waits() -> None:
    case = new_life()
    ensure(case, waiter="a")
    for _ in range(2):
        fails(case, OFFLINE, reached=False).then(InstallAttemptFailed)
        case.wake()
    fails(case, OFFLINE, reached=False).then(InstallFailed)
    assert case.now.wall - NOW.wall < NO_NETWORK_AFTER
    assert case.answers[KEY].code == "unreachable"


def test_a_job_that_takes_long_to_find_its_source_out_of_reach_is_not_retried() -> None:
    case = new_life()
    ensure(case, waiter="a")
    case.advance(NO_NETWORK_AFTER)
    fails(case, OFFLINE, reached=False).then(InstallFailed)


@pytest.mark.parametrize("patient", ["reached once", "no caller waits", "the caller has left"])
def test_a_job_whose_source_cannot_be_reached_is_retried_if_no_caller_waits(patient: str) -> None:
    if patient == "no caller waits":
        case = new_life(requested())
    else:
        case = new_life()
        ensure(case, waiter="a")
    if patient == "the caller has left":
        case.when(LeaveInstall(backend="mlx", waiter="a"))
    fails(case, OFFLINE, reached=patient == "reached once").then(InstallAttemptFailed)
    case.wake()
    for _ in range(2):
        fails(case, OFFLINE, reached=False).then(InstallAttemptFailed)
        case.wake()


def test_a_job_whose_source_cannot_be_reached_ends_for_requests_that_wait_too() -> None:
    case = new_life(requested())
    case.when(PendingInstallRequests(backends=frozenset({"mlx"})))
    # The restart has cost one of them.
    fails(case, OFFLINE, reached=False).then(InstallAttemptFailed)
    case.wake()
    fails(case, OFFLINE, reached=False).then(InstallFailed)


def test_a_job_waits_longer_from_attempt_to_attempt_and_never_longer_than_its_bound() -> None:
    case = new_life()
    ensure(case)
    waits = []
    for _ in range(4):
        fails(case, OFFLINE)
        (event,) = case.events
        assert isinstance(event, InstallAttemptFailed)
        waits.append(event.retry_at - case.now.wall)
        case.wake()
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_a_job_ignores_jumps_of_the_wall_clock() -> None:
    case = new_life()
    ensure(case)
    fails(case, OFFLINE)
    case.clock.jump(-86_400)
    case.wake()
    assert case.of(BuildInstallation)
    assert status(case).state == "installing", "by the event, not by what a clock says"


def test_a_job_of_an_earlier_life_is_due_at_most_its_bound_from_now() -> None:
    case = new_life(requested(), waits(retry_at=NOW.wall + 86_400))
    assert (status(case).state, status(case).retry_at) == ("waiting_to_retry", NOW.wall + 45.0)
    case.wake()
    assert case.now.monotonic - NOW.monotonic == pytest.approx(45.0)
    assert case.of(BuildInstallation)


def test_a_job_whose_report_comes_late_ignores_it() -> None:
    case = new_life(requested(), committed(), disk=(built(),))
    fails(case, OFFLINE).then()
    fails(case, OFFLINE, job="mlx.7").then()


def test_a_job_that_is_cancelled_answers_and_stops_the_build() -> None:
    case = new_life()
    ensure(case)
    case.when(CancelInstall(backend="mlx"))
    assert case.reply == Cancelled(ended=True)
    assert case.of(CancelBuild) == [CancelBuild(job="mlx.1")]
    assert case.answers[KEY].message == "The installation of mlx was cancelled: requested by the user."
    case.rest().then(InstallCancelled)
    assert status(case).state == "absent"


def test_a_job_that_one_caller_leaves_goes_on_while_another_waits() -> None:
    case = new_life()
    ensure(case)
    ensure(case)
    case.when(CancelInstall(backend="mlx", leave=True)).rest().then()
    case.when(CancelInstall(backend="mlx", leave=True))
    assert case.reply == Cancelled(ended=True)
    case.rest().then(InstallCancelled)


def test_a_job_does_not_go_on_for_a_caller_that_has_gone() -> None:
    case = new_life()
    ensure(case, waiter="a")
    ensure(case, waiter="b")
    case.when(LeaveInstall(backend="mlx", waiter="a")).rest().then()
    case.when(CancelInstall(backend="mlx", leave=True, waiter="b"))
    assert case.reply == Cancelled(ended=True)


def test_a_job_that_one_caller_leaves_twice_goes_on_for_the_other() -> None:
    case = new_life()
    ensure(case, waiter="a")
    ensure(case, waiter="b")
    case.when(LeaveInstall(backend="mlx", waiter="a"))
    case.when(CancelInstall(backend="mlx", leave=True, waiter="a")).then()
    assert case.reply == Cancelled(ended=False)


def test_a_job_asked_for_without_waiting_goes_on_when_callers_leave() -> None:
    case = new_life()
    ensure(case)
    ensure(case, waiter="a")
    case.when(CancelInstall(backend="mlx", leave=True, waiter="a")).then()
    assert case.reply == Cancelled(ended=False)


def test_a_job_that_a_caller_leaves_goes_on_as_long_as_requests_wait_for_it() -> None:
    case = new_life()
    ensure(case, waiter="a")
    ensure(case, waiter="b", version="2")
    case.when(PendingInstallRequests(backends=frozenset({"mlx"})))
    case.when(CancelInstall(backend="mlx", leave=True, waiter="a")).then()
    assert case.reply == Cancelled(ended=False)
    # They wait for the one under way, whatever comes after it.
    case.when(CancelInstall(backend="mlx", version="2", leave=True, waiter="b"))
    assert case.reply == Cancelled(ended=True)
    case.when(PendingInstallRequests())
    case.when(CancelInstall(backend="mlx", leave=True, waiter="unknown"))
    assert case.reply == Cancelled(ended=True)


def test_a_job_that_the_scheduler_began_counts_only_requests_that_wait_there() -> None:
    case = new_life()
    for _ in range(3):
        ensure(case, wanted_by="request", token="r0")
    ensure(case, waiter="a")
    case.when(CancelInstall(backend="mlx", leave=True, waiter="a"))
    assert case.reply == Cancelled(ended=True)


def test_a_job_of_the_pinned_version_is_left_by_that_name() -> None:
    pinned = msgspec.structs.replace(MLX, version="2")
    case = given(InstallerCore((pinned,)), now=NOW)
    case.when(Recovered()).rest()
    case.when(InstallationsSeen(backend="mlx", installations=())).rest()
    ensure(case, version="pinned", waiter="a")
    case.when(CancelInstall(backend="mlx", version="pinned", leave=True, waiter="a"))
    assert case.reply == Cancelled(ended=True)


def test_a_job_that_does_not_exist_cannot_be_cancelled() -> None:
    case = new_life()
    case.when(CancelInstall(backend="mlx")).then()
    assert case.reply == Cancelled(ended=False)


def test_a_job_that_was_cancelled_a_moment_before_its_last_step_leaves_nothing() -> None:
    case = new_life()
    ensure(case)
    case.when(CancelInstall(backend="mlx")).rest()
    case.when(build_committed("mlx.1", built())).then()
    assert case.of(RemoveInstallation) == [RemoveInstallation(backend="mlx", installation_id="1-aaaa.1")]


def test_a_job_that_is_reported_committed_twice_keeps_its_installation() -> None:
    case = new_life()
    ensure(case)
    for _ in range(2):
        case.when(build_committed("mlx.1", built())).rest()
        assert not case.of(RemoveInstallation)
    assert status(case).state == "installed"


def test_a_job_leaves_nothing_behind_in_volatile_state() -> None:
    case = new_life()
    for number in range(1, 20):
        ensure(case)
        fails(case, OFFLINE, job=f"mlx.{number}")
        case.wake()
        fails(case, NO_SPACE, job=f"mlx.{number}")
    volatile = case.volatile
    assert not any((volatile.building, volatile.due, volatile.waiting, volatile.removing, volatile.pending))


def test_a_job_of_an_earlier_life_that_a_person_typed_goes_on() -> None:
    case = new_life(requested())
    (_, failed, begun) = [one.event for one in case.history]
    assert isinstance(failed, InstallAttemptFailed)
    assert (failed.attempt, failed.failure.code) == (1, "daemon_restarted")
    assert begun == InstallAttemptBegun(job="mlx.1", backend="mlx", attempt=2)
    (build,) = case.of(BuildInstallation)
    assert (build.job, build.attempt) == ("mlx.1", 2)


def test_a_job_of_an_earlier_life_whose_wait_ended_while_no_daemon_ran_has_lost_no_attempt() -> None:
    case = new_life(requested(), waits(retry_at=NOW.wall - 60))
    assert case.history[-1].event == InstallAttemptBegun(job="mlx.1", backend="mlx", attempt=2)
    assert [one.attempt for one in case.of(BuildInstallation)] == [2]


def test_a_job_of_an_earlier_life_that_had_been_started_again_has_lost_that_attempt() -> None:
    begun = InstallAttemptBegun(job="mlx.1", backend="mlx", attempt=2)
    case = new_life(requested(), waits(retry_at=NOW.wall + 30), begun)
    assert [type(one.event) for one in case.history[-2:]] == [
        InstallAttemptFailed,
        InstallAttemptBegun,
    ]
    assert [one.attempt for one in case.of(BuildInstallation)] == [3]


def test_a_job_of_an_earlier_life_that_only_a_request_wanted_is_over() -> None:
    case = new_life(requested(wanted_by="request"))
    last = case.history[-1].event
    assert isinstance(last, InstallCancelled)
    assert "a restart ended the request" in last.reason
    assert status(case).job == ""


def test_a_job_of_an_earlier_life_that_only_a_request_wanted_is_over_between_attempts_too() -> None:
    case = new_life(requested(wanted_by="request"), waits(retry_at=NOW.wall + 20))
    assert isinstance(case.history[-1].event, InstallCancelled)


def test_a_job_of_an_earlier_life_whose_installation_is_there_after_all_is_committed() -> None:
    case = new_life(requested(wanted_by="request"), disk=(built(),))
    assert [type(one.event) for one in case.history] == [InstallRequested, InstallationCommitted]
    assert status(case).state == "installed"


def test_a_job_of_an_earlier_life_that_repairs_does_not_take_what_it_was_to_replace() -> None:
    old = built(built_at=NOW.wall - 100)
    case = new_life(requested(wanted_by="repair"), disk=(old,))
    kinds = [type(one.event) for one in case.history]
    assert kinds == [
        InstallRequested,
        InstallationFound,
        InstallAttemptFailed,
        InstallAttemptBegun,
    ]
    assert status(case).job == "mlx.1"


def test_a_job_of_an_earlier_life_is_answered_to_callers_that_ask_before_the_scan() -> None:
    case = new_life(requested(), looked=False)
    assert ensure(case) == Later(KEY)
    case.when(InstallationsSeen(backend="mlx", installations=(built(),))).rest()
    assert case.answers[KEY].installation == built()


def waits(*, retry_at: float) -> InstallAttemptFailed:
    return InstallAttemptFailed(job="mlx.1", backend="mlx", attempt=1, failure=OFFLINE, retry_at=retry_at)


@freeze_time("2026-11-22 12:00:00")
def test_a_retry_is_recorded_in_wall_clock_time() -> None:
    moment = SystemClock().now()
    case = given(InstallerCore((MLX,)), requested(), now=Moment(moment.wall, 5.0, 0.5))
    case.when(Recovered()).rest()
    case.when(InstallationsSeen(backend="mlx", installations=())).rest()
    fails(case, OFFLINE)
    (event,) = case.events
    assert isinstance(event, InstallAttemptFailed)
    assert event.retry_at == 1_795_348_800.0 + 2.0


def poisoned(monkeypatch: Any, step: str) -> Any:
    """A life in which one step fails whenever it is about mlx."""
    from greenroom.actors.installer.reconcile import InstallerTurn

    real = getattr(InstallerTurn, step)

    def fail(turn: Any, name: str, *arguments: Any) -> Any:
        if name == "mlx":
            raise ValueError("boom")
        return real(turn, name, *arguments)

    monkeypatch.setattr(InstallerTurn, step, fail)
    other = msgspec.structs.replace(MLX, name="other", deferred=True)
    case = given(InstallerCore((MLX, other)), now=NOW)
    case.when(Recovered()).rest()
    case.faults_allowed = True
    return case


def look_of_the_poisoned(case: Any) -> None:
    for name in ("other", "mlx"):
        case.when(InstallationsSeen(backend=name, installations=())).rest()


@pytest.mark.parametrize("step", ["_activate", "_build", "_retire", "_remove", "_decide_pending"])
def test_a_fault_of_ours_about_one_backend_affects_that_one_and_answers_its_callers(
    monkeypatch: Any, step: str
) -> None:
    case = poisoned(monkeypatch, step)
    later = [ensure(case), ensure(case, version="7")]
    look_of_the_poisoned(case)
    for one in later:
        assert case.answers[one.key].code == "internal_error"
    assert {fault.about for fault in case.faults} == {"mlx"}
    assert not case.of(BuildInstallation)
    case.when(Ensure(backend="other")).rest()
    assert [one.backend for one in case.of(BuildInstallation)] == ["other"]
    assert case.told("scheduler")[-1].backends


def test_a_fault_of_ours_that_is_over_leaves_nothing_behind(monkeypatch: Any) -> None:
    case = poisoned(monkeypatch, "_build")
    look_of_the_poisoned(case)
    ensure(case)
    assert status(case).state == "failed"
    monkeypatch.undo()
    ensure(case)
    assert status(case).state == "installing"
