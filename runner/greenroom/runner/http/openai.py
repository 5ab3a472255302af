"""The routes OpenAI's clients use, under every prefix Docker Model Runner has for them.

A path that names a backend (`/engines/mlx/v1/…`) is binding: no other serves it.
"""

from __future__ import annotations

from collections.abc import Mapping

from greenroom.actors.scheduler.state import ModelConfigState, config_key
from greenroom.actors.values import Model
from greenroom.runner.http.context import Context, shown_name
from greenroom.runner.http.errors import json_response
from greenroom.runner.http.fields import (
    CHAT,
    COMPLETION,
    EMBEDDING,
    MESSAGES,
    RERANKING,
    SCORING,
    TOKEN_COUNT,
)
from greenroom.runner.http.inference import Kind
from greenroom.runner.http.port import Request, Response
from greenroom.runner.models.errors import size_text

_DONE = b"data: [DONE]"
_STOP = b"event: message_stop"
INFERENCE = {
    "/v1/chat/completions": Kind("completion", "/v1/chat/completions", CHAT, end=_DONE),
    "/v1/completions": Kind("completion", "/v1/completions", COMPLETION, param="prompt", end=_DONE),
    "/v1/embeddings": Kind("embedding", "/v1/embeddings", EMBEDDING, param="input"),
    "/v1/messages": Kind("completion", "/v1/messages", MESSAGES, "anthropic", end=_STOP),
    "/v1/messages/count_tokens": Kind("completion", "/v1/messages/count_tokens", TOKEN_COUNT, "anthropic"),
    "/rerank": Kind("reranking", "/rerank", RERANKING, param="documents"),
    "/score": Kind("reranking", "/score", SCORING, param="text_1"),
}
"""What may follow a prefix, and what it asks of an engine (which has them all at its root)."""


class Listing:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def all(self, request: Request) -> Response:
        """Every model in the store, once, by its first name."""
        self._context.backend_of(request)
        configs = self._context.configs()
        entries = [_entry(model, configs) for model in self._context.greenroom.models()]
        return json_response({"object": "list", "data": entries})

    async def one(self, request: Request) -> Response:
        self._context.backend_of(request)
        model = self._context.model(request.params["name"])
        return json_response(_entry(model, self._context.configs()))


def _entry(model: Model, configs: Mapping[str, ModelConfigState]) -> dict[str, object]:
    config = configs.get(config_key(model.id, "completion"), ModelConfigState())
    context = model.context_size if config.context_size is None else config.context_size
    about = {
        "context_window": context if context > 0 else model.context_length,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "quantization": model.quantization,
        "size": size_text(model.size) if model.size else "",
    }
    entry: dict[str, object] = {
        "id": shown_name(model),
        "object": "model",
        "created": int(model.created),
        "owned_by": "docker",
    }
    known = {name: value for name, value in about.items() if value}
    return {**entry, "dmr": known} if known else entry
