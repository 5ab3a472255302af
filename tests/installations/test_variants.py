"""Variants from indexes of their own: which build is fetched, and what does not compute is not installed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder_reports import BuilderReports
from greenroom.actors.installer.effects import BuildInstallation
from greenroom.runner.backends.base import Environment, Platform
from greenroom.runner.backends.llama_cpp import LlamaCpp
from greenroom.runner.backends.variants import Variant
from greenroom.runner.installations import archive
from greenroom.runner.installations.builder import Builder
from greenroom.runner.installations.installed import InstallationStore
from greenroom.runner.installations.lock_file import LockedPackage, render
from package_index import Index
from stand_in_xllamacpp import SAID, module

HERE = Platform.here()
_TAG = "py3-none-any"


class Shop:
    """The usual package index with the processor's build, and an index of its own for each variant."""

    def __init__(self, folder: Path, usual: Index, make_index: Callable[[], Index]) -> None:
        self.usual, self._make_index = usual, make_index
        file = usual.add("xllamacpp", "1.0", module("cpu", on_device=False), _TAG)
        lock = folder / "lock-llama.cpp"
        lock.with_name(lock.name + ".txt").write_text(
            render([LockedPackage("xllamacpp", "1.0", "", (file,))], ["for tests"])
        )
        declared = LlamaCpp.source
        assert isinstance(declared, Environment)
        self.source = replace(declared, lock=str(lock))
        self.indexes: dict[str, Index] = {}

    def stock(self, variant: str, fault: str = "", version: str = "1.0", **more: Any) -> Index:
        index = self.indexes.setdefault(variant, self._make_index())
        index.add("xllamacpp", version, module(variant, fault, **more), _TAG)
        return index

    def backend(self) -> LlamaCpp:
        def source(variant: str) -> Environment:
            url = f"{self.indexes[variant].url}/simple/"
            return replace(self.source, lock=f"none-{variant}", on_device=True, own_index=url)

        machines = ((HERE.system, HERE.machine),)
        declared = tuple(
            Variant(name, name, "cuda", machines=machines, source=source(name)) for name in self.indexes
        )
        made = LlamaCpp()
        made.source = self.source  # type: ignore[misc]
        made.variants = (*declared, Variant("cpu", "the processor", machines=machines))  # type: ignore[misc, assignment]
        return made


@pytest.fixture
def shop(tmp_path: Path, index: Index, make_index: Callable[[], Index]) -> Shop:
    return Shop(tmp_path, index, make_index)


@pytest.fixture
def install(
    shop: Shop, make_builder: Callable[..., Builder], heard: BuilderReports
) -> Callable[..., tuple[Any, ...]]:
    """Builds a variant and returns what was reported."""
    made: list[Builder] = []

    def build(variant: str, version: str = "", *, digest: str = "") -> tuple[Any, ...]:
        if not made:
            made.append(make_builder(backends={"llama.cpp": shop.backend()}))
            heard.listen("llama.cpp")
        job = f"llama.cpp.{variant or 'usual'}.{version}.{digest[:4]}"
        made[0].start(
            BuildInstallation(
                job=job,
                backend="llama.cpp",
                variant=variant,
                version=version,
                attempt=1,
                repair=False,
                digest=digest,
            )
        )
        reported: tuple[Any, ...] = heard.next()
        return reported

    return build


def text_of(home: Path, installation: Any) -> str:
    (file,) = (home / "backends/llama.cpp" / installation.id).glob(
        "env/lib/*/site-packages/xllamacpp/__init__.py"
    )
    text: str = file.read_text()
    return text


def test_a_variant_comes_from_its_own_index_although_the_usual_one_has_its_name_too(
    shop: Shop, install: Callable[..., tuple[Any, ...]], tmp_path: Path
) -> None:
    shop.stock("cu128")
    shop.usual.add("xllamacpp", "1.1", module("cpu", on_device=False), _TAG)
    kind, _, made = install("cu128")
    assert (kind, made.variant, made.version) == ("committed", "cu128", "1.0"), "the tested version"
    assert made.id.startswith("cu128-1.0-")
    assert "VARIANT, FAULT, SAID, LISTED = 'cu128'" in text_of(tmp_path / "home", made)
    kind, _, usual = install("")
    assert (kind, usual.variant, usual.version) == ("committed", "", "1.0")
    assert "'cpu'" in text_of(tmp_path / "home", usual)


@pytest.mark.parametrize("fault", SAID)
def test_what_does_not_compute_is_not_installed_and_says_why(
    fault: str, shop: Shop, install: Callable[..., tuple[Any, ...]], tmp_path: Path
) -> None:
    shop.stock("cu128", fault)
    kind, _, failure = install("cu128")
    assert (kind, failure.code, failure.kind) == ("failed", fault, "permanent")
    assert failure.message.startswith("llama.cpp cu128 was installed but does not compute here")
    assert failure.advice
    assert SAID[fault] in failure.detail
    assert not list((tmp_path / "home/backends/llama.cpp").glob("cu128*"))


def test_the_processors_build_must_compute_too(
    shop: Shop, install: Callable[..., tuple[Any, ...]], tmp_path: Path
) -> None:
    shop.stock("cu128")
    broken = shop.usual.add("xllamacpp", "1.2", module("cpu", "does_not_compute"), _TAG)
    Path(f"{shop.source.lock}.txt").write_text(
        render([LockedPackage("xllamacpp", "1.2", "", (broken,))], ["for tests"])
    )
    kind, _, failure = install("")
    assert (kind, failure.code) == ("failed", "does_not_compute")
    assert "GGML_ASSERT(buffer) failed" in failure.message


def test_another_build_under_the_same_version_is_refused_once_one_was_recorded(
    shop: Shop, install: Callable[..., tuple[Any, ...]]
) -> None:
    index = shop.stock("cu128")
    _, _, made = install("cu128")
    kind, _, again = install("cu128", digest=made.digest)
    assert (kind, again.digest) == ("committed", made.digest)
    index.wheels["xllamacpp"].clear()
    shop.stock("cu128", "no_kernel")
    kind, _, failure = install("cu128", digest=made.digest)
    assert (kind, failure.code) == ("failed", "hash_mismatch")
    assert "is not what was installed before" in failure.message


def test_a_version_that_the_variants_index_does_not_have_is_not_taken_from_another(
    shop: Shop, install: Callable[..., tuple[Any, ...]]
) -> None:
    shop.stock("cu128", version="0.9")
    kind, _, failure = install("cu128")
    assert (kind, failure.code) == ("failed", "no_such_version")
    kind, _, made = install("cu128", "latest")
    assert (kind, made.version) == ("committed", "0.9")


def test_an_exported_variant_is_a_variant_where_it_is_imported(
    shop: Shop, install: Callable[..., tuple[Any, ...]], tmp_path: Path
) -> None:
    shop.stock("cu128")
    _, _, made = install("cu128")
    home = tmp_path / "home"
    (record,) = InstallationStore(home).records()
    with (tmp_path / "cu128.tar").open("wb") as out:
        archive.write(home, record, "xllamacpp", out)
    with (tmp_path / "cu128.tar").open("rb") as source:
        manifest = archive.read(tmp_path / "elsewhere", source)
    assert (manifest.variant, manifest.version) == ("cu128", made.version)
    kept = archive.kept_lock(tmp_path / "elsewhere", "xllamacpp-cu128", made.version)
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == made.digest
    assert not archive.kept_lock(tmp_path / "elsewhere", "xllamacpp", made.version).exists()
