"""The misbehaving package index, and backends that are installed from it."""

from __future__ import annotations

import random
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from greenroom.runner.backends.base import Backend, CommandLine, Environment
from greenroom.runner.installations.lock import LockedFile, LockedPackage, render
from package_index import Index, Misbehaviour, serving


@pytest.fixture
def make_index():
    """Makes further indexes."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(serving())


@pytest.fixture
def index(make_index) -> Index:
    """An index without wheels."""
    return make_index()


@pytest.fixture
def misbehave():
    """Makes misbehaviours."""
    return Misbehaviour


@pytest.fixture
def noise():
    """Bytes that cannot be compressed, always the same for a seed."""
    return lambda size, seed=1: random.Random(seed).randbytes(size)


@dataclass
class Toy:
    """A backend small enough to be installed in a tenth of a second."""

    source: Environment
    files: tuple[LockedFile, ...]
    backend: Backend


@pytest.fixture
def make_toy(index, tmp_path, noise):
    """Puts a backend's wheels on the index and writes its lock."""

    def make(name="toy", version="1.0", *, size=200_000, body=b"VALUE = 1\n", on=None, companion=True) -> Toy:
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


def toy_of(backend_name: str, stem: str, files: tuple[LockedFile, ...]) -> Toy:
    declared = Environment(
        distribution=backend_name, lock=stem, probe=(backend_name,), requirements=(backend_name,)
    )

    class Declared(Backend):
        name = backend_name
        title = "for tests"
        formats = ("gguf",)
        modes = ("completion",)
        preference = install_preference = 1
        source = declared

        def verdict(self, platform) -> str:
            return ""

        def command(self, launch) -> CommandLine:
            return CommandLine(argv=(str(launch.python),))

    return Toy(declared, files, Declared())


@pytest.fixture
def toy(make_toy) -> Toy:
    """One such backend."""
    return make_toy()


@pytest.fixture
def program(tmp_path):
    """Writes a fake program."""

    def write(name: str, text: str) -> Path:
        file = tmp_path / name
        file.write_text(text)
        file.chmod(0o755)
        return file

    return write
