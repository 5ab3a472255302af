"""A store whose index or manifests are damaged, unreadable or not writable loses no model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.actors.values import Model
from greenroom.runner.errors import JobFailed
from greenroom.runner.models.store import ModelStore
from model_store import NEVER, Bring, blobs, code_of


def test_a_damaged_index_falls_back_to_the_one_before_and_loses_no_files(
    store: ModelStore, bring: Bring
) -> None:
    one = bring(store, "a", b"\x01")
    two = bring(store, "b", b"\x02")
    (store.root / "index.json").write_bytes(b"{")
    assert store.models() == (one,)
    store.prepare()
    assert {m.id: m.tags for m in store.look()} == {one.id: ("a",), two.id: ()}
    assert bring(store, "b", b"\x02").tags == ("b",)
    assert (store.root / "index.damaged.json").read_bytes() == b"{"


def lose(store: ModelStore, *names: str) -> None:
    for name in names:
        (store.root / name).unlink()


def damage(store: ModelStore, *names: str) -> None:
    for name in names:
        (store.root / name).write_bytes(b"{torn")


def empty(store: ModelStore, *names: str) -> None:
    for name in names:
        (store.root / name).write_bytes(b"")


BOTH = ("index.json", "index.previous.json")


@pytest.mark.parametrize("harm", [lose, damage, empty])
@pytest.mark.parametrize("which", [BOTH[:1], BOTH])
def test_no_blob_is_lost_with_an_index_and_each_whole_model_is_found_again(
    store: ModelStore, bring: Bring, which: tuple[str, ...], harm: Callable[..., None]
) -> None:
    ids = {bring(store, tag, bytes([number])).id for number, tag in enumerate("abc", 1)}
    had = blobs(store)
    harm(store, *which)
    again = ModelStore(store.root)
    again.prepare()
    assert again.recovered()
    assert blobs(again) >= had
    assert {model.id for model in again.look()} == ids
    for model in again.look():
        assert again.verify(model.id) == ()
        assert again.open_model(model.id).path.name == "tiny.gguf"
        assert (model.architecture, model.parameters) == ("llama", "1.02K")


def test_an_original_that_was_written_to_is_noticed_though_the_index_was_lost_meanwhile(
    store: ModelStore, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    ids = []
    for name in ("good", "bad"):
        original = tmp_path / f"{name}.gguf"
        original.write_bytes(gguf(filler=name[:1].encode()))
        with store.arrival() as arrival:
            arrival.take(original, f"{name}.gguf", how="link", cancel=NEVER)
            ids.append(store.commit(arrival).id)
    damage(store, *BOTH)
    with (tmp_path / "bad.gguf").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0")
    store.prepare()
    assert [model.id for model in store.look()] == ids[:1]
    assert [model.id for model, _ in store.damaged()] == ids[1:]


def test_following_the_advice_for_a_damaged_index_loses_nothing(store: ModelStore, bring: Bring) -> None:
    ids = {bring(store, tag, bytes([number])).id for number, tag in enumerate("ab", 1)}
    had = blobs(store)
    damage(store, *BOTH)
    with pytest.raises(JobFailed) as caught:
        store.models()
    assert "Restart the daemon" in caught.value.failure.advice
    ModelStore(store.root).prepare()
    assert {model.id for model in store.look()} == ids
    # What the advice of earlier versions said: move the file away, start again, pull again.
    (store.root / "index.json").rename(store.root.parent / "aside")
    (store.root / "index.previous.json").unlink()
    ModelStore(store.root).prepare()
    assert blobs(store) == had
    assert bring(store, "a", b"\x01").tags == ("a",)


def test_an_index_that_is_damaged_while_the_daemon_runs_is_built_again_by_the_next_change(
    store: ModelStore, bring: Bring
) -> None:
    one = bring(store, "a", b"\x01")
    damage(store, *BOTH)
    two = bring(store, "b", b"\x02")
    assert {model.id for model in store.look()} == {one.id, two.id}


def test_what_is_not_whole_is_kept_too_and_not_fetched_again(
    store: ModelStore, bring: Bring, tmp_path: Path
) -> None:
    model = bring(store, "a")
    layer = store.manifest(model.id).layers[0]
    (store.root / "blobs" / "sha256" / model.id[7:]).unlink()
    damage(store, *BOTH)
    store.prepare()
    assert store.look() == ()
    with store.arrival() as arrival:
        assert arrival.reuse(layer.digest, layer.size, "tiny.gguf") is not None


def test_a_blob_that_no_index_names_is_removed_after_a_week_of_it_and_not_before(
    tmp_path: Path, bring: Bring
) -> None:
    now = 1_000_000.0

    def clock() -> float:
        return now

    store = ModelStore(tmp_path / "models", clock=clock)
    store.prepare()
    model = bring(store, "a")
    whole = (store.root / "index.json").read_bytes()
    (store.root / "index.json").write_bytes(b'{"schemaVersion":2,"manifests":[]}')
    for _ in range(3):
        now += 2 * 86_400
        ModelStore(store.root, clock=clock).prepare()
    (store.root / "index.json").write_bytes(whole)
    store.prepare()
    assert store.verify(model.id) == ()
    (store.root / "index.json").write_bytes(b'{"schemaVersion":2,"manifests":[]}')
    store.prepare()
    now += 8 * 86_400
    store.prepare()
    assert blobs(store) == set()


def test_nothing_is_removed_while_a_models_manifest_cannot_be_read(store: ModelStore, bring: Bring) -> None:
    one, two = bring(store, "a"), bring(store, "b", b"\x02", name="b.gguf")
    manifest = store.root / "blobs" / "sha256" / two.id[7:]
    held = manifest.read_bytes()
    manifest.unlink()
    assert store.sweep(kept=0) == 0
    store.remove(one.id)
    manifest.write_bytes(held)
    assert store.verify(two.id) == ()


def test_files_that_models_share_stay_when_one_goes_while_the_others_manifest_cannot_be_read(
    store: ModelStore, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    def pair(second: bytes) -> Model:
        with store.arrival() as arrival:
            for name, filler in (("m.gguf", b"\x01"), ("mmproj-m.gguf", second)):
                (tmp_path / name).write_bytes(gguf(filler=filler))
                arrival.take(tmp_path / name, name, how="move", cancel=NEVER)
            return store.commit(arrival)

    one, two = pair(b"\x02"), pair(b"\x03")
    manifest = store.root / "blobs" / "sha256" / two.id[7:]
    held = manifest.read_bytes()
    manifest.unlink()
    store.remove(one.id)
    manifest.write_bytes(held)
    assert store.verify(two.id) == ()


def test_a_model_is_condemned_only_when_it_is_read_twice_as_changed(
    store: ModelStore, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bring(store, "a")
    answers = ["sha256:" + "0" * 64]
    real = sys.modules[ModelStore.__module__].hash_file

    def misread(*arguments: Any) -> str:
        return answers.pop() if answers else str(real(*arguments))

    monkeypatch.setattr(sys.modules[ModelStore.__module__], "hash_file", misread)
    assert store.verify(model.id, condemn=True) == ()
    assert answers == []
    assert store.look() == (model,)


def test_an_index_that_cannot_be_written_changes_nothing(
    store: ModelStore, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = bring(store, "a", b"\x01")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert code_of(lambda: bring(store, "b", b"\x02")) == "no_space"
    assert code_of(lambda: store.tag(one.id, "c")) == "no_space"
    monkeypatch.undo()
    assert store.look() == (one,)
    store.sweep()
    assert store.verify(one.id) == ()
    assert len(blobs(store)) == 3
