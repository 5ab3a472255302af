"""Saved conversations."""

from __future__ import annotations

from greenroom.runner.http.conversations import ConversationList, ConversationRow, RemovedConversations
from greenroom.runner.http.openapi.operation import Operation, Parameter, Returns

_ID = {"id": "The conversation's id, such as `c-1a2b3c4d5e6f`."}
_ONE_MODEL = {"model": Parameter("Only those with this model, by its name or id.")}

OPERATIONS = {
    "GET /conversations": Operation(
        summary="List what is saved of conversations",
        detail=(
            "For callers on the daemon's machine. What an engine has read is saved so that the next turn "
            "need not read it again. Nothing here says what that was."
        ),
        query=_ONE_MODEL,
        answers={200: Returns("The conversations and their limits.", ConversationList)},
        errors=frozenset({404}),
    ),
    "GET /conversations/{id}": Operation(
        summary="Get one saved conversation",
        path=_ID,
        answers={200: Returns("The conversation.", ConversationRow)},
        errors=frozenset({404}),
    ),
    "DELETE /conversations": Operation(
        summary="Remove all saved conversations, or those with one model",
        detail="Their next turns read the whole prompt again.",
        query=_ONE_MODEL,
        answers={200: Returns("How many were removed.", RemovedConversations)},
        errors=frozenset({404}),
    ),
    "DELETE /conversations/{id}": Operation(
        summary="Remove one saved conversation",
        path=_ID,
        answers={200: Returns("What was removed.", RemovedConversations)},
        errors=frozenset({404}),
    ),
}
