"""The pages of the documentation: their fenced blocks, links and headings.

A comment directly above a block says what it cannot say itself:

    <!-- not run: REASON -->                 no test can run it; its syntax, commands and flags are checked
    <!-- first: COMMANDS -->                 run before it, in the same shell or program
    <!-- last: COMMANDS -->                  run after it (not in sessions)
    <!-- settings: NAME=VALUE … -->          a session with a daemon of its own that has these settings
    <!-- machine: NAME -->                   `greenroom devices` on a machine of tests/devices/machines
    <!-- clone -->                           a session in a fresh clone, with the real engine and model (slow)
    <!-- slow -->                            it takes seconds of a processor; `make test-slow` runs it
    <!-- client: GROUP -->                   it needs packages of clients.toml; `make test-clients` runs it
    <!-- in any order -->                    lines of a session that come in no fixed order
    <!-- from: FILE -->                      lines of a file that other tests run
    <!-- of: FILE -->                        a file of another program; it is parsed
    <!-- body: METHOD /path -->              what a client sends there
    <!-- answer: STATUS METHOD /path -->     what it is answered
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTES = frozenset(
    (
        "not run",
        "first",
        "last",
        "settings",
        "machine",
        "clone",
        "slow",
        "client",
        "in any order",
        "from",
        "of",
        "body",
        "answer",
    )
)
PAGES = tuple(
    str(path.relative_to(ROOT))
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *sorted(ROOT.glob("docs/*.md")),
    )
)
_FENCE = re.compile(r"^```(?P<kind>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_ABOVE = re.compile(r"(?:^<!--(?:(?!-->).)*-->\s*)+\Z", re.MULTILINE | re.DOTALL)
_NOTE = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Block:
    """A fenced block, and what the comments above it say."""

    page: str
    line: int
    kind: str
    text: str
    notes: dict[str, str]

    @property
    def place(self) -> str:
        """Where it begins, as editors understand it."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a session, and the lines that the page shows below it."""

    text: str
    shown: tuple[str, ...]


class Page:
    """A page as it is in the repository."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (ROOT / name).read_text("utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        """Its fenced blocks."""
        return [self._block(match) for match in _FENCE.finditer(self.text)]

    def _block(self, match: re.Match[str]) -> Block:
        before = self.text[: match.start()]
        above = _ABOVE.search(before)
        notes = {}
        for note in _NOTE.findall(above[0]) if above else ():
            word, _, rest = note.partition(":")
            if word in NOTES:
                notes[word] = rest.strip()
        return Block(self.name, before.count("\n") + 1, match["kind"], match["text"], notes)

    @cached_property
    def prose(self) -> str:
        """All but the blocks and the comments."""
        return re.sub(r"<!--.*?-->", "", _FENCE.sub("", self.text), flags=re.DOTALL)

    @property
    def links(self) -> list[str]:
        """The targets of its links."""
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)

    @property
    def anchors(self) -> set[str]:
        """What links may name behind `#`: GitHub makes it of a heading."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def replace(self, changed: dict[Block, str]) -> None:
        """Give blocks other texts, in the file."""
        texts = {block.line: text for block, text in changed.items()}

        def renewed(match: re.Match[str]) -> str:
            line = self.text[: match.start()].count("\n") + 1
            return f"```{match['kind']}\n{texts.get(line, match['text'])}```"

        (ROOT / self.name).write_text(_FENCE.sub(renewed, self.text), "utf-8")


def every_block() -> list[Block]:
    """Of every page."""
    return [block for name in PAGES for block in Page(name).blocks]


def commands(block: Block) -> list[Command]:
    """Those of a session."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif not found:
            raise ValueError(f"{block.place}: a session begins with a command: `$ greenroom …`")
        elif found[-1][0].endswith("\\") and not found[-1][1]:
            found[-1] = (f"{found[-1][0]}\n{line.removeprefix('> ')}", [])
        else:
            found[-1][1].append(line)
    return [Command(text, tuple(shown)) for text, shown in found]
