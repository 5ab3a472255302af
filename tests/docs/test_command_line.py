"""Commands and flags in the pages are those of the command line, and docs/cli.md has all of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from greenroom.runner.cli.main import ALIASES, COMMANDS, greenroom
from pages import PAGES, Page

CLI = Page("docs/cli.md")
EVERYWHERE = {"--help"}
HINTS = {"top"}
"""What a page shows as a command of other runners."""
_SHELL = re.compile(r"\s*(?:&&|\|\||[|;>]|\s#\s)\s*")
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


def flags_of(command: click.Command) -> set[str]:
    return {
        flag for one in command.params for flag in (*one.opts, *one.secondary_opts) if flag.startswith("-")
    }


def every_command() -> Iterator[tuple[str, click.Command]]:
    """By the words that call it."""
    context = click.Context(greenroom)
    for name in COMMANDS:
        command = greenroom.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", found) for inner, found in command.commands.items())


TABLE = dict(every_command())


def written(name: str) -> Iterator[str]:
    """The commands in a page's text, and in its blocks."""
    page = Page(name)
    yield from (code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", page.prose))
    for block in page.blocks:
        if block.kind in ("sh", "console"):
            yield from block.text.replace("\\\n", " ").replace("\n$ ", "\n").removeprefix("$ ").splitlines()


def called(name: str) -> Iterator[list[str]]:
    """The words of each call of `greenroom` in a page."""
    for line in written(name):
        for part in _SHELL.split(line):
            try:
                words = shlex.split(part)
            except ValueError:  # prose with an apostrophe
                words = part.split()
            while words and _ASSIGNMENT.fullmatch(words[0]):
                del words[0]
            if len(words) > 1 and words[0].rpartition("/")[2] == "greenroom":
                yield words[1:]


def wrong(words: list[str]) -> str:
    """What the command line would say; empty if it understands them."""
    if words[0] in HINTS:
        return ""
    own = flags_of(greenroom)
    while words and words[0].partition("=")[0] in own:
        del words[: 1 if "=" in words[0] or words[0] in ("--version", "-v", "--help", "-h") else 2]
    if not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]):
        return ""
    name = ALIASES.get(words[0], words[0])
    if name not in TABLE:
        return f"there is no command {words[0]!r}"
    command = TABLE[name]
    if isinstance(command, click.Group) and f"{name} {' '.join(words[1:2])}" in TABLE:
        command = TABLE[f"{name} {words[1]}"]
    known = flags_of(command) | EVERYWHERE
    flags = [word.partition("=")[0] for word in words[1 : words.index("--") if "--" in words else None]]
    unknown = [one for one in flags if re.fullmatch(r"--?[a-z][a-z-]*", one) and one not in known]
    return f"{name} has no {', '.join(unknown)}" if unknown else ""


@pytest.mark.parametrize("name", PAGES)
def test_commands_in_a_page_exist_with_their_flags(name: str) -> None:
    mistakes = [f"greenroom {' '.join(words)}: {said}" for words in called(name) if (said := wrong([*words]))]
    assert not mistakes, f"{name}:\n" + "\n".join(mistakes)


def described(name: str) -> str:
    """What docs/cli.md says of a command: its row, what holds for all rows there, a chapter of its own."""
    rows = rf"^\| (?:`[^`]*`, )?`{name}(?: [^`]*)?`.*$"
    found = [
        chapter
        for chapter in re.split(r"^(?=##)", CLI.prose, flags=re.MULTILINE)
        if re.search(rows, chapter, re.MULTILINE)
    ]
    assert found, f"docs/cli.md has no row for {name}"
    shared = re.sub(r"^\|.*$", "", found[0], flags=re.MULTILINE)
    own = re.findall(rf"^### {name.capitalize()}\n((?:(?!^##).*\n)*)", CLI.prose, re.MULTILINE)
    return "\n".join([*re.findall(rows, found[0], re.MULTILINE), shared, *own])


@pytest.mark.parametrize("name", TABLE)
def test_every_flag_of_a_command_is_described(name: str) -> None:
    first, _, inner = name.partition(" ")
    text = described(first)
    assert not inner or inner in text, f"docs/cli.md does not name {inner!r} of {first!r}"
    told = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))
    left_out = [
        " or ".join(flags)
        for one in TABLE[name].params
        if isinstance(one, click.Option) and not one.hidden
        if (flags := {*one.opts, *one.secondary_opts}) and not flags & (told | EVERYWHERE)
    ]
    assert not left_out, f"docs/cli.md does not describe {', '.join(left_out)} of greenroom {name}"
