"""What was found out about somebody, before it is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from greenroom.runner.diagnosis.explanation import FIRST, LAST, Remedy, Step, Words
from greenroom.runner.diagnosis.history import Happening, History
from greenroom.runner.diagnosis.sentences import Narrator


class Finding(msgspec.Struct, kw_only=True):
    """The fields of an `Explanation`; its steps are still events, in any order and some perhaps twice."""

    state: str
    cause: str
    answer: str
    numbers: dict[str, float] = {}
    also: Sequence[str] = ()
    steps: Sequence[Happening] = ()
    words: tuple[Words, ...] = ()
    remedies: Sequence[Remedy] = ()


def tell(happenings: Sequence[Happening], history: History) -> tuple[tuple[Step, ...], int]:
    """The events as steps in order, each once, and how many of the middle were left out."""
    wanted = {one.record.seq: one for one in happenings}
    known = {one.record.seq: one for one in _around(happenings, history)} | wanted
    narrator = Narrator()
    steps: list[Step] = []
    for seq in sorted(known):
        record = known[seq].record
        # It hears of those around, too: many events name a job or an engine only.
        text = narrator.tell(record)
        if seq in wanted:
            steps.append(
                Step(seq=seq, at=record.at, event=record.id, type=record.type, text=text, cause=record.cause)
            )
    if len(steps) <= FIRST + LAST:
        return tuple(steps), 0
    return (*steps[:FIRST], *steps[-LAST:]), len(steps) - FIRST - LAST


def tool_words(detail: str) -> tuple[Words, ...]:
    """Raw output of a tool that failed."""
    lines = tuple(detail.strip().splitlines())
    return (Words(of="What the tool said", lines=lines),) if lines else ()


def ended(text: str) -> str:
    """With a full stop at its end: reasons come with and without."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def listed(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *others, last = sorted(names)
    return f"{', '.join(others)} and {last}" if others else last


def _around(steps: Sequence[Happening], history: History) -> list[Happening]:
    found: list[Happening] = list(history.daemons)
    for model in {model for one in steps for model in one.about.models}:
        found += history.events_of(model)
    for backend in {backend for one in steps for backend in one.about.backends}:
        found += history.backends.get(backend, ())
    for reference in {reference for one in steps for reference in one.about.references}:
        found += history.pulls.get(reference, ())
    return found
