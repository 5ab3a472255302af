"""An answer to `why`: what is the case, because of what, with which numbers, and what would change it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Literal

import msgspec

from greenroom.runner.diagnosis.times import clock

Kind = Literal["model", "backend", "engine", "request", "daemon"]

FIRST, LAST = 4, 14
"""Steps that are shown of a long chain."""
_WORDS = 12
"""Lines shown of what an engine or a tool has said."""
_WIDTH = 110


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of the chain."""

    seq: int
    at: float
    event: str
    """`stream/version`."""
    type: str
    text: str
    cause: str = ""


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """What a program said itself, as it said it."""

    of: str
    """Whose words they are, as a heading."""
    lines: tuple[str, ...]


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """What would change it."""

    aim: str
    """Such as `To load it again`."""
    command: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why something is as it is."""

    name: str
    """What was asked about, as people call it."""
    kind: Kind
    id: str
    """The model's, engine's or request's id; the backend's name."""
    state: str
    """In one word: `loaded`, `loading`, `unloaded`, `failed`, `refused`, `installed`, `absent`, …"""
    cause: str
    """In one word, why: `idle`, `room`, `does_not_fit`, `hash_mismatch`, …"""
    answer: str
    """In a sentence or two."""
    numbers: dict[str, float] = {}
    """What decided: bytes, seconds, counts, wall-clock seconds (`until`, `retry_at`)."""
    also: tuple[str, ...] = ()
    """What one might ask next."""
    steps: tuple[Step, ...] = ()
    """How it came about, in order."""
    left_out: int = 0
    """Steps in the middle that are not among them."""
    words: tuple[Words, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    notices: tuple[str, ...] = ()
    """What makes this less than certain."""
    as_of: float = 0.0
    """When the last event of the journal was stored."""

    def text(self, now: float, *, width: int = _WIDTH) -> str:
        """For people, in lines of at most `width` characters."""
        parts = ["\n".join(_wrapped(self.answer, width))]
        if self.also:
            parts.append("\n".join(line for one in self.also for line in _wrapped(one, width)))
        # A single one says what the answer says.
        if len(self.steps) > 1:
            parts.append("\n".join(["How it came about:", *self._told_steps(now, width)]))
        parts += ["\n".join(_told_words(one)) for one in self.words]
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


def _told_words(said: Words) -> Iterator[str]:
    shown = said.lines[-_WORDS:]
    part = f" (the last {len(shown)} of {len(said.lines)} lines)" if len(shown) < len(said.lines) else ""
    yield f"{said.of}{part}:"
    yield from (f"  | {line}" for line in shown)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
