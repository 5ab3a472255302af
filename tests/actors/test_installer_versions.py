"""Versions of one backend: queued, side by side, activated, verified, removed all at once."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from greenroom.actors.engine_runner.messages import EngineList, StopEngine
from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.installer.effects import (
    BuildInstallation,
    CancelBuild,
    DropUnneeded,
    VerifyInstallations,
)
from greenroom.actors.installer.events import (
    InstallationActivated,
    InstallationCommitted,
    InstallationFound,
    InstallationRetiring,
    InstallAttemptFailed,
    InstallCancelled,
    InstallNotNeeded,
    InstallRequested,
)
from greenroom.actors.installer.messages import (
    Activate,
    CancelInstall,
    DropFetched,
    Ensure,
    Ensured,
    FetchedDropped,
    InstallationList,
    InstallationsSeen,
    Uninstall,
    Uninstalled,
    Verified,
    VerifyBackend,
)
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Later, Recovered
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.reports import EffectEnded, Happened
from greenroom.actors.scheduler.messages import LiftQuarantines
from greenroom.actors.testing import Case, given
from greenroom.actors.values import Cancelled, Engine, EngineSpec, Failure, Installation
from installer_life import MLX, status
from reports import attempt_failed, build_committed, removed
from scheduler_stage import METAL, NO_SPACE, Stage, model

NOW = Moment(wall=1_700_000_000.0, monotonic=1_000.0)
PINNED = msgspec.structs.replace(MLX, version="1")


def read(one: Installation, *, damaged: Any = None, failure: Failure | None = None) -> EffectEnded:
    """The report on an installation whose files were to be verified."""
    effect = VerifyInstallations(backend="mlx", installations=(one.id,))
    if failure is not None:
        return EffectEnded(effect=effect, failure=failure)
    answer = Verified(backend="mlx", checked=(one.id,), damaged=damaged or {})
    return EffectEnded(effect=effect, answer=answer)


def built(version: str, number: int = 1, **more: Any) -> Installation:
    fields: dict[str, Any] = {"digest": version * 8, "built_at": NOW.wall + float(version.partition(".")[0])}
    return Installation(
        id=f"{version}-{version * 8}.{number}", backend="mlx", version=version, **(fields | more)
    )


OLD, NEW = built("1"), built("2")
CUDA = msgspec.structs.replace(OLD, id="cuda-1-bbbbbbbb.1", variant="cuda", digest="bbbbbbbb")


def look(case: Case[Any, Any], *disk: Installation) -> Case[Any, Any]:
    case.when(InstallationsSeen(backend="vllm-metal", installations=()))
    return case.when(InstallationsSeen(backend="mlx", installations=disk)).rest()


def new_life(*history: Any, disk: tuple[Installation, ...] = (), looked: bool = True) -> Case[Any, Any]:
    case = given(InstallerCore((PINNED, METAL)), *history, now=NOW)
    case.when(Recovered()).rest()
    return look(case, *disk) if looked else case


def ask(case: Case[Any, Any], command: Any) -> Any:
    """What it was answered at once; then let follow what follows."""
    case.when(command)
    reply = case.reply
    case.rest()
    return reply


def ensure(case: Case[Any, Any], version: str = "", **more: Any) -> Any:
    return ask(case, Ensure(backend="mlx", version=version, **more))


def requested(job: str, version: str = "", wanted_by: Any = "explicit") -> InstallRequested:
    return InstallRequested(job=job, backend="mlx", version=version, wanted_by=wanted_by)


def commits(case: Case[Any, Any], job: str, one: Installation) -> Case[Any, Any]:
    return case.when(build_committed(job, one)).rest()


def fails(case: Case[Any, Any], job: str) -> Case[Any, Any]:
    return case.when(attempt_failed(job, NO_SPACE)).rest()


def upgraded() -> Case[Any, Any]:
    """A life in which version 2 is current and 1 lies beside it."""
    history = (
        requested("mlx.1"),
        InstallationCommitted(job="mlx.1", backend="mlx", installation=OLD),
        requested("mlx.2", "2"),
        InstallationCommitted(job="mlx.2", backend="mlx", installation=NEW),
    )
    return new_life(*history, disk=(OLD, NEW))


def test_a_queue_takes_versions_one_after_the_other() -> None:
    case = new_life()
    assert ensure(case) == Later("install/mlx")
    assert [one.job for one in case.of(BuildInstallation)] == ["mlx.1"]
    assert ensure(case, "2") == Later("install/mlx@2")
    assert ensure(case, "3") == Later("install/mlx@3")
    assert not case.of(BuildInstallation)
    assert (status(case).job, status(case).queue) == ("mlx.1", ("mlx.2", "mlx.3"))
    commits(case, "mlx.1", OLD)
    assert case.answers["install/mlx"] == Ensured(installation=OLD, fresh=True)
    assert not {"install/mlx@2", "install/mlx@3"} & case.answers.keys()
    assert [(one.job, one.version) for one in case.of(BuildInstallation)] == [("mlx.2", "2")]
    commits(case, "mlx.2", NEW)
    assert case.answers["install/mlx@2"] == Ensured(installation=NEW, fresh=True)
    assert [one.job for one in case.of(BuildInstallation)] == ["mlx.3"]


def test_a_queue_has_one_job_for_each_version_however_many_callers_ask() -> None:
    case = new_life()
    for _ in range(20):
        ensure(case)
        ensure(case, "2")
    assert [type(one.event) for one in case.history] == [InstallRequested] * 2


def test_a_queue_goes_on_after_a_failure_which_only_its_own_callers_hear_of() -> None:
    case = new_life()
    ensure(case, "1")
    ensure(case, "2")
    fails(case, "mlx.1")
    assert set(case.answers) == {"install/mlx@1", "install/mlx"}
    assert [one.job for one in case.of(BuildInstallation)] == ["mlx.2"]


def test_a_queue_answers_callers_that_named_no_version_with_the_first_that_comes() -> None:
    case = new_life()
    ensure(case, "2")
    assert ensure(case) == Later("install/mlx")
    commits(case, "mlx.1", NEW)
    assert case.answers["install/mlx"] == Ensured(installation=NEW, fresh=True)


def test_a_queue_goes_on_after_a_restart_but_for_what_only_requests_wanted() -> None:
    case = new_life(
        requested("mlx.1"), requested("mlx.2", "2", "request"), requested("mlx.3", "3"), disk=(OLD,)
    )
    kinds = [type(one.event) for one in case.history][3:]
    assert kinds == [InstallationCommitted, InstallCancelled]
    assert status(case).job == "mlx.3"
    assert [one.job for one in case.of(BuildInstallation)] == ["mlx.3"]


def test_a_queue_of_versions_is_bounded() -> None:
    case = new_life()
    replies = [ensure(case, str(number)) for number in range(1, 12)]
    refusal = replies[-1]
    assert isinstance(refusal, Refusal)
    assert (refusal.kind, refusal.code) == ("conflict", "busy")
    assert len(status(case).queue) == 7


def test_a_queue_loses_the_cancelled_job_and_no_other() -> None:
    case = new_life()
    ensure(case)
    ensure(case, "2")
    assert ask(case, CancelInstall(backend="mlx", job="mlx.2")) == Cancelled(ended=True)
    assert set(case.answers) == {"install/mlx@2"}
    assert status(case).job == "mlx.1"
    assert status(case).queue == ()


def test_a_caller_leaves_the_queue_by_version() -> None:
    case = new_life()
    ensure(case)
    ensure(case, "2")
    left = ask(case, CancelInstall(backend="mlx", version="2", leave=True))
    assert left == Cancelled(ended=True)
    assert (status(case).job, status(case).queue) == ("mlx.1", ())


def test_a_queue_is_gone_when_the_backend_is_uninstalled() -> None:
    case = new_life()
    ensure(case)
    ensure(case, "2")
    case.when(Uninstall(backend="mlx"))
    assert [one.job for one in case.of(CancelBuild)] == ["mlx.1", "mlx.2"]
    case.rest()
    assert status(case).state == "absent"
    assert not status(case).wanted


def test_installs_of_several_versions_wait_for_the_scan_of_the_disk() -> None:
    case = new_life(looked=False)
    assert ensure(case, "1") == Later("install/mlx@1")
    assert ensure(case, "2") == Later("install/mlx@2")
    look(case, OLD)
    assert case.answers == {"install/mlx@1": Ensured(installation=OLD, fresh=False)}
    assert status(case).job == "mlx.1"


def test_the_pinned_version_is_the_one_of_the_backends_description() -> None:
    case = new_life(disk=(OLD,))
    assert ensure(case, "pinned") == Ensured(installation=OLD, fresh=False)


def test_the_pinned_version_is_built_beside_another_installed_one() -> None:
    case = new_life(disk=(NEW,))
    assert ensure(case, "pinned") == Later("install/mlx@1")
    case.then(requested("mlx.1", "1"))


def test_activating_goes_back_to_what_was_in_use_before_and_there_again() -> None:
    case = upgraded()
    assert status(case).current == NEW
    assert ask(case, Activate(backend="mlx")) == Ensured(installation=OLD, fresh=False)
    back = "a rollback was requested"
    case.then(InstallationActivated(backend="mlx", installation_id=OLD.id, reason=back))
    assert status(case).current == OLD
    assert len(status(case).installations) == 2
    ask(case, Activate(backend="mlx"))
    assert status(case).current == NEW


def test_an_activation_survives_a_restart() -> None:
    case = upgraded()
    ask(case, Activate(backend="mlx"))
    case.rebuild().when(Recovered()).rest()
    look(case, OLD, NEW)
    assert status(case).current == OLD


def test_activating_without_a_memory_goes_back_to_what_was_built_before() -> None:
    case = new_life(disk=(OLD, NEW))
    assert status(case).current == NEW
    ask(case, Activate(backend="mlx"))
    assert status(case).current == OLD


def test_activating_an_installed_version_needs_no_build() -> None:
    case = upgraded()
    assert ensure(case, "1") == Ensured(installation=OLD, fresh=False)
    case.then(InstallationActivated)
    assert not case.of(BuildInstallation)


def test_activating_an_absent_version_names_the_installed_ones() -> None:
    case = upgraded()
    refusal = ask(case, Activate(backend="mlx", version="7"))
    assert (refusal.kind, refusal.code) == ("conflict", "no_such_installation")
    assert refusal.message == "mlx 7 is not installed; installed versions: 1, 2."


def test_activating_without_anything_to_go_back_to_says_so() -> None:
    case = new_life(disk=(OLD,))
    refusal = ask(case, Activate(backend="mlx"))
    assert refusal.message == "mlx has no other version to go back to."


def test_activating_never_goes_back_to_what_is_broken_or_retires() -> None:
    case = upgraded()
    case.when(Uninstall(backend="mlx")).rest()
    assert isinstance(ask(case, Activate(backend="mlx")), Refusal)


def test_verifying_reads_everything_and_the_next_install_repairs_what_is_damaged() -> None:
    case = new_life(disk=(OLD,))
    assert ask(case, VerifyBackend(backend="mlx")) == Later("verify/mlx")
    assert VerifyInstallations(backend="mlx", installations=(OLD.id,)) in case.effects
    damaged = {OLD.id: ("env/a.py has changed", "env/b.py has changed")}
    case.when(read(OLD, damaged=damaged))
    answers = dict(case.answers)
    case.rest()
    assert answers == {"verify/mlx": Verified(backend="mlx", checked=(OLD.id,), damaged=damaged)}
    assert status(case).state == "broken"
    assert status(case).installations[0].broken == "env/a.py has changed (and 1 more)"
    ensure(case)
    (build,) = case.of(BuildInstallation)
    assert build.repair


def test_verifying_what_is_whole_changes_nothing() -> None:
    case = new_life(disk=(OLD,))
    case.then(InstallationFound)
    case.when(read(OLD)).rest().then()


def test_verifying_nothing_is_answered_at_once() -> None:
    case = new_life()
    assert ask(case, VerifyBackend(backend="mlx")) == Verified(backend="mlx", checked=(), damaged={})


def test_verifying_what_cannot_be_read_says_why() -> None:
    case = new_life(disk=(OLD,))
    case.when(read(OLD, failure=NO_SPACE))
    assert case.answers["verify/mlx"].message == NO_SPACE.message


@pytest.mark.parametrize("force", [True, False])
def test_only_force_stops_engines_that_are_serving_requests(force: bool) -> None:
    stage = Stage().begin(model("m"))
    spec = stage.loaded("m")
    assert stage.gates.enter(spec.model_id, "completion", "", "r1") is not None
    installed = stage.statuses["llama.cpp"]
    stage.hear_installer(
        msgspec.structs.replace(
            installed, state="retiring", current=None, retiring=(spec.installation_id,), forced=force
        )
    )
    stage.pass_time(1)
    stops = stage.sent(StopEngine)
    assert [one.engine_id for one in stops] == ([spec.engine_id] if force else [])


def test_force_reaches_the_scheduler_and_is_forgotten_when_all_is_removed() -> None:
    case = new_life(disk=(OLD,))
    running = Engine(
        spec=EngineSpec(engine_id="e", backend="mlx", installation_id=OLD.id, model_id="m", model_ref="m"),
        state="ready",
        since=0.0,
    )
    case.when(EngineList(backend="mlx", engines=(running,), version=1, installations=10_000)).rest()
    ask(case, Uninstall(backend="mlx", force=True))
    case.advance(6).rest()
    told = [one for one in case.told("scheduler") if isinstance(one, InstallationList)]
    assert told[-1].backends[0].forced
    case.when(removed("mlx", OLD.id, freed=1)).rest()
    assert not case.volatile.forced


def test_dropping_what_was_fetched_is_done_and_recorded() -> None:
    case = new_life(disk=(OLD,))
    assert ask(case, DropFetched()) == Later("drop-fetched")
    assert case.of(DropUnneeded) == [DropUnneeded()]
    case.when(EffectEnded(effect=DropUnneeded(), answer=FetchedDropped(freed=7))).then()
    assert case.answers["drop-fetched"] == FetchedDropped(freed=7)


def test_dropping_what_was_fetched_waits_for_no_job_and_takes_nothing_from_one() -> None:
    case = new_life()
    ensure(case)
    assert ask(case, DropFetched()) == FetchedDropped(kept_for=("mlx",))
    assert not case.of(DropUnneeded)


def test_dropping_what_was_fetched_that_fails_says_why() -> None:
    case = new_life()
    ask(case, DropFetched())
    case.when(EffectEnded(effect=DropUnneeded(), failure=NO_SPACE)).then()
    assert case.answers["drop-fetched"].code == "no_space"


def test_uninstalling_a_version_takes_that_one_and_leaves_the_one_in_use() -> None:
    case = upgraded()
    assert ask(case, Uninstall(backend="mlx", version="1")) == Later("uninstall/mlx")
    (retiring,) = case.events
    assert isinstance(retiring, InstallationRetiring)
    assert (retiring.installation_id, retiring.unwanted) == (OLD.id, False)
    assert status(case).current == NEW
    assert status(case).wanted


def test_uninstalling_a_version_that_is_in_use_brings_another_into_use() -> None:
    case = upgraded()
    ask(case, Uninstall(backend="mlx", version="2"))
    case.then(InstallationRetiring, InstallationActivated)
    assert status(case).current == OLD


def test_uninstalling_a_version_that_is_the_last_is_uninstalling_the_backend() -> None:
    case = new_life(disk=(OLD,))
    ask(case, Uninstall(backend="mlx", version="1"))
    (retiring,) = case.events
    assert isinstance(retiring, InstallationRetiring)
    assert retiring.unwanted
    assert not status(case).wanted


def test_uninstalling_a_version_after_the_other_is_on_its_way_out_is_uninstalling_the_backend() -> None:
    case = upgraded()
    ask(case, Uninstall(backend="mlx", version="1"))
    ask(case, Uninstall(backend="mlx", version="2"))
    assert not status(case).wanted


def test_uninstalling_a_version_that_is_on_its_way_ends_that_job_alone() -> None:
    case = new_life(disk=(OLD,))
    ensure(case, "2")
    ensure(case, "3")
    case.when(Uninstall(backend="mlx", version="2"))
    assert case.reply == Uninstalled(freed=0, was_installed=False)
    assert "install/mlx@2" in case.answers
    assert "install/mlx@3" not in case.answers
    case.rest().then(InstallCancelled)
    assert (status(case).current, status(case).job) == (OLD, "mlx.2")
    assert status(case).wanted


def test_uninstalling_a_version_that_is_not_installed_is_refused_with_those_that_are() -> None:
    refusal = ask(upgraded(), Uninstall(backend="mlx", version="9"))
    assert (refusal.kind, refusal.code) == ("conflict", "no_such_installation")
    assert refusal.message == "mlx 9 is not installed; installed versions: 1, 2."


def latest(*history: Any, disk: tuple[Installation, ...]) -> Case[Any, Any]:
    case = new_life(*history, disk=disk)
    assert ensure(case, "latest") == Later("install/mlx@latest")
    return case


def test_the_newest_version_that_is_in_use_ends_the_job_and_builds_nothing() -> None:
    case = latest(disk=(OLD, NEW))
    commits(case, "mlx.1", NEW)
    case.then(InstallNotNeeded)
    assert case.answers["install/mlx@latest"] == Ensured(installation=NEW, fresh=False)
    assert (status(case).job, status(case).current) == ("", NEW)
    assert case.told("scheduler")[-1:]
    assert LiftQuarantines(backend="mlx") in case.told("scheduler")


def test_the_newest_version_that_lies_beside_the_one_in_use_comes_into_use() -> None:
    case = upgraded()
    ask(case, Activate(backend="mlx"))
    assert status(case).current == OLD
    ensure(case, "latest")
    commits(case, "mlx.3", NEW)
    case.then(InstallNotNeeded, InstallationActivated)
    assert status(case).current == NEW


def test_the_newest_version_that_breaks_meanwhile_is_built_by_another_attempt() -> None:
    case = latest(disk=(OLD, NEW))
    case.when(read(NEW, damaged={NEW.id: ("a file has changed",)})).rest()
    commits(case, "mlx.1", NEW)
    assert not case.answers.get("install/mlx@latest")
    (again,) = [one for one in case.told("installer") if isinstance(one, Happened)]
    assert isinstance(again.event, InstallAttemptFailed)
    assert again.event.failure.kind == "transient"


def test_the_newest_version_found_by_a_job_that_is_over_changes_nothing() -> None:
    case = new_life(disk=(OLD, NEW))
    commits(case, "mlx.1", NEW)
    case.then()


def test_the_newest_version_built_twice_is_no_version_to_go_back_to() -> None:
    again = msgspec.structs.replace(NEW, id="2-cccc.1", digest="cccc", built_at=NEW.built_at + 1)
    case = new_life(disk=(NEW, again))
    assert status(case).current == again
    refusal = ask(case, Activate(backend="mlx"))
    assert refusal.message == "mlx has no other version to go back to."
    assert status(case).current == again


def test_a_variant_is_built_beside_the_usual_build_of_the_same_version() -> None:
    case = new_life(disk=(OLD,))
    assert isinstance(ensure(case, "1", variant="cuda"), Later)
    assert [one.variant for one in case.of(BuildInstallation)] == ["cuda"]
    commits(case, "mlx.1", CUDA)
    assert case.answers["install/mlx@cuda/1"] == Ensured(installation=CUDA, fresh=True)
    assert case.state.of("mlx").usable == CUDA
    assert ensure(case, "1", variant="cuda").installation == CUDA
    assert ensure(case, "1").installation == CUDA
    assert ensure(case, "1", variant="cpu").installation == OLD
    assert case.state.of("mlx").usable == OLD


def test_an_install_request_that_names_nothing_takes_any_variant() -> None:
    case = new_life(disk=(CUDA,))
    assert ensure(case).installation == CUDA
    assert ensure(case, "1").installation == CUDA
    assert isinstance(ensure(case, "2"), Later)
    assert [one.variant for one in case.of(BuildInstallation)] == ["cuda"]


def test_a_variant_is_uninstalled_alone() -> None:
    case = new_life(disk=(OLD, CUDA))
    ask(case, Uninstall(backend="mlx", variant="cuda"))
    assert case.state.of("mlx").retiring == {CUDA.id}


def test_a_job_of_a_variant_goes_on_after_a_restart() -> None:
    case = new_life(
        InstallRequested(job="mlx.1", backend="mlx", variant="cuda", version="1", wanted_by="explicit")
    )
    case.rest()
    assert [one.variant for one in case.of(BuildInstallation)] == ["cuda"]
