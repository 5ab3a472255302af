"""Installations out of images, against a real registry and one that misbehaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greenroom.actors.values import Installation, Progress
from greenroom.runner.backends.base import Image, Platform
from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.installations.image import Images
from greenroom.runner.installations.installed import folder_of, python_of
from greenroom.runner.installations.sources import PackageSources, Setting
from greenroom.runner.setting_values import RegistrySettings
from real_registry import Doorway, Layer, Published, RealRegistry, Wrong, file, folder_layer, layer, link
from vllm_metal_tree import make_tree

BACKEND = "vllm-metal"
MAC = Platform(system="darwin", machine="arm64", python=(3, 12), macos=(15, 1))
SOURCES = PackageSources(timeout=Setting("10", "the test"))


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree") / "vllm-metal")


@pytest.fixture(scope="session")
def tree_layer(tree: Path) -> Layer:
    """The tree in one layer, its execute bits lost."""
    return folder_layer(tree, "vllm-metal", mode=0o644)


@pytest.fixture(scope="session")
def heavy_layer() -> Layer:
    """A megabyte that does not compress, in the tree."""
    return layer([file("vllm-metal/lib/weights", os.urandom(1_000_000))])


@pytest.fixture(autouse=True)
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


@dataclass
class Shelf:
    """One repository of a registry, before which a doorway stands, and the image source that names it."""

    registry: RealRegistry
    doorway: Doorway
    name: str
    home: Path
    user_home: Path

    def push(self, *layers: Layer, version: str = "0.2.0", **options: Any) -> Published:
        return self.registry.push(self.name, layers, tag=f"vllm-metal-v{version}", **options)

    @property
    def source(self) -> Image:
        declared = BACKENDS[BACKEND].source
        assert isinstance(declared, Image)
        return replace(
            declared, reference=f"{self.doorway.host}/{self.name}:vllm-metal-v0.2.0", version="0.2.0"
        )

    def images(self, **options: Any) -> Images:
        options = {"platform": MAC, "user_home": self.user_home, **options}
        return Images(self.home, SOURCES, **options)

    def build(self, images: Images | None = None, **options: Any) -> Installation:
        images = images or self.images()
        source = options.pop("source", self.source)
        return images.build(BACKEND, source, job="j1", **options)

    def failure(self, **options: Any) -> Any:
        with pytest.raises(JobFailed) as caught:
            self.build(**options)
        assert self.left_behind() == []
        return caught.value.failure

    def left_behind(self) -> list[str]:
        """Everything outside the cache that is no folder to put things in."""
        found = [p for p in self.home.rglob("*") if "cache" not in p.relative_to(self.home).parts]
        kept = {self.home / "backends", self.home / "backends" / BACKEND}
        return [str(p) for p in (*found, *self.user_home.rglob("_paged*")) if p not in kept]

    def has(self, digest: str) -> bool:
        """A layer is complete. They come side by side: which of them are, when one fails, is chance."""
        return any((self.home / "cache" / "images" / digest.removeprefix("sha256:")).glob("*"))

    def blobs_asked(self) -> list[str]:
        return [told.path.rpartition("/")[2] for told in self.doorway.asked("/blobs/")]


@pytest.fixture
def shelf(docker_registry: RealRegistry, make_doorway: Callable[[], Doorway], tmp_path: Path) -> Shelf:
    (tmp_path / "user").mkdir()
    return Shelf(
        docker_registry, make_doorway(), f"org/{uuid.uuid4().hex[:10]}", tmp_path / "home", tmp_path / "user"
    )


def test_an_image_becomes_an_installation_that_runs(shelf: Shelf, tree_layer: Layer) -> None:
    published = shelf.push(layer([file("etc/hostname", b"x")]), tree_layer)
    found = shelf.build()
    assert (found.version, found.digest) == ("0.2.0", published.digest.removeprefix("sha256:"))
    assert found.id == f"0.2.0-{found.digest[:8]}.1"
    folder = folder_of(shelf.home, found)
    python = python_of(shelf.home, found)
    assert python == folder / "env" / "bin" / "python3"
    said = subprocess.run(
        [python, "-I", "-c", "import vllm_metal; print(vllm_metal.VERSION)"], capture_output=True, text=True
    )
    assert said.stdout == "0.2.0\n", said.stderr
    assert sorted(p.name for p in folder.iterdir()) == ["env", "installation.json"]
    assert not (folder / "env" / "etc").exists()
    record = shelf.images().installed.record(found)
    assert record.image is not None
    assert record.image.digest == published.digest
    assert record.files["env/bin/python3"] > 0
    assert record.links["env/bin/python-alias"] == "python3"
    assert set(record.sums) == set(record.files)
    assert (shelf.user_home / ".cache/vllm-metal/_paged_ops.so").read_text() == "kernels of 0.2.0"
    assert (shelf.user_home / ".cache/vllm-metal/_paged_ops.so.sha256").exists()
    assert shelf.images().installed.look(BACKEND) == [found]


def test_the_plan_says_what_would_be_fetched_and_fetches_none_of_it(
    shelf: Shelf, tree_layer: Layer, heavy_layer: Layer
) -> None:
    published = shelf.push(tree_layer, heavy_layer)
    plan = shelf.images().plan(BACKEND, shelf.source)
    assert (plan.backend, plan.version) == (BACKEND, "0.2.0")
    assert plan.total_bytes == published.size
    assert plan.packages == (f"{shelf.source.reference}@{published.digest}",)
    assert not set(published.layers) & set(shelf.blobs_asked())
    shelf.build()
    assert shelf.images().plan(BACKEND, shelf.source).download_bytes == 0


def test_the_total_is_known_first_and_the_counts_rise_to_it(
    shelf: Shelf, tree_layer: Layer, heavy_layer: Layer
) -> None:
    published = shelf.push(tree_layer, heavy_layer)
    shelf.doorway.wrong[published.layers[1]] = Wrong(rate=1_000_000)
    heard: list[Progress] = []
    shelf.build(progress=heard.append)
    downloading = [one for one in heard if one.phase == "downloading"]
    assert {one.total for one in downloading} == {published.size}
    counts = [one.done for one in downloading]
    assert counts == sorted(counts)
    assert len(set(counts)) >= 5
    assert counts[-1] == published.size
    order = list(dict.fromkeys(one.phase for one in heard))
    assert order == ["resolving", "downloading", "unpacking", "verifying"]
    assert "layer 2 of 2" in [one for one in heard if one.phase == "unpacking"][-1].message


def test_the_image_for_this_platform_is_chosen_from_an_index(shelf: Shelf, tree_layer: Layer) -> None:
    linux = shelf.registry.push(
        shelf.name, [layer([file("linux")])], tag="", os="linux", architecture="amd64"
    )
    mac = shelf.registry.push(shelf.name, [tree_layer], tag="")
    attestation = shelf.registry.push(shelf.name, [layer([file("a")])], tag="", os="", architecture="")
    platforms = {"linux/amd64": linux, "unknown/unknown": attestation, "darwin/arm64": mac}
    shelf.registry.push_index(shelf.name, platforms, "vllm-metal-v0.2.0")
    assert shelf.build().digest == mac.digest.removeprefix("sha256:")


def test_an_index_without_this_platform_says_what_it_has(shelf: Shelf) -> None:
    platforms = {
        text: shelf.registry.push(
            shelf.name, [layer([file(text)])], tag="", os="linux", architecture=text.split("/")[1]
        )
        for text in ("linux/amd64", "linux/arm64")
    }
    shelf.registry.push_index(shelf.name, platforms, "vllm-metal-v0.2.0")
    failure = shelf.failure()
    assert (failure.kind, failure.code) == ("permanent", "wrong_platform")
    assert failure.message == (
        f"The image {shelf.source.reference} is not for darwin/arm64; it is for linux/amd64, linux/arm64."
    )


def test_a_single_image_for_another_platform_is_refused_before_its_layers_are_fetched(
    shelf: Shelf, tree_layer: Layer
) -> None:
    published = shelf.push(tree_layer, os="linux", architecture="amd64")
    failure = shelf.failure()
    assert failure.code == "wrong_platform"
    assert "it is for linux/amd64" in failure.message
    assert not set(published.layers) & set(shelf.blobs_asked())


def test_a_tag_that_is_not_there_is_reported(shelf: Shelf) -> None:
    failure = shelf.failure()
    assert (failure.kind, failure.code) == ("permanent", "not_found")
    assert failure.message == (f"There is no such image on {shelf.doorway.host}: {shelf.source.reference}.")


def test_a_layer_with_other_bytes_is_refused_and_nothing_of_it_stays(
    shelf: Shelf, tree_layer: Layer, heavy_layer: Layer
) -> None:
    published = shelf.push(tree_layer, heavy_layer)
    shelf.doorway.wrong[published.layers[1]] = Wrong(flip=500_000)
    failure = shelf.failure()
    assert (failure.kind, failure.code) == ("permanent", "hash_mismatch")
    assert "do not match the image's manifest" in failure.message
    assert shelf.doorway.host in failure.message
    cached = shelf.home / "cache" / "images"
    assert not [p for p in cached.rglob("*") if published.layers[1].removeprefix("sha256:") in p.name]
    shelf.doorway.wrong.clear()
    assert shelf.build().version == "0.2.0"


@pytest.mark.parametrize("what", ["manifest", "configuration"])
def test_a_tampered_manifest_or_configuration_is_refused(shelf: Shelf, tree_layer: Layer, what: str) -> None:
    published = shelf.push(tree_layer)
    pattern = "/manifests/" if what == "manifest" else "/blobs/"
    shelf.doorway.wrong[pattern] = Wrong(flip=40)
    failure = shelf.failure()
    assert failure.code == "hash_mismatch"
    assert not set(published.layers) & set(shelf.blobs_asked())


def test_a_cut_connection_is_resumed_by_the_same_attempt(
    shelf: Shelf, tree_layer: Layer, heavy_layer: Layer
) -> None:
    published = shelf.push(tree_layer, heavy_layer)
    shelf.doorway.wrong[published.layers[1]] = Wrong(cut_after=600_000, times=1)
    shelf.build()
    ranges = [told.headers.get("Range") for told in shelf.doorway.asked(published.layers[1])]
    assert ranges == [None, "bytes=600000-"]


def test_a_connection_that_stays_cut_is_worth_another_attempt_which_resumes_there(
    shelf: Shelf, tree_layer: Layer, heavy_layer: Layer
) -> None:
    published = shelf.push(tree_layer, heavy_layer)
    shelf.doorway.wrong[published.layers[1]] = Wrong(cut_after=300_000, times=1)
    shelf.doorway.wrong[published.layers[1] + "$"] = Wrong(cut_after=0, times=2)
    failure = shelf.failure()
    assert (failure.kind, failure.code) == ("transient", "unreachable")
    assert "127.0.0.1" in failure.message
    assert "registries" in failure.advice
    shelf.doorway.wrong.clear()
    shelf.doorway.told.clear()
    first_is_here = shelf.has(published.layers[0])
    assert shelf.images().plan(BACKEND, shelf.source).download_bytes < published.size - 200_000
    shelf.build()
    assert "bytes=300000-" in [told.headers.get("Range") for told in shelf.doorway.asked(published.layers[1])]
    assert (published.layers[0] in shelf.blobs_asked()) is not first_is_here


def test_what_an_earlier_attempt_left_damaged_is_fetched_again(
    shelf: Shelf, tree_layer: Layer, heavy_layer: Layer
) -> None:
    published = shelf.push(tree_layer, heavy_layer)
    part = shelf.home / "cache" / "images" / f"{published.layers[1].removeprefix('sha256:')}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"never flushed" * 1_000)
    failure = shelf.failure()
    assert (failure.kind, failure.code) == ("transient", "cache_damaged")
    assert shelf.build().version == "0.2.0"


def test_cancelling_is_prompt_and_keeps_what_has_come(
    shelf: Shelf, tree_layer: Layer, heavy_layer: Layer
) -> None:
    published = shelf.push(tree_layer, heavy_layer)
    shelf.doorway.wrong[published.layers[1]] = Wrong(rate=100_000)
    cancel = threading.Event()

    def heard(progress: Progress) -> None:
        if progress.phase == "downloading" and progress.total - progress.done < 950_000:
            cancel.set()

    with pytest.raises(JobCancelled):
        shelf.build(cancel=cancel, progress=heard)
    assert shelf.left_behind() == []
    assert shelf.images().plan(BACKEND, shelf.source).download_bytes < published.size


def test_too_little_space_is_reported_before_anything_is_fetched(
    shelf: Shelf, tree_layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = shelf.push(tree_layer)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    failure = shelf.failure()
    assert failure.code == "no_space"
    assert not set(published.layers) & set(shelf.blobs_asked())


def test_what_a_tag_meant_when_it_was_installed_is_what_it_means_from_then_on(
    shelf: Shelf, tree_layer: Layer, heavy_layer: Layer
) -> None:
    first = shelf.push(tree_layer)
    found = shelf.build()
    second = shelf.push(tree_layer, heavy_layer)
    assert first.digest != second.digest
    shelf.doorway.told.clear()
    again = shelf.build(repair=True)
    assert (again.digest, again.id) == (found.digest, found.id.removesuffix("1") + "2")
    assert shelf.doorway.told == []
    images = shelf.images()
    for one in (found, again):
        images.remove(one)
    assert shelf.build().digest == second.digest.removeprefix("sha256:")


def test_a_repair_after_the_tag_has_vanished_needs_the_recorded_manifest_only(
    shelf: Shelf, tree_layer: Layer
) -> None:
    published = shelf.push(tree_layer)
    found = shelf.build()
    shelf.registry.remove(shelf.name, published.digest)
    (folder_of(shelf.home, found) / "env" / "bin" / "python3").unlink()
    (broken,) = shelf.images().installed.look(BACKEND)
    assert "env/bin/python3 is missing" in broken.broken
    repaired = shelf.build(repair=True)
    assert shelf.images().installed.look(BACKEND)[1] == repaired


def test_a_cached_layer_that_was_damaged_is_found_by_a_repair(shelf: Shelf, tree_layer: Layer) -> None:
    published = shelf.push(tree_layer)
    shelf.build()
    (cached,) = (shelf.home / "cache" / "images" / published.layers[0].removeprefix("sha256:")).iterdir()
    data = bytearray(cached.read_bytes())
    data[1_000] ^= 1
    cached.write_bytes(data)
    shelf.doorway.told.clear()
    shelf.build(repair=True)
    assert shelf.blobs_asked() == published.layers


def test_every_changed_byte_is_found_by_hash_and_a_missing_file_by_name(
    shelf: Shelf, tree_layer: Layer
) -> None:
    shelf.push(tree_layer)
    found = shelf.build()
    images = shelf.images()
    assert images.installed.verify(found) == []
    (server,) = (folder_of(shelf.home, found) / "env").rglob("fake_engine.py")
    data = bytearray(server.read_bytes())
    data[10] ^= 1
    server.write_bytes(data)
    assert images.installed.look(BACKEND) == [found]
    (complaint,) = images.installed.verify(found)
    assert complaint.endswith("vllm/fake_engine.py has changed")
    server.unlink()
    assert "fake_engine.py is missing" in images.installed.look(BACKEND)[0].broken


def test_versions_are_tags_and_latest_is_the_newest_of_them(shelf: Shelf, tree_layer: Layer) -> None:
    for version in ("0.2.0", "0.9.0-20260101-1", "0.10.0-20260101-1"):
        shelf.push(tree_layer, layer([file("vllm-metal/lib/version", version.encode())]), version=version)
    shelf.registry.push(shelf.name, [tree_layer], tag="diffusers-v9.9")
    shelf.registry.push(shelf.name, [tree_layer], tag="vllm-metal-vnext")
    assert shelf.build().version == "0.2.0"
    assert shelf.build(version="0.9.0-20260101-1").version == "0.9.0-20260101-1"
    assert shelf.build(version="latest").version == "0.10.0-20260101-1"
    assert shelf.build(version="latest").id.endswith(".1"), "nothing has changed"
    assert len(shelf.images().installed.look(BACKEND)) == 3
    with pytest.raises(JobFailed, match=r"There is no such image on .*:vllm-metal-v7"):
        shelf.build(version="7")
    with pytest.raises(JobFailed, match="is not a tag") as caught:
        shelf.build(version="7/8")
    assert caught.value.failure.code == "no_such_version"


def test_an_image_of_the_users_own_may_be_called_anything(shelf: Shelf, tree_layer: Layer) -> None:
    published = shelf.registry.push(shelf.name, [tree_layer], tag="dev")
    named = shelf.source.out_of(f"{shelf.doorway.host}/{shelf.name}:dev")
    assert shelf.build(source=named).version == "dev"
    pinned = shelf.source.out_of(f"{shelf.doorway.host}/{shelf.name}@{published.digest}")
    assert shelf.build(source=pinned).version == f"sha256-{published.digest[7:19]}"


@pytest.mark.parametrize(
    "reference", ["https://r/x:y", "hf.co/org/model", "./folder", "", "r.example/UP CASE"]
)
def test_an_invalid_image_name_is_refused_with_the_right_form(shelf: Shelf, reference: str) -> None:
    failure = shelf.failure(source=replace(shelf.source, reference=reference))
    assert failure.code == "bad_image_name"
    assert "registry/repository:tag" in failure.advice


def test_an_image_without_the_tree_is_reported(shelf: Shelf) -> None:
    shelf.push(layer([file("opt/x")]))
    failure = shelf.failure()
    assert failure.code == "not_an_image"
    assert failure.message == f"The image {shelf.source.reference} has no /vllm-metal/bin/python3."
    assert '[backends."vllm-metal"] image' in failure.advice


def test_a_python_for_another_machine_is_reported(shelf: Shelf) -> None:
    shelf.push(layer([file("vllm-metal/bin/python3", b"\xcf\xfa\xed\xfe" + bytes(100))]))
    failure = shelf.failure()
    assert failure.code == "probe_failed"
    assert "does not run here" in failure.message


def test_a_tree_whose_modules_do_not_import_is_reported_in_pythons_words(
    shelf: Shelf, tree_layer: Layer, tree: Path
) -> None:
    name = next(tree.glob("lib/python3.*")).name
    broken = layer(
        [file(f"vllm-metal/lib/{name}/site-packages/vllm_metal/__init__.py", b"import nothing_here")]
    )
    shelf.push(tree_layer, broken)
    failure = shelf.failure()
    assert failure.code == "probe_failed"
    assert "No module named 'nothing_here'" in failure.message


def test_an_image_made_to_do_harm_leaves_nothing(shelf: Shelf, tree_layer: Layer) -> None:
    shelf.push(tree_layer, layer([link("vllm-metal/lib/out", "../../../../etc")]))
    failure = shelf.failure()
    assert (failure.kind, failure.code) == ("permanent", "unsafe_image")
    assert "its link lib/out leads out of the tree" in failure.message


def test_an_artifact_that_is_not_an_image_is_reported(shelf: Shelf) -> None:
    shelf.doorway.wrong["/manifests/"] = Wrong(status=200, body=b'{"schemaVersion": 1, "fsLayers": []}')
    assert "lists neither layers nor platforms" in shelf.failure().message
    shelf.doorway.wrong["/manifests/"] = Wrong(status=200, body=b"<html>log in</html>")
    assert "cannot be read" in shelf.failure().message


def test_removing_frees_what_it_says_and_leaves_only_what_others_need(
    shelf: Shelf, tree_layer: Layer, heavy_layer: Layer
) -> None:
    shelf.push(tree_layer)
    shelf.push(tree_layer, heavy_layer, version="0.3.0")
    first, second = shelf.build(), shelf.build(version="0.3.0")
    cache = shelf.home / "cache" / "images"

    def used() -> int:
        places = (shelf.home, shelf.user_home)
        return sum(p.lstat().st_blocks * 512 for place in places for p in place.rglob("*") if not p.is_dir())

    before = used()
    freed = shelf.images().remove(second)
    assert freed == before - used()
    assert freed > 2_000_000  # unpacked, and as it came
    assert [p.name for p in cache.iterdir() if heavy_layer.diff_id in p.name] == []
    assert shelf.images().installed.look(BACKEND) == [first]
    shelf.images().remove(first)
    assert list(cache.iterdir()) == []
    assert not (shelf.user_home / ".cache" / "vllm-metal").exists()


def test_kernels_are_put_back_before_an_engine_starts_and_strangers_are_left_alone(
    shelf: Shelf, tree_layer: Layer
) -> None:
    shelf.push(tree_layer)
    found = shelf.build()
    folder = shelf.user_home / ".cache" / "vllm-metal"
    assert shelf.images().place(found) == []
    (folder / "_paged_ops.so").write_text("of another version")
    (folder / "my-own").write_text("mine")
    assert shelf.images().place(found) == [folder / "_paged_ops.so"]
    assert (folder / "_paged_ops.so").read_text() == "kernels of 0.2.0"
    (folder / "_paged_ops.so").write_text("compiled by the user's own")
    shelf.images().remove(found)
    assert {p.name: p.read_text() for p in folder.iterdir()} == {
        "_paged_ops.so": "compiled by the user's own",
        "my-own": "mine",
    }


def test_a_home_that_cannot_be_written_to_is_reported_in_a_sentence(shelf: Shelf, tree_layer: Layer) -> None:
    shelf.push(tree_layer)
    (shelf.user_home / ".cache").write_text("a file")
    with pytest.raises(JobFailed) as caught:
        shelf.build()
    assert caught.value.failure.code == "cannot_place"
    assert ".cache/vllm-metal/_paged_ops.so" in caught.value.failure.message


def test_a_mirror_is_asked_first_and_passed_over_when_it_fails(
    shelf: Shelf, tree_layer: Layer, make_doorway: Callable[[], Doorway]
) -> None:
    published = shelf.push(tree_layer)
    mirror = make_doorway()
    named = {shelf.doorway.host: RegistrySettings(mirrors=(mirror.host,))}
    shelf.build(shelf.images(registries=named))
    assert published.layers[0] in [told.path.rpartition("/")[2] for told in mirror.asked("/blobs/")]
    assert shelf.doorway.told == []
    shutil.rmtree(shelf.home)
    mirror.wrong[published.layers[0]] = Wrong(status=404)
    shelf.build(shelf.images(registries=named))
    assert shelf.blobs_asked() == published.layers


def test_nothing_is_believed_of_an_attempt_that_was_killed(
    shelf: Shelf, tree_layer: Layer, heavy_layer: Layer, programs: Path
) -> None:
    published = shelf.push(tree_layer, heavy_layer)
    shelf.doorway.wrong[published.layers[1]] = Wrong(rate=400_000)
    program = [programs / "install_image_process.py", shelf.home, shelf.user_home, shelf.source.reference]
    with subprocess.Popen([sys.executable, *program], stdout=subprocess.PIPE, text=True) as process:  # type: ignore[list-item]
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) > published.size - 700_000:
                process.send_signal(signal.SIGKILL)
                break
    images = shelf.images()
    assert len(images.installed.sweep()) == 1
    assert shelf.left_behind() == []
    shelf.doorway.wrong.clear()
    shelf.doorway.told.clear()
    first_is_here = shelf.has(published.layers[0])
    shelf.build(images)
    (told,) = shelf.doorway.asked(published.layers[1])
    assert told.headers["Range"].startswith("bytes=")
    assert (published.layers[0] in shelf.blobs_asked()) is not first_is_here
