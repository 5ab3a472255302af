"""The answer to `why`: the state, its cause, the numbers that decided, and what would change it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from greenroom.runner.diagnosis.times import clock

Kind = Literal[
    "model",
    "backend",
    "engine",
    "request",
    "event",
    "job",
    "client",
    "daemon",
    "queue",
    "memory",
    "devices",
    "requests",
    "overview",
]

FIRST, LAST = 4, 14
"""Steps shown of a long chain."""
_WORDS = 12
"""Lines shown of a program's output."""
_MARGIN = "  | "
WIDTH = 110
"""Characters of a line where there is no terminal."""


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    seq: int
    at: float
    event: str
    """`stream/version`."""
    type: str
    text: str = ""
    """The event as a sentence; `explain` fills it in."""
    cause: str = ""


class Words(msgspec.Struct, frozen=True, kw_only=True):
    of: str
    """Heading: which program's output."""
    lines: tuple[str, ...]


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """A command that would change it."""

    aim: str
    """Such as `To load it again`."""
    command: str


class Explanation(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Why something is as it is, or why an engine stopped.

    `why_*` and `stop_reasons` make it; `explain` adds the name, puts the steps in order and words them.
    """

    name: str = ""
    """The name people use for it."""
    kind: Kind | Literal[""] = ""
    id: str = ""
    """The model's, engine's or request's id; the backend's name."""
    state: str = ""
    """In one word: `loaded`, `loading`, `unloaded`, `failed`, `refused`, `installed`, `absent`, …"""
    cause: str = ""
    """In one word, why: `idle`, `room`, `does_not_fit`, `hash_mismatch`, …"""
    answer: str = ""
    """In a sentence or two."""
    numbers: dict[str, float] = {}
    """What decided: bytes, seconds, counts, wall-clock seconds (`until`, `retry_at`)."""
    also: tuple[str, ...] = ()
    """Sentences that answer the next questions."""
    steps: tuple[Step, ...] = ()
    """The events that led to it, in order."""
    left_out: int = 0
    """Steps left out of the middle."""
    words: tuple[Words, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    notices: tuple[str, ...] = ()
    """What makes this less than certain."""
    as_of: float = 0.0
    """When the last event of the journal was stored."""

    def text(self, now: float, *, width: int = WIDTH) -> str:
        """Plain text, in lines of at most `width` characters."""
        parts = ["\n".join(_wrapped(self.answer, width))]
        if self.also:
            parts.append("\n".join(line for one in self.also for line in _wrapped(one, width)))
        # A single step only repeats the answer.
        if len(self.steps) > 1:
            parts.append("\n".join(["What happened:", *self._told_steps(now, width)]))
        parts += ["\n".join(_told_words(one, width)) for one in self.words]
        if self.notices:
            parts.append("\n".join(line for one in self.notices for line in _wrapped(f"Note: {one}", width)))
        if self.remedies:
            column = max(len(one.aim) for one in self.remedies) + 1
            parts.append("\n".join(f"{one.aim + ':':<{column}} {one.command}" for one in self.remedies))
        return "\n\n".join(parts)

    def _told_steps(self, now: float, width: int) -> Iterator[str]:
        times = [clock(one.at, now) for one in self.steps]
        column = max(len(one) for one in times)
        margin = " " * (column + 4)
        for number, (at, step) in enumerate(zip(times, self.steps, strict=True)):
            if self.left_out and number == FIRST:
                yield f"{margin}… {self.left_out} more …"
            lines = textwrap.wrap(step.text, width - len(margin)) or [""]
            yield f"  {at:<{column}}  {lines[0]}"
            yield from (margin + line for line in lines[1:])


def _told_words(said: Words, width: int) -> Iterator[str]:
    shown = said.lines[-_WORDS:]
    part = f" (the last {len(shown)} of {len(said.lines)} lines)" if len(shown) < len(said.lines) else ""
    yield f"{said.of}{part}:"
    for line in shown:
        cut = textwrap.wrap(line, max(20, width - len(_MARGIN)), drop_whitespace=False) or [""]
        yield from (f"{_MARGIN}{part}" for part in cut)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of a sentence, which may be an item of a list."""
    indent = "  " if text.startswith("- ") else ""
    lines = textwrap.wrap(
        text, width, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent
    )
    return lines or [""]


def tool_output(detail: str) -> tuple[Words, ...]:
    """The raw output of a tool that failed."""
    lines = tuple(detail.strip().splitlines())
    return (Words(of="Output of the tool", lines=lines),) if lines else ()


def full_stop(text: str) -> str:
    """With a full stop at its end: reasons come with and without."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def listed(names: Iterable[str], word: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def counted(number: int, what: str) -> str:
    """`1 engine`, `2 engines`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
