"""The one table of limits for input from outside.

Commands and the bodies of HTTP requests are declared with these types, so decoding or checking one applies
the limits, and `complaint` says in words which was exceeded. Stored values and events do not use them:
changing a limit must never make an old journal unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from greenroom.actors.characters import NAME, UNPRINTABLE, visible

ID = 256
"""Characters of ids of engines, requests, jobs, waiters, callers and models."""
BACKEND = 64
"""Characters of a backend's name."""
VERSION = 128
"""Characters of a version."""
SECRET = 8_192
"""Characters of a token for a registry."""
REASON = 65_536
"""Characters of a sentence that our effect handlers report; they shorten the output of tools before."""
FLAGS = 128
"""Flags of an engine, each value counted as one."""
FLAGS_TOGETHER = 64_000
"""Bytes of all flags: they travel in one frame to the engine's keeper."""
CONTEXT = 2**27
"""Tokens of a context: a hundred times the largest that any model has."""
SLOTS = 256
"""Requests that one engine answers at once."""
DURATION = 10 * 365 * 86_400.0
"""Seconds of a wait or a keep-alive: ten years. -1 means forever."""
SIZE = 2**60
"""Bytes."""
NAMED = 1_000
"""Entries of a list that a client sends."""
MANY = 100_000
"""Entries of a list that an actor or effect handler sends."""
NUMBER = 2**63 - 1
"""The largest whole number that SQLite, JSON readers and engines accept."""
REAL = 1e18
"""The largest number with a fraction; infinity and NaN are refused."""
KEYED = 131_072
"""Characters of an answer that is kept for an Idempotency-Key."""

_LINE = rf"^[^{UNPRINTABLE}]*\Z"
# A chat template or a grammar is a flag's value, and has several lines.
_LINES = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]*\Z"
_VERSION = r"^(?:[A-Za-z0-9][A-Za-z0-9.!+_-]*)?\Z"
_ASCII = r"^[\x21-\x7e]*\Z"

_IN_WORDS = {
    _LINE: "must be one line of printable characters",
    _LINES: "must be text without control characters",
    _VERSION: "may have only letters, digits and .!+_-",
    _ASCII: "must be printable ASCII without spaces",
}

Name = Annotated[str, Meta(max_length=NAME, pattern=_LINE)]
Id = Annotated[str, Meta(max_length=ID, pattern=_LINE)]
BackendName = Annotated[str, Meta(max_length=BACKEND, pattern=_LINE)]
Version = Annotated[str, Meta(max_length=VERSION, pattern=_VERSION)]
Secret = Annotated[str, Meta(max_length=SECRET, pattern=_ASCII)]
Reason = Annotated[str, Meta(max_length=REASON)]
Line = Annotated[str, Meta(max_length=REASON, pattern=_LINE)]
Flag = Annotated[str, Meta(max_length=FLAGS_TOGETHER, pattern=_LINES)]
Flags = Annotated[tuple[Flag, ...], Meta(max_length=FLAGS)]
Names = Annotated[tuple[Name, ...], Meta(max_length=NAMED)]
Ids = Annotated[tuple[Id, ...], Meta(max_length=MANY)]
Context = Annotated[int, Meta(ge=-1, le=CONTEXT)]
"""Tokens; 0 means unspecified, -1 as many as the model supports."""
Slots = Annotated[int, Meta(ge=0, le=SLOTS)]
PromptCache = Annotated[int, Meta(ge=-1, le=SIZE)]
"""Bytes; -1 means unspecified."""
Seconds = Annotated[float, Meta(ge=-DURATION, le=DURATION)]
Whole = Annotated[int, Meta(ge=-NUMBER, le=NUMBER)]
Real = Annotated[float, Meta(ge=-REAL, le=REAL)]
Kept = Annotated[str, Meta(max_length=KEYED)]
Many = Meta(max_length=MANY)

_PLACE = re.compile(r" - at `\$\.?(.*?)(?:\[.*)?`$", re.DOTALL)
_REGEX = re.compile(r"matching regex '(.*)'", re.DOTALL)
_LENGTH = re.compile(r"`(\w+)` of length <= (\d+)")
_BOUND = re.compile(r"Expected `\w+(?: \| null)?` ([<>]=) (-?[\d.e+]+)")


def complaint(error: Exception) -> tuple[str, str]:
    """The field and the sentence, without its full stop, for a `msgspec.ValidationError` about a limit.

    Both are empty if it is about something else, such as text in place of a number.
    """
    said = str(error)
    found = _PLACE.search(said)
    field = found[1] if found else ""
    name = f'"{field}"' if field else "the value"
    if (regex := _REGEX.search(said)) is not None:
        return field, f"{name} {_IN_WORDS.get(regex[1].replace(chr(92) * 2, chr(92)), 'is not well formed')}"
    if (length := _LENGTH.search(said)) is not None:
        if length[1] == "str":
            return field, f"{name} is too long: the limit is {length[2]} characters"
        return field, f"{name} is too long: the limit is {length[2]} entries"
    if (bound := _BOUND.search(said)) is not None:
        side = "at most" if bound[1] == "<=" else "at least"
        return field, f"{name} must be {side} {float(bound[2]):.15g}"
    if "out of range" in said:
        return field, f"{name} is too large a number"
    return "", ""


def flags_complaint(flags: Sequence[str]) -> str:
    """Why these are too many or too long for an engine, as a sentence; empty if they are not."""
    if len(flags) > FLAGS:
        return f"There are too many flags: the limit is {FLAGS} words."
    if sum(len(flag.encode("utf-8", "replace")) for flag in flags) > FLAGS_TOGETHER:
        return f"The flags are too long: the limit is {FLAGS_TOGETHER // 1000} kB for all together."
    return ""


def escaped(text: str, longest: int = 200) -> str:
    """Foreign text made safe for a log: one bounded line without control characters."""
    text = visible(text[: longest + 1])
    return text if len(text) <= longest else text[: longest - 1] + "…"
