"""The chain of hashes by which a conversation is found again on the disk.

One hash for each beginning of a prompt's parts: two prompts whose chains share `n` hashes share `n` parts. No
text is kept beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

HASH = 16
"""Bytes of one."""
_encode = msgspec.json.Encoder(order="deterministic").encode


class PromptChain(NamedTuple):
    """The beginnings of a prompt, the shortest first."""

    hashes: tuple[bytes, ...]
    ends: tuple[int, ...]
    """How long each is, in bytes of JSON."""


def chain_of(parts: Sequence[object]) -> PromptChain:
    """Takes some 3 ms for a megabyte."""
    hashes: list[bytes] = []
    ends: list[int] = []
    before, end = b"", 0
    for part in parts:
        text = _encode(part)
        before = hashlib.blake2b(text, key=before, digest_size=HASH).digest()
        end += len(text)
        hashes.append(before)
        ends.append(end)
    return PromptChain(tuple(hashes), tuple(ends))
