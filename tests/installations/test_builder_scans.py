"""What the builder reports of installations on the disk, and of the user's own."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder_reports import BuilderReports
from greenroom.actors.installer.effects import (
    RemoveInstallation,
)
from greenroom.actors.values import Installation
from greenroom.runner.backends.base import Platform
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.builder import Builder
from greenroom.runner.installations.installed import InstallationStore
from greenroom.runner.setting_values import ExternalBackend
from package_index import Index, Misbehaviour
from reports import build
from toys import Toy
from waiting import until


def test_a_scan_in_the_middle_of_a_job_names_it_and_takes_nothing_away(
    make_builder: Callable[..., Builder],
    heard: BuilderReports,
    toy: Toy,
    index: Index,
    misbehave: type[Misbehaviour],
) -> None:
    gate = threading.Event()
    index.wrong["toy"] = misbehave(hang=gate)
    builder = make_builder(toy)
    builder.start(build("j1", "toy", attempt=3))
    until(lambda: index.requests)
    # As when the installer is rebuilt.
    builder.look(["toy"])
    assert heard.next() == ("seen", "toy", ())
    assert heard.building == (("j1", 3),)
    gate.set()
    kind, _, installation = heard.next()
    assert kind == "committed"
    builder.look(["toy"])
    assert heard.next() == ("seen", "toy", (installation,))
    assert heard.building == ()


def test_a_scan_in_the_middle_of_unpacking_takes_nothing_away(
    make_builder: Callable[..., Builder], heard: BuilderReports, toy: Toy
) -> None:
    builder = make_builder(toy)

    def look_once() -> None:
        heard.at_phase.clear()
        builder.look(["toy"])
        # The job stands still until the look is over.
        until(lambda: heard.building is not None)

    heard.at_phase["unpacking"] = look_once
    builder.start(build("j1", "toy"))
    assert heard.next() == ("seen", "toy", ())
    assert heard.building == (("j1", 1),)
    kind, _, installation = heard.next()
    assert kind == "committed"
    assert builder.verify("toy", installation.id) == []


def test_looking_reports_every_backend_and_sweeps_what_was_left(
    make_builder: Callable[..., Builder], heard: BuilderReports, make_toy: Callable[..., Toy], tmp_path: Path
) -> None:
    one, two = make_toy("one"), make_toy("two")
    builder = make_builder(one, two)
    builder.start(build("j1", "one"))
    installation = heard.next()[2]
    leftover = tmp_path / "home" / "backends" / "two" / "1.0-aaaaaaaa.1"
    (leftover / "env").mkdir(parents=True)
    builder.look()
    assert heard.next() == ("seen", "one", (installation,))
    assert heard.next() == ("seen", "two", ())
    assert not leftover.exists()


def test_a_fault_of_ours_while_looking_does_not_leave_the_installer_waiting(
    make_builder: Callable[..., Builder], heard: BuilderReports, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = make_builder(toy)
    monkeypatch.setattr("greenroom.runner.installations.installed.InstallationStore.judged", lambda *_: 1 / 0)
    builder.look()
    kind, backend, reason = heard.next()
    assert (kind, backend) == ("unread", "toy")
    assert "Greenroom failed to check it" in reason


def test_what_cannot_be_looked_at_of_one_backend_costs_no_other(
    make_builder: Callable[..., Builder],
    heard: BuilderReports,
    make_toy: Callable[..., Toy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = InstallationStore.judged

    def judged(store: InstallationStore, backend: str) -> Any:
        if backend == "bad":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(store, backend)

    builder = make_builder(make_toy("bad"), make_toy("good"))
    monkeypatch.setattr(InstallationStore, "judged", judged)
    builder.look()
    assert heard.next() == ("unread", "bad", "Input/output error")
    assert heard.next() == ("seen", "good", ())


def test_an_installation_that_cannot_be_checked_is_reported_with_the_reason(
    make_builder: Callable[..., Builder],
    heard: BuilderReports,
    toy: Toy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builder = make_builder(toy)
    builder.start(build("j1", "toy"))
    _, _, installation = heard.next()
    monkeypatch.setattr(
        "greenroom.runner.installations.verification.os.lstat",
        lambda *_: (_ for _ in ()).throw(OSError(errno.EMFILE, os.strerror(errno.EMFILE))),
    )
    builder.look(["toy"])
    assert heard.next() == ("seen", "toy", ())
    assert list(heard.unclear) == [installation.id]
    monkeypatch.undo()
    builder.look(["toy"])
    assert heard.next() == ("seen", "toy", (installation,))
    assert heard.unclear == {}


def test_verifying_by_hash_names_what_has_changed(
    make_builder: Callable[..., Builder], heard: BuilderReports, toy: Toy, tmp_path: Path
) -> None:
    builder = make_builder(toy)
    builder.start(build("j1", "toy"))
    installation = heard.next()[2]
    assert builder.verify("toy", installation.id) == []
    cfg = tmp_path / "home" / "backends" / "toy" / installation.id / "env" / "pyvenv.cfg"
    cfg.write_bytes(cfg.read_bytes().swapcase())
    assert builder.verify("toy", installation.id) == ["env/pyvenv.cfg has changed"]
    with pytest.raises(JobFailed, match="no installation"):
        builder.verify("toy", "9.9-aaaaaaaa.1")


def test_the_users_own_environment_is_seen_and_never_removed(
    make_builder: Callable[..., Builder], heard: BuilderReports, toy: Toy, tmp_path: Path
) -> None:
    maker = make_builder(toy)
    maker.start(build("j1", "toy"))
    theirs = tmp_path / "home" / "backends" / "toy" / heard.next()[2].id / "env" / "bin" / "python"
    builder = make_builder(toy, external={"toy": ExternalBackend(python=theirs)})
    builder.look()
    _, _, (managed, external) = heard.next()
    assert managed.managed
    assert external == Installation(
        id="external", backend="toy", version="1.0", managed=False, root=str(theirs)
    )
    builder.perform(RemoveInstallation(backend="toy", installation_id="external"), "cause")
    kind, _, _, failure = heard.next()
    assert (kind, failure.code) == ("remove_failed", "not_ours")
    assert theirs.exists()


def test_an_environment_of_the_users_that_lacks_the_backend_is_broken_with_the_reason(
    make_builder: Callable[..., Builder], heard: BuilderReports, toy: Toy, tmp_path: Path
) -> None:
    for python, reason in [
        (Path(sys.executable), "it has no toy"),
        (tmp_path / "nowhere" / "python", "does not exist"),
        (tmp_path, "does not exist"),
        (Path(__file__), "is not a Python interpreter"),
    ]:
        make_builder(toy, external={"toy": ExternalBackend(python=python)}).look()
        _, _, (external,) = heard.next()
        assert reason in external.broken


def test_a_program_of_the_users_tells_its_version(
    make_builder: Callable[..., Builder], heard: BuilderReports, toy: Toy, program: Callable[[str, str], Path]
) -> None:
    good = program("llama-server", "#!/bin/sh\necho 'version: 9879 (abcdef)' >&2\n")
    bad = program("other-server", "#!/bin/sh\necho 'libgomp.so.1: cannot open' >&2\nexit 127\n")
    make_builder(toy, external={"toy": ExternalBackend(binary=good)}).look()
    _, _, (external,) = heard.next()
    assert (external.version, external.broken, external.root) == ("9879", "", str(good))
    make_builder(toy, external={"toy": ExternalBackend(binary=bad)}).look()
    _, _, (external,) = heard.next()
    assert "libgomp.so.1" in external.broken


def test_what_was_made_for_other_processors_is_broken_until_they_are_back(
    make_builder: Callable[..., Builder], heard: BuilderReports, make_toy: Callable[..., Toy]
) -> None:
    """A machine gains a GPU, or loses its driver: the other build does not fit any more."""
    cpu, gpu = make_toy("toy_cpu"), make_toy("toy_gpu")

    class Split(type(cpu.backend)):  # type: ignore[misc]
        name = "toy"
        source = cpu.source

        def on(self, platform: Platform) -> Any:
            return replaced if platform.cuda else self

    class Replaced(Split):
        source = gpu.source

    split, replaced = Split(), Replaced()  # pyright: ignore[reportAbstractUsage] - `type(…)` is a toy
    without = Platform(system="linux", machine="x86_64", python=(3, 11))
    with_gpu = dataclasses.replace(without, cuda=True)

    def seen(platform: Platform) -> Any:
        builder = make_builder(backends={"toy": split}, platform=platform)
        builder.look(("toy",))
        kind, _, found = heard.next()
        assert kind == "seen"
        return [one.broken for one in found]

    builder = make_builder(backends={"toy": split}, platform=without)
    builder.start(build("j1", "toy"))
    assert heard.next()[0] == "committed"
    assert seen(without) == [""]
    assert seen(with_gpu) == ["it was made for a machine with other processors; this one needs toy_gpu"]
    assert seen(without) == [""]

    make_builder(backends={"toy": split}, platform=with_gpu).start(build("j2", "toy"))
    assert heard.next()[0] == "committed"
    assert sorted(map(bool, seen(with_gpu))) == [False, True]
    assert sorted(map(bool, seen(without))) == [False, True]
