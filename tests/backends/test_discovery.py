"""Backends of other distributions: found when they are wanted, and never a reason not to start."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.backends.base import Backend, CommandLine, Environment, Launch, Platform
from greenroom.runner.backends.discovery import OWN, Catalog

ENVIRONMENT = Environment(distribution="x", lock="x", probe=(), requirements=("x",))


class Good(Backend):
    """Breaks no rule."""

    name = "good"
    title = "for tests"
    formats = ("gguf",)
    modes = ("completion",)
    preference = install_preference = 90
    source = ENVIRONMENT

    def verdict(self, platform: Platform) -> str:
        return ""

    def command(self, launch: Launch) -> CommandLine:
        return CommandLine(argv=())


class Raising(Good):
    def verdict(self, platform: Platform) -> str:
        raise RuntimeError("what\n a mess")


def entry(loaded: Any, name: str = "good") -> EntryPoint:
    class Loaded(EntryPoint):
        def load(self) -> Any:
            return loaded

    return Loaded(name, "distribution:Thing", "greenroom.backends")


def changed(**attributes: Any) -> type[Backend]:
    return type("Changed", (Good,), attributes)


def test_our_backends_come_first_and_those_of_other_packages_after_them() -> None:
    catalog = Catalog(OWN.values(), [entry(Good)])
    assert list(catalog) == [*OWN, "good"]
    assert isinstance(catalog["good"], Good)
    assert len(catalog) == len(OWN) + 1
    assert catalog.problems == ()


def test_an_instance_serves_as_well_as_a_class() -> None:
    made = Good()
    assert Catalog([], [entry(made)])["good"] is made


def test_our_backends_are_found_without_reading_any_distribution() -> None:
    def explode() -> Any:
        raise AssertionError("discovery ran")
        yield

    catalog = Catalog(OWN.values(), explode())
    assert catalog["mlx"] is OWN["mlx"]
    with pytest.raises(AssertionError, match="discovery ran"):
        list(catalog)


def test_importing_the_catalogue_looks_at_no_distribution() -> None:
    program = (
        "import sys; from greenroom.runner.backends.discovery import BACKENDS;"
        "BACKENDS['mlx']; sys.exit('importlib.metadata' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize(
    ("loaded", "told"),
    [
        (object(), "distribution:Thing is not a Backend"),
        (str, "distribution:Thing is not a Backend"),
        (changed(name="other"), "it calls itself 'other'"),
        (
            type("Half", (Backend,), {"verdict": Good.verdict}),
            "TypeError: Can't instantiate abstract class Half",
        ),
        (type("Bare", (Backend,), {"verdict": Good.verdict, "command": Good.command}), "it declares no name"),
        (changed(formats=("gguf", "onnx")), "it has unknown formats or modes: onnx"),
        (changed(modes=()), "it has unknown formats or modes: none"),
        (changed(source="pip install it"), "its source is neither an Environment nor an Image"),
        (changed(verdict=lambda self, platform: None), "its verdict is not text"),
        (Raising, "RuntimeError: what a mess"),
    ],
)
def test_what_breaks_a_rule_is_left_out_with_a_sentence(loaded: Any, told: str) -> None:
    catalog = Catalog(OWN.values(), [entry(loaded)])
    assert list(catalog) == list(OWN)
    (problem,) = catalog.problems
    assert problem.startswith(f"The backend 'good' of distribution:Thing is ignored: {told}")
    assert problem.endswith(".")
    with pytest.raises(KeyError):
        catalog["good"]


@pytest.mark.parametrize("name", ["v1", "status", "Upper", "a b", "../x", "a..b", ""])
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    (problem,) = Catalog([], [entry(changed(name=name), name)]).problems
    assert "is not a valid backend name" in problem


def test_no_backend_takes_the_name_of_another() -> None:
    catalog = Catalog(
        OWN.values(), [entry(changed(name="mlx"), "mlx"), entry(Good), entry(changed(title="2"))]
    )
    assert catalog["mlx"] is OWN["mlx"]
    assert catalog["good"].title == "for tests"
    assert ["there is already a backend of that name" in one for one in catalog.problems] == [True, True]


def test_a_distribution_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    info = tmp_path / "broken_backend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-backend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[greenroom.backends]\nbroken = nowhere_to_be_found:Thing\n")
    program = (
        "from greenroom.runner.backends.discovery import BACKENDS;"
        "print(BACKENDS.problems[-1]); print(list(BACKENDS)[:2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(tmp_path)!r}); {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    problem, first = done.stdout.splitlines()
    assert problem == (
        "The backend 'broken' of broken-backend 1.0 is ignored: "
        "ModuleNotFoundError: No module named 'nowhere_to_be_found'."
    )
    assert first == "['llama.cpp', 'mlx']"
