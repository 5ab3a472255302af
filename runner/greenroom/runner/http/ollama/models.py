"""The store and what is loaded, as Ollama's clients ask for them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from greenroom import __version__
from greenroom.actors.kernel.errors import KernelError
from greenroom.actors.library.messages import RemoveModel, RepackageModel, TagModel
from greenroom.actors.limits import CONTEXT, Name, escaped
from greenroom.actors.scheduler.messages import EngineAccount, ReadLedger
from greenroom.actors.values import Engine, Model
from greenroom.runner.http.bodies import invalid, read_json
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import HttpRefusal, json_response
from greenroom.runner.http.models import as_tag, tag_meant
from greenroom.runner.http.ollama.inference import NDJSON, timestamp
from greenroom.runner.http.port import Request, Response
from greenroom.runner.models.description import header_and_template
from greenroom.runner.models.gguf import Value
from greenroom.runner.models.references import BadReference, blob_name
from greenroom.runner.threads import in_thread

OLLAMA_VERSION = "0.13.5"
"""The version of Ollama whose API this is: clients ask for one that they can work with."""

_ANSWER_WITHIN = 2.0
"""Seconds after which `ps` tells what it knows without the scheduler."""
_FOREVER = "2318-01-01T00:00:00Z"
"""When a pinned model is unloaded."""
_TEMPLATE = "tokenizer.chat_template"
_THINKS = ("enable_thinking", "<think>", "reasoning_effort", "reasoning_content")
"""What the chat template of a model that thinks has in it."""

_encode = msgspec.json.Encoder().encode


class OllamaBody(msgspec.Struct):
    model: Name = ""
    name: Name = ""
    """What older clients call it."""

    @property
    def asked(self) -> str:
        """The model's name. Raises HttpRefusal: 400."""
        name = (self.model or self.name).strip()
        if not name:
            raise invalid("model is required", param="model")
        return name


class ShowBody(OllamaBody):
    """`POST /api/show`."""

    verbose: bool = False


class CopyBody(msgspec.Struct):
    """`POST /api/copy`."""

    source: Name = ""
    destination: Name = ""


class DeleteBody(OllamaBody):
    """`DELETE /api/delete`."""


class OllamaCreateBody(OllamaBody):
    """`POST /api/create`."""

    origin: Name = msgspec.field(name="from", default="")
    parameters: dict[str, Any] | None = None
    stream: bool | None = None
    system: Any = None
    template: Any = None
    messages: Any = None
    files: Any = None
    adapters: Any = None
    quantize: Any = None
    modelfile: Any = None


_NOT_STORED = {
    "system": "send it with each request, as system or as a message",
    "template": "the model's own chat template is used",
    "messages": "send them with each request",
    "files": "pull the model by a name, or send it as an archive to POST /models/load",
    "adapters": "use a model that has them merged",
    "quantize": "pull the model in the quantization that you want",
    "modelfile": "send from and parameters instead",
}
"""What a model cannot be created with, and what to do instead."""


class OllamaModels:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def version(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        return json_response({"version": OLLAMA_VERSION, "greenroom": __version__})

    async def tags(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        """Every name that a model can be asked for by, but for those of files where it has others."""
        rows = [
            {
                "name": name,
                "model": name,
                "modified_at": timestamp(model.created),
                "size": model.size,
                "digest": model.id.removeprefix("sha256:"),
                "details": _details(model),
                "capabilities": _capabilities(model),
            }
            for model in self._context.greenroom.models()
            for name in names_of(model)
        ]
        return json_response({"models": rows})

    async def ps(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        greenroom = self._context.greenroom
        try:
            ledger = await greenroom.system.ask(ReadLedger(), timeout=_ANSWER_WITHIN)
            accounts = {one.engine_id: one for one in ledger.engines}
        except KernelError:
            accounts = {}
        models = {one.id: one for one in greenroom.models()}
        rows = [
            _loaded(engine, models.get(engine.spec.model_id), accounts.get(engine.spec.engine_id))
            for engine in greenroom.engines()
            if engine.state in ("starting", "ready")
        ]
        return json_response({"models": rows})

    async def show(self, request: Request) -> Response:
        body = await read_json(request, ShowBody, what="the body must be an object with a model")
        model = self._context.model(body.asked)
        store = self._context.greenroom.store
        header, template = await in_thread(lambda: header_and_template(store, model.id))
        able = _capabilities(model)
        able += ["tools"] if "tools" in template else []
        able += ["thinking"] if any(word in template for word in _THINKS) else []
        sized = f"PARAMETER num_ctx {model.context_size}\n" if model.context_size > 0 else ""
        file = f"# Modelfile generated by Greenroom\nFROM {names_of(model)[0]}\n{sized}"
        return json_response(
            {
                "modelfile": file,
                "parameters": f"{'num_ctx':30} {model.context_size}" if sized else "",
                "template": template,
                "details": _details(model),
                "model_info": {name: value for name, value in _info(model, header) if name != _TEMPLATE},
                "capabilities": able,
                "modified_at": timestamp(model.created),
            }
        )

    async def copy(self, request: Request) -> Response:
        body = await read_json(request, CopyBody, "source", what="the body must be an object with a source")
        if not body.destination.strip():
            raise invalid("destination is required", param="destination")
        model = self._context.model(body.source, "source")
        copied = TagModel(model_id=model.id, tag=as_tag(body.destination))
        await self._context.greenroom.system.ask(copied, cause=request.id)
        return Response()

    async def delete(self, request: Request) -> Response:
        """Remove a name, and with the last one the model."""
        name = (await read_json(request, DeleteBody, what="the body must be an object with a model")).asked
        model = self._context.model(name)
        remove = RemoveModel(model_id=model.id, tag=tag_meant(name, model))
        await self._context.greenroom.system.ask(remove, cause=request.id)
        return Response()

    async def create(self, request: Request) -> Response:
        """Store a model again under another name, with another context if one is given."""
        body = await read_json(request, OllamaCreateBody, what="the body must be an object with a model")
        tag = as_tag(body.asked)
        for field, instead in _NOT_STORED.items():
            if getattr(body, field):
                raise _cannot_create(field, instead)
        if not body.origin.strip():
            raise invalid("from is required: name the model to copy", param="from")
        parameters = dict(body.parameters or {})
        size = parameters.pop("num_ctx", None)
        if parameters:
            name = escaped(min(parameters), 40)
            raise _cannot_create(f"parameters.{name}", "send it with each request, in options")
        if size is not None and (type(size) is not int or not 1 <= size <= CONTEXT):
            raise invalid(f"num_ctx must be a whole number from 1 to {CONTEXT}", param="parameters.num_ctx")
        model = self._context.model(body.origin, "from")
        system = self._context.greenroom.system
        if size is None:
            await system.ask(TagModel(model_id=model.id, tag=tag), cause=request.id)
        else:
            again = RepackageModel(model_id=model.id, tag=tag, context_size=size)
            await system.ask(again, cause=request.id)
        if body.stream is False:
            return json_response({"status": "success"})
        steps = ("reading model metadata", "writing manifest", "success")
        return Response(b"".join(_encode({"status": one}) + b"\n" for one in steps), content_type=NDJSON)

    async def has_blob(self, request: Request) -> Response:
        digest = request.params["digest"]
        try:
            blob_name(digest)
        except BadReference as error:
            raise HttpRefusal(400, "invalid_request", str(error), param="digest") from None
        blob = self._context.greenroom.store.blob(digest)
        if not await in_thread(blob.is_file):
            raise HttpRefusal(404, "blob_not_found", f"The blob {digest} is not in the store.")
        return Response()

    async def take_blob(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        raise HttpRefusal(
            422,
            "unsupported_source",
            "Models cannot be created from uploaded files.",
            advice="Pull the model by a name, or send it as an archive to POST /models/load.",
        )


def names_of(model: Model) -> list[str]:
    """The names it is listed by, as people write them, with their tags."""
    tags = [tag for tag in model.tags if not tag.startswith(("file:", "pypi:"))] or list(model.tags)
    return [_short(tag) for tag in tags] or [model.id]


def _short(tag: str) -> str:
    if tag.startswith("huggingface.co/"):
        return f"hf.co/{tag.removeprefix('huggingface.co/')}"
    return tag.removeprefix("docker.io/").removeprefix("ai/")


def _capabilities(model: Model) -> list[str]:
    """What its files say; its chat template may add more."""
    able = ["completion" if model.made_for in (None, "completion", "reranking") else "embedding"]
    return [*able, "vision"] if "image" in (model.reads or ()) else able


def _details(model: Model) -> dict[str, Any]:
    family = model.architecture
    return {
        "parent_model": "",
        "format": "gguf" if model.format == "gguf" else "safetensors",
        "family": family,
        "families": [family] if family else None,
        "parameter_size": model.parameters,
        "quantization_level": model.quantization,
    }


def _loaded(engine: Engine, model: Model | None, account: EngineAccount | None) -> dict[str, Any]:
    spec = engine.spec
    name = names_of(model)[0] if model is not None else spec.model_ref
    memory, on_device = spec.memory, spec.device_memory
    expires = timestamp()
    if account is not None:
        memory, on_device = account.reserved, account.device_reserved
        left = account.expires_in if account.expires_in is not None else account.keep_alive
        expires = _FOREVER if account.keep_alive < 0 else _moment(left)
    return {
        "name": name,
        "model": name,
        "size": memory + on_device,
        "digest": spec.model_id.removeprefix("sha256:"),
        "details": _details(model) if model is not None else {},
        "expires_at": expires,
        "size_vram": on_device,
        "context_length": account.context_size if account is not None else spec.context_size,
    }


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(time.time() + seconds, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError):
        return _FOREVER


def _info(model: Model, header: Mapping[str, Value]) -> Iterator[tuple[str, Any]]:
    """The header as it stands; what it lacks from what is known of the model."""
    yield "general.architecture", model.architecture
    yield "general.parameter_count", model.parameter_count
    if model.context_length:
        yield f"{model.architecture}.context_length", model.context_length
    yield from header.items()


def _cannot_create(field: str, instead: str) -> HttpRefusal:
    message = f"{field} cannot be stored with a model here: {instead}."
    return HttpRefusal(400, "unsupported_parameter", message, param=field)
