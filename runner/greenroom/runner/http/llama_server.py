"""llama-server's own routes: `/tokenize`, `/detokenize`, `/apply-template`, `/infill`, `/props`, `/health`.

llama-server has one model, and its clients name none. Where it is clear which one is meant, a request need
not name it: the only one that is loaded, else the only one in the store.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import msgspec

from greenroom import __version__
from greenroom.actors.kernel.errors import KernelError
from greenroom.actors.scheduler.ledger import context_reckoned
from greenroom.actors.scheduler.messages import AwaitReady
from greenroom.actors.scheduler.state import ModelConfigState, config_key
from greenroom.actors.values import Engine, Mode, Model
from greenroom.runner.actor_states import NotRunning
from greenroom.runner.http.aiohttp_adapter import read_body
from greenroom.runner.http.bodies import NOT_UNDERSTOOD
from greenroom.runner.http.completion_fields import COMPLETION
from greenroom.runner.http.completion_fields import tokens as token_ids
from greenroom.runner.http.context import Context
from greenroom.runner.http.engine_requests import Kind, routing_of
from greenroom.runner.http.errors import HttpRefusal, json_response
from greenroom.runner.http.fields import CHAT, Dialogue, array, described, either, flag, record, text, whole
from greenroom.runner.http.inference import Exchange
from greenroom.runner.http.port import AnyResponse, Handler, Request, Response
from greenroom.runner.http.upstream import Lost, Unreached
from greenroom.runner.models.description import header_and_template
from greenroom.runner.models.references import shown_name
from greenroom.runner.threads import in_thread

_WITHIN = 5.0
"""Seconds an engine has to tell its properties."""
_READY_WITHIN = 2.0
_INT32 = 2**31 - 1

TOKENIZE = Dialogue(
    {
        "model": text(least=1),
        "content": either(
            "a string or a list of strings and tokens",
            (str, text()),
            (list, array(either("a string or a token", (str, text()), (int, whole(0, _INT32))))),
        ),
        "add_special": flag,
        "parse_special": flag,
        "with_pieces": flag,
    },
    required=("content",),
)


def _tokens(value: Any, where: str) -> Any:
    return token_ids(value, where) if value != [] else value


described(_tokens, type="array", items=whole(0, _INT32))

DETOKENIZE = Dialogue({"model": text(least=1), "tokens": _tokens}, required=("tokens",))
INFILL = Dialogue(
    {
        **{name: check for name, check in COMPLETION.fields.items() if name not in ("suffix", "echo")},
        "prompt": text(),
        "input_prefix": text(),
        "input_suffix": text(),
        "input_extra": array(record({"text": text(), "filename": text()}, required=("text",)), most=1000),
        "n_predict": whole(-2, _INT32),
    },
    required=("input_prefix", "input_suffix"),
)

KINDS = {
    "/tokenize": Kind("completion", "/tokenize", TOKENIZE, param="content"),
    "/detokenize": Kind("completion", "/detokenize", DETOKENIZE, param="tokens"),
    "/apply-template": Kind("completion", "/apply-template", CHAT, answers="prompt"),
    "/infill": Kind("completion", "/infill", INFILL, param="input_prefix"),
}
_GENERATES = frozenset({"/apply-template", "/infill"})
"""What needs an engine for completions; any other engine of the model has its vocabulary too."""

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class LlamaServer:
    def __init__(self, context: Context) -> None:
        self._context = context

    def posted(self, kind: Kind) -> Handler:
        """The handler of a POST that an engine answers."""
        context = self._context

        async def serve(request: Request) -> AnyResponse:
            backend = request.backend
            model = await self._named(request)
            mode = "completion" if kind.path in _GENERATES else self._mode_of(model)
            self._see_that_it_is_offered(model, mode, backend, kind.path)
            return await Exchange(context, request, replace(kind, mode=mode), backend).serve()

        return context.clients.attended(serve)

    async def props(self, request: Request) -> Response:
        """The properties of a model: its engine's own where it is loaded, else what its files tell.

        Nothing is loaded for it.
        """
        context = self._context
        name, model = self._asked(request.query.get("model"))
        for engine in self._engines_of(model):
            told = await self._told_by(engine) if engine.state == "ready" else None
            if told is not None:
                # Paths of this machine are not for clients.
                return json_response({**told, "model_path": name, "model_alias": name})
        config = context.greenroom.configs().get(config_key(model.id, "completion"), ModelConfigState())
        size = model.context_size if config.context_size is None else config.context_size
        reads = model.reads or ()
        template = (await in_thread(lambda: header_and_template(context.greenroom.store, model.id)))[1]
        return json_response(
            {
                "default_generation_settings": {"n_ctx": context_reckoned(size, model.context_length)},
                "total_slots": config.slots or context.greenroom.settings.slots or 1,
                "model_alias": name,
                "model_path": name,
                "chat_template": template,
                "modalities": {"vision": "image" in reads, "audio": "audio" in reads},
                "build_info": f"greenroom-{__version__}",
            }
        )

    async def health(self, request: Request) -> Response:
        """In llama-server's words: ok, or 503 while what was asked for is loading.

        With `?model=` it is about that model; one that is not loaded is ok, since a request would load it.
        """
        context = self._context
        if request.query.get("model"):
            engines = self._engines_of(self._asked(request.query["model"])[1])
            if engines and not any(one.state == "ready" for one in engines):
                raise HttpRefusal(503, "loading", "Loading model", retry_after=1.0)
            return json_response({"status": "ok", "loaded": bool(engines)})
        try:
            await context.greenroom.system.ask(AwaitReady(), timeout=_READY_WITHIN)
        except (KernelError, NotRunning) as error:
            raise HttpRefusal(503, "starting", "Greenroom is starting.", retry_after=1.0) from error
        return json_response({"status": "ok"})

    # which model

    async def _named(self, request: Request) -> Model:
        """The model that a body names; one that names none is given the one that is meant."""
        body = request.known_body = await read_body(request, self._context.greenroom.settings.max_body)
        try:
            return self._context.greenroom.model(routing_of(body).model)
        except HttpRefusal as refused:
            if refused.refusal.code != "model_required":
                raise
        name, model = self._asked(None)
        fields = _fields.decode(body or b"{}") | {"model": msgspec.Raw(msgspec.json.encode(name))}
        request.known_body = msgspec.json.encode(fields)
        return model

    def _asked(self, name: str | None) -> tuple[str, Model]:
        """A model and its name. Raises HttpRefusal: 400 without a name where several could be meant."""
        if name is not None and name.strip():
            return name, self._context.greenroom.model(name)
        models = self._context.greenroom.models()
        loaded = {one.spec.model_id for one in self._context.greenroom.engines() if one.state == "ready"}
        for meant in ([one for one in models if one.id in loaded], models):
            if len(meant) == 1:
                return shown_name(meant[0]), meant[0]
        raise HttpRefusal(
            400,
            "model_required",
            f"model is required: there are {len(models)} models to choose from.",
            advice="Name one of them; GET /v1/models lists all.",
            param="model",
        )

    def _engines_of(self, model: Model) -> list[Engine]:
        return [
            one
            for one in self._context.greenroom.engines()
            if one.spec.model_id == model.id and one.state in ("starting", "ready")
        ]

    def _mode_of(self, model: Model) -> Mode:
        """In which mode an engine has, or would have, this model."""
        engines = sorted(self._engines_of(model), key=lambda one: one.state == "starting")
        if engines:
            return engines[0].spec.mode
        return model.made_for or "completion"

    def _see_that_it_is_offered(self, model: Model, mode: Mode, backend: str, path: str) -> None:
        """Raise HttpRefusal, 404, before a model is loaded on a backend that lacks the route."""
        backends = self._context.greenroom.backends
        name = self._context.abilities.serving(model, mode, backend)
        if name is None or path not in backends[name].dialect.lacks:
            return
        others = ", ".join(one.name for one in backends.values() if path not in one.dialect.lacks)
        raise HttpRefusal(
            404, "not_offered", f"{name} does not offer {path}.", advice=f"Backends that do: {others}."
        )

    async def _told_by(self, engine: Engine) -> dict[str, Any] | None:
        """An engine's own properties; None if it has none or does not answer in time."""
        try:
            async with asyncio.timeout(_WITHIN):
                answer = await self._context.asides.get(engine.endpoint, "/props")
                try:
                    data = await answer.rest()
                finally:
                    answer.close()
            told = msgspec.json.decode(data)
        except (TimeoutError, Lost, Unreached, *NOT_UNDERSTOOD):
            return None
        return told if answer.status == 200 and isinstance(told, dict) else None
