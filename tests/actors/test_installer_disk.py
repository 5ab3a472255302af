"""The installer believes what the disk says, and rebuilds what is broken."""

from __future__ import annotations

from typing import Any

from greenroom.actors.installer.effects import BuildInstallation, InspectInstallations, RemoveInstallation
from greenroom.actors.installer.events import (
    InstallationActivated,
    InstallationBroken,
    InstallationCommitted,
    InstallationFound,
    InstallationMissing,
    InstallationRetiring,
    InstallationsReadAgain,
    InstallationsUnread,
)
from greenroom.actors.installer.messages import (
    CancelInstall,
    Ensured,
    InstallationList,
    InstallationsSeen,
    Uninstall,
)
from greenroom.actors.kernel.core import Answer, Later
from greenroom.actors.reports import Happened
from installer_life import NOW, built, committed, ensure, fails, failure_of, look, new_life, requested, status
from reports import build_committed
from scheduler_stage import NO_SPACE


def test_the_disk_is_looked_at_in_every_new_life() -> None:
    case = new_life(looked=False)
    assert not case.told("scheduler")
    case.advance(30).rest()
    assert case.of(InspectInstallations) == [InspectInstallations(backends=("mlx", "vllm-metal"))]


def test_an_installation_found_on_disk_counts_although_the_journal_does_not_know_it() -> None:
    case = new_life(disk=(built(),))
    assert [type(one.event) for one in case.history] == [InstallationFound]
    assert status(case).current == built()
    assert ensure(case) == Ensured(installation=built(), fresh=False)


def test_the_latest_of_several_unknown_installations_on_disk_becomes_active() -> None:
    old, new = built("1-aaaa.1", built_at=1.0), built("2-bbbb.1", built_at=2.0)
    case = new_life(disk=(old, new))
    assert status(case).current == new
    assert len(status(case).installations) == 2


def test_an_installation_missing_on_disk_is_missing_although_the_journal_knows_it() -> None:
    case = new_life(requested(), committed())
    assert [type(one.event) for one in case.history][2:] == [InstallationMissing]
    assert status(case).state == "absent"


def test_a_broken_installation_is_reported_with_the_reason_and_the_next_install_repairs_it() -> None:
    broken = built(broken="mlx/core.so is missing")
    case = new_life(requested(), committed(), disk=(broken,))
    assert (status(case).state, failure_of(case).message) == ("broken", "mlx/core.so is missing")
    ensure(case)
    (build,) = case.of(BuildInstallation)
    assert build.repair
    whole = built("1-aaaa.2", built_at=NOW.wall + 5)
    case.when(build_committed("mlx.2", whole)).rest()
    case.then(InstallationCommitted, InstallationRetiring)
    assert status(case).current == whole


def test_an_installation_that_is_whole_again_is_found() -> None:
    broken = InstallationBroken(backend="mlx", installation_id="1-aaaa.1", reason="gone")
    case = new_life(requested(), committed(), broken, disk=(built(),))
    assert status(case).state == "installed"


def test_a_broken_current_installation_gives_way_to_another_whole_one() -> None:
    old, new = built("1-aaaa.1", built_at=1.0), built("2-bbbb.1", built_at=2.0)
    history = (requested(), committed(one=old), requested("mlx.2"), committed("mlx.2", new))
    broken = built("2-bbbb.1", built_at=2.0, broken="it does not start")
    case = new_life(*history, disk=(old, broken))
    assert InstallationActivated in [type(one.event) for one in case.history]
    assert status(case).current == old


def test_a_scan_of_the_disk_older_than_a_commit_does_not_undo_it() -> None:
    case = new_life()
    ensure(case)
    case.when(build_committed("mlx.1", built())).rest()
    look(case)
    assert status(case).state == "installed"


def test_a_repair_builds_a_new_installation_next_to_the_old_one_and_retires_it() -> None:
    case = new_life(requested(), committed(), disk=(built(),))
    ensure(case, repair=True)
    case.then(requested("mlx.2", wanted_by="repair"))
    (build,) = case.of(BuildInstallation)
    assert build.repair
    assert status(case).state == "installed"
    new = built("1-aaaa.2", built_at=NOW.wall + 9)
    case.when(build_committed("mlx.2", new)).rest()
    case.then(InstallationCommitted, InstallationRetiring)
    assert status(case).current == new
    assert status(case).retiring == ("1-aaaa.1",)


def test_a_repair_that_fails_leaves_the_old_one_in_use() -> None:
    case = new_life(requested(), committed(), disk=(built(),))
    ensure(case, repair=True)
    fails(case, NO_SPACE, job="mlx.2")
    assert status(case).state == "installed"
    case.when(CancelInstall(backend="mlx")).rest()
    assert status(case).wanted


def unread(case: Any, reason: str = "Input/output error", backend: str = "mlx") -> Any:
    return case.when(Happened(event=InstallationsUnread(backend=backend, reason=reason))).rest()


def test_a_disk_that_cannot_be_read_says_nothing_of_what_is_there_and_none_of_it_is_used() -> None:
    case = new_life(requested(), committed(), looked=False)
    unread(case)
    case.then(InstallationsUnread)
    assert (status(case).state, status(case).current) == ("broken", None)
    assert failure_of(case).code == "unreadable"
    assert status(case).installations == (built(),)
    assert not case.of(BuildInstallation)
    assert not case.of(RemoveInstallation)


def test_a_disk_that_cannot_be_read_is_recorded_once_however_often_it_is_found_so() -> None:
    case = new_life(requested(), committed(), looked=False)
    unread(case)
    unread(case)
    assert [type(one.event) for one in case.history].count(InstallationsUnread) == 1


def test_a_disk_that_cannot_be_read_refuses_an_install_and_ends_no_wanted_installation() -> None:
    case = new_life(requested(), committed(), looked=False)
    later = ensure(case)
    assert isinstance(later, Later)
    unread(case)
    (answer,) = [one for one in case.of(Answer) if one.key == later.key]
    assert answer.outcome.code == "unreadable"
    assert ensure(case).kind == "unavailable"
    case.when(Uninstall(backend="mlx"))
    assert case.reply.code == "unreadable"


def test_a_disk_that_cannot_be_read_affects_no_other_backend() -> None:
    case = new_life(looked=False)
    unread(case)
    case.when(InstallationsSeen(backend="vllm-metal", installations=())).rest()
    (told,) = [one for one in case.told("scheduler") if isinstance(one, InstallationList)][-1:]
    assert {one.name: one.state for one in told.backends} == {"mlx": "broken", "vllm-metal": "absent"}


def test_a_disk_that_cannot_be_read_is_looked_at_again_and_what_is_there_is_used_as_before() -> None:
    case = new_life(requested(), committed(), looked=False)
    unread(case)
    case.advance(31).rest()
    assert "mlx" in case.of(InspectInstallations)[-1].backends
    look(case, built())
    assert status(case).current == built()
    assert [type(one.event) for one in case.history][-1] is InstallationsReadAgain


def volatile(case: Any, *disk: Any, unclear: tuple[str, ...] = ()) -> None:
    case.when(
        InstallationsSeen(
            backend="mlx", installations=disk, unclear=dict.fromkeys(unclear, "its Python did not answer")
        )
    ).rest()


def test_an_installation_that_cannot_be_judged_is_taken_for_what_it_was() -> None:
    case = new_life(requested(), committed(), looked=False)
    volatile(case, unclear=("1-aaaa.1",))
    case.when(InstallationsSeen(backend="vllm-metal", installations=())).rest()
    assert status(case).current == built()
    assert [type(one.event) for one in case.history][2:] == []


def test_an_installation_that_cannot_be_judged_is_judged_when_it_can_be() -> None:
    case = new_life(requested(), committed(), looked=False)
    volatile(case, unclear=("1-aaaa.1",))
    case.when(InstallationsSeen(backend="vllm-metal", installations=())).rest()
    case.advance(31).rest()
    assert case.of(InspectInstallations)[-1].backends == ("mlx",)
    volatile(case, built(broken="a file is missing"))
    assert status(case).state == "broken"


def test_an_installation_that_cannot_be_judged_whose_folder_is_gone_at_last_is_missing() -> None:
    case = new_life(requested(), committed(), looked=False)
    volatile(case, unclear=("1-aaaa.1",))
    volatile(case)
    assert status(case).state in ("absent", "installing")


def test_an_installation_that_cannot_be_judged_leaves_what_was_built_meanwhile_alone() -> None:
    case = new_life(requested(), committed(), looked=False)
    volatile(case, unclear=("1-aaaa.1",))
    case.when(InstallationsSeen(backend="vllm-metal", installations=())).rest()
    ensure(case, version="2")
    new = built("2-bbbb.1")
    case.when(build_committed("mlx.2", new)).rest()
    # A look that began before that.
    volatile(case, built())
    assert status(case).current == new
    assert {one.id for one in status(case).installations} == {"1-aaaa.1", "2-bbbb.1"}


def theirs(broken: str = "") -> Any:
    root = "/opt/llama-server"
    return built("external", version="b1", managed=False, root=root, broken=broken, built_at=0.0)


def test_a_configured_installation_that_cannot_be_used_is_reported_while_ours_serves() -> None:
    case = new_life(requested(), committed(), disk=(built(), theirs("it does not start")))
    assert (status(case).state, status(case).current) == ("installed", built())
    failure = failure_of(case)
    assert (failure.code, failure.blame) == ("configured_broken", "configuration")
    assert "configured in config.toml cannot be used" in failure.message
    assert "it does not start" in failure.message
    assert "Greenroom uses its own 1 instead" in failure.message


def test_a_configured_installation_that_can_be_used_is_used_and_nothing_is_reported() -> None:
    case = new_life(requested(), committed(), disk=(built(), theirs()))
    assert status(case).current == theirs()
    assert status(case).failure is None
