"""Uploaded files: whole or not there, and swept when they are not used."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from greenroom.runner.errors import JobFailed
from greenroom.runner.models import recipe as recipes
from greenroom.runner.models.creation import absent, of_files
from greenroom.runner.models.manifest import FILEPATH
from greenroom.runner.models.recipe import Defaults, Recipe, StoredMessage
from greenroom.runner.models.references import digest_of
from greenroom.runner.models.store import ModelStore
from greenroom.runner.models.uploads import Uploads

WEEK = 7 * 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def uploads(tmp_path: Path, clock: Clock) -> Uploads:
    return Uploads(tmp_path / "uploads", clock)


def send(uploads: Uploads, data: bytes) -> str:
    digest = digest_of(data)
    upload = uploads.begin(digest, len(data))
    upload.write(data)
    assert upload.finish() == digest
    upload.close()
    assert uploads.find(digest) is not None
    return digest


def test_an_unused_upload_is_swept_after_a_week_and_when_the_user_asks(
    uploads: Uploads, clock: Clock
) -> None:
    digest = send(uploads, b"one")
    clock.now += WEEK - 1
    assert uploads.sweep(clock.now, clock.now - WEEK) == 0
    assert uploads.find(digest) is not None, "that was a use of it"
    clock.now += 2
    assert uploads.sweep(clock.now, clock.now - WEEK) == 0
    assert uploads.sweep(clock.now, clock.now) == 0, "it may be part of a model that is about to be made"
    clock.now += 600
    assert uploads.sweep(clock.now, clock.now) == 3
    assert uploads.find(digest) is None


def test_an_upload_that_is_in_use_is_never_swept(uploads: Uploads, clock: Clock) -> None:
    digest = send(uploads, b"one")
    clock.now += 10 * WEEK
    with uploads.held([digest]), uploads.held([digest]):
        uploads.drop([digest])
        assert uploads.sweep(clock.now, clock.now) == 0
    with uploads.held([digest]):
        assert uploads.sweep(clock.now, clock.now) == 0
    begun = uploads.begin(digest_of(b"two"))
    begun.write(b"tw")
    assert uploads.sweep(clock.now, clock.now) == 3, "the one that was sent"
    begun.write(b"o")
    assert begun.finish() == digest_of(b"two")
    begun.close()
    assert uploads.find(digest_of(b"two")) is not None


def test_what_a_crash_left_of_an_upload_is_swept(tmp_path: Path, clock: Clock) -> None:
    left = Uploads(tmp_path / "uploads", clock).begin(digest_of(b"x"))
    left.write(b"x" * 10)
    assert Uploads(tmp_path / "uploads", clock).sweep(clock.now, clock.now - WEEK) == 10
    left.close()


def test_a_file_with_another_digest_is_not_kept(uploads: Uploads, tmp_path: Path) -> None:
    upload = uploads.begin(digest_of(b"one"))
    upload.write(b"two")
    assert upload.finish() == digest_of(b"two")
    upload.close()
    assert list((tmp_path / "uploads").iterdir()) == []


def test_an_upload_stays_until_no_model_is_made_of_it(store: ModelStore, gguf: Callable[..., bytes]) -> None:
    digest = send(store.uploads, gguf())
    with store.uploads.held([digest]):
        first = of_files(store, {"a.gguf": digest}, tag="a", recipe=Recipe())
        assert absent(store, {"a.gguf": digest}) == []
        assert store.uploads.find(digest) is not None
    second = of_files(store, {"a.gguf": digest}, tag="b", recipe=Recipe(system="s"))
    assert first.id != second.id
    assert store.uploads.find(digest) is None
    store.remove(first.id)
    assert store.verify(second.id) == ()
    assert os.stat(store.blob(digest)).st_nlink == 2, "its own name, and that in the bundle"


def test_a_failed_creation_keeps_the_uploads(store: ModelStore, gguf: Callable[..., bytes]) -> None:
    digest = send(store.uploads, gguf()[:-1])
    with pytest.raises(JobFailed, match=r"a\.gguf"):
        of_files(store, {"a.gguf": digest}, tag="a", recipe=Recipe())
    assert store.uploads.find(digest) is not None
    assert store.models() == ()
    with pytest.raises(JobFailed, match="is not in the store any more"):
        of_files(store, {"a.gguf": digest_of(b"gone")}, tag="a", recipe=Recipe())


def test_a_projector_is_known_by_what_it_says(store: ModelStore, gguf: Callable[..., bytes]) -> None:
    weights = send(store.uploads, gguf())
    projector = send(store.uploads, gguf({"general.architecture": "clip"}))
    model = of_files(store, {"model": weights, "vision.gguf": projector}, tag="v", recipe=Recipe())
    assert model.reads == ("image",)
    files = store.open_model(model.id)
    assert (files.path.name, files.mmproj and files.mmproj.name) == ("model.gguf", "vision.mmproj")


def test_a_recipe_is_merged_with_the_bases_own(store: ModelStore, gguf: Callable[..., bytes]) -> None:
    digest = send(store.uploads, gguf())
    base = of_files(
        store,
        {"a.gguf": digest},
        tag="a",
        recipe=Recipe(system="s", parameters={"seed": 1, "top_k": 2}, template="one", licenses=("MIT",)),
    )
    made = store.repackage(
        base.id,
        tag="b",
        recipe=Recipe(
            context_size=99,
            messages=(StoredMessage("user", "hi"),),
            parameters={"top_k": 3},
            template="two",
            licenses=("MIT", "more"),
        ),
    )
    assert store.defaults(made.id) == Defaults("s", (StoredMessage("user", "hi"),), {"seed": 1, "top_k": 3})
    template = store.open_model(made.id).chat_template
    assert template is not None
    assert template.read_text() == "two"
    names = [one.annotations[FILEPATH] for one in store.manifest(made.id).layers]
    assert names == ["a.gguf", "LICENSE", "template.jinja", "LICENSE-2"]
    assert made.context_size == 99
    assert made.size == base.size + len("more")
    again = store.repackage(base.id, tag="c", recipe=Recipe(system="s"))
    assert again.id == base.id, "nothing has changed"
    assert set(again.tags) == {"a", "c"}


def test_defaults_that_cannot_be_read_are_none() -> None:
    long = b'{"config": {"defaults": {"system": "%s"}}}' % (b"x" * 3_000_000)
    for config in (long, b"", b"[]", b'{"config": {}}', b'{"config": {"defaults": {"system": 1}}}', b"\xff"):
        assert recipes.defaults_of(config) == Defaults()


def test_a_broken_base_is_damaged(store: ModelStore, gguf: Callable[..., bytes]) -> None:
    digest = send(store.uploads, gguf())
    base = of_files(store, {"a.gguf": digest}, tag="a", recipe=Recipe())
    store.blob(store.manifest(base.id).config.digest).unlink()
    with pytest.raises(JobFailed) as failed:
        store.repackage(base.id, tag="b", recipe=Recipe(system="s"))
    assert failed.value.failure.code == "model_damaged"
    assert len(store.models()) == 1


def test_uploads_and_sweeps_at_once_lose_nothing(store: ModelStore, gguf: Callable[..., bytes]) -> None:
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            store.sweep(kept=0.0)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(8):
            digest = send(store.uploads, gguf(filler=bytes([number])))
            model = of_files(store, {"a.gguf": digest}, tag=f"m{number}", recipe=Recipe(system="s"))
            assert store.verify(model.id) == ()
    finally:
        stop.set()
        sweeper.join()
