"""What is public is a list: said by the packages, described in docs/embedding.md, cheap to import."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("greenroom.actors", "greenroom.runner")
PAGE = (ROOT / "docs" / "embedding.md").read_text()
LISTS = PAGE.partition("## What is public")[2]


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def section(package: str) -> str:
    return LISTS.partition(f"### {package}\n")[2].partition("\n### ")[0]


def test_the_page_lists_exactly_what_the_package_says_is_public(package: ModuleType) -> None:
    rows = [line for line in section(package.__name__).splitlines() if line.startswith("| ")]
    described = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(described) == len(set(described))
    assert sorted(described) == sorted(package.__all__)


def test_the_stub_that_type_checkers_read_says_where_each_name_is(package: ModuleType) -> None:
    assert package.__file__ is not None
    stub = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text())
    found = {}
    for node in stub.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "it is public only as itself"
            found[alias.name] = getattr(importlib.import_module(node.module or ""), alias.name)
    assert found == {name: getattr(package, name) for name in package.__all__}


def test_every_public_name_is_there_and_explains_itself(package: ModuleType) -> None:
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name


def test_completion_offers_public_names_and_modules_alone(package: ModuleType) -> None:
    offered = [name for name in dir(package) if not name.startswith("__")]
    modules = {name for name in offered if f"{package.__name__}.{name}" in sys.modules}
    assert {*offered} == {*package.__all__} | modules


def test_every_public_module_is_there(package: ModuleType) -> None:
    text = section(package.__name__).partition("Modules:")[2]
    modules = re.findall(r"`(greenroom[\w.]+)`", text)
    assert modules
    for name in modules:
        assert importlib.import_module(name).__doc__


def test_what_is_not_public_is_not_found(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Manager'"):
        _ = package.Manager


def test_the_page_names_nothing_that_is_not_there() -> None:
    """Its programs import only what is public."""
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        for source, names in re.findall(r"from (greenroom\.\w+) import ([\w, ]+)", block):
            assert set(names.replace(" ", "").split(",")) <= set(importlib.import_module(source).__all__)


def python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_a_package_imports_nothing_else() -> None:
    loaded = set(python("import sys, greenroom.actors, greenroom.runner; print(*sys.modules)").split())
    ours = {name for name in loaded if name.startswith("greenroom.")}
    assert ours == set(PACKAGES)
    assert not loaded & {"msgspec", "pykka", "aiohttp", "sqlite3", "typing", "re", "pkgutil"}


@pytest.mark.parametrize(
    ("program", "libraries", "left_out"),
    [
        ("from greenroom.actors import ActorSystem, Event, SqliteJournal", {"msgspec", "pykka"}, "runner"),
        ("from greenroom import GreenroomError, connect", {"msgspec"}, "actors.kernel"),
    ],
)
def test_a_program_imports_no_more_than_it_uses(program: str, libraries: set[str], left_out: str) -> None:
    loaded = json.loads(python(f"{program}; import sys, json; print(json.dumps(list(sys.modules)))"))
    others = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    # The first three are of the interpreter's own set-up; msgspec imports the fourth where it is installed.
    ours = {"__main__", "_distutils_hack", "sitecustomize", "typing_extensions", "greenroom"}
    assert others - ours == libraries
    assert not [name for name in loaded if name.startswith(f"greenroom.{left_out}.")]


def test_importing_everything_public_starts_and_sets_up_nothing() -> None:
    program = """
import logging, signal, threading, greenroom.actors, greenroom.runner
before = [signal.getsignal(number) for number in signal.valid_signals()]
for package in (greenroom.actors, greenroom.runner):
    for name in package.__all__:
        getattr(package, name)
assert [signal.getsignal(number) for number in signal.valid_signals()] == before
assert threading.enumerate() == [threading.main_thread()]
assert not logging.getLogger().handlers
"""
    python(program)


def test_the_program_of_the_page_with_actors_runs_as_it_stands(tmp_path: Path) -> None:
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    first = next(one for one in programs if "allowance.db" in one)
    program = first.replace('"allowance.db"', repr(str(tmp_path / "allowance.db")))
    assert [python(program).strip() for _ in range(2)] == ["60", "20"]
