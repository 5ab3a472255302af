"""The builder's jobs: what begins, ends, is cancelled, and is reported."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builder_reports import BuilderReports
from greenroom.actors.installer.effects import (
    DropUnneeded,
    InspectInstallations,
    PlanInstallation,
    RemoveInstallation,
    VerifyInstallations,
)
from greenroom.actors.progress import ProgressBoard
from greenroom.actors.reports import Happened
from greenroom.runner.backends.base import Platform
from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.errors import JobFailed
from greenroom.runner.installations.builder import Builder
from greenroom.runner.installations.lock_file import source_of
from greenroom.runner.installations.sources import PackageSources, Setting
from greenroom.runner.setting_values import ExternalBackend
from package_index import Index, Misbehaviour
from reports import build
from toys import Toy
from waiting import until


def test_a_job_ends_with_exactly_one_report(
    make_builder: Callable[..., Builder], heard: BuilderReports, toy: Toy
) -> None:
    builder = make_builder(toy)
    builder.start(build("j1", "toy"))
    kind, job, installation = heard.next()
    assert (kind, job, installation.version) == ("committed", "j1", "1.0")
    builder.close()
    assert heard.silent()


def test_a_job_started_twice_runs_once(
    make_builder: Callable[..., Builder],
    heard: BuilderReports,
    toy: Toy,
    index: Index,
    misbehave: type[Misbehaviour],
) -> None:
    gate = threading.Event()
    index.wrong["toy"] = misbehave(hang=gate)
    builder = make_builder(toy)
    for _ in range(20):
        builder.start(build("j1", "toy"))
    gate.set()
    assert heard.next()[0] == "committed"
    builder.close()
    assert heard.silent()


def test_after_a_failure_the_same_job_may_begin_another_attempt(
    make_builder: Callable[..., Builder],
    heard: BuilderReports,
    toy: Toy,
    index: Index,
    misbehave: type[Misbehaviour],
) -> None:
    index.wrong["toy"] = misbehave(status=500)
    builder = make_builder(toy)
    builder.start(build("j1", "toy", attempt=1))
    kind, _, failure = heard.next()
    assert (kind, failure.kind) == ("failed", "transient")
    index.wrong.clear()
    builder.start(build("j1", "toy", attempt=2))
    assert heard.next()[0] == "committed"


def test_cancelling_reports_and_a_new_start_works(
    make_builder: Callable[..., Builder],
    heard: BuilderReports,
    toy: Toy,
    index: Index,
    misbehave: type[Misbehaviour],
) -> None:
    go_on = threading.Event()
    index.wrong["toy"] = misbehave(hang=go_on)
    builder = make_builder(toy)
    builder.start(build("j1", "toy"))
    until(lambda: index.requests)
    builder.cancel("j1")
    assert heard.next() == ("cancelled", "j1")
    del index.wrong["toy"]
    go_on.set()
    builder.start(build("j1", "toy"))
    assert heard.next()[0] == "committed"


def test_cancelling_an_unknown_job_is_ignored(
    make_builder: Callable[..., Builder], heard: BuilderReports, toy: Toy
) -> None:
    make_builder(toy).cancel("never")
    assert heard.silent()


def test_backends_are_installed_side_by_side(
    make_builder: Callable[..., Builder], heard: BuilderReports, make_toy: Callable[..., Toy]
) -> None:
    one, two = make_toy("one"), make_toy("two")
    both = threading.Barrier(2, timeout=20)
    # Each job stands still before it unpacks until the other is there as well.
    heard.at_phase["unpacking"] = both.wait
    builder = make_builder(one, two)
    builder.start(build("j1", "one"))
    builder.start(build("j2", "two"))
    assert {heard.next()[:2], heard.next()[:2]} == {("committed", "j1"), ("committed", "j2")}


def test_removing_reports_the_bytes(
    make_builder: Callable[..., Builder], heard: BuilderReports, toy: Toy
) -> None:
    builder = make_builder(toy)
    builder.start(build("j1", "toy"))
    installation = heard.next()[2]
    builder.perform(RemoveInstallation(backend="toy", installation_id=installation.id), "cause")
    kind, backend, installation_id, freed = heard.next()
    assert (kind, backend, installation_id) == ("removed", "toy", installation.id)
    assert freed > 200_000
    builder.look(["toy"])
    assert heard.next() == ("seen", "toy", ())


def test_what_was_fetched_is_dropped_unless_a_job_goes_on(
    make_builder: Callable[..., Builder],
    heard: BuilderReports,
    toy: Toy,
    index: Index,
    misbehave: type[Misbehaviour],
) -> None:
    gate = threading.Event()
    builder = make_builder(toy)
    index.wrong[toy.files[0].name] = misbehave(hang=gate, hang_after=100_000)
    builder.start(build("j1", "toy"))
    until(lambda: any(one.done >= 65_536 for one in heard.progressed))
    assert builder.drop_fetched() == 0
    builder.cancel("j1")
    gate.set()
    assert heard.next()[0] == "cancelled"
    assert builder.drop_fetched() >= 65_536
    assert builder.drop_fetched() == 0


def test_settings_are_read_again_for_each_attempt(
    make_builder: Callable[..., Builder],
    heard: BuilderReports,
    toy: Toy,
    index: Index,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conf = tmp_path / "pip.conf"
    conf.write_text(f"index-url = {index.sources.index.value}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(conf))
    for name in ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_FIND_LINKS", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    builder = make_builder(toy, sources=None)
    builder.start(build("j1", "toy"))
    kind, _, failure = heard.next()
    assert (kind, failure.code) == ("failed", "bad_settings")
    assert str(conf) in failure.message
    assert index.requests == []
    conf.write_text(f"[global]\nindex-url = {index.sources.index.value}\n")
    builder.start(build("j2", "toy"))
    assert heard.next()[0] == "committed"
    # What is installed already needs no settings.
    conf.write_text("nonsense\n")
    builder.start(build("j3", "toy"))
    assert heard.next()[0] == "committed"


@pytest.mark.parametrize("version", ["", "latest"])
def test_an_unreachable_index_differs_from_one_that_has_a_problem(
    make_builder: Callable[..., Builder],
    heard: BuilderReports,
    toy: Toy,
    index: Index,
    misbehave: type[Misbehaviour],
    version: str,
) -> None:
    nowhere = PackageSources(index=Setting("http://127.0.0.1:9/simple", "the test"))
    builder = make_builder(toy, sources=nowhere)
    builder.start(build("j1", "toy", version=version))
    assert heard.next()[2].code == "unreachable"
    assert not heard.reached
    index.wrong["toy"] = misbehave(status=503)
    builder = make_builder(toy)
    builder.start(build("j2", "toy", version=version))
    assert heard.next()[2].code == "unreachable"
    assert heard.reached


def test_removing_under_a_name_that_could_mean_another_place_fails(
    make_builder: Callable[..., Builder], heard: BuilderReports, toy: Toy
) -> None:
    removal = RemoveInstallation(backend="toy", installation_id="../../../etc")
    make_builder(toy).perform(removal, "cause")
    kind, _, _, failure = heard.next()
    assert (kind, failure.code) == ("remove_failed", "bad_name")


def test_an_unknown_backend_names_the_known_ones(
    make_builder: Callable[..., Builder], heard: BuilderReports, toy: Toy
) -> None:
    builder = make_builder(toy)
    builder.start(build("j1", "nothing"))
    kind, _, failure = heard.next()
    assert kind == "failed"
    assert "Known ones: toy" in failure.sentence()
    with pytest.raises(JobFailed):
        builder.plan("nothing")


def test_an_unsupported_platform_is_refused_without_an_attempt(
    make_builder: Callable[..., Builder], heard: BuilderReports, index: Index
) -> None:
    linux = Platform(system="linux", machine="x86_64", python=(3, 11))
    builder = make_builder(backends=BACKENDS, platform=linux)
    builder.start(build("j1", "vllm-metal"))
    _, _, failure = heard.next()
    assert failure.code == "unsupported_platform"
    assert "macOS 15 or newer" in failure.message
    assert index.requests == []


def test_a_fault_of_ours_still_ends_the_job(
    make_builder: Callable[..., Builder],
    heard: BuilderReports,
    toy: Toy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    builder = make_builder(toy)
    monkeypatch.setattr("greenroom.runner.installations.environment.inventory", lambda _: 1 / 0)
    builder.start(build("j1", "toy"))
    kind, _, failure = heard.next()
    assert (kind, failure.code) == ("failed", "fault")
    assert "ZeroDivisionError" in failure.detail
    assert "Traceback" in caplog.text


def test_the_plan_of_a_real_backend_is_known_offline(
    make_builder: Callable[..., Builder], index: Index
) -> None:
    builder = make_builder(backends=BACKENDS)
    plan = builder.plan("llama.cpp")
    assert plan.packages[0].startswith("xllamacpp==")
    assert plan.total_bytes > 5_000_000
    assert index.requests == []


def test_closing_ends_what_runs(
    make_builder: Callable[..., Builder],
    heard: BuilderReports,
    toy: Toy,
    index: Index,
    misbehave: type[Misbehaviour],
) -> None:
    index.wrong["toy"] = misbehave(hang=threading.Event())
    builder = make_builder(toy)
    builder.start(build("j1", "toy"))
    until(lambda: index.requests)
    builder.close()
    assert heard.next() == ("cancelled", "j1")


def test_the_user_may_name_other_indexes_or_another_image() -> None:
    here = Platform(system="linux", machine="x86_64", python=(3, 11))
    vllm = BACKENDS["vllm"].on(here)
    mirror = ExternalBackend(indexes=("https://m.example/whl",))
    assert source_of(vllm, here).indexes == ("https://download.pytorch.org/whl/cpu",)  # type: ignore[union-attr]
    assert source_of(vllm, here, mirror).indexes == ("https://m.example/whl",)  # type: ignore[union-attr]
    assert source_of(vllm, here, ExternalBackend(indexes=())).indexes == ()  # type: ignore[union-attr]
    cuda = source_of(BACKENDS["llama.cpp"], here, mirror, "cu128")
    assert (cuda.own_index, cuda.build, cuda.indexes) == ("https://m.example/whl", "cu128", ())  # type: ignore[union-attr]
    metal = source_of(BACKENDS["vllm-metal"], here, ExternalBackend(image="r.example/metal:v1"))
    assert (metal.reference, metal.version) == ("r.example/metal:v1", "v1")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "effect",
    [
        build("toy.1", "toy"),
        RemoveInstallation(backend="toy", installation_id="i"),
        PlanInstallation(backend="toy", version=""),
        VerifyInstallations(backend="toy", installations=("i",)),
        DropUnneeded(),
    ],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.parametrize(
    ("error", "code", "blame"),
    [
        (RuntimeError("can't start new thread"), "no_process", "machine"),
        (OSError(errno.EMFILE, "Too many open files"), "too_many_files", "machine"),
        (ZeroDivisionError("a bug"), "internal", "ours"),
    ],
    ids=["thread", "files", "bug"],
)
def test_what_cannot_be_started_is_reported_as_failed(
    tmp_path: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch, effect: Any, error: Any, code: str, blame: str
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    told = []
    builder = Builder(
        tmp_path, lambda _, report: told.append(report), ProgressBoard(), backends={"toy": toy.backend}
    )
    monkeypatch.setattr(threading.Thread, "start", refuse)
    builder.perform(effect, "cause")
    (report,) = told
    failure = report.event.failure if isinstance(report, Happened) else report.failure  # type: ignore[attr-defined]
    assert (failure.code, failure.blame) == (code, blame)
    monkeypatch.undo()
    if isinstance(report, Happened):
        # It is not taken for one that is under way.
        builder.perform(effect, "cause")
        builder.close()
        assert len(told) == 2
    else:
        assert report.effect == effect  # type: ignore[attr-defined]


def test_what_no_caller_waits_for_is_left_to_the_installer_which_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    builder = Builder(tmp_path, lambda *_: None, ProgressBoard())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="Too many"):
        builder.perform(InspectInstallations(backends=("mlx",)), "cause")


def test_a_variant_that_a_backend_does_not_have_is_refused(make_builder: Any, heard: Any, toy: Any) -> None:
    builder = make_builder(toy)
    builder.start(msgspec.structs.replace(build("j1", "toy"), variant="cuda"))
    kind, _, failure = heard.next()
    assert (kind, failure.code) == ("failed", "no_such_variant")
    with pytest.raises(JobFailed, match="no variant"):
        builder.plan("toy", variant="cuda")
