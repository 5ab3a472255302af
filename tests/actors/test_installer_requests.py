"""What the installer is asked for: wishes, defaults, plans, and the list it tells."""

from __future__ import annotations

from typing import Any

from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.installer.effects import BuildInstallation, PlanInstallation
from greenroom.actors.installer.events import (
    InstallationActivated,
    InstallationBroken,
    InstallationCommitted,
    InstallationFound,
    InstallationMissing,
    InstallationRemoved,
    InstallationRetiring,
    InstallCancelled,
    InstallFailed,
    InstallRequested,
)
from greenroom.actors.installer.messages import (
    CancelInstall,
    Ensure,
    Ensured,
    InstallationList,
    InstallationsSeen,
    PlanInstall,
    Uninstall,
)
from greenroom.actors.kernel.core import Later, Recovered
from greenroom.actors.reports import EffectEnded
from greenroom.actors.testing import Case, given
from greenroom.actors.values import Cancelled, Installation, Plan, RequestSnapshot
from installer_life import KEY, NOW, built, committed, ensure, look, new_life, requested, status
from reports import attempt_failed, build_committed
from scheduler_stage import LLAMA, NO_SPACE, OFFLINE


def test_an_install_of_an_absent_backend_starts_a_job() -> None:
    case = new_life()
    assert ensure(case) == Later(KEY)
    case.then(requested())
    assert case.of(BuildInstallation) == [
        BuildInstallation(job="mlx.1", backend="mlx", version="", attempt=1, repair=False)
    ]
    assert status(case).state == "installing"


def test_fifty_install_requests_at_once_join_one_job_and_get_one_build() -> None:
    case = new_life()
    builds = 0
    for _ in range(50):
        assert ensure(case) == Later(KEY)
        builds += len(case.of(BuildInstallation))
    assert builds == 1
    assert [type(one.event) for one in case.history] == [InstallRequested]
    case.when(build_committed("mlx.1", built())).rest()
    case.then(InstallationCommitted)
    assert case.answers[KEY] == Ensured(installation=built(), fresh=True)


def test_an_install_of_what_is_installed_is_answered_at_once() -> None:
    case = new_life(requested(), committed(), disk=(built(),))
    assert ensure(case) == Ensured(installation=built(), fresh=False)
    case.then()


def test_an_install_of_what_the_journal_claims_waits_for_the_scan_of_the_disk() -> None:
    case = new_life(requested(), committed(), looked=False)
    assert ensure(case) == Later(KEY)
    case.then()
    look(case, built())
    assert case.told("scheduler")
    assert ensure(case) == Ensured(installation=built(), fresh=False)


def test_an_install_request_that_waited_for_the_scan_is_answered_by_it() -> None:
    case = new_life(requested(), committed(), looked=False)
    ensure(case)
    case.when(InstallationsSeen(backend="mlx", installations=(built(),))).rest()
    assert case.answers == {KEY: Ensured(installation=built(), fresh=False)}


def test_an_install_request_that_waited_for_the_scan_installs_when_the_disk_shows_nothing() -> None:
    case = new_life(requested(), committed(), looked=False)
    ensure(case)
    case.when(InstallationsSeen(backend="mlx", installations=())).rest()
    case.then(InstallationMissing, requested("mlx.2"))
    assert case.of(BuildInstallation)
    assert not case.answers


def test_an_install_of_an_unknown_backend_names_the_known_ones() -> None:
    case = new_life()
    case.when(Ensure(backend="mxl")).then()
    assert case.refusal.kind == "not_found"
    assert case.refusal.sentence() == 'There is no backend "mxl". Known backends: mlx, vllm-metal.'


def test_an_install_of_one_that_this_platform_cannot_run_says_why_without_trying() -> None:
    case = new_life()
    case.when(Ensure(backend="vllm-metal")).then()
    assert (case.refusal.kind, case.refusal.code) == ("not_ready", "unsupported_platform")
    assert case.refusal.message == "vllm-metal needs macOS 15 or newer on Apple silicon."


def test_an_install_of_another_version_than_the_installed_one_builds_it_beside() -> None:
    case = new_life(requested(), committed(), disk=(built(),))
    ensure(case, version="2")
    case.then(requested("mlx.2", version="2"))
    new = built("2-bbbb.1")
    case.when(build_committed("mlx.2", new)).rest()
    case.then(InstallationCommitted, InstallationActivated)
    assert status(case).current == new
    assert len(status(case).installations) == 2


def test_an_install_request_sent_without_waiting_finds_its_token_in_the_next_list() -> None:
    case = new_life()
    ensure(case, wanted_by="request", token="r1")
    lists = [one for one in case.told("scheduler") if isinstance(one, InstallationList)]
    assert lists[-1].heard == {"mlx": "r1"}
    assert lists[-1].backends[0].job == "mlx.1"


def test_a_refused_install_request_finds_its_token_in_the_next_list_too() -> None:
    case = new_life()
    case.when(Ensure(backend="vllm-metal", wanted_by="request", token="r1")).rest()
    (told,) = case.told("scheduler")
    assert isinstance(told, InstallationList)
    assert told.heard == {"vllm-metal": "r1"}


def test_an_install_request_that_a_person_typed_takes_over_the_job_of_a_request() -> None:
    case = new_life()
    ensure(case, wanted_by="request")
    ensure(case)
    case.then(requested(wanted_by="explicit"))
    ensure(case)
    case.then()
    case.rebuild().when(Recovered()).rest()
    look(case)
    assert status(case).job == "mlx.1"


def life(*history: Any, disk: tuple[Installation, ...] = ()) -> Case[Any, Any]:
    case = given(InstallerCore((LLAMA,)), *history, now=NOW)
    case.when(Recovered()).rest()
    return case.when(InstallationsSeen(backend="llama.cpp", installations=disk)).rest()


def test_a_default_backend_is_installed_from_the_start() -> None:
    case = life()
    (event,) = case.events
    assert isinstance(event, InstallRequested)
    assert (event.job, event.wanted_by) == ("llama.cpp.1", "default")
    assert case.of(BuildInstallation)


def test_under_the_policy_never_not_even_a_default_backend_is_installed_unasked() -> None:
    case = given(InstallerCore((LLAMA,), install_defaults=False), now=NOW)
    case.when(Recovered()).rest()
    case.when(InstallationsSeen(backend="llama.cpp", installations=())).rest().then()
    case.when(Ensure(backend="llama.cpp")).rest().then(InstallRequested)


def test_a_default_backend_is_not_installed_again_and_again_when_that_fails() -> None:
    case = life()
    failed = attempt_failed("llama.cpp.1", NO_SPACE)
    case.when(failed).rest().then(InstallFailed)
    case.advance(3600).rest().then()


def test_a_default_backend_that_failed_is_tried_once_more_in_the_next_life() -> None:
    case = life()
    failed = attempt_failed("llama.cpp.1", NO_SPACE)
    case.when(failed).rest()
    case.rebuild().when(Recovered()).rest()
    case.when(InstallationsSeen(backend="llama.cpp", installations=())).rest()
    case.then(InstallRequested)


def test_a_default_backend_that_the_user_uninstalled_stays_uninstalled_until_asked_for() -> None:
    one = built(backend="llama.cpp")
    gone = (
        InstallationFound(backend="llama.cpp", installation=one),
        InstallationRetiring(
            backend="llama.cpp", installation_id=one.id, reason="uninstalled", unwanted=True
        ),
        InstallationRemoved(backend="llama.cpp", installation_id=one.id),
    )
    case = life(*gone).then()
    assert not status(case, "llama.cpp").wanted
    case.when(Ensure(backend="llama.cpp")).rest().then(InstallRequested)


def test_a_default_backend_whose_installation_the_user_cancelled_is_not_begun_at_once_again() -> None:
    case = life()
    case.when(CancelInstall(backend="llama.cpp")).rest().then(InstallCancelled)
    case.advance(10).rest().then()
    case.rebuild().when(Recovered()).rest()
    case.when(InstallationsSeen(backend="llama.cpp", installations=())).rest().then()


def test_the_job_of_a_default_backend_goes_on_when_a_caller_that_joined_leaves() -> None:
    case = life()
    case.when(Ensure(backend="llama.cpp")).rest()
    case.when(CancelInstall(backend="llama.cpp", leave=True)).then()
    assert case.reply == Cancelled(ended=False)


def test_a_default_backend_that_is_broken_is_repaired() -> None:
    one = built(backend="llama.cpp", broken="a file is missing")
    case = life(disk=(one,))
    (build,) = case.of(BuildInstallation)
    assert build.repair


def test_a_default_backend_that_is_the_users_own_is_used_and_never_touched() -> None:
    own = built("external", backend="llama.cpp", managed=False, root="/opt/llama")
    case = life(disk=(own,))
    case.then(InstallationFound, InstallationActivated)
    for ask in (
        Uninstall(backend="llama.cpp"),
        Ensure(backend="llama.cpp", repair=True),
        Ensure(backend="llama.cpp", version="9"),
    ):
        assert case.when(ask).refusal.code == "not_managed"


def test_a_default_backend_that_is_the_users_own_and_broken_is_not_replaced_by_ours() -> None:
    own = built("external", backend="llama.cpp", managed=False, broken="/opt/llama is no program")
    case = life(disk=(own,))
    case.then(InstallationFound, InstallationBroken)
    refusal = case.when(Ensure(backend="llama.cpp")).refusal
    assert "It cannot be used: /opt/llama is no program" in refusal.message


def test_a_default_backend_that_is_no_longer_named_in_the_config_leaves_room_for_our_own() -> None:
    ours, own = built(backend="llama.cpp"), built("external", backend="llama.cpp", managed=False)
    history = (
        InstallationFound(backend="llama.cpp", installation=ours),
        InstallationFound(backend="llama.cpp", installation=own),
        InstallationActivated(backend="llama.cpp", installation_id="external"),
    )
    case = life(*history, disk=(ours,))
    assert status(case, "llama.cpp").current == ours


def test_a_plan_is_made_and_answered() -> None:
    case = new_life()
    case.when(PlanInstall(backend="mlx"))
    assert case.reply == Later("plan/mlx//")
    assert case.of(PlanInstallation) == [PlanInstallation(backend="mlx", version="")]
    plan = Plan(backend="mlx", version="1", download_bytes=5)
    case.when(EffectEnded(effect=PlanInstallation(backend="mlx", version=""), answer=plan)).then()
    assert case.answers == {"plan/mlx//": plan}


def test_a_plan_that_cannot_be_made_says_why() -> None:
    case = new_life()
    case.when(EffectEnded(effect=PlanInstallation(backend="mlx", version="9"), failure=OFFLINE))
    assert case.answers["plan/mlx//9"].kind == "unavailable"


def test_a_plan_for_another_platform_is_refused() -> None:
    assert new_life().when(PlanInstall(backend="vllm-metal")).refusal.kind == "not_ready"


def test_the_list_is_sent_on_each_change_and_every_few_seconds() -> None:
    case = new_life()
    assert not case.rest().advance(4).rest().told("scheduler")
    assert len(case.advance(1).rest().told("scheduler")) == 1
    ensure(case)
    assert len(case.told("scheduler")) == 1


def test_the_list_is_sent_after_a_roll_call() -> None:
    case = new_life()
    assert len(case.when(RequestSnapshot()).rest().told("scheduler")) == 1


def test_the_list_never_shows_a_default_backend_as_absent_before_its_job() -> None:
    case = given(InstallerCore((LLAMA,)), now=NOW)
    case.when(Recovered()).rest()
    case.when(InstallationsSeen(backend="llama.cpp", installations=())).rest()
    (told,) = case.told("scheduler")
    assert isinstance(told, InstallationList)
    assert told.backends[0].job == "llama.cpp.1"
