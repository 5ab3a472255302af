"""Why nothing, or so little, of a prompt can be restored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from greenroom.runner.conversations.entry import SavedConversation
from greenroom.runner.conversations.index import shared

_GONE = {
    "expired": "it has expired",
    "space": "it was removed to make room",
    "damaged": "its file was damaged",
    "removed": "it was removed",
}


def why_not(
    known: Iterable[tuple[SavedConversation, str]], compat: str, chain: Sequence[bytes], *, part: str
) -> str:
    """The reason, to follow a colon; "" if that is not known.

    `known`: the conversations that may be one, each with the reason for which it was dropped, or "". `part`:
    what the parts after the first are.
    """
    reason, longest = "", 1  # the first part alone, which most prompts share, is no reason
    for entry, dropped in known:
        length = shared(entry.chain, chain)
        if length <= longest:
            continue
        if dropped:
            reason, longest = _GONE.get(dropped, ""), length
        elif entry.compat != compat:
            reason, longest = "it was saved by another version or configuration of the engine", length
        elif length < min(len(entry.chain), len(chain)):
            reason, longest = f"the prompt changed at {part} {length}", length
    return reason
