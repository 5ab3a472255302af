"""The installer: one job a backend, what the disk says, retries, uninstalling."""

from __future__ import annotations

from typing import Any

import pytest
from freezegun import freeze_time
from greenroom.actors import events as ev
from greenroom.actors import messages as msg
from greenroom.actors.effects import (
    BuildInstallation,
    CancelBuild,
    LookAtInstallations,
    PlanInstallation,
    RemoveInstallation,
)
from greenroom.actors.facts import Engine, EngineSpec, Failure, Installation, Plan
from greenroom.actors.installer import Installer
from greenroom.actors.kernel.clock import Moment, SystemClock
from greenroom.actors.kernel.core import Later, Recovered
from greenroom.actors.testing import Case, given
from stage import LLAMA, METAL, MLX, NO_SPACE, OFFLINE

NOW = Moment(wall=1_700_000_000.0, monotonic=1_000.0)
KEY = "install/mlx"


def built(name: str = "1-aaaa.1", backend: str = "mlx", **more: Any) -> Installation:
    """An installation whose id says its version and digest."""
    version, _, rest = name.partition("-")
    fields = {"version": version, "digest": rest.split(".")[0], "built_at": NOW.wall}
    return Installation(id=name, backend=backend, **(fields | more))


def new_life(*history: Any, disk: tuple[Installation, ...] = (), looked: bool = True) -> Case[Any, Any]:
    """An installer of mlx and vllm-metal, in a life in which the disk shows this."""
    case = given(Installer((MLX, METAL)), *history, now=NOW)
    case.when(Recovered()).rest()
    if looked:
        look(case, *disk)
    return case


def look(case: Case[Any, Any], *disk: Installation, backend: str = "mlx") -> Case[Any, Any]:
    for name in ("vllm-metal", "mlx"):
        found = tuple(disk) if name == backend else ()
        case.when(msg.InstallationsSeen(backend=name, installations=found)).rest()
    return case


def ensure(case: Case[Any, Any], **more: Any) -> Any:
    """What the wish was answered, `Later` included; then let follow what follows."""
    case.when(msg.Ensure(backend="mlx", **more))
    reply = case.reply
    case.rest()
    return reply


def committed(job: str = "mlx.1", one: Installation | None = None) -> ev.InstallationCommitted:
    return ev.InstallationCommitted(job=job, backend="mlx", installation=one or built())


def requested(job: str = "mlx.1", **more: Any) -> ev.InstallRequested:
    fields: dict[str, Any] = {"version": "", "wanted_by": "explicit"}
    return ev.InstallRequested(job=job, backend="mlx", **(fields | more))


def fails(case: Case[Any, Any], failure: Failure, job: str = "mlx.1") -> Case[Any, Any]:
    return case.when(msg.InstallAttemptEnded(job=job, backend="mlx", failure=failure)).rest()


def engines(*ids: str, acted_on: int = 10_000, token: str = "", backend: str = "mlx") -> msg.EngineList:
    running = tuple(
        Engine(
            spec=EngineSpec(
                engine_id=f"e-{one}", backend=backend, installation_id=one, model_id="m", model_ref="m"
            ),
            state="ready",
            since=0.0,
        )
        for one in ids
    )
    return msg.EngineList(backend=backend, engines=running, version=1, installations=acted_on, token=token)


def status(case: Case[Any, Any], name: str = "mlx") -> msg.BackendStatus:
    return case.core.status(case.state, name, case.now.wall)  # type: ignore[attr-defined, no-any-return]


class TestAWish:
    def test_for_an_absent_backend_begins_a_job(self) -> None:
        case = new_life()
        assert ensure(case) == Later(KEY)
        case.then(requested())
        assert case.of(BuildInstallation) == [
            BuildInstallation(job="mlx.1", backend="mlx", version="", attempt=1, repair=False)
        ]
        assert status(case).state == "installing"

    def test_of_fifty_at_once_makes_one_job_and_one_build(self) -> None:
        case = new_life()
        builds = 0
        for _ in range(50):
            assert ensure(case) == Later(KEY)
            builds += len(case.of(BuildInstallation))
        assert builds == 1
        assert [type(one.event) for one in case.history] == [ev.InstallRequested]
        case.when(msg.InstallCommitted(job="mlx.1", installation=built())).rest()
        case.then(ev.InstallationCommitted)
        assert case.answers == {KEY: msg.Ensured(installation=built(), fresh=True)}

    def test_for_what_is_installed_is_answered_at_once(self) -> None:
        case = new_life(requested(), committed(), disk=(built(),))
        assert ensure(case) == msg.Ensured(installation=built(), fresh=False)
        case.then()

    def test_for_what_the_journal_claims_waits_for_the_look_at_the_disk(self) -> None:
        case = new_life(requested(), committed(), looked=False)
        assert ensure(case) == Later(KEY)
        case.then()
        look(case, built())
        assert case.told("scheduler")
        assert ensure(case) == msg.Ensured(installation=built(), fresh=False)

    def test_that_waited_for_the_look_is_answered_by_it(self) -> None:
        case = new_life(requested(), committed(), looked=False)
        ensure(case)
        case.when(msg.InstallationsSeen(backend="mlx", installations=(built(),))).rest()
        assert case.answers == {KEY: msg.Ensured(installation=built(), fresh=False)}

    def test_that_waited_for_the_look_installs_when_the_disk_shows_nothing(self) -> None:
        case = new_life(requested(), committed(), looked=False)
        ensure(case)
        case.when(msg.InstallationsSeen(backend="mlx", installations=())).rest()
        case.then(ev.InstallationMissing, requested("mlx.2"))
        assert case.of(BuildInstallation)
        assert not case.answers

    def test_for_an_unknown_backend_names_the_known_ones(self) -> None:
        case = new_life()
        case.when(msg.Ensure(backend="mxl")).then()
        assert case.refusal.status == 404
        assert case.refusal.sentence() == 'There is no backend "mxl". Known backends: mlx, vllm-metal.'

    def test_for_one_this_platform_cannot_run_says_why_without_trying(self) -> None:
        case = new_life()
        case.when(msg.Ensure(backend="vllm-metal")).then()
        assert (case.refusal.status, case.refusal.code) == (412, "unsupported_platform")
        assert case.refusal.message == "vllm-metal needs macOS 15 or newer on Apple silicon only."

    def test_for_another_version_than_the_installed_one_builds_it_beside(self) -> None:
        case = new_life(requested(), committed(), disk=(built(),))
        ensure(case, version="2")
        case.then(requested("mlx.2", version="2"))
        new = built("2-bbbb.1")
        case.when(msg.InstallCommitted(job="mlx.2", installation=new)).rest()
        case.then(ev.InstallationCommitted, ev.InstallationActivated)
        assert status(case).current == new
        assert len(status(case).installations) == 2

    def test_that_is_told_and_not_asked_finds_its_token_in_the_next_list(self) -> None:
        case = new_life()
        ensure(case, wanted_by="request", token="r1")
        lists = [one for one in case.told("scheduler") if isinstance(one, msg.InstallationList)]
        assert lists[-1].heard == {"mlx": "r1"}
        assert lists[-1].backends[0].job == "mlx.1"

    def test_that_is_refused_is_heard_too(self) -> None:
        case = new_life()
        case.when(msg.Ensure(backend="vllm-metal", wanted_by="request", token="r1")).rest()
        (told,) = case.told("scheduler")
        assert isinstance(told, msg.InstallationList)
        assert told.heard == {"vllm-metal": "r1"}

    def test_that_a_person_typed_makes_a_requests_job_his_own(self) -> None:
        case = new_life()
        ensure(case, wanted_by="request")
        ensure(case)
        case.then(requested(wanted_by="explicit"))
        ensure(case)
        case.then()
        case.rebuild().when(Recovered()).rest()
        look(case)
        assert status(case).job == "mlx.1"


class TestARebuildInTheMiddleOfABuild:
    """This actor is another one; its hands, and what they are at, are the same."""

    @pytest.mark.parametrize("wanted_by", ["request", "explicit"])
    def test_leaves_it_alone_and_takes_its_end(self, wanted_by: str) -> None:
        case = self.rebuilt(wanted_by=wanted_by)
        case.when(msg.InstallationsSeen(backend="mlx", installations=(), building=(("mlx.1", 1),))).rest()
        case.then()
        assert case.of(BuildInstallation) == []
        assert ensure(case) == Later(KEY)
        case.when(msg.InstallCommitted(job="mlx.1", installation=built())).rest()
        case.then(ev.InstallationCommitted)
        assert case.answers[KEY] == msg.Ensured(installation=built(), fresh=True)

    def test_tries_again_what_fails_then(self) -> None:
        case = self.rebuilt()
        case.when(msg.InstallationsSeen(backend="mlx", installations=(), building=(("mlx.1", 1),))).rest()
        fails(case, OFFLINE).then(ev.InstallAttemptFailed)
        case.wake()
        assert [one.attempt for one in case.of(BuildInstallation)] == [2]

    def test_that_ends_well_while_the_disk_is_looked_at_is_not_taken_for_missing(self) -> None:
        case = self.rebuilt()
        case.when(msg.InstallCommitted(job="mlx.1", installation=built())).rest()
        # Begun before the commit, told after it.
        case.when(msg.InstallationsSeen(backend="mlx", installations=(), building=(("mlx.1", 1),))).rest()
        assert status(case).current == built()
        assert not any(isinstance(one, ev.InstallationMissing) for one in case.history)

    def test_that_fails_while_the_disk_is_looked_at_is_tried_again(self) -> None:
        case = self.rebuilt()
        fails(case, OFFLINE)
        case.when(msg.InstallationsSeen(backend="mlx", installations=(), building=(("mlx.1", 1),))).rest()
        case.wake()
        assert [one.attempt for one in case.of(BuildInstallation)] == [2]

    def test_does_not_find_what_was_removed_while_the_disk_was_looked_at(self) -> None:
        retiring = ev.InstallationRetiring(backend="mlx", installation_id=built().id, reason="old")
        case = new_life(committed(), retiring, looked=False)
        case.when(msg.InstallationGone(backend="mlx", installation_id=built().id)).rest()
        look(case, built())
        assert built().id not in case.state.of("mlx").installations

    def rebuilt(self, **more: Any) -> Case[Any, Any]:
        """An installer that has begun a build and was rebuilt since."""
        case = new_life()
        ensure(case, **more)
        assert case.of(BuildInstallation)
        return case.rebuild().when(Recovered()).rest()


class TestAJob:
    def test_that_fails_for_good_answers_everybody_and_does_not_stick(self) -> None:
        case = new_life()
        ensure(case)
        fails(case, NO_SPACE).then(ev.InstallFailed)
        refusal = case.answers[KEY]
        assert (refusal.status, refusal.code) == (507, "no_space")
        assert status(case).state == "failed"
        assert ensure(case) == Later(KEY)
        case.then(requested("mlx.2"))

    def test_that_fails_for_a_while_is_tried_again_at_the_recorded_time(self) -> None:
        case = new_life()
        ensure(case)
        fails(case, OFFLINE)
        (event,) = case.events
        assert isinstance(event, ev.InstallAttemptFailed)
        assert (event.attempt, event.retry_at) == (1, NOW.wall + 1.0)
        assert status(case).state == "waiting_to_retry"
        assert not case.of(BuildInstallation)
        assert not case.advance(0.9).rest().of(BuildInstallation)
        case.wake()
        (build,) = case.of(BuildInstallation)
        assert (build.job, build.attempt) == ("mlx.1", 2)
        assert status(case).state == "installing"

    def test_is_given_up_after_five_attempts(self) -> None:
        case = new_life()
        ensure(case)
        for _ in range(4):
            fails(case, OFFLINE).then(ev.InstallAttemptFailed)
            case.wake()
        fails(case, OFFLINE).then(ev.InstallFailed)
        refusal = case.answers[KEY]
        assert (refusal.status, refusal.code, refusal.retry_after) == (503, "unreachable", 30.0)

    def test_waits_longer_from_attempt_to_attempt_and_never_longer_than_its_bound(self) -> None:
        case = new_life()
        ensure(case)
        waits = []
        for _ in range(4):
            fails(case, OFFLINE)
            (event,) = case.events
            assert isinstance(event, ev.InstallAttemptFailed)
            waits.append(event.retry_at - case.now.wall)
            case.wake()
        assert waits == [1.0, 2.0, 4.0, 8.0]

    def test_is_not_impressed_by_a_wall_clock_that_jumps(self) -> None:
        case = new_life()
        ensure(case)
        fails(case, OFFLINE)
        case.clock.jump(-86_400)
        case.wake()
        assert case.of(BuildInstallation)

    def test_of_an_earlier_life_is_due_at_most_its_bound_from_now(self) -> None:
        far = ev.InstallAttemptFailed(
            job="mlx.1", backend="mlx", attempt=1, failure=OFFLINE, retry_at=NOW.wall + 86_400
        )
        case = new_life(requested(), far)
        case.wake()
        assert case.now.monotonic - NOW.monotonic == pytest.approx(45.0)
        assert case.of(BuildInstallation)

    def test_whose_report_comes_late_is_not_heard(self) -> None:
        case = new_life(requested(), committed(), disk=(built(),))
        fails(case, OFFLINE).then()
        fails(case, OFFLINE, job="mlx.7").then()

    def test_that_is_cancelled_answers_and_stops_the_build(self) -> None:
        case = new_life()
        ensure(case)
        case.when(msg.CancelInstall(backend="mlx"))
        assert case.reply == msg.Cancelled(ended=True)
        assert case.of(CancelBuild) == [CancelBuild(job="mlx.1")]
        assert case.answers[KEY].message == "The installation of mlx was ended: cancelled by the user."
        case.rest().then(ev.InstallCancelled)
        assert status(case).state == "absent"

    def test_that_somebody_leaves_goes_on_while_another_waits(self) -> None:
        case = new_life()
        ensure(case)
        ensure(case)
        case.when(msg.CancelInstall(backend="mlx", leave=True)).rest().then()
        case.when(msg.CancelInstall(backend="mlx", leave=True))
        assert case.reply == msg.Cancelled(ended=True)
        case.rest().then(ev.InstallCancelled)

    def test_that_is_not_there_cannot_be_cancelled(self) -> None:
        case = new_life()
        case.when(msg.CancelInstall(backend="mlx")).then()
        assert case.reply == msg.Cancelled(ended=False)

    def test_that_was_cancelled_a_moment_before_its_last_step_leaves_nothing(self) -> None:
        case = new_life()
        ensure(case)
        case.when(msg.CancelInstall(backend="mlx")).rest()
        case.when(msg.InstallCommitted(job="mlx.1", installation=built())).then()
        assert case.of(RemoveInstallation) == [RemoveInstallation(backend="mlx", installation_id="1-aaaa.1")]

    def test_that_is_reported_committed_twice_keeps_its_installation(self) -> None:
        case = new_life()
        ensure(case)
        for _ in range(2):
            case.when(msg.InstallCommitted(job="mlx.1", installation=built())).rest()
            assert not case.of(RemoveInstallation)
        assert status(case).state == "installed"

    def test_leaves_nothing_behind_in_what_is_seen(self) -> None:
        case = new_life()
        for number in range(1, 20):
            ensure(case)
            fails(case, OFFLINE, job=f"mlx.{number}")
            case.wake()
            fails(case, NO_SPACE, job=f"mlx.{number}")
        seen = case.seen
        assert not any((seen.building, seen.due, seen.waiting, seen.removing, seen.pending))


class TestTheDisk:
    def test_is_looked_at_in_every_new_life(self) -> None:
        case = new_life(looked=False)
        assert not case.told("scheduler")
        case.advance(30).rest()
        assert case.of(LookAtInstallations) == [LookAtInstallations(backends=("mlx", "vllm-metal"))]

    def test_with_an_installation_the_journal_does_not_know_is_believed(self) -> None:
        case = new_life(disk=(built(),))
        assert [type(one.event) for one in case.history] == [ev.InstallationFound]
        assert status(case).current == built()
        assert ensure(case) == msg.Ensured(installation=built(), fresh=False)

    def test_with_several_unknown_ones_brings_the_latest_into_use(self) -> None:
        old, new = built("1-aaaa.1", built_at=1.0), built("2-bbbb.1", built_at=2.0)
        case = new_life(disk=(old, new))
        assert status(case).current == new
        assert len(status(case).installations) == 2

    def test_without_an_installation_the_journal_knows_is_believed_as_well(self) -> None:
        case = new_life(requested(), committed())
        assert [type(one.event) for one in case.history][2:] == [ev.InstallationMissing]
        assert status(case).state == "absent"

    def test_with_a_broken_one_says_so_with_the_reason_and_the_next_wish_repairs_it(self) -> None:
        broken = built(broken="mlx/core.so is missing")
        case = new_life(requested(), committed(), disk=(broken,))
        assert (status(case).state, status(case).failure.message) == (  # type: ignore[union-attr]
            "broken",
            "mlx/core.so is missing",
        )
        ensure(case)
        (build,) = case.of(BuildInstallation)
        assert build.repair
        whole = built("1-aaaa.2", built_at=NOW.wall + 5)
        case.when(msg.InstallCommitted(job="mlx.2", installation=whole)).rest()
        case.then(ev.InstallationCommitted, ev.InstallationRetiring)
        assert status(case).current == whole

    def test_with_one_that_is_whole_again_finds_it(self) -> None:
        broken = ev.InstallationBroken(backend="mlx", installation_id="1-aaaa.1", reason="gone")
        case = new_life(requested(), committed(), broken, disk=(built(),))
        assert status(case).state == "installed"

    def test_with_a_broken_current_one_falls_back_to_another_whole_one(self) -> None:
        old, new = built("1-aaaa.1", built_at=1.0), built("2-bbbb.1", built_at=2.0)
        history = (requested(), committed(one=old), requested("mlx.2"), committed("mlx.2", new))
        broken = built("2-bbbb.1", built_at=2.0, broken="it does not start")
        case = new_life(*history, disk=(old, broken))
        assert ev.InstallationActivated in [type(one.event) for one in case.history]
        assert status(case).current == old

    def test_is_not_believed_when_the_look_is_older_than_a_commit(self) -> None:
        case = new_life()
        ensure(case)
        case.when(msg.InstallCommitted(job="mlx.1", installation=built())).rest()
        look(case)
        assert status(case).state == "installed"


class TestAJobOfAnEarlierLife:
    def test_that_a_person_typed_goes_on(self) -> None:
        case = new_life(requested())
        assert [type(one.event) for one in case.history] == [ev.InstallRequested, ev.InstallAttemptFailed]
        (build,) = case.of(BuildInstallation)
        assert (build.job, build.attempt) == ("mlx.1", 2)

    def test_that_only_a_request_wanted_is_over(self) -> None:
        case = new_life(requested(wanted_by="request"))
        last = case.history[-1].event
        assert isinstance(last, ev.InstallCancelled)
        assert "the request that wanted it is gone" in last.reason
        assert status(case).job == ""

    def test_that_only_a_request_wanted_is_over_also_while_it_waited_to_be_retried(self) -> None:
        waits = ev.InstallAttemptFailed(
            job="mlx.1", backend="mlx", attempt=1, failure=OFFLINE, retry_at=NOW.wall + 20
        )
        case = new_life(requested(wanted_by="request"), waits)
        assert isinstance(case.history[-1].event, ev.InstallCancelled)

    def test_whose_installation_is_there_after_all_is_committed(self) -> None:
        case = new_life(requested(wanted_by="request"), disk=(built(),))
        assert [type(one.event) for one in case.history] == [ev.InstallRequested, ev.InstallationCommitted]
        assert status(case).state == "installed"

    def test_that_repairs_does_not_take_what_it_was_to_replace(self) -> None:
        old = built(built_at=NOW.wall - 100)
        case = new_life(requested(wanted_by="repair"), disk=(old,))
        kinds = [type(one.event) for one in case.history]
        assert kinds == [ev.InstallRequested, ev.InstallationFound, ev.InstallAttemptFailed]
        assert status(case).job == "mlx.1"

    def test_is_answered_to_whoever_asks_before_the_look(self) -> None:
        case = new_life(requested(), looked=False)
        assert ensure(case) == Later(KEY)
        case.when(msg.InstallationsSeen(backend="mlx", installations=(built(),))).rest()
        assert case.answers[KEY].installation == built()


class TestADefaultBackend:
    def life(self, *history: Any, disk: tuple[Installation, ...] = ()) -> Case[Any, Any]:
        case = given(Installer((LLAMA,)), *history, now=NOW)
        case.when(Recovered()).rest()
        return case.when(msg.InstallationsSeen(backend="llama.cpp", installations=disk)).rest()

    def test_is_installed_from_the_start(self) -> None:
        case = self.life()
        (event,) = case.events
        assert isinstance(event, ev.InstallRequested)
        assert (event.job, event.wanted_by) == ("llama.cpp.1", "default")
        assert case.of(BuildInstallation)

    def test_is_not_installed_again_and_again_when_that_fails(self) -> None:
        case = self.life()
        failed = msg.InstallAttemptEnded(job="llama.cpp.1", backend="llama.cpp", failure=NO_SPACE)
        case.when(failed).rest().then(ev.InstallFailed)
        case.advance(3600).rest().then()

    def test_that_failed_is_tried_once_more_in_the_next_life(self) -> None:
        case = self.life()
        failed = msg.InstallAttemptEnded(job="llama.cpp.1", backend="llama.cpp", failure=NO_SPACE)
        case.when(failed).rest()
        case.rebuild().when(Recovered()).rest()
        case.when(msg.InstallationsSeen(backend="llama.cpp", installations=())).rest()
        case.then(ev.InstallRequested)

    def test_that_the_user_uninstalled_stays_uninstalled_until_he_asks(self) -> None:
        one = built(backend="llama.cpp")
        gone = (
            ev.InstallationFound(backend="llama.cpp", installation=one),
            ev.InstallationRetiring(
                backend="llama.cpp", installation_id=one.id, reason="uninstalled", unwanted=True
            ),
            ev.InstallationRemoved(backend="llama.cpp", installation_id=one.id),
        )
        case = self.life(*gone).then()
        assert not case.core.status(case.state, "llama.cpp").wanted  # type: ignore[attr-defined]
        case.when(msg.Ensure(backend="llama.cpp")).rest().then(ev.InstallRequested)

    def test_whose_installation_the_user_cancelled_is_not_begun_at_once_again(self) -> None:
        case = self.life()
        case.when(msg.CancelInstall(backend="llama.cpp")).rest().then(ev.InstallCancelled)
        case.advance(10).rest().then()
        case.rebuild().when(Recovered()).rest()
        case.when(msg.InstallationsSeen(backend="llama.cpp", installations=())).rest().then()

    def test_goes_on_when_whoever_joined_leaves(self) -> None:
        case = self.life()
        case.when(msg.Ensure(backend="llama.cpp")).rest()
        case.when(msg.CancelInstall(backend="llama.cpp", leave=True)).then()
        assert case.reply == msg.Cancelled(ended=False)

    def test_that_is_broken_is_repaired(self) -> None:
        one = built(backend="llama.cpp", broken="a file is missing")
        case = self.life(disk=(one,))
        (build,) = case.of(BuildInstallation)
        assert build.repair

    def test_that_is_the_users_own_is_used_and_never_touched(self) -> None:
        own = built("external", backend="llama.cpp", managed=False, root="/opt/llama")
        case = self.life(disk=(own,))
        case.then(ev.InstallationFound, ev.InstallationActivated)
        for ask in (
            msg.Uninstall(backend="llama.cpp"),
            msg.Ensure(backend="llama.cpp", repair=True),
            msg.Ensure(backend="llama.cpp", version="9"),
        ):
            assert case.when(ask).refusal.code == "not_managed"

    def test_that_is_the_users_own_and_broken_is_not_replaced_by_ours(self) -> None:
        own = built("external", backend="llama.cpp", managed=False, broken="/opt/llama is no program")
        case = self.life(disk=(own,))
        case.then(ev.InstallationFound, ev.InstallationBroken)
        refusal = case.when(msg.Ensure(backend="llama.cpp")).refusal
        assert "It cannot be used as it is: /opt/llama is no program" in refusal.message

    def test_that_is_no_longer_named_in_the_config_leaves_room_for_our_own(self) -> None:
        ours, own = built(backend="llama.cpp"), built("external", backend="llama.cpp", managed=False)
        history = (
            ev.InstallationFound(backend="llama.cpp", installation=ours),
            ev.InstallationFound(backend="llama.cpp", installation=own),
            ev.InstallationActivated(backend="llama.cpp", installation_id="external"),
        )
        case = self.life(*history, disk=(ours,))
        assert case.core.status(case.state, "llama.cpp").current == ours  # type: ignore[attr-defined]


class TestUninstalling:
    def installed(self) -> Case[Any, Any]:
        case = new_life(requested(), committed(), disk=(built(),))
        return case.when(engines()).rest()

    def uninstall(self, case: Case[Any, Any]) -> Any:
        case.when(msg.Uninstall(backend="mlx"))
        reply = case.reply
        case.rest()
        return reply

    def gone(self, case: Case[Any, Any], **more: Any) -> Case[Any, Any]:
        report = msg.InstallationGone(backend="mlx", installation_id="1-aaaa.1", **more)
        return case.when(report).rest()

    def test_retires_removes_and_answers_with_the_bytes(self) -> None:
        case = self.installed()
        assert self.uninstall(case) == Later("uninstall/mlx")
        case.then(ev.InstallationRetiring)
        assert case.of(RemoveInstallation)
        self.gone(case, freed=123).then(ev.InstallationRemoved)
        assert case.answers == {"uninstall/mlx": msg.Uninstalled(freed=123, was_installed=True)}
        assert not status(case).wanted

    def test_of_what_is_not_installed_is_answered_at_once(self) -> None:
        case = new_life()
        assert self.uninstall(case) == msg.Uninstalled(freed=0, was_installed=False)
        case.then()

    def test_waits_until_no_engine_uses_it(self) -> None:
        case = self.installed()
        case.when(engines("1-aaaa.1")).rest()
        self.uninstall(case)
        assert not case.of(RemoveInstallation)
        assert status(case).state == "retiring"
        assert not case.advance(600).rest().of(RemoveInstallation)
        case.when(engines()).rest()
        assert case.of(RemoveInstallation)

    def test_waits_until_the_runner_has_told_at_all(self) -> None:
        case = new_life(requested(), committed(), disk=(built(),))
        self.uninstall(case)
        assert not case.of(RemoveInstallation)

    def test_waits_until_the_scheduler_has_acted_on_it_since_a_start_may_be_under_way(self) -> None:
        case = self.installed()
        case.when(engines(acted_on=-1)).rest()
        self.uninstall(case)
        told = case.told("scheduler")[-1]
        assert isinstance(told, msg.InstallationList)
        assert not case.of(RemoveInstallation)
        case.when(engines(acted_on=told.version - 1)).rest()
        assert not case.of(RemoveInstallation)
        case.when(engines(acted_on=told.version)).rest()
        assert case.of(RemoveInstallation)

    def test_does_not_wait_for_a_scheduler_that_is_not_there(self) -> None:
        case = self.installed()
        case.when(engines(acted_on=-1)).rest()
        self.uninstall(case)
        assert not case.advance(89).rest().told("runner/mlx")
        (call,) = case.advance(1).rest().told("runner/mlx")
        assert isinstance(call, msg.RollCall)
        assert not case.advance(10).rest().told("runner/mlx")
        case.when(engines(acted_on=-1)).rest()
        assert not case.of(RemoveInstallation)
        case.when(engines(acted_on=-1, token=call.token)).rest()
        assert case.of(RemoveInstallation)

    def test_ends_the_job_that_is_under_way(self) -> None:
        case = new_life()
        ensure(case)
        assert self.uninstall(case) == msg.Uninstalled(freed=0, was_installed=False)
        case.then(ev.InstallCancelled)
        assert case.answers[KEY].code == "cancelled"

    def test_is_answered_although_the_backend_is_asked_for_again_meanwhile(self) -> None:
        case = self.installed()
        case.when(engines("1-aaaa.1")).rest()
        self.uninstall(case)
        assert ensure(case) == Later(KEY)
        new = built("1-aaaa.2")
        case.when(msg.InstallCommitted(job="mlx.2", installation=new)).rest()
        case.when(engines()).rest()
        self.gone(case, freed=5)
        assert case.answers["uninstall/mlx"] == msg.Uninstalled(freed=5, was_installed=True)
        assert status(case).current == new

    def test_asked_twice_is_answered_to_both_with_all_the_bytes(self) -> None:
        one, two = built(), built("2-bbbb.1")
        case = new_life(disk=(one, two)).when(engines()).rest()
        self.uninstall(case)
        self.gone(case, freed=10)
        assert self.uninstall(case) == Later("uninstall/mlx")
        case.when(msg.InstallationGone(backend="mlx", installation_id=two.id, freed=7)).rest()
        assert case.answers["uninstall/mlx"] == msg.Uninstalled(freed=17, was_installed=True)

    def test_that_cannot_remove_says_so_and_tries_again_later(self) -> None:
        case = self.installed()
        self.uninstall(case)
        failure = Failure(kind="permanent", code="not_removed", message="A file is in use.")
        self.gone(case, failure=failure).then()
        assert case.answers["uninstall/mlx"].message == "A file is in use."
        assert not case.advance(29).rest().of(RemoveInstallation)
        assert case.advance(1).rest().of(RemoveInstallation)
        assert not self.gone(case, freed=1).answers

    def test_goes_on_after_a_restart(self) -> None:
        case = self.installed()
        case.when(engines("1-aaaa.1")).rest()
        self.uninstall(case)
        case.rebuild().when(Recovered()).rest()
        look(case, built())
        assert status(case).state == "retiring"
        case.when(engines()).rest()
        assert case.of(RemoveInstallation)

    def test_of_something_unknown_names_the_known_ones(self) -> None:
        case = new_life().when(msg.Uninstall(backend="mxl"))
        assert case.refusal.status == 404


class TestARepair:
    def test_builds_anew_beside_and_retires_the_old_one(self) -> None:
        case = new_life(requested(), committed(), disk=(built(),))
        ensure(case, repair=True)
        case.then(requested("mlx.2", wanted_by="repair"))
        (build,) = case.of(BuildInstallation)
        assert build.repair
        assert status(case).state == "installed"
        new = built("1-aaaa.2", built_at=NOW.wall + 9)
        case.when(msg.InstallCommitted(job="mlx.2", installation=new)).rest()
        case.then(ev.InstallationCommitted, ev.InstallationRetiring)
        assert status(case).current == new
        assert status(case).retiring == ("1-aaaa.1",)

    def test_that_fails_leaves_the_old_one_in_use(self) -> None:
        case = new_life(requested(), committed(), disk=(built(),))
        ensure(case, repair=True)
        fails(case, NO_SPACE, job="mlx.2")
        assert status(case).state == "installed"
        case.when(msg.CancelInstall(backend="mlx")).rest()
        assert status(case).wanted


class TestAPlan:
    def test_is_made_and_answered(self) -> None:
        case = new_life()
        case.when(msg.PlanInstall(backend="mlx"))
        assert case.reply == Later("plan/mlx/")
        assert case.of(PlanInstallation) == [PlanInstallation(backend="mlx", version="")]
        plan = Plan(backend="mlx", version="1", download_bytes=5)
        case.when(msg.PlanMade(backend="mlx", version="", plan=plan)).then()
        assert case.answers == {"plan/mlx/": plan}

    def test_that_cannot_be_made_says_why(self) -> None:
        case = new_life()
        case.when(msg.PlanMade(backend="mlx", version="9", failure=OFFLINE))
        assert case.answers["plan/mlx/9"].status == 503

    def test_for_another_platform_is_refused(self) -> None:
        assert new_life().when(msg.PlanInstall(backend="vllm-metal")).refusal.status == 412


class TestTheList:
    def test_is_told_when_something_changes_and_every_few_seconds(self) -> None:
        case = new_life()
        assert not case.rest().advance(4).rest().told("scheduler")
        assert len(case.advance(1).rest().told("scheduler")) == 1
        ensure(case)
        assert len(case.told("scheduler")) == 1

    def test_is_told_after_a_roll_call(self) -> None:
        case = new_life()
        assert len(case.when(msg.RollCall()).rest().told("scheduler")) == 1

    def test_never_shows_a_default_backend_as_absent_before_its_job(self) -> None:
        case = given(Installer((LLAMA,)), now=NOW)
        case.when(Recovered()).rest()
        case.when(msg.InstallationsSeen(backend="llama.cpp", installations=())).rest()
        (told,) = case.told("scheduler")
        assert isinstance(told, msg.InstallationList)
        assert told.backends[0].job == "llama.cpp.1"


@freeze_time("2026-11-22 12:00:00")
def test_a_retry_is_recorded_in_wall_clock_time() -> None:
    moment = SystemClock().now()
    case = given(Installer((MLX,)), requested(), now=Moment(moment.wall, 5.0, 0.5))
    case.when(Recovered()).rest()
    case.when(msg.InstallationsSeen(backend="mlx", installations=())).rest()
    fails(case, OFFLINE)
    (event,) = case.events
    assert isinstance(event, ev.InstallAttemptFailed)
    assert event.retry_at == 1_795_348_800.0 + 2.0
