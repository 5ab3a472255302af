"""A store that cannot be written to: the daemon starts, stored models are served, pulls say why they fail."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.kernel.errors import Refused
from greenroom.actors.library.messages import Pull
from greenroom.actors.scheduler.messages import Granted, Serve
from greenroom.actors.values import Model
from greenroom.runner.config import Settings
from greenroom.runner.daemon import Greenroom
from greenroom.runner.errors import JobFailed
from greenroom.runner.models import files
from greenroom.runner.models.errors import failure_of
from greenroom.runner.models.references import BadReference
from greenroom.runner.models.store import ModelStore
from greenroom.runner.setting_values import ExternalBackend
from greenroom.runner.testing import fake_backend

Bring = Callable[..., Model]


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on files can only be opened for reading; for tests that run as root too."""
    real = os.open

    def open_(path: Any, flags: int, *arguments: Any, **more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *arguments, **more)

    def refuses(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def begin() -> None:
        monkeypatch.setattr(os, "open", open_)
        for name in ("mkdir", "link", "rename", "replace"):
            monkeypatch.setattr(os, name, refuses)
        monkeypatch.setattr(files, "check_writable", refuses)
        monkeypatch.setattr(sys.modules[ModelStore.__module__], "check_writable", refuses)

    return begin


def test_models_in_a_store_that_can_only_be_read_are_listed_and_opened(
    store: ModelStore, bring: Bring, read_only: Callable[[], None]
) -> None:
    model = bring(store, "a")
    read_only()
    assert ModelStore(store.root).look() == (model,)
    assert store.open_model(model.id).path.read_bytes()[:4] == b"GGUF"
    with pytest.raises(JobFailed) as caught, store.arrival():
        pass
    assert caught.value.failure.code == "read_only"
    assert "Storing the model failed: Read-only file system" in caught.value.failure.message


def test_a_lock_file_of_another_user_can_still_be_locked(
    store: ModelStore, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bring(store, "a")
    real = os.open

    def refuses_lock(path: Any, flags: int, *arguments: Any, **more: Any) -> int:
        if str(path).endswith("/lock") and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", refuses_lock)
    store.prepare()
    assert store.tag(model.id, "b").tags == ("a", "b")


def test_a_touched_original_in_a_store_that_can_only_be_read_is_whole(
    store: ModelStore, tmp_path: Path, gguf: Callable[..., bytes], read_only: Callable[[], None]
) -> None:
    original = tmp_path / "mine.gguf"
    original.write_bytes(gguf())
    with store.arrival() as arrival:
        arrival.take(original, "mine.gguf", how="link", cancel=threading.Event())
        model = store.commit(arrival)
    os.utime(original)
    read_only()
    assert store.look() == (model,)


def test_a_daemon_whose_store_can_only_be_read_starts_and_says_why_pulls_fail(
    tmp_path: Path, programs: Path, gguf: Callable[..., bytes], bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    store = ModelStore(home / "models")
    store.prepare()
    model = bring(store, "docker.io/ai/here:latest")
    (tmp_path / "m.gguf").write_bytes(gguf())
    real = os.open

    def open_(path: Any, flags: int, *arguments: Any, **more: Any) -> int:
        if str(path).startswith(str(home / "models")) and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *arguments, **more)

    def refuses(path: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(sys.modules[ModelStore.__module__], "check_writable", refuses)
    settings = Settings(home=home, port=0, backends={"fake": ExternalBackend(binary=Path(sys.executable))})
    with Greenroom(settings, backends={"fake": fake_backend(programs / "fake_engine.py")}) as greenroom:
        assert greenroom.models() == (model,)
        asked = greenroom.system.ask(Pull(reference=str(tmp_path / "m.gguf")))
        with pytest.raises(Refused) as caught:
            asked.get(timeout=30)
        serve = Serve(request_id="r1", model_id=model.id, model_ref="here")
        granted = greenroom.system.ask(serve, timeout=60).get(timeout=60)
        assert isinstance(granted, Granted)
    refusal = caught.value.refusal
    assert (refusal.code, refusal.kind) == ("read_only", "exhausted")
    assert "Storing the model failed: Read-only file system" in refusal.message
    assert "GREENROOM_HOME" in refusal.advice


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.EMFILE, "transient", "too_many_files"),
        (errno.ENFILE, "transient", "too_many_files"),
        (errno.ENOMEM, "transient", "no_memory"),
        (errno.EIO, "transient", "io_error"),
        (errno.ENOSPC, "permanent", "no_space"),
        (errno.EDQUOT, "permanent", "no_space"),
        (errno.EROFS, "permanent", "read_only"),
        (errno.EACCES, "permanent", "not_allowed"),
        (errno.ENAMETOOLONG, "permanent", "not_a_model"),
    ],
)
def test_a_failed_system_call_keeps_what_kind_it_was(number: int, kind: str, code: str) -> None:
    name = os.fsdecode(b"/x/caf\xe9")
    failure = failure_of(OSError(number, os.strerror(number), name), "storing the model")
    assert (failure.kind, failure.code) == (kind, code)
    assert failure.blame == ("model" if code == "not_a_model" else "machine")
    failure.message.encode()


def test_a_store_that_another_process_holds_is_waited_for_in_bounds(
    store: ModelStore, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bring(store, "a")
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.2)
    with (store.root / "lock").open("r") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(JobFailed) as caught:
            store.tag(model.id, "b")
    failure = caught.value.failure
    assert (failure.kind, failure.code) == ("transient", "store_busy")
    assert str(store.root / "lock") in failure.message
    assert store.tag(model.id, "b").tags == ("a", "b")


@pytest.mark.parametrize("there", [True, False])
def test_a_store_whose_disk_is_gone_is_neither_empty_nor_created_again(
    there: bool, store: ModelStore, bring: Bring
) -> None:
    model = bring(store, "a")
    store.root.rename(store.root.with_name("unmounted"))
    if there:
        store.root.mkdir()
    calls = (store.look, store.check_writable, store.sweep, lambda: store.open_model(model.id))
    for call in calls:
        with pytest.raises(JobFailed) as caught:
            call()
        assert (caught.value.failure.kind, caught.value.failure.code) == ("transient", "store_gone")
    assert store.root.exists() is there
    assert not there or not list(store.root.iterdir())
    if there:
        store.root.rmdir()
    store.root.with_name("unmounted").rename(store.root)
    assert store.look() == (model,)


def test_each_failure_of_a_pull_says_what_to_blame() -> None:
    errors = {
        "network": JobFailed.transient("unreachable", "No answer."),
        "model": JobFailed.permanent("not_a_model", "It is none."),
        "client": BadReference("no name"),
        "ours": ZeroDivisionError(),
        "machine": MemoryError(),
    }
    assert {whose: failure_of(error, "pulling").blame for whose, error in errors.items()} == {
        whose: whose for whose in errors
    }
