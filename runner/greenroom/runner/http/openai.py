"""The routes OpenAI's clients use, under every prefix Docker Model Runner has for them.

A path that names a backend (`/engines/mlx/v1/…`) is binding: no other serves it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

from aiohttp import HttpVersion11, web

from greenroom.actors.scheduler.state import ModelConfigState, config_key
from greenroom.actors.values import Model
from greenroom.runner.http.dialogues import (
    CHAT,
    COMPLETION,
    EMBEDDING,
    MESSAGES,
    RERANKING,
    SCORING,
    TOKEN_COUNT,
)
from greenroom.runner.http.door import Door, shown_name
from greenroom.runner.http.errors import HttpRefusal, answer_error
from greenroom.runner.http.proxy import Exchange, Kind
from greenroom.runner.models.errors import size_text

_DONE = b"data: [DONE]"
_STOP = b"event: message_stop"
_KINDS = {
    "/v1/chat/completions": Kind("completion", "/v1/chat/completions", CHAT, end=_DONE),
    "/v1/completions": Kind("completion", "/v1/completions", COMPLETION, param="prompt", end=_DONE),
    "/v1/embeddings": Kind("embedding", "/v1/embeddings", EMBEDDING, param="input"),
    "/v1/messages": Kind("completion", "/v1/messages", MESSAGES, "anthropic", end=_STOP),
    "/v1/messages/count_tokens": Kind("completion", "/v1/messages/count_tokens", TOKEN_COUNT, "anthropic"),
    "/rerank": Kind("reranking", "/rerank", RERANKING, param="documents"),
    "/score": Kind("reranking", "/score", SCORING, param="text_1"),
}
"""What may follow a prefix, and what it asks of an engine (which has them all at its root)."""
_PREFIXES = ("", "/engines", "/engines/{backend}")


def routes(door: Door) -> Iterator[web.RouteDef]:
    """All of them."""
    for path, kind in _KINDS.items():
        handler = _inference(door, kind)
        for prefix in _PREFIXES:
            yield web.post(prefix + path, handler, expect_handler=_expecting(kind))
    listing = Listing(door)
    for prefix in _PREFIXES:
        yield web.get(f"{prefix}/v1/models", listing.all)
        yield web.get(prefix + "/v1/models/{name:.+}", listing.one)


def _inference(door: Door, kind: Kind) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def serve(request: web.Request) -> web.StreamResponse:
        backend = door.backend_of(request)
        exchange = Exchange(door, request, kind, backend)
        return await door.visitors.attend(request, exchange.serve, exchange.farewell)

    return serve


def _expecting(kind: Kind) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
    """What is asked before the body is sent: aiohttp would refuse the unknown in plain text."""

    async def expected(request: web.Request) -> web.StreamResponse | None:
        if request.headers["Expect"].lower() != "100-continue":
            refusal = HttpRefusal(417, "expectation_failed", "Only Expect: 100-continue is supported.")
            return answer_error(request, refusal, kind.family)
        if request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        return None

    return expected


class Listing:
    """The models, as OpenAI's clients list them."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def all(self, request: web.Request) -> web.Response:
        """Every model that is here, once, by its first name."""
        self._door.backend_of(request)
        configs = self._door.configs()
        entries = [_entry(model, configs) for model in self._door.backstage.models()]
        return web.json_response({"object": "list", "data": entries})

    async def one(self, request: web.Request) -> web.Response:
        """One model, by any of its names."""
        self._door.backend_of(request)
        model = self._door.model(request.match_info["name"])
        return web.json_response(_entry(model, self._door.configs()))


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
