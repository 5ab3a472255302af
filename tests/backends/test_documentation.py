"""The page about backends says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from greenroom.runner.backends.discovery import OWN
from greenroom.runner.backends.table import MACHINES, insert, render

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "backends.md"


def test_the_tables_are_those_of_the_declarations() -> None:
    text = PAGE.read_text("utf-8")
    assert text == insert(text), (
        "run: python -m greenroom.runner.backends.table docs/backends.md, and read what has changed"
    )


def test_every_backend_and_every_machine_has_its_place_in_the_tables() -> None:
    tables = render()
    for name in OWN:
        assert len(re.findall(rf"^\| `{re.escape(name)}` \|", tables, re.MULTILINE)) == 2
    for machine in MACHINES:
        assert machine in tables


def test_the_example_is_the_one_that_is_run() -> None:
    text = PAGE.read_text("utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert example == (ROOT / "examples/another_backend/greenroom_parrot/__init__.py").read_text("utf-8")
    (entry,) = re.findall(r"^\[project\.entry-points.*?\n.*\n", text, re.MULTILINE)
    assert entry in (ROOT / "examples/another_backend/pyproject.toml").read_text("utf-8")
