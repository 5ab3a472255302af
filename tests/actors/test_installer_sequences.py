"""Whatever order people, builds, crashes and restarts come in, what is said is what is on disk."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

from greenroom.actors.engine_runner.messages import EngineList
from greenroom.actors.installer.core import InstallerCore
from greenroom.actors.installer.effects import BuildInstallation, CancelBuild, RemoveInstallation
from greenroom.actors.installer.messages import (
    Activate,
    BackendStatus,
    CancelInstall,
    Ensure,
    InstallationsSeen,
    Uninstall,
)
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Later, Recovered
from greenroom.actors.testing import Case, given
from greenroom.actors.values import Failure, Installation
from installer_life import status
from reports import attempt_failed, build_committed, removed
from scheduler_stage import MLX, NO_SPACE, OFFLINE

WISHES = ["install", "install 1", "install 2", "latest", "repair", "rollback", "cancel"]
WISHES += ["uninstall", "uninstall 1", "uninstall 2"]
WORLD = ["built", "offline", "no space", "removed", "restart", "crash after the commit mark", "time"]


class Life:
    """An installer, its disk, the builds under way, and the callers that wait."""

    def __init__(self) -> None:
        self.case: Case[Any, Any] = given(InstallerCore((MLX,)), now=Moment(wall=1e9, monotonic=1e3))
        self.disk: dict[str, Installation] = {}
        self.builds: dict[str, BuildInstallation] = {}
        self.removals: list[str] = []
        self.waiting: set[str] = set()
        self.made = 0
        self.begin()

    def begin(self) -> None:
        self.builds, self.removals, self.waiting = {}, [], set()
        self.tell(Recovered())
        self.tell(InstallationsSeen(backend="mlx", installations=tuple(self.disk.values())))
        self.tell(EngineList(backend="mlx", engines=(), version=1, installations=10**9))

    def tell(self, command: Any) -> None:
        self.case.when(command)
        if isinstance(self.case.reply, Later):
            self.waiting.add(self.case.reply.key)
        self.case.rest()
        self.perform()

    def perform(self) -> None:
        for effect in self.case.effects:
            match effect:
                case BuildInstallation(job=job):
                    self.builds[job] = effect
                case CancelBuild(job=job):
                    self.builds.pop(job, None)
                case RemoveInstallation(installation_id=one):
                    self.removals.append(one)
        self.waiting -= self.case.answers.keys()

    def make(self, build: BuildInstallation) -> Installation:
        self.made += 1
        version = {"": "1", "latest": "2"}.get(build.version, build.version)
        one = Installation(
            id=f"{version}-{version * 8}.{self.made}",
            backend="mlx",
            version=version,
            digest=version * 8,
            built_at=self.case.now.wall + self.made / 1000,
        )
        self.disk[one.id] = one
        return one

    def ends(self, failure: Failure) -> None:
        for job in list(self.builds):
            del self.builds[job]
            self.tell(attempt_failed(job, failure))

    def step(self, name: str) -> None:
        word, _, version = name.partition(" ")
        match word:
            case "install":
                self.tell(Ensure(backend="mlx", version=version))
            case "latest":
                self.tell(Ensure(backend="mlx", version="latest"))
            case "repair":
                self.tell(Ensure(backend="mlx", repair=True))
            case "uninstall":
                self.tell(Uninstall(backend="mlx", version=version))
            case "rollback":
                self.tell(Activate(backend="mlx"))
            case "cancel":
                self.tell(CancelInstall(backend="mlx"))
            case "built":
                for job, build in list(self.builds.items()):
                    del self.builds[job]
                    self.tell(build_committed(job, self.make(build)))
            case "offline":
                self.ends(OFFLINE)
            case "no":
                self.ends(NO_SPACE)
            case "removed":
                removals, self.removals = self.removals, []
                for one in dict.fromkeys(removals):
                    self.disk.pop(one, None)
                    self.tell(removed("mlx", one, freed=1))
            case "time":
                self.case.advance(120).rest()
                self.perform()
            case "crash":
                for build in self.builds.values():
                    self.make(build)
                self.restart()
            case _:
                self.restart()
        self.check()

    def restart(self) -> None:
        self.case.rebuild()
        self.begin()

    def status(self) -> BackendStatus:
        return status(self.case)

    def check(self) -> None:
        status = self.status()
        assert {one.id for one in status.installations} <= set(self.disk)
        if status.state == "installed":
            assert status.current is not None
            assert status.current.id in self.disk
            assert status.current.id not in status.retiring
        assert len(self.builds) <= 1, "a backend has one build at a time"

    def come_to_an_end(self) -> None:
        """Everything works from now on: no caller waits forever, and nothing unknown is left on the disk."""
        for _ in range(20):
            for name in ("built", "removed", "time"):
                self.step(name)
        status = self.status()
        assert not self.waiting
        assert not status.job
        assert not status.retiring
        assert status.state in ("installed", "absent", "failed")
        assert {one.id for one in status.installations} == set(self.disk)
        assert (status.state == "installed") == bool(self.disk)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@drawn(st.lists(st.sampled_from(WISHES + WORLD), min_size=1, max_size=25))
def test_any_sequence_ends_with_a_status_that_equals_the_disk(names: list[str]) -> None:
    life = Life()
    for name in names:
        life.step(name)
    life.come_to_an_end()
