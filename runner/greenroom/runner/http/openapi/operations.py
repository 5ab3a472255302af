"""The operations of all routes, by method and path.

A route that is mounted under several prefixes has one entry, without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from greenroom.runner.http.openapi import (
    backends,
    conversations,
    daemon,
    engines,
    inference,
    journal,
    models,
    ollama,
    requests,
)
from greenroom.runner.http.openapi.operation import Operation

TAGS = {
    "Inference": inference.OPERATIONS,
    "Ollama": ollama.OPERATIONS,
    "Models": models.OPERATIONS,
    "Engines": engines.OPERATIONS,
    "Backends": backends.OPERATIONS,
    "Conversations": conversations.OPERATIONS,
    "Requests": requests.OPERATIONS,
    "Journal": journal.OPERATIONS,
    "Daemon": daemon.OPERATIONS,
}
"""The operations, in the order in which they are shown."""

PREFIXES = ("/engines/{backend}", "/engines", "/anthropic")


def every_operation() -> Mapping[str, tuple[str, Operation]]:
    """`POST /api/chat` → its tag, and what the document says of it."""
    return {key: (tag, one) for tag, table in TAGS.items() for key, one in table.items()}


def keys_of(method: str, path: str) -> Iterator[str]:
    """Where the entry of a route may be found: under its own path, or under one without a prefix."""
    yield f"{method} {path}"
    for prefix in PREFIXES:
        if path.startswith(f"{prefix}/"):
            yield f"{method} {path.removeprefix(prefix)}"
            yield f"{method} /engines{path.removeprefix(prefix)}"
    if (bare := path.removeprefix("/engines")).startswith("/responses"):
        yield f"{method} /v1{bare}"
