"""`/conversations`: what is saved of them, for callers on the daemon's machine: it tells what others do."""

from __future__ import annotations

import msgspec

from greenroom.runner.conversations.entry import Dropped, SavedConversation
from greenroom.runner.conversations.store import ConversationStore
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import HttpRefusal, encoded
from greenroom.runner.http.port import Request, Response
from greenroom.runner.models.references import shown
from greenroom.runner.threads import in_thread


class ConversationRow(msgspec.Struct):
    """What an engine has read of one conversation, without anything of what was said."""

    id: str
    model: str
    model_id: str
    backend: str
    owner: str
    """The caller it belongs to: only that caller's requests get it back."""
    tokens: int
    size: int
    """Bytes."""
    saved_at: float
    """Seconds since 1970, as are the other times."""
    used_at: float
    expires_at: float
    seconds: float
    """How long reading the tokens again would take."""
    reason: str
    """Why it was saved: `idle`, `evicted`, `keep_alive`, `stopping`, …"""
    cause: str
    """Why the engine ended, if it did."""
    restored: int
    """How often an engine has got it back."""


class ConversationList(msgspec.Struct):
    conversations: list[ConversationRow]
    """The one used last first."""
    bytes: int
    """Of all of them, also those of other models."""
    limit: int
    """Bytes they may take, by `conversation_cache`."""
    written_today: int
    """Bytes written in the last 24 hours."""
    write_limit: int
    """Bytes that may be written in 24 hours, by `conversation_writes`."""
    off: str
    """Why none are saved; empty if they are."""


class RemovedConversations(msgspec.Struct):
    removed: int
    freed: int
    """Bytes."""
    left: int
    """Conversations whose files could not be removed; they are not used any more."""


class Conversations:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def all(self, request: Request) -> Response:
        """What is saved, all of it or of one model."""
        store, model_id = self._store(request), self._model_id(request)
        usage = store.usage()
        limit, write_limit = await in_thread(store.limits)
        rows = [
            self._row(one, store) for one in store.entries() if model_id is None or one.model_id == model_id
        ]
        return encoded(
            ConversationList(rows, usage.bytes, limit, usage.written_today, write_limit, store.off)
        )

    async def one(self, request: Request) -> Response:
        store = self._store(request)
        return encoded(self._row(self._found(store, request), store))

    async def remove_all(self, request: Request) -> Response:
        """Remove all of it, or what is saved of one model."""
        store, model_id = self._store(request), self._model_id(request)
        return _removed(await in_thread(lambda: store.drop(model_id=model_id)))

    async def remove(self, request: Request) -> Response:
        store = self._store(request)
        entry = self._found(store, request)
        return _removed(await in_thread(lambda: store.drop(entry_id=entry.id)))

    def _store(self, request: Request) -> ConversationStore:
        """Raises HttpRefusal for callers elsewhere."""
        if not request.is_local:
            raise HttpRefusal(
                403,
                "only_local",
                "Saved conversations are only for callers on the daemon's machine: they tell what others do.",
            )
        return self._context.greenroom.conversations

    def _model_id(self, request: Request) -> str | None:
        name = request.query.get("model", "")
        return self._context.greenroom.model(name).id if name else None

    def _row(self, entry: SavedConversation, store: ConversationStore) -> ConversationRow:
        return ConversationRow(
            id=entry.id,
            model=entry.model,
            model_id=entry.model_id,
            backend=entry.backend,
            owner=entry.owner,
            tokens=entry.tokens,
            size=entry.size,
            saved_at=entry.saved_at,
            used_at=entry.used_at,
            expires_at=entry.used_at + store.expiry,
            seconds=entry.seconds,
            reason=entry.reason,
            cause=entry.cause,
            restored=entry.restored,
        )

    def _found(self, store: ConversationStore, request: Request) -> SavedConversation:
        name = request.params["id"]
        found = next((one for one in store.entries() if one.id == name), None)
        if found is None:
            raise HttpRefusal(
                404,
                "conversation_not_found",
                f"There is no saved conversation {shown(name)}: it was replaced or removed, or has expired.",
                advice="To list the others: greenroom conversations",
                param="id",
            )
        return found


def _removed(dropped: Dropped) -> Response:
    return encoded(RemovedConversations(dropped.count, dropped.bytes, dropped.left))
