"""Compares what a page shows with what a command prints: words exactly, numbers and names of the moment not.

A line `…` in a page stands for any lines.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

ELLIPSIS = "…"
_PROGRESS = re.compile(r"^(  \S+: |  loading |waiting for )")
"""How far something is: how often it is said depends on how long it takes."""
_OF_THE_MOMENT = (
    (re.compile(r"\d+(?:,\d{3})+"), "0"),
    # The log names who asked only if that was found out in time.
    (re.compile(r" for greenroom \(process \d+\)"), ""),
    (re.compile(r"greenroom \(process \d+\)"), "127.0.0.1"),
    (re.compile(r"\b\w+day, \d{4}-\d\d-\d\d"), "DATE"),
    (re.compile(r"\d\d:\d\d:\d\d(?:\.\d+)?"), "TIME"),
    (re.compile(r"\br-[0-9a-f]{6,}-\d+"), "REQUEST"),
    (re.compile(r"\b[0-9a-f]{11}-\d+\b"), "ENGINE"),
    (re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b"), "HEX"),
    (re.compile(r"(?<![\w.])(?:/[\w.+-]+)+(?:/|(?=\W|$))"), "PATH"),
    (re.compile(r"Linux-\S+|macOS-\S+"), "SYSTEM"),
    (re.compile(r"\d[\d.]* (?:[kMGTE]?B|[kMG]iB)(?![\w])"), "SIZE"),
    (re.compile(r"\bjust now\b"), "1s ago"),
    (re.compile(r"(?:\d[\d.]* ?(?:ms|µs|s|m|h|d)\b)+"), "SPAN"),
    (re.compile(r"\d+(?:\.\d+)*"), "0"),
)


def shape(text: str) -> str:
    """A text with placeholders for what differs each time."""
    for pattern, placeholder in _OF_THE_MOMENT:
        text = pattern.sub(placeholder, text)
    return text


def agrees(shown: Sequence[str], printed: Sequence[str], *, any_order: bool = False) -> bool:
    """Whether a page's lines are what was printed, however either is broken into lines."""
    if any_order:
        told = {" ".join(shape(line).split()) for line in printed}
        return all(" ".join(shape(line).split()) in told for line in shown if line.strip() != ELLIPSIS)
    pattern = "".join("(?: .*)?" if word == ELLIPSIS else re.escape(f" {word}") for word in _words(shown))
    return re.fullmatch(pattern, "".join(f" {word}" for word in _words(printed))) is not None


def _words(lines: Sequence[str]) -> list[str]:
    text = "\n".join(line for line in lines if not _PROGRESS.match(line))
    # A sentence may have been broken anywhere, also between a number and its unit.
    return shape(" ".join(text.split())).split()


def renewed(shown: Sequence[str], printed: Sequence[str]) -> list[str]:
    """A page's lines with what was printed; what the page left out stays left out."""
    before, after = ([" ".join(shape(line).split()) for line in lines] for lines in (shown, printed))
    lines: list[str] = []
    for _, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        is_left_out = [line.strip() for line in shown[a:b]] == [ELLIPSIS]
        lines += shown[a:b] if is_left_out else printed[c:d]
    return lines
