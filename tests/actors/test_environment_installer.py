"""The installer's core for a program's own environments: names no one has declared, and no engines."""

from __future__ import annotations

from typing import Any, TypeVar

from greenroom.actors.installer.effects import BuildInstallation, InspectInstallations, RemoveInstallation
from greenroom.actors.installer.environments import EnvironmentInstaller
from greenroom.actors.installer.events import (
    EnvironmentDeclared,
    InstallationCommitted,
    InstallationRetiring,
    InstallAttemptFailed,
    InstallCancelled,
    InstallFailed,
    InstallRequested,
)
from greenroom.actors.installer.messages import (
    AwaitInspected,
    Ensured,
    EnsureEnvironment,
    InstallationsSeen,
    Uninstall,
)
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Command, Effect, Event, Later, Recovered, Tell
from greenroom.actors.reports import Happened
from greenroom.actors.retry import RetryPolicy
from greenroom.actors.testing import Case, given
from greenroom.actors.values import DeclaredEnvironment, Failure, Installation

T = TypeVar("T")
NOW = Moment(wall=1e9, monotonic=1e3)
DECLARED = DeclaredEnvironment(requirement="black>=26")
ASK = EnsureEnvironment(backend="black", declared=DECLARED, wanted_by="request", waiter="w1")
OFFLINE = Failure(kind="transient", code="unreachable", message="The index could not be reached.")


def made(number: int, version: str = "26.1") -> Installation:
    one, digest = f"{version}-{number:08x}.1", f"{number:064x}"
    return Installation(id=one, backend="black", version=version, digest=digest, built_at=1e9 + number)


class Life:
    """One core from a start on, with all that has happened."""

    def __init__(self, *history: Event, **policies: RetryPolicy) -> None:
        self.case: Case[Any, Any] = given(EnvironmentInstaller(policies), *history, now=NOW)
        self.events: list[Event] = []
        self.effects: list[Effect] = []
        self.answers: dict[str, Any] = {}
        self.tell(Recovered())

    def tell(self, command: Command[Any]) -> Any:
        """Its reply, once all has followed."""
        self.case.when(command)
        reply = self.case.reply
        self.case.rest()
        self.events += self.case.events
        self.effects += self.case.effects
        self.answers |= self.case.answers
        return reply

    def seen(self, *installations: Installation) -> None:
        self.tell(InstallationsSeen(backend="black", installations=installations))

    def commit(self, job: str, one: Installation) -> None:
        self.tell(Happened(event=InstallationCommitted(job=job, backend="black", installation=one)))

    def of(self, kind: type[T]) -> list[T]:
        return [one for one in (*self.events, *self.effects) if isinstance(one, kind)]


def test_a_name_that_nobody_knows_is_looked_for_on_the_disk_and_then_built() -> None:
    life = Life()
    assert isinstance(life.tell(ASK), Later)
    assert life.of(InspectInstallations)[-1].backends == ("black",)
    assert not life.of(BuildInstallation)
    life.seen()
    (build,) = life.of(BuildInstallation)
    assert (build.backend, build.version, build.variant) == ("black", "", "")
    assert list(map(type, life.events)) == [EnvironmentDeclared, InstallRequested]


def test_what_is_on_the_disk_is_the_answer_although_the_journal_was_lost() -> None:
    life = Life()
    life.tell(ASK)
    life.seen(made(1))
    assert not life.of(BuildInstallation)
    assert life.answers["install/black"] == Ensured(installation=made(1), fresh=False)


def test_it_is_declared_once() -> None:
    life = Life()
    life.tell(ASK)
    life.seen()
    life.tell(EnsureEnvironment(backend="black", declared=DECLARED, wanted_by="request", waiter="w2"))
    assert len(life.of(EnvironmentDeclared)) == 1
    assert len(life.of(BuildInstallation)) == 1


def test_nothing_is_sent_to_a_scheduler_or_to_runners() -> None:
    life = Life()
    life.tell(ASK)
    life.seen()
    life.commit("black.1", made(1))
    life.tell(EnsureEnvironment(backend="black", declared=DECLARED, version="26.1"))
    assert not life.of(Tell)


def test_what_is_removed_waits_for_no_engine() -> None:
    life = Life()
    life.tell(ASK)
    life.seen(made(1))
    life.tell(Uninstall(backend="black"))
    assert [one.installation_id for one in life.of(RemoveInstallation)] == [made(1).id]


def test_only_the_one_in_use_and_the_one_before_it_are_kept() -> None:
    life = Life()
    life.tell(ASK)
    life.seen()
    for number in (1, 2, 3):
        version = f"26.{number}"
        life.tell(
            EnsureEnvironment(backend="black", declared=DECLARED, version="latest", wanted_by="request")
        )
        one = made(number, version)
        life.commit(f"black.{number}", one)
    assert [one.installation_id for one in life.of(InstallationRetiring)] == [made(1, "26.1").id]


def test_a_start_ends_a_job_that_nobody_waits_for_any_more() -> None:
    history = (
        EnvironmentDeclared(backend="black", declared=DECLARED),
        InstallRequested(job="black.1", backend="black", version="", wanted_by="request"),
    )
    life = Life(*history)
    assert life.of(InspectInstallations)[-1].backends == ("black",)
    life.seen()
    assert isinstance(life.events[-1], InstallCancelled)
    assert not life.of(BuildInstallation)


def test_the_policy_of_each_name_decides_when_a_failed_attempt_is_repeated() -> None:
    def failing(**policies: RetryPolicy) -> Any:
        life = Life(**policies)
        life.tell(ASK)
        life.seen()
        report = InstallAttemptFailed(
            job="black.1", backend="black", attempt=1, failure=OFFLINE, retry_at=0.0, reached=False
        )
        life.tell(Happened(event=report))
        return life.events[-1]

    assert isinstance(failing(), InstallAttemptFailed)
    never = RetryPolicy(attempts=1, most=1.0, longest=1.0)
    assert isinstance(failing(black=never), InstallFailed)
    assert isinstance(failing(ruff=never), InstallAttemptFailed)
    patient = failing(black=RetryPolicy(attempts=2, first=7200.0, most=7200.0, longest=1e6))
    assert patient.retry_at >= NOW.wall + 3600


def test_inspected_is_answered_once_all_have_been_looked_at() -> None:
    life = Life(EnvironmentDeclared(backend="black", declared=DECLARED))
    life.tell(AwaitInspected())
    assert "inspected" not in life.answers
    life.seen(made(1))
    assert "inspected" in life.answers
