"""`/api/create`: a model of another one, or of files that were sent, with defaults of its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from greenroom.actors.kernel.errors import Refusal, Refused
from greenroom.actors.library.messages import NoteModel, TagModel
from greenroom.actors.library.pulls import refusal_of
from greenroom.actors.limits import CONTEXT, Name, escaped
from greenroom.actors.values import Model, Progress
from greenroom.runner.errors import JobFailed
from greenroom.runner.http.archives import Turns
from greenroom.runner.http.bodies import invalid, read_json
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import HttpRefusal, json_response
from greenroom.runner.http.ollama.answer import NDJSON
from greenroom.runner.http.ollama.blobs import digest_in
from greenroom.runner.http.ollama.models import OllamaBody
from greenroom.runner.http.port import AnyResponse, Request
from greenroom.runner.http.progress_stream import stream_job
from greenroom.runner.http.sampling import PARAMETERS
from greenroom.runner.http.transfers import as_tag
from greenroom.runner.http.wrong_fields import Wrong
from greenroom.runner.models.creation import absent, of_files
from greenroom.runner.models.recipe import Recipe, StoredMessage
from greenroom.runner.models.references import shown
from greenroom.runner.models.store import ModelStore
from greenroom.runner.threads import in_thread

_encode = msgspec.json.Encoder().encode

_MOST_FILES = 1_000
_GO_TEMPLATE = re.compile(r"\{\{-?\s*(?:[.$]|(?:if|range|with|end|else|define|block|template|slice|len)\b)")
"""What Go's templates have and Jinja's cannot have."""
_NOT_STORED = {
    "adapters": "use a model that has them merged",
    "quantize": "use a model in the quantization that you want",
    "modelfile": "send what it says as fields; greenroom create -f does that",
    "path": "send what the Modelfile says as fields",
    "renderer": "the model's chat template, in Jinja, makes its prompts",
    "parser": "the engine reads answers as the model's chat template says",
}
"""What a model cannot be created with, and what to do instead."""


class OllamaCreateBody(OllamaBody):
    """`POST /api/create`."""

    origin: Name = msgspec.field(name="from", default="")
    files: dict[str, str] = msgspec.field(default_factory=dict)
    """Name → digest of a file that was sent before."""
    system: str = ""
    template: str = ""
    """In Jinja."""
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    messages: list[StoredMessage] = msgspec.field(default_factory=list)
    license: str | list[str] = ""
    stream: bool | None = None
    adapters: Any = None
    quantize: Any = None
    modelfile: Any = None
    path: Any = None
    renderer: Any = None
    parser: Any = None


class OllamaCreation:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._turns = Turns()
        self._under_way: set[asyncio.Task[_Layers]] = set()

    async def create(self, request: Request) -> AnyResponse:
        """Store a model of its own under a name, which is taken from the model that had it."""
        body = await read_json(request, OllamaCreateBody, what="it is no JSON object with a model")
        tag = as_tag(body.asked)
        for field, instead in _NOT_STORED.items():
            if getattr(body, field):
                raise _cannot(field, instead)
        recipe = recipe_of(body)
        if body.origin.strip() and body.files:
            raise invalid("send either from, which names a model, or files", param="from")
        first = "parsing GGUF" if body.files else "reading model metadata"
        if body.files:
            reply = self._going_on(self._from_files(request, tag, await self._files_of(body), recipe))
        else:
            if not body.origin.strip():
                raise invalid("from is required: name the model to start from, or send files", param="from")
            base = self._context.greenroom.model(body.origin, "from")
            reply = self._going_on(self._from_model(request, tag, base, recipe))
        if body.stream is False:
            await asyncio.shield(reply)
            return json_response({"status": "success"})
        board = self._context.greenroom.board
        return await stream_job(request, board, f"create/{request.id}", reply, CreationLines(first))

    def _going_on(self, creation: Coroutine[Any, Any, _Layers]) -> asyncio.Task[_Layers]:
        """It goes on when its client leaves: a model that is stored must be noted too."""
        task = asyncio.get_running_loop().create_task(creation)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        # With the client gone its failure is no matter.
        task.add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)
        return task

    async def _from_model(self, request: Request, tag: str, base: Model, recipe: Recipe) -> _Layers:
        greenroom = self._context.greenroom
        if recipe == Recipe():
            # The same model: it has one more name.
            await greenroom.system.ask(TagModel(model_id=base.id, tag=tag), cause=request.id)
            return await in_thread(lambda: _layers(greenroom.store, base.id, base.id))

        def store(store: ModelStore) -> tuple[Model, _Layers]:
            model = store.repackage(base.id, tag=tag, recipe=recipe)
            return model, _layers(store, model.id, base.id)

        return await self._stored(request, store)

    async def _from_files(
        self, request: Request, tag: str, files: Mapping[str, str], recipe: Recipe
    ) -> _Layers:
        def store(store: ModelStore) -> tuple[Model, _Layers]:
            model = of_files(store, files, tag=tag, recipe=recipe)
            sent = frozenset(files.values())
            return model, [(one.digest, one.digest in sent) for one in store.manifest(model.id).layers]

        async with self._turns.turn():
            return await self._stored(request, store)

    async def _stored(
        self, request: Request, store: Callable[[ModelStore], tuple[Model, _Layers]]
    ) -> _Layers:
        greenroom = self._context.greenroom
        try:
            model, layers = await in_thread(lambda: store(greenroom.store))
        except JobFailed as failed:
            raise Refused(refusal_of(failed.failure)) from None
        await greenroom.system.ask(NoteModel(model=model), cause=request.id)
        return layers

    async def _files_of(self, body: OllamaCreateBody) -> dict[str, str]:
        """The files by name, the first shard first. Raises HttpRefusal: 400 for one that was not sent."""
        if len(body.files) > _MOST_FILES:
            raise invalid(f"files has {len(body.files)} entries; the limit is {_MOST_FILES}", param="files")
        store = self._context.greenroom.store
        files = {
            name: digest_in(digest, f"files.{shown(name)}") for name, digest in sorted(body.files.items())
        }
        for name in await in_thread(lambda: absent(store, files)):
            raise HttpRefusal(
                400,
                "blob_not_found",
                f"{shown(name)} has not been sent: the blob {files[name]} is not in the store.",
                advice=f"Send it to POST /api/blobs/{files[name]}, and create the model again.",
                param=f"files.{shown(name)}",
            )
        return files


_Layers = Sequence[tuple[str, bool]]
"""Digests, and whether each was there before."""


class CreationLines:
    """The lines of one creation, in Ollama's words."""

    content_type = NDJSON

    def __init__(self, first: str) -> None:
        self._first = first
        self._begun = False

    def again(self) -> CreationLines:
        return CreationLines(self._first)

    def progress(self, progress: Progress) -> bytes:
        return _line(progress.message) if progress.message else b""

    def heartbeat(self) -> bytes:
        self._begun = True
        return _line(self._first)

    def success(self, layers: _Layers) -> bytes:
        told = [f"{'using existing' if old else 'creating new'} layer {digest}" for digest, old in layers]
        first = [] if self._begun else [self._first]
        return b"".join(map(_line, [*first, *told, "writing manifest", "success"]))

    def error(self, refusal: Refusal) -> bytes:
        return _encode({"error": refusal.sentence()}) + b"\n"


def recipe_of(body: OllamaCreateBody) -> Recipe:
    """What the model gets beside its files. Raises HttpRefusal: 400 with the field that is wrong."""
    parameters: dict[str, Any] = {}
    for name, value in body.parameters.items():
        where = f"parameters.{escaped(name, 40)}"
        if name not in PARAMETERS:
            raise _cannot(where, f"use {', '.join(PARAMETERS)}")
        try:
            parameters[name] = PARAMETERS[name](value, where)
        except Wrong as wrong:
            raise HttpRefusal(400, wrong.code, str(wrong), param=where) from None
    size = parameters.pop("num_ctx", None)
    if size is not None and size < 1:
        raise invalid(f"num_ctx must be a whole number from 1 to {CONTEXT}", param="parameters.num_ctx")
    if isinstance(parameters.get("stop"), str):
        parameters["stop"] = [parameters["stop"]]
    _check_template(body.template)
    licenses = [body.license] if isinstance(body.license, str) else body.license
    return Recipe(
        context_size=size,
        system=body.system,
        messages=tuple(body.messages),
        parameters=parameters,
        template=body.template,
        licenses=tuple(filter(None, licenses)),
    )


def _check_template(template: str) -> None:
    if _GO_TEMPLATE.search(template):
        raise HttpRefusal(
            400,
            "unsupported_parameter",
            "template is written in Go's template language, which no engine here can read.",
            advice="Leave it out to use the model's own chat template, or send one in Jinja.",
            param="template",
        )
    if template and "messages" not in template:
        raise HttpRefusal(
            400,
            "invalid_value",
            "template must be a chat template in Jinja, and this one does not use messages.",
            advice="Leave it out to use the model's own.",
            param="template",
        )


def _layers(store: ModelStore, model_id: str, base_id: str) -> _Layers:
    known = {one.digest for one in store.manifest(base_id).layers}
    return [(one.digest, one.digest in known) for one in store.manifest(model_id).layers]


def _line(status: str) -> bytes:
    return _encode({"status": status}) + b"\n"


def _cannot(field: str, instead: str) -> HttpRefusal:
    message = f"{field} cannot be stored with a model here: {instead}."
    return HttpRefusal(400, "unsupported_parameter", message, param=field)
