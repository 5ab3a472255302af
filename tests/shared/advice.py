"""Whether a command that is advised is one that there is, with options and settings that it has."""

from __future__ import annotations

import shlex
from typing import Any

import click

from greenroom.runner.cli.main import greenroom
from greenroom.runner.config import BadSetting, load
from greenroom.runner.home import HomeUnusable


def problem_with(command: str) -> str:
    """Why a command cannot be followed as it is written; empty if it can."""
    for part in command.split(" && "):
        words = shlex.split(part)
        variables: dict[str, str] = {}
        while words and "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            variables[name] = value
        try:
            read = load({}, environment=variables)
            unread = [one for one in variables if f"environment {one}" not in read.origins.values()]
            if unread:
                return f"{command}: {unread[0]} is no setting"
            if words[:1] == ["greenroom"]:
                parsed(words[1:])
            elif words[:1] != ["kill"]:
                return f"{command}: {words[:1]} is not a program of ours"
        except (click.UsageError, BadSetting, HomeUnusable) as error:
            return f"{command}: {error}"
    return ""


def parsed(words: list[str]) -> None:
    """Have the command line read them, and do nothing. Raises click.UsageError."""
    found: Any = greenroom
    name: str | None = "greenroom"
    context = click.Context(greenroom, info_name="greenroom")
    while isinstance(found, click.Group) and words:
        name, found, words = found.resolve_command(context, words)
        assert found is not None
        if isinstance(found, click.Group):
            context = click.Context(found, parent=context, info_name=name)
    found.make_context(name, list(words), parent=context)
