"""Prints every string people read, to be read aloud: log, why, help, errors.

python tests/strings.py [log] [why] [help] [errors]
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
sys.path[:0] = [str(TESTS / "shared"), str(TESTS / "diagnosis")]

_TELLING = frozenset(
    {
        "Problem",
        "GreenroomError",
        "NotAvailable",
        "Refusal",
        "NotInstalled",
        "refuse",
        "Failure",
        "UsageError",
        "BadParameter",
    }
)
"""Calls whose sentences reach people; so do those of every exception."""


def log() -> Iterator[str]:
    """An example of each event."""
    from greenroom.runner.diagnosis.explain import explain  # noqa: F401 - brings every event along
    from greenroom.runner.diagnosis.sentences import Narrator

    from test_sentences import EVENT_TYPES, example, tell  # type: ignore[import-not-found]  # isort: skip

    for kind in EVENT_TYPES:
        yield f"{kind.TAG:<26} {tell(Narrator(), example(kind))}"


def why() -> Iterator[str]:
    """Each answer that a test of diagnosis asks for."""
    from greenroom.runner.diagnosis import explain

    told: dict[tuple[str, str, str], str] = {}
    answer = explain.answer

    def noting(*arguments: Any, **more: Any) -> Any:
        found = answer(*arguments, **more)
        told.setdefault((found.kind, found.state, found.cause), found.text(arguments[2]))
        return found

    explain.answer = noting
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["-q", "-p", "no:cacheprovider", str(TESTS / "diagnosis"), "-k", "why"])
    for (kind, state, cause), text in sorted(told.items()):
        yield f"== {kind}: {state}, {cause}\n{text}\n"


def help_() -> Iterator[str]:
    """The help of each command."""
    from greenroom.runner.cli.main import greenroom

    def texts(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
        ctx = click.Context(command, info_name=name, parent=parent, max_content_width=100)
        yield f"{command.get_help(ctx)}\n"
        if isinstance(command, click.Group):
            for inner in command.list_commands(ctx):
                found = command.get_command(ctx, inner)
                assert found is not None
                yield from texts(found, inner, ctx)

    yield from texts(greenroom, "greenroom", None)


def errors() -> Iterator[str]:
    """The sentences of refusals, failures and exceptions, as they stand in the source."""
    for path in sorted(ROOT.glob("*/greenroom/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _name(node.func) in _TELLING:
                told = [*node.args, *(one.value for one in node.keywords)]
            elif (
                isinstance(node, ast.Raise)
                and isinstance(node.exc, ast.Call)
                and _name(node.exc.func) not in _TELLING
            ):
                told = [*node.exc.args]
            else:
                continue
            for text in (one for one in map(_text, told) if " " in one):
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {text}"


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _text(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(_text, parts))
        case ast.FormattedValue(value=value):
            return f"{{{ast.unparse(value)}}}"
        case _:
            return ""


if __name__ == "__main__":
    os.environ["TZ"] = "UTC"
    parts = {"log": log, "why": why, "help": help_, "errors": errors}
    for name in sys.argv[1:] or parts:
        print(f"\n######## {name}\n")
        for line in parts[name]():
            print(line)
