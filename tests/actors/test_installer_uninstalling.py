"""Uninstalling: what is in use is removed later, and whoever asked hears of it."""

from __future__ import annotations

from typing import Any

from greenroom.actors.installer.effects import RemoveInstallation
from greenroom.actors.installer.events import InstallationRemoved, InstallationRetiring, InstallCancelled
from greenroom.actors.installer.messages import (
    InstallationGone,
    InstallationList,
    InstallCommitted,
    Uninstall,
    Uninstalled,
)
from greenroom.actors.kernel.core import Later, Recovered
from greenroom.actors.testing import Case
from greenroom.actors.values import Failure, RollCall
from installer_life import KEY, built, committed, engines, ensure, look, new_life, requested, status


class TestUninstalling:
    def installed(self) -> Case[Any, Any]:
        case = new_life(requested(), committed(), disk=(built(),))
        return case.when(engines()).rest()

    def uninstall(self, case: Case[Any, Any]) -> Any:
        case.when(Uninstall(backend="mlx"))
        reply = case.reply
        case.rest()
        return reply

    def gone(self, case: Case[Any, Any], **more: Any) -> Case[Any, Any]:
        report = InstallationGone(backend="mlx", installation_id="1-aaaa.1", **more)
        return case.when(report).rest()

    def test_retires_removes_and_answers_with_the_bytes(self) -> None:
        case = self.installed()
        assert self.uninstall(case) == Later("uninstall/mlx")
        case.then(InstallationRetiring)
        assert case.of(RemoveInstallation)
        self.gone(case, freed=123).then(InstallationRemoved)
        assert case.answers == {"uninstall/mlx": Uninstalled(freed=123, was_installed=True)}
        assert not status(case).wanted

    def test_of_what_is_not_installed_is_answered_at_once(self) -> None:
        case = new_life()
        assert self.uninstall(case) == Uninstalled(freed=0, was_installed=False)
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
        assert isinstance(told, InstallationList)
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
        assert isinstance(call, RollCall)
        assert not case.advance(10).rest().told("runner/mlx")
        case.when(engines(acted_on=-1)).rest()
        assert not case.of(RemoveInstallation)
        case.when(engines(acted_on=-1, token=call.token)).rest()
        assert case.of(RemoveInstallation)

    def test_ends_the_job_that_is_under_way(self) -> None:
        case = new_life()
        ensure(case)
        assert self.uninstall(case) == Uninstalled(freed=0, was_installed=False)
        case.then(InstallCancelled)
        assert case.answers[KEY].code == "cancelled"

    def test_is_answered_although_the_backend_is_asked_for_again_meanwhile(self) -> None:
        case = self.installed()
        case.when(engines("1-aaaa.1")).rest()
        self.uninstall(case)
        assert ensure(case) == Later(KEY)
        new = built("1-aaaa.2")
        case.when(InstallCommitted(job="mlx.2", installation=new)).rest()
        case.when(engines()).rest()
        self.gone(case, freed=5)
        assert case.answers["uninstall/mlx"] == Uninstalled(freed=5, was_installed=True)
        assert status(case).current == new

    def test_asked_twice_is_answered_to_both_with_all_the_bytes(self) -> None:
        one, two = built(), built("2-bbbb.1")
        case = new_life(disk=(one, two)).when(engines()).rest()
        self.uninstall(case)
        self.gone(case, freed=10)
        assert self.uninstall(case) == Later("uninstall/mlx")
        case.when(InstallationGone(backend="mlx", installation_id=two.id, freed=7)).rest()
        assert case.answers["uninstall/mlx"] == Uninstalled(freed=17, was_installed=True)

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
        case = new_life().when(Uninstall(backend="mxl"))
        assert case.refusal.kind == "not_found"
