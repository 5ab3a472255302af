"""The store and what is loaded, as Ollama's clients ask for them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from greenroom import __version__
from greenroom.actors.kernel.errors import KernelError
from greenroom.actors.library.messages import RemoveModel, TagModel
from greenroom.actors.limits import Name
from greenroom.actors.scheduler.messages import EngineAccount, ReadLedger
from greenroom.actors.values import Engine, Model
from greenroom.runner.http.bodies import invalid, read_json
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import json_response
from greenroom.runner.http.models import tag_meant
from greenroom.runner.http.ollama.answer import timestamp
from greenroom.runner.http.ollama.modelfile import modelfile, parameter_lines
from greenroom.runner.http.port import Request, Response
from greenroom.runner.http.remote_models import find_remote_model
from greenroom.runner.http.transfers import as_tag
from greenroom.runner.models.description import model_text
from greenroom.runner.models.gguf import Value
from greenroom.runner.remotes.model import RemoteModel
from greenroom.runner.threads import in_thread

OLLAMA_VERSION = "0.13.5"
"""The version of Ollama whose API this is: clients ask for one that they can work with."""

_ANSWER_WITHIN = 2.0
"""Seconds after which `ps` tells what it knows without the scheduler."""
_FOREVER = "2318-01-01T00:00:00Z"
"""When a pinned model is unloaded."""
_TEMPLATE = "tokenizer.chat_template"
_ALWAYS = ("modelfile", "parameters", "template")
"""What is shown of a model even where it is empty."""
_THINKS = ("enable_thinking", "<think>", "reasoning_effort", "reasoning_content")
"""What the chat template of a model that thinks has in it."""


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
        return json_response(
            {"models": rows + [_remote(one) for one in self._context.greenroom.remotes.models()]}
        )

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
        if (there := self._context.greenroom.remotes.named(body.asked)) is not None:
            found = _remote(await find_remote_model(*there, body.asked))
            known = ("details", "capabilities", "modified_at", "remote_model", "remote_host")
            shown = {name: found[name] for name in known}
            return json_response({**dict.fromkeys(_ALWAYS, ""), "system": "", **shown, "model_info": {}})
        model = self._context.greenroom.model(body.asked)
        defaults = await self._context.defaults.of(model)
        store = self._context.greenroom.store
        files = await in_thread(lambda: model_text(store, model.id))
        about = {
            "license": files.license,
            "modelfile": modelfile(names_of(model)[0], model, defaults, files),
            "parameters": parameter_lines(model, defaults),
            "template": files.template,
            "system": defaults.system,
            "messages": msgspec.to_builtins(defaults.messages),
            "projector_info": dict(files.projector),
        }
        able = _capabilities(model)
        able += ["tools"] if "tools" in files.template else []
        able += ["thinking"] if any(word in files.template for word in _THINKS) else []
        return json_response(
            {
                **{name: value for name, value in about.items() if value or name in _ALWAYS},
                "details": _details(model),
                "model_info": {n: value for n, value in _info(model, files.header) if n != _TEMPLATE},
                "capabilities": able,
                "modified_at": timestamp(model.created),
            }
        )

    async def copy(self, request: Request) -> Response:
        body = await read_json(request, CopyBody, "source", what="the body must be an object with a source")
        if not body.destination.strip():
            raise invalid("destination is required", param="destination")
        model = self._context.greenroom.model(body.source, "source")
        copied = TagModel(model_id=model.id, tag=as_tag(body.destination))
        await self._context.greenroom.system.ask(copied, cause=request.id)
        return Response()

    async def delete(self, request: Request) -> Response:
        """Remove a name, and with the last one the model."""
        name = (await read_json(request, DeleteBody, what="the body must be an object with a model")).asked
        model = self._context.greenroom.model(name)
        remove = RemoveModel(model_id=model.id, tag=tag_meant(name, model))
        await self._context.greenroom.system.ask(remove, cause=request.id)
        return Response()


def names_of(model: Model) -> list[str]:
    """The names it is listed by, as people write them, with their tags."""
    tags = [tag for tag in model.tags if not tag.startswith(("file:", "pypi:"))] or list(model.tags)
    return [_short(tag) for tag in tags] or [model.id]


def _short(tag: str) -> str:
    if tag.startswith("huggingface.co/"):
        return f"hf.co/{tag.removeprefix('huggingface.co/')}"
    return tag.removeprefix("docker.io/").removeprefix("ai/")


def _remote(model: RemoteModel) -> dict[str, Any]:
    """A remote backend's model, as Ollama lists its own remote models."""
    return {
        "name": model.id,
        "model": model.id,
        "remote_model": model.own,
        "remote_host": model.source,
        "modified_at": timestamp(model.created),
        "size": 0,
        "digest": hashlib.sha256(model.id.encode()).hexdigest(),
        "details": _details(model) | {"format": ""},
        "capabilities": ["completion"],
    }


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
