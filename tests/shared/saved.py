"""Saved conversations made of data, and stores of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import xxhash

from greenroom.runner.conversations.entry import SavedConversation
from greenroom.runner.conversations.store import ConversationStore

NOW = 1_800_000_000.0
_numbers = itertools.count()


class HandClock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def chained(parts: str) -> tuple[bytes, ...]:
    """A chain of one part a letter."""
    hashes = []
    last = b""
    for letter in parts:
        last = xxhash.xxh3_128_digest(last + letter.encode())
        hashes.append(last)
    return tuple(hashes)


def entry_of(parts: str, **more: Any) -> SavedConversation:
    fields: dict[str, Any] = {
        "id": f"c-{next(_numbers):012x}",
        "compat": "engine",
        "owner": "user:1",
        "model_id": "m" * 12,
        "model": "smollm2",
        "backend": "llama.cpp",
        "chain": chained(parts),
        "tokens": 100 * len(parts),
        "size": 1_000 * len(parts),
        "checksum": "0" * 32,
        "saved_at": NOW,
        "used_at": NOW,
        "seconds": float(len(parts)),
        "reason": "idle",
    }
    return SavedConversation(**(fields | more))


def store_in(folder: Path, clock: HandClock | None = None, **more: Any) -> ConversationStore:
    """An open store in `<folder>/conversations`."""
    fields: dict[str, Any] = {"budget": lambda: 10**9, "clock": clock or HandClock()}
    store = ConversationStore(folder / "conversations", **(fields | more))
    store.open()
    return store


def put(
    store: ConversationStore, folder: Path, parts: str, content: bytes = b"", **more: Any
) -> SavedConversation | None:
    """Let an engine write a file, by default 1,000 bytes a part, and the store take it over."""
    file = folder / f"engine-{next(_numbers)}"
    file.write_bytes(content or parts.encode() * 1_000)
    return put_file(store, file, parts, **more)


def put_file(store: ConversationStore, file: Path, parts: str, **more: Any) -> SavedConversation | None:
    fields: dict[str, Any] = {
        "compat": "engine",
        "owner": "user:1",
        "model_id": "m" * 12,
        "model": "smollm2",
        "backend": "llama.cpp",
        "chain": chained(parts),
        "tokens": 100 * len(parts),
        "seconds": float(len(parts)),
        "reason": "idle",
    }
    entry = store.put(file, **(fields | more))
    assert not file.exists(), "the store takes the file over, whatever becomes of it"
    return entry


def kept(store: ConversationStore, folder: Path, parts: str, **more: Any) -> SavedConversation:
    """`put` that must not be refused."""
    entry = put(store, folder, parts, **more)
    assert entry is not None
    return entry
