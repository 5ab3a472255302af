"""Names in the store that a user may have meant who asks for one that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from itertools import islice
from typing import NamedTuple

from greenroom.runner.models.references import familiar

_SHOWN = 3
_LONGEST = 64
"""Characters of a name that are compared."""
_COMPARED = 500
"""Names that are compared: a client that asks in a loop must not keep others waiting."""
_LIKE = 0.72
_PREFIX = 4
"""Characters of a name's beginning that are enough to mean it."""
_NOISE = re.compile(r"[^a-z0-9]+")


class _Key(NamedTuple):
    """What counts in a name: not who publishes it, nor how it is punctuated."""

    base: str
    tagged: str

    @classmethod
    def of(cls, name: str) -> _Key:
        path, _, tag = name[:_LONGEST].lower().partition("@")[0].rpartition("/")[2].partition(":")
        base = _NOISE.sub("", path.removesuffix(".gguf").removesuffix("-gguf"))
        return cls(base, base + _NOISE.sub("", tag if tag != "latest" else ""))


def near(asked: str, tags: Iterable[str]) -> list[str]:
    """Up to three of these tags as people write them, the likeliest first."""
    wanted = _Key.of(asked)
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(wanted.tagged)
    found: list[tuple[float, str]] = []
    for tag in islice(tags, _COMPARED):
        key = _Key.of(tag)
        matcher.set_seq1(key.tagged)
        alike = matcher.ratio() if matcher.quick_ratio() >= _LIKE else 0.0
        same = key.base == wanted.base or _begins(key, wanted) or _begins(wanted, key)
        if same or alike >= _LIKE:
            found.append((alike + same, familiar(tag)))
    return [name for _, name in sorted(found, key=lambda one: (-one[0], one[1]))[:_SHOWN]]


def _begins(one: _Key, other: _Key) -> bool:
    return len(one.base) >= _PREFIX and other.tagged.startswith(one.base)


def did_you_mean(asked: str, tags: Iterable[str]) -> str:
    """A question with these names; empty if none is like what was asked for."""
    *first, last = near(asked, tags) or [""]
    names = f"{', '.join(first)} or {last}" if first else last
    return f"Did you mean {names}?" if names else ""
