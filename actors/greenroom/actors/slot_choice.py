"""What an engine's slots have read, and which of them a prompt gets.

What a slot has read stays in its cache. So a conversation goes back to the slot that has read most of it, and
a new one to a slot that holds nothing, or else to the one used longest ago.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

Chain = Callable[[], Sequence[bytes]]
"""Makes the hashes of a prompt's parts."""
Counted = Callable[[], tuple[int | None, int | None]]


class SlotContent(NamedTuple):
    """What a slot has read: the prompt of its last request, and behind it that one's answer."""

    parts: tuple[object, ...]
    """The prompt's parts, or with `hashed` their chain of hashes."""
    key: str = ""
    """The key with which it was asked for: no other key may profit from it."""
    owner: str = ""
    """Whose it is on the disk; empty until the caller has been looked up."""
    kept: bool = True
    """It may be written to the disk."""
    hashed: bool = False
    serial: int = 0
    """Another one for each request."""
    counted: Counted = lambda: (None, None)
    """The tokens of the prompt and of the answer, once that is complete; None where that is not known."""


class SlotSource(NamedTuple):
    """A slot that has read a beginning of another one's prompt."""

    number: int
    held: int
    """Parts of that prompt, from the first, that it has read."""
    content: SlotContent


class SlotChoice(NamedTuple):
    """The slot that a request has got, by what it holds."""

    engine_id: str
    number: int
    held: int = 0
    """Parts of the prompt, from the first, that the slot has read already."""
    lost: SlotContent | None = None
    """What the slot held that the prompt does not continue from."""
    serial: int = 0
    alone: bool = False
    """The engine has no other."""
    owner: str = ""
    """Whose it was what the slot held; empty if it held nothing, or that is not known."""
    source: SlotSource | None = None
    """An idle slot of the engine that has read more of the prompt."""


def shared(read: Sequence[object], prompt: Sequence[object]) -> int:
    """How many parts two prompts have in common, from the first."""
    pairs = zip(read, prompt, strict=False)
    differs = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
    return min(len(read), len(prompt)) if differs is None else differs


def most_read(contents: Iterable[SlotContent], prompt: Sequence[object]) -> int:
    """How many parts of a prompt the best of these slots has read."""
    return max((shared(one.parts, prompt) for one in contents if prompt), default=0)


def best_slot(
    contents: Mapping[int, SlotContent], free: Sequence[int], prompt: Sequence[object], chain: Chain, key: str
) -> tuple[int, int]:
    """The slot for a prompt, and how many of its parts that has read.

    Best is one of which nothing is lost, then an empty one, then the one used longest ago.
    """
    best, most = -1, 0
    for number, one in contents.items():
        if number in free and one.key == key:
            held = shared(one.parts, chain() if one.hashed else prompt)
            if held == len(one.parts) and held >= most:
                best, most = number, held
    if best >= 0:
        return best, most
    empty = [number for number in free if number not in contents]
    if empty:
        return empty[0], 0
    oldest = next(number for number in contents if number in free)
    one = contents[oldest]
    return oldest, shared(one.parts, chain() if one.hashed else prompt) if one.key == key else 0


def source_of(
    contents: Mapping[int, SlotContent], prompt: Sequence[object], chain: Chain, key: str, held: int
) -> SlotSource | None:
    """The slot that has read most of a prompt, if that is more than the parts `held`, and more than its first
    part, which most prompts have in common.
    """
    found, most = None, max(held, 1)
    for number, one in contents.items():
        if one.key == key and (length := shared(one.parts, chain() if one.hashed else prompt)) > most:
            found, most = SlotSource(number, length, one), length
    return found
