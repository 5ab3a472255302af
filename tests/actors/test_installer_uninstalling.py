"""Uninstalling: what is in use is removed later, and the caller is notified."""

from __future__ import annotations

from typing import Any

from greenroom.actors.installer.effects import RemoveInstallation
from greenroom.actors.installer.events import InstallationRemoved, InstallationRetiring, InstallCancelled
from greenroom.actors.installer.messages import (
    InstallationList,
    Uninstall,
    Uninstalled,
)
from greenroom.actors.kernel.core import Later, Recovered
from greenroom.actors.testing import Case
from greenroom.actors.values import Failure, RequestSnapshot
from installer_life import KEY, built, committed, engines, ensure, look, new_life, requested, status
from reports import build_committed, removed


def installed() -> Case[Any, Any]:
    case = new_life(requested(), committed(), disk=(built(),))
    return case.when(engines()).rest()


def uninstall(case: Case[Any, Any]) -> Any:
    case.when(Uninstall(backend="mlx"))
    reply = case.reply
    case.rest()
    return reply


def gone(case: Case[Any, Any], **more: Any) -> Case[Any, Any]:
    report = removed("mlx", "1-aaaa.1", **more)
    return case.when(report).rest()


def test_uninstalling_retires_removes_and_answers_with_the_bytes() -> None:
    case = installed()
    assert uninstall(case) == Later("uninstall/mlx")
    case.then(InstallationRetiring)
    assert case.of(RemoveInstallation)
    gone(case, freed=123).then(InstallationRemoved)
    assert case.answers == {"uninstall/mlx": Uninstalled(freed=123, was_installed=True)}
    assert not status(case).wanted


def test_uninstalling_what_is_not_installed_is_answered_at_once() -> None:
    case = new_life()
    assert uninstall(case) == Uninstalled(freed=0, was_installed=False)
    case.then()


def test_uninstalling_waits_until_no_engine_uses_it() -> None:
    case = installed()
    case.when(engines("1-aaaa.1")).rest()
    uninstall(case)
    assert not case.of(RemoveInstallation)
    assert status(case).state == "retiring"
    assert not case.advance(600).rest().of(RemoveInstallation)
    case.when(engines()).rest()
    assert case.of(RemoveInstallation)


def test_uninstalling_waits_for_the_first_list_of_the_runner() -> None:
    case = new_life(requested(), committed(), disk=(built(),))
    uninstall(case)
    assert not case.of(RemoveInstallation)


def test_uninstalling_waits_until_the_scheduler_has_acted_on_it_since_a_start_may_be_under_way() -> None:
    case = installed()
    case.when(engines(acted_on=-1)).rest()
    uninstall(case)
    told = case.told("scheduler")[-1]
    assert isinstance(told, InstallationList)
    assert not case.of(RemoveInstallation)
    case.when(engines(acted_on=told.version - 1)).rest()
    assert not case.of(RemoveInstallation)
    case.when(engines(acted_on=told.version)).rest()
    assert case.of(RemoveInstallation)


def test_uninstalling_does_not_wait_for_a_scheduler_that_does_not_exist() -> None:
    case = installed()
    case.when(engines(acted_on=-1)).rest()
    uninstall(case)
    assert not case.advance(89).rest().told("runner/mlx")
    (call,) = case.advance(1).rest().told("runner/mlx")
    assert isinstance(call, RequestSnapshot)
    assert not case.advance(10).rest().told("runner/mlx")
    case.when(engines(acted_on=-1)).rest()
    assert not case.of(RemoveInstallation)
    case.when(engines(acted_on=-1, token=call.token)).rest()
    assert case.of(RemoveInstallation)


def test_uninstalling_ends_the_job_that_is_under_way() -> None:
    case = new_life()
    ensure(case)
    assert uninstall(case) == Uninstalled(freed=0, was_installed=False)
    case.then(InstallCancelled)
    assert case.answers[KEY].code == "cancelled"


def test_uninstalling_is_answered_although_the_backend_is_asked_for_again_meanwhile() -> None:
    case = installed()
    case.when(engines("1-aaaa.1")).rest()
    uninstall(case)
    assert ensure(case) == Later(KEY)
    new = built("1-aaaa.2")
    case.when(build_committed("mlx.2", new)).rest()
    case.when(engines()).rest()
    gone(case, freed=5)
    assert case.answers["uninstall/mlx"] == Uninstalled(freed=5, was_installed=True)
    assert status(case).current == new


def test_uninstalling_asked_for_twice_answers_both_with_all_the_bytes() -> None:
    one, two = built(), built("2-bbbb.1")
    case = new_life(disk=(one, two)).when(engines()).rest()
    uninstall(case)
    gone(case, freed=10)
    assert uninstall(case) == Later("uninstall/mlx")
    case.when(removed("mlx", two.id, freed=7)).rest()
    assert case.answers["uninstall/mlx"] == Uninstalled(freed=17, was_installed=True)


def test_uninstalling_that_cannot_remove_says_so_and_tries_again_later() -> None:
    case = installed()
    uninstall(case)
    failure = Failure(kind="permanent", code="not_removed", message="A file is in use.")
    gone(case, failure=failure).then()
    assert case.answers["uninstall/mlx"].message == "A file is in use."
    assert not case.advance(29).rest().of(RemoveInstallation)
    assert case.advance(1).rest().of(RemoveInstallation)
    assert not gone(case, freed=1).answers


def test_uninstalling_goes_on_after_a_restart() -> None:
    case = installed()
    case.when(engines("1-aaaa.1")).rest()
    uninstall(case)
    case.rebuild().when(Recovered()).rest()
    look(case, built())
    assert status(case).state == "retiring"
    case.when(engines()).rest()
    assert case.of(RemoveInstallation)


def test_uninstalling_an_unknown_backend_names_the_known_ones() -> None:
    case = new_life().when(Uninstall(backend="mxl"))
    assert case.refusal.kind == "not_found"
