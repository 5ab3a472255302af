"""The store: what goes in comes out, whole, shared, once, and nothing is lost when many change it."""

from __future__ import annotations

import json
import os
import resource
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from greenroom.actors.values import Model, ModelLayers
from greenroom.runner.errors import JobCancelled
from greenroom.runner.models.index import Index
from greenroom.runner.models.references import digest_of
from greenroom.runner.models.store import ModelStore
from model_store import NEVER, Bring, blobs, code_of
from tiny_vision import projector


def test_an_empty_store_is_empty_before_it_is_made(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "nowhere" / "models")
    assert store.models() == ()
    assert store.look() == ()
    assert store.room.free() > 0
    assert not store.root.exists()


def test_a_model_is_named_by_its_manifest_and_found_whole(store: ModelStore, bring: Bring) -> None:
    model = bring(store, "docker.io/ai/tiny:latest")
    assert store.look() == (model,)
    assert model.format == "gguf"
    assert (model.architecture, model.parameters) == ("llama", "1.02K")
    raw = (store.root / "blobs" / "sha256" / model.id[7:]).read_bytes()
    assert digest_of(raw) == model.id
    manifest = json.loads(raw)
    assert manifest["config"]["mediaType"] == "application/vnd.docker.ai.model.config.v0.1+json"
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.docker.ai.gguf.v3"
    assert layer["annotations"]["org.cncf.model.filepath"] == "tiny.gguf"
    config = json.loads((store.root / "blobs" / "sha256" / manifest["config"]["digest"][7:]).read_bytes())
    assert config["rootfs"] == {"type": "rootfs", "diff_ids": [layer["digest"]]}
    assert config["config"]["format"] == "gguf"
    assert config["config"]["gguf"]["llama.block_count"] == "2"


def test_the_store_is_an_oci_layout(store: ModelStore, bring: Bring) -> None:
    bring(store, "a")
    assert json.loads((store.root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    for descriptor in json.loads((store.root / "index.json").read_text())["manifests"]:
        blob = store.root / "blobs" / "sha256" / descriptor["digest"][7:]
        assert blob.stat().st_size == descriptor["size"]


def test_the_same_files_are_the_same_model_whenever_they_come(store: ModelStore, bring: Bring) -> None:
    first, second = bring(store, "a"), bring(store, "b")
    assert first.id == second.id
    assert second.tags == ("a", "b")
    assert len(blobs(store)) == 3


def test_an_engine_gets_the_file_under_its_own_name(store: ModelStore, bring: Bring) -> None:
    model = bring(store, "a", name="My Model.Q4.gguf")
    files = store.open_model(model.id)
    assert files.path.name == "My Model.Q4.gguf"
    assert files.path.read_bytes()[:4] == b"GGUF"
    assert (files.format, files.context_length, files.name) == ("gguf", 512, "a")
    assert files.path.stat().st_nlink == 2  # the blob's bytes, not a copy


def test_an_engine_gets_a_folder_of_safetensors(
    store: ModelStore, tmp_path: Path, model_folder: Callable[..., Path]
) -> None:
    folder = model_folder(tmp_path / "m", quantization={"group_size": 32, "bits": 4})
    with store.arrival() as arrival:
        for path in folder.iterdir():
            arrival.take(path, path.name, how="link", cancel=NEVER)
        model = store.commit(arrival)
    files = store.open_model(model.id)
    assert files.format == "safetensors-mlx"
    assert {p.name for p in files.path.iterdir()} == {p.name for p in folder.iterdir()}
    assert files.name == model.id


def test_shards_are_opened_by_the_first(
    store: ModelStore, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    with store.arrival() as arrival:
        for number in (2, 1):
            path = tmp_path / f"m-0000{number}-of-00002.gguf"
            path.write_bytes(gguf({"split.count": 2, "split.no": number - 1}))
            arrival.take(path, path.name, how="move", cancel=NEVER)
        arrival.layers.sort(key=lambda layer: layer.name)
        model = store.commit(arrival)
    assert store.open_model(model.id).path.name == "m-00001-of-00002.gguf"


def test_projector_and_template_are_handed_to_the_engine(
    store: ModelStore, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    with store.arrival() as arrival:
        contents = {"m.gguf": gguf(), "mmproj-f16.gguf": projector(), "template.jinja": b"{{ x }}"}
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
            arrival.take(tmp_path / name, name, how="move", cancel=NEVER)
        model = store.commit(arrival)
    assert (model.reads, model.projector_size) == (("image",), len(projector()))
    assert model.size == sum(map(len, contents.values()))
    files = store.open_model(model.id)
    assert files.path.name == "m.gguf"
    assert files.mmproj is not None
    assert files.mmproj.name == "mmproj-f16.gguf"
    assert files.chat_template is not None
    assert files.chat_template.read_text() == "{{ x }}"


def test_what_an_older_version_did_not_read_of_a_stored_model_is_read_at_the_next_start(
    store: ModelStore, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    tensors = [(f"blk.{number}.a", (64, 2), 1, 256 * number) for number in range(2)]
    divided = gguf({"llama.pooling_type": 3}, tensors=tensors, data=b"\1" * 512)
    with store.arrival() as arrival:
        for name, content in (("m.gguf", divided), ("mmproj.gguf", projector())):
            (tmp_path / name).write_bytes(content)
            arrival.take(tmp_path / name, name, how="move", cancel=NEVER)
        model = store.commit(arrival)
    index = Index.decode((store.root / "index.json").read_bytes())
    new = {"reads": None, "projector_size": 0, "layers": None, "made_for": None, "pooling": ""}
    old = msgspec.structs.replace(model, **new)
    entries = (msgspec.structs.replace(index.entries[0], model=old),)
    (store.root / "index.json").write_bytes(replace(index, entries=entries).encode())
    assert store.look() == (old,)
    again = ModelStore(store.root)
    again.prepare()
    assert again.look() == (model,)
    assert (model.layers or ModelLayers()).count == 3
    assert (model.made_for, model.pooling) == ("embedding", "last")
    assert (store.root / "index.json").read_text().count(r"\"reads\"") == 1


def test_a_bundle_that_was_damaged_is_made_again(store: ModelStore, bring: Bring) -> None:
    model = bring(store, "a")
    path = store.open_model(model.id).path
    path.unlink()
    path.write_bytes(b"something else")
    assert store.open_model(model.id).path.read_bytes()[:4] == b"GGUF"


def test_a_tag_moves_and_is_never_on_two_models(store: ModelStore, bring: Bring) -> None:
    one, two = bring(store, "t", b"\x01"), bring(store, "u", b"\x02")
    store.tag(two.id, "t")
    assert [m.tags for m in store.models()] == [(), ("u", "t")]
    assert store.untag("t") == two.id
    assert code_of(lambda: store.untag("t")) == "no_such_model"
    assert code_of(lambda: store.tag("sha256:" + "0" * 64, "t")) == "no_such_model"
    assert {m.id for m in store.models()} == {one.id, two.id}


def test_removal_frees_what_no_other_model_has(
    store: ModelStore, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    def pair(*fillers: bytes) -> Model:
        with store.arrival() as arrival:
            for number, filler in enumerate(fillers, 1):
                path = tmp_path / f"m-0000{number}-of-00002.gguf"
                path.write_bytes(gguf({"split.count": 2}, filler=filler))
                arrival.take(path, path.name, how="move", cancel=NEVER)
            return store.commit(arrival)

    one, two = pair(b"\x01", b"\x02"), pair(b"\x01", b"\x03")
    before = store.usage().models
    freed = store.remove(one.id)
    assert store.look() == (two,)
    assert store.verify(two.id) == ()
    assert store.usage().models == before - freed
    store.remove(two.id)
    assert blobs(store) == set()
    assert not list((store.root / "bundles" / "sha256").iterdir())
    assert code_of(lambda: store.remove(two.id)) == "no_such_model"
    assert code_of(lambda: store.open_model(two.id)) == "no_such_model"


def test_bytes_the_user_still_has_are_not_counted_as_freed(
    store: ModelStore, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    original = tmp_path / "mine.gguf"
    original.write_bytes(gguf())
    with store.arrival() as arrival:
        arrival.take(original, "mine.gguf", how="link", cancel=NEVER)
        model = store.commit(arrival)
    assert store.remove(model.id) < 2048
    assert original.read_bytes()[:4] == b"GGUF"


def test_a_file_on_another_disk_is_copied(
    store: ModelStore, tmp_path: Path, gguf: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    original = tmp_path / "mine.gguf"
    original.write_bytes(gguf())
    monkeypatch.setattr(os, "link", refuses)
    with store.arrival() as arrival:
        arrival.take(original, "mine.gguf", how="link", cancel=NEVER)
        model = store.commit(arrival)
    assert original.stat().st_nlink == 1
    assert store.open_model(model.id).path.read_bytes() == original.read_bytes()
    original.write_bytes(b"gone")
    assert store.look() == (model,)


def test_an_original_that_is_written_to_makes_the_model_damaged(
    store: ModelStore, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    original = tmp_path / "mine.gguf"
    original.write_bytes(gguf())
    with store.arrival() as arrival:
        arrival.take(original, "mine.gguf", how="link", cancel=NEVER)
        model = store.commit(arrival, fingerprint="f")
    os.utime(original)  # touched, but the same bytes
    assert store.look() == (model,)
    with original.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00")
    assert store.look() == ()
    assert "has been written to since" in store.damaged()[0][1]
    assert store.known("f") is None
    assert code_of(lambda: store.open_model(model.id)) == "model_damaged"


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for one in taken:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_model_that_cannot_be_read_for_want_of_descriptors_is_not_taken_for_damaged(
    store: ModelStore, bring: Bring
) -> None:
    model = bring(store, "a")
    with no_descriptors():
        assert code_of(store.look) == "too_many_files"
        assert code_of(lambda: store.open_model(model.id)) == "too_many_files"
        assert code_of(lambda: store.verify(model.id, condemn=True)) == "too_many_files"
    assert store.look() == (model,)


def test_one_model_that_cannot_be_read_keeps_its_place_and_costs_no_other(
    store: ModelStore, bring: Bring
) -> None:
    model, other = bring(store, "a"), bring(store, "b", filler=b"other")
    manifest = store.root / "blobs" / "sha256" / model.id[7:]
    manifest.unlink()
    manifest.symlink_to(manifest)  # a loop: reading it fails, and says nothing about the model
    assert store.look() == (model, other)
    assert not store.damaged()
    assert code_of(lambda: store.open_model(model.id)) == "not_a_folder"
    store.open_model(other.id)


def test_a_model_whose_disk_is_unmounted_is_not_taken_for_damaged(store: ModelStore, bring: Bring) -> None:
    model = bring(store, "a")
    store.look()
    store.root.rename(store.root.with_name("unmounted"))
    store.root.mkdir()
    assert code_of(lambda: store.open_model(model.id)) == "store_gone"
    assert not store.damaged()


@pytest.mark.parametrize("harm", ["missing", "short", "manifest"])
def test_a_damaged_model_is_not_offered_and_a_new_arrival_repairs_it(
    harm: str, store: ModelStore, bring: Bring
) -> None:
    model = bring(store, "a")
    digest = store.manifest(model.id).layers[0].digest
    blob = store.root / "blobs" / "sha256" / (model.id if harm == "manifest" else digest)[7:]
    if harm == "short":
        os.truncate(blob, 100)
    else:
        blob.unlink()
    assert store.look() == ()
    assert len(store.damaged()) == 1
    assert code_of(lambda: store.open_model(model.id)) == "model_damaged"
    assert bring(store, "a").id == model.id
    assert store.look() == store.models()
    assert store.verify(model.id) == ()
    assert store.open_model(model.id).path.read_bytes()[:4] == b"GGUF"


def test_verification_reads_every_byte_and_reports_what_changed(store: ModelStore, bring: Bring) -> None:
    model = bring(store, "a")
    blob = store.root / "blobs" / "sha256" / store.manifest(model.id).layers[0].digest[7:]
    counted = 0

    def count(size: int) -> None:
        nonlocal counted
        counted += size

    assert store.verify(model.id, count=count) == ()
    assert counted >= model.size
    with blob.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00")
    assert store.look() == (model,)  # its size is right
    assert store.verify(model.id, condemn=True) == ("tiny.gguf has changed since it arrived.",)
    assert store.look() == ()
    bring(store, "a")
    assert store.verify(model.id) == ()
    assert store.open_model(model.id).path.read_bytes()[-1] == 1


def test_concurrent_changes_lose_nothing(store: ModelStore, bring: Bring) -> None:
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(lambda n: bring(store, f"t{n}", bytes([n])), range(24)))
        list(pool.map(lambda m: store.tag(m.id, f"also-{m.id}"), models))
        list(pool.map(lambda m: store.remove(m.id), models[::2]))
    assert {m.tags for m in store.look()} == {(f"t{n}", f"also-{models[n].id}") for n in range(1, 24, 2)}
    assert store.sweep() == 0


def test_two_stores_on_one_folder_lose_nothing_either(store: ModelStore, bring: Bring) -> None:
    other = ModelStore(store.root)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: bring([store, other][n % 2], f"t{n}", bytes([n])), range(16)))
    assert {m.tags[0] for m in store.look()} == {f"t{n}" for n in range(16)}


def test_a_file_outside_the_model_cannot_be_named(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    for name in ("../x", "/etc/x", "a/../../x", "", "a\\b", "a\nb"):
        with store.arrival() as arrival:
            path = tmp_path / "x"
            assert code_of(lambda: arrival.take(path, name, how="link", cancel=NEVER)) == "not_a_model"  # noqa: B023


def test_what_does_not_match_its_pin_is_thrown_away(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with store.arrival() as arrival:
        pin = f"sha256:{'0' * 64}"
        take = lambda: arrival.take(tmp_path / "x", "x", how="move", expected=pin, cancel=NEVER)  # noqa: E731
        assert code_of(take) == "hash_mismatch"
    assert not list((store.root / "incoming").iterdir())


def test_an_arrival_that_is_not_a_model_leaves_the_store_as_it_was(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nonsense")
    with store.arrival() as arrival:
        arrival.take(tmp_path / "x.gguf", "x.gguf", how="move", cancel=NEVER)
        assert code_of(lambda: store.commit(arrival)) == "not_a_model"
    assert store.models() == ()
    assert blobs(store) == set()


def test_hashing_can_be_cancelled(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 100)
    cancel = threading.Event()
    cancel.set()
    with store.arrival() as arrival, pytest.raises(JobCancelled):
        arrival.take(tmp_path / "x", "x", how="link", cancel=cancel)


def test_a_sweep_removes_what_no_index_names_and_nothing_in_flight(store: ModelStore, bring: Bring) -> None:
    model = bring(store, "a")
    (store.root / "blobs" / "sha256" / ("0" * 64)).write_bytes(b"x" * 10)
    (store.root / "bundles" / "sha256" / ("0" * 64)).mkdir()
    (store.root / "incoming" / "dead").mkdir()
    (store.root / "incoming" / "dead" / "x").write_bytes(b"x" * 5)
    with store.arrival() as arrival:
        assert store.sweep(kept=0) == 15
        assert arrival.folder.exists()
    assert store.verify(model.id) == ()
    assert not list((store.root / "incoming").iterdir())
    assert [p.name for p in (store.root / "bundles" / "sha256").iterdir()] == [model.id[7:]]
