"""Which saved conversation begins as a prompt does, found by hashes of prefixes. Does no I/O.

The hash of a prefix is that of the prefix before it and one part more, so a prompt whose prefix is known to
an entry shares all the shorter ones with it: the longest is found by bisection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from greenroom.runner.conversations.entry import SavedConversation


class PrefixIndex:
    """Entries by owner, compatibility and prefix."""

    def __init__(self) -> None:
        self._entries: dict[str, SavedConversation] = {}
        self._prefixes: dict[tuple[str, str], dict[bytes, set[str]]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[SavedConversation]:
        return iter(self._entries.values())

    def get(self, entry_id: str) -> SavedConversation | None:
        return self._entries.get(entry_id)

    def put(self, entry: SavedConversation) -> None:
        """Add an entry, or replace the one of this id, whose chain is the same."""
        self._entries[entry.id] = entry
        group = self._prefixes.setdefault((entry.owner, entry.compat), {})
        for prefix in entry.chain:
            group.setdefault(prefix, set()).add(entry.id)

    def remove(self, entry_id: str) -> SavedConversation | None:
        """Returns what was removed."""
        entry = self._entries.pop(entry_id, None)
        if entry is not None:
            key = (entry.owner, entry.compat)
            group = self._prefixes[key]
            for prefix in entry.chain:
                holders = group.get(prefix, set())
                holders.discard(entry_id)
                if not holders:
                    group.pop(prefix, None)
            if not group:
                del self._prefixes[key]
        return entry

    def has(self, owner: str, prefix: bytes) -> bool:
        """Whether any entry of an owner has this prefix, whichever engine it is for."""
        return any(prefix in group for (whose, _), group in self._prefixes.items() if whose == owner)

    def longest(
        self, compat: str, owner: str, chain: Sequence[bytes], *, whole: bool = False
    ) -> tuple[SavedConversation, int] | None:
        """The entry that shares the longest prefix with a chain, and how many parts that has.

        Of several the one that ends there, then the smallest, then the one used last. `whole`: only entries
        whose whole chain is a prefix of this one.
        """
        group = self._prefixes.get((owner, compat), {})
        shared = known(group, chain)
        while shared:
            holders = [self._entries[one] for one in group[chain[shared - 1]]]
            ending = [one for one in holders if len(one.chain) == shared]
            if ending or not whole:
                return min(ending or holders, key=lambda one: (one.size, -one.used_at)), shared
            shared -= 1
        return None

    def extended_by(self, entry: SavedConversation) -> list[SavedConversation]:
        """The others that an entry makes superfluous: it begins with all they hold, and no third one does."""
        group = self._prefixes.get((entry.owner, entry.compat), {})
        found = []
        for length, prefix in enumerate(entry.chain, 1):
            holders = [self._entries[one] for one in group.get(prefix, ()) if one != entry.id]
            ending = [one for one in holders if len(one.chain) == length]
            # Where conversations part, what they share is worth a file of its own: it is the smallest.
            if ending and all(one in ending or _is_prefix(one.chain, entry.chain) for one in holders):
                found += ending
        return found


def known(prefixes: dict[bytes, set[str]] | set[bytes], chain: Sequence[bytes]) -> int:
    """How many parts the longest prefix of a chain has that is among these."""
    if not chain or chain[0] not in prefixes:
        return 0
    if chain[-1] in prefixes:
        return len(chain)
    low, high = 1, len(chain)  # chain[low - 1] is known, chain[high - 1] is not
    while high - low > 1:
        middle = (low + high) // 2
        if chain[middle - 1] in prefixes:
            low = middle
        else:
            high = middle
    return low


def shared(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """How many parts two chains have in common."""
    return known(set(one), other)


def _is_prefix(one: Sequence[bytes], other: Sequence[bytes]) -> bool:
    return len(one) <= len(other) and one[-1] == other[len(one) - 1]
