"""A package index on loopback with a program to install, and installers that use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner import Installer
from hello_package import add_hello
from package_index import Index, serving

MakeInstaller = Callable[..., Installer]


@pytest.fixture
def index() -> Iterator[Index]:
    with serving() as found:
        add_hello(found)
        found.add("friend", "3.1", {"friend.py": b""})
        yield found


@pytest.fixture
def source(index: Index) -> dict[str, Any]:
    """The arguments by which `ensure` uses this index and no other."""
    return {"index": f"{index.url}/simple"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "envs"


@pytest.fixture
def open_installer(home: Path) -> Iterator[MakeInstaller]:
    """Opens installers of the same folder; what is still open at the end is closed."""
    made: list[Installer] = []

    def make(**options: Any) -> Installer:
        installer = Installer(home, **options).__enter__()
        made.append(installer)
        return installer

    yield make
    for one in made:
        one.close()


@pytest.fixture
def installer(open_installer: MakeInstaller) -> Installer:
    return open_installer()
