"""The misbehaving package index, and backends that are installed from it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from builder_reports import BuilderReports
from greenroom.actors.values import Installation
from greenroom.runner.installations.builder import Builder
from greenroom.runner.installations.environment import Environments
from greenroom.runner.installations.lock_file import LockedPackage, render
from package_index import Index, Misbehaviour, serving
from toys import Toy, toy_of


@pytest.fixture
def make_index() -> Iterator[Callable[[], Index]]:
    """Makes further indexes."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(serving())


@pytest.fixture
def index(make_index: Callable[[], Index]) -> Index:
    """An index without wheels."""
    return make_index()


@pytest.fixture
def misbehave() -> type[Misbehaviour]:
    """Makes misbehaviours."""
    return Misbehaviour


@pytest.fixture
def noise() -> Callable[..., bytes]:
    """Bytes that cannot be compressed, always the same for a seed."""
    return lambda size, seed=1: random.Random(seed).randbytes(size)


@pytest.fixture
def make_toy(index: Index, tmp_path: Path, noise: Callable[..., bytes]) -> Callable[..., Toy]:
    """Puts a backend's wheels on the index and writes its lock."""

    def make(
        name: str = "toy",
        version: str = "1.0",
        *,
        size: int = 200_000,
        body: bytes = b"VALUE = 1\n",
        on: Any = None,
        companion: bool = True,
    ) -> Toy:
        place = on or index
        files = [
            place.add(
                name, version, {f"{name}/__init__.py": body, f"{name}/weights.bin": noise(size, len(name))}
            )
        ]
        packages = [LockedPackage(name, version, "", (files[0],))]
        if companion:
            files.append(place.add("companion", "2.0", {"companion.py": b"HELP = 2\n" * 100}))
            packages.append(LockedPackage("companion", "2.0", "", (files[1],)))
        stem = tmp_path / f"lock-{name}-{version}"
        stem.with_name(stem.name + ".txt").write_text(render(packages, [f"{name} for tests"]))
        return toy_of(name, str(stem), tuple(files))

    return make


@pytest.fixture
def toy(make_toy: Callable[..., Toy]) -> Toy:
    """One such backend."""
    return make_toy()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def environments(home: Path, index: Index) -> Environments:
    return Environments(home, index.sources)


@pytest.fixture
def built(environments: Environments, toy: Toy) -> Installation:
    return environments.build("toy", toy.source, job="install-1")


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a fake program."""

    def write(name: str, text: str) -> Path:
        file = tmp_path / name
        file.write_text(text)
        file.chmod(0o755)
        return file

    return write


@pytest.fixture
def heard() -> BuilderReports:
    return BuilderReports()


@pytest.fixture
def make_builder(tmp_path: Path, heard: BuilderReports, index: Index) -> Iterator[Callable[..., Builder]]:
    made = []

    def make(*toys: Toy, **kwargs: Any) -> Any:
        backends = {toy.backend.name: toy.backend for toy in toys}
        builder = Builder(
            tmp_path / "home",
            heard.tell,
            heard.board,
            **{"backends": backends, "sources": index.sources, **kwargs},
        )
        for name in backends:
            heard.listen(name)
        made.append(builder)
        return builder

    yield make
    for builder in made:
        builder.close()
