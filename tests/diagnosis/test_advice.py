"""What Greenroom advises can be followed: every command it names is one, with options and settings it has.

`Script.why` in `conftest.py` has the command line read every command of every answer in these tests.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from advice import parsed, problem_with
from greenroom.runner.cli.main import CommandGroup, greenroom

ROOT = Path(__file__).parents[2]
_ADVISED = re.compile(r"(?<![\w./-])greenroom ([a-z][a-z-]*)((?: --[a-z][a-z-]*)*)")


def advised() -> Iterator[tuple[str, str, list[str]]]:
    """Where a command of ours stands in a string, the command, and its options."""
    for path in sorted(ROOT.glob("*/greenroom/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for found in _ADVISED.finditer(node.value):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", found[1], found[2].split()


def test_every_command_that_a_message_names_is_one_and_has_those_options() -> None:
    assert isinstance(greenroom, CommandGroup)
    context = click.Context(greenroom)
    wrong = []
    count = 0
    for where, name, options in advised():
        command = greenroom.get_command(context, name)
        if command is None:
            wrong.append(f"{where}: greenroom {name}")
            continue
        count += 1
        known = {option for one in command.params for option in one.opts}
        wrong += [f"{where}: greenroom {name} {one}" for one in options if one not in known]
    assert not wrong, "\n".join(wrong)
    assert count > 50


@pytest.mark.parametrize(
    "command",
    ["greenroom serv", "greenroom ps --everything", "GREENROOM_BUDGET=4GB greenroom serve", "rm -r x"],
)
def test_a_command_that_is_none_would_be_noticed(command: str) -> None:
    assert problem_with(command)
    parsed(["requests", "show", "r-0a1b2c3d-1"])
