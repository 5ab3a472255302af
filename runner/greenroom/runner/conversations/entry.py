"""One saved conversation, and how its metadata lies on the disk."""

from __future__ import annotations

import re
import secrets

import msgspec
import xxhash

MOST_PARTS = 16_384
"""Parts of a prompt that one entry may have."""
MOST_BYTES = 2_000_000
"""Bytes of metadata that are read: more than any entry has."""
_ID = re.compile(r"c-[0-9a-f]{12}")


class Damaged(ValueError):
    """Metadata on the disk cannot be used; the message says why."""


class SavedConversation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an engine had read of a conversation. The prompt itself is in the engine's own file only."""

    id: str
    compat: str
    """Hash of all that an engine must have in common with the one that wrote the file."""
    owner: str
    """Whose it is: it is never offered to anyone else."""
    model_id: str
    model: str
    """The model's name, to be shown."""
    backend: str
    chain: tuple[bytes, ...]
    """For each part of the prompt the hash of all parts up to its end."""
    ends: tuple[int, ...] = ()
    """Characters up to the end of each part, if they are known: tells what share of the tokens a part has."""
    tokens: int
    size: int
    """Bytes of the engine's file."""
    checksum: str
    """Of that file: XXH3, 128 bits, in hex."""
    saved_at: float
    """Wall time, as is `used_at`."""
    used_at: float
    seconds: float
    """How long reading the tokens again would take."""
    reason: str
    """Why it was saved: `idle`, `evicted`, `keep_alive`, `stopping`, …"""
    cause: str = ""
    """Why the engine ended, such as `for gemma3`."""
    restored: int = 0
    """How often an engine has got it back."""

    def tokens_in(self, parts: int) -> int:
        """About how many tokens its first so many parts have: by their characters, else by their number."""
        if parts >= len(self.chain):
            return self.tokens
        if len(self.ends) == len(self.chain) and self.ends[-1] > 0:
            return self.tokens * (self.ends[parts - 1] if parts else 0) // self.ends[-1]
        return self.tokens * parts // len(self.chain)


class Dropped(msgspec.Struct, frozen=True):
    count: int = 0
    bytes: int = 0
    left: int = 0
    """Entries whose files could not be removed yet."""


class SavedBytes(msgspec.Struct, frozen=True):
    count: int
    bytes: int
    written_today: int
    """Bytes written in the last 24 hours, also those that have been removed since."""


class StoreCounts(msgspec.Struct, frozen=True):
    """What has happened since the store was opened."""

    saved: Dropped = Dropped()
    dropped: dict[str, Dropped] = {}
    """By reason: `expired`, `space`, `damaged`, `replaced`, `removed`."""
    failures: int = 0
    """Operations that the disk refused."""


def new_id() -> str:
    return f"c-{secrets.token_hex(6)}"


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


_decoder = msgspec.json.Decoder(SavedConversation)


def encoded(entry: SavedConversation) -> bytes:
    """A line with the checksum of the rest, then JSON."""
    text = msgspec.json.encode(entry)
    return f"{_digest(text)}\n".encode() + text


def decoded(data: bytes) -> SavedConversation:
    """The reverse. Raises Damaged."""
    digest, _, text = data.partition(b"\n")
    if digest != _digest(text).encode():
        raise Damaged("its checksum is wrong")
    try:
        entry = _decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise Damaged(f"it is of another version of Greenroom: {error}") from error
    if not is_id(entry.id) or not 0 < len(entry.chain) <= MOST_PARTS or entry.size <= 0 or entry.tokens <= 0:
        raise Damaged("its values are impossible")
    return entry


def _digest(text: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(text)
