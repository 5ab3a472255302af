"""Ollama's routes of inference. A request without a prompt only loads the model, or unloads it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from greenroom.actors.scheduler.messages import Keep, Unload
from greenroom.actors.values import Mode
from greenroom.runner.http.admission import Admission
from greenroom.runner.http.aiohttp_adapter import read_body
from greenroom.runner.http.bodies import NOT_UNDERSTOOD, invalid
from greenroom.runner.http.context import Context
from greenroom.runner.http.engine_requests import Kind, RequestTarget, Routing, routing_of, wished_keep_alive
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.fields import record
from greenroom.runner.http.inference import inference
from greenroom.runner.http.ollama.answer import timestamp
from greenroom.runner.http.ollama.embedding import Embed, Embedding
from greenroom.runner.http.ollama.fields import EMBED, EMBEDDINGS, GENERATE, OLLAMA_CHAT
from greenroom.runner.http.ollama.generating import Chat, Generate, Raw, message_of
from greenroom.runner.http.port import JSON, AnyResponse, Request, Response
from greenroom.runner.http.remote_models import find_remote_model
from greenroom.runner.http.sampling import PARAMETERS
from greenroom.runner.http.wrong_fields import Wrong

_encode = msgspec.json.Encoder().encode
_value = msgspec.json.Decoder()
_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

_NOTHING = frozenset({b"null", b"[]", b'""'})
_STREAMS_END = b"data: [DONE]"


class OllamaInference:
    """The routes. A request without a prompt only loads the model, or unloads it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        chat, complete, embed = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
        self._chat = inference(
            context, Kind("completion", chat, OLLAMA_CHAT, "ollama", end=_STREAMS_END, translate=Chat)
        )
        self._generate = inference(
            context,
            Kind("completion", chat, GENERATE, "ollama", "prompt", end=_STREAMS_END, translate=Generate),
        )
        self._complete = inference(
            context,
            Kind("completion", complete, GENERATE, "ollama", "prompt", end=_STREAMS_END, translate=Raw),
        )
        self._embed = inference(context, Kind("embedding", embed, EMBED, "ollama", "input", translate=Embed))
        self._embedding = inference(
            context, Kind("embedding", embed, EMBEDDINGS, "ollama", "prompt", translate=Embedding)
        )

    async def chat(self, request: Request) -> AnyResponse:
        fields = await self._glance(request)
        if fields is not None and _is_nothing(fields, "messages"):
            said = {"message": message_of("", "", ())}
            return await self._only_load(request, "completion", said, fields)
        return await self._chat(request)

    async def generate(self, request: Request) -> AnyResponse:
        fields = await self._glance(request)
        if fields is not None and _is_nothing(fields, "prompt"):
            return await self._only_load(request, "completion", {"response": ""}, fields)
        raw = fields is not None and bytes(fields.get("raw", b"")) == b"true"
        return await (self._complete if raw else self._generate)(request)

    async def embed(self, request: Request) -> AnyResponse:
        fields = await self._glance(request)
        if fields is not None and _is_nothing(fields, "input"):
            return await self._only_load(request, "embedding", {"embeddings": []}, fields)
        return await self._embed(request)

    async def embeddings(self, request: Request) -> AnyResponse:
        fields = await self._glance(request)
        if fields is not None and _is_nothing(fields, "prompt"):
            return await self._only_load(request, "embedding", {"embedding": []}, fields)
        return await self._embedding(request)

    async def _glance(self, request: Request) -> Mapping[str, msgspec.Raw] | None:
        """The fields of the body, which is kept with the request; none where it is no object."""
        body = request.known_body = await read_body(request, self._context.greenroom.settings.max_body)
        try:
            return _raw_fields.decode(body)
        except NOT_UNDERSTOOD:
            return None  # what is wrong with it is found when it is checked

    async def _only_load(
        self, request: Request, mode: Mode, said: Mapping[str, Any], fields: Mapping[str, msgspec.Raw]
    ) -> AnyResponse:
        return await self._context.clients.attend(request, lambda: self._loaded(request, mode, said, fields))

    async def _loaded(
        self, request: Request, mode: Mode, said: Mapping[str, Any], fields: Mapping[str, msgspec.Raw]
    ) -> Response:
        """Load the model, or with a keep-alive of 0 unload it, and say so."""
        context = self._context
        routing = routing_of(request.known_body or b"")
        request.note.asked = routing.model
        there, begun = context.greenroom.remotes.named(routing.model), time.perf_counter_ns()
        if there is not None:
            # Someone else loads and unloads it.
            request.note.model = await find_remote_model(*there, routing.model)
            return self._said(routing, said, "load", begun)
        model = request.note.model = context.greenroom.model(routing.model)
        keep_alive = wished_keep_alive(routing)
        if keep_alive == 0:
            system = context.greenroom.system
            # What is in use ends after its last request.
            system.tell(
                Keep(model_id=model.id, mode=mode, keep_alive=0.0, request_id=request.id), cause=request.id
            )
            await system.ask(Unload(model_ids=(model.id,)), cause=request.id)
        else:
            wished = _context_of(fields)
            wished = min(wished, model.context_length or wished)
            await context.abilities.look(model, mode, "", {}, RequestTarget("", routing.model), wished)
            admission = Admission(
                context.greenroom,
                context.ids,
                context.sent_requests,
                model,
                routing.model,
                mode,
                caller=context.callers.at_once(request),
                look_up=lambda: context.callers.looked_up(request),
                first_id=request.id,
                keep_alive=keep_alive,
                context_size=wished,
                note=request.note,
            )
            try:
                await admission.enter()
            finally:
                request.note.caller = admission.caller
                admission.leave()
        return self._said(routing, said, "unload" if keep_alive == 0 else "load", begun)

    def _said(self, routing: Routing, said: Mapping[str, Any], reason: str, begun: int) -> Response:
        answer = {
            "model": routing.model,
            "created_at": timestamp(),
            **said,
            "done": True,
            "done_reason": reason,
            "total_duration": time.perf_counter_ns() - begun,
        }
        return Response(_encode(answer), content_type=f"{JSON}; charset=utf-8")


def _context_of(fields: Mapping[str, msgspec.Raw]) -> int:
    """`options.num_ctx` of a request that is not checked further. Raises HttpRefusal: 400."""
    try:
        options = _value.decode(fields.get("options", b"null"))
        wished = (record(PARAMETERS)(options, "options") if options is not None else {}).get("num_ctx", 0)
    except Wrong as wrong:
        raise HttpRefusal(400, wrong.code, str(wrong), param=wrong.where) from None
    except NOT_UNDERSTOOD:
        raise invalid("options is nested too deeply", param="options") from None
    return int(wished)


def _is_nothing(fields: Mapping[str, msgspec.Raw], name: str) -> bool:
    """Whether the request has nothing that a model could answer."""
    return b"".join(bytes(fields.get(name, b"null")).split()) in _NOTHING
