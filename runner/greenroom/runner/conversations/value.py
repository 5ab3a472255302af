"""Which saved conversations go first when there is no room: those that save little time for their bytes."""

from __future__ import annotations

from collections.abc import Iterable

from greenroom.runner.conversations.entry import SavedConversation
from greenroom.runner.conversations.index import known

_YOUNG = 60.0
"""Seconds: below this, age makes no difference."""


def values(entries: Iterable[SavedConversation], now: float) -> dict[str, float]:
    """What each entry is worth, by id: seconds that only it saves, for each byte and second of age.

    A prefix that several entries of one owner and engine share counts for the one used last.
    """
    held: dict[tuple[str, str], set[bytes]] = {}
    found = {}
    for entry in sorted(entries, key=lambda one: (-one.used_at, one.id)):
        others = held.setdefault((entry.owner, entry.compat), set())
        own = 1 - entry.tokens_in(known(others, entry.chain)) / entry.tokens
        others.update(entry.chain)
        found[entry.id] = entry.seconds * own / (entry.size * max(now - entry.used_at, _YOUNG))
    return found


def least(
    entries: Iterable[SavedConversation], now: float, *, bytes_: int, most: int | None = None
) -> list[SavedConversation]:
    """The least valuable entries whose removal frees so many bytes and leaves at most so many entries.

    All of them if that is not enough; in the order in which they go.
    """
    entries = list(entries)
    count = len(entries)
    if bytes_ <= 0 and (most is None or count <= most):
        return []
    left: dict[tuple[str, str], dict[str, SavedConversation]] = {}
    for entry in entries:
        left.setdefault((entry.owner, entry.compat), {})[entry.id] = entry
    worth = {key: values(group.values(), now) for key, group in left.items()}
    going: list[SavedConversation] = []
    while left and (bytes_ > 0 or (most is not None and count > most)):
        _, _, key, entry_id = min(
            (value, left[key][entry_id].used_at, key, entry_id)
            for key, group in worth.items()
            for entry_id, value in group.items()
        )
        entry = left[key].pop(entry_id)
        going.append(entry)
        bytes_ -= entry.size
        count -= 1
        # What it alone was credited with is now another's.
        worth[key] = values(left[key].values(), now)
        if not left[key]:
            del left[key], worth[key]
    return going
