"""Models on their way in and out: pull, push, load, export.

The contract's progress lines of pulls and pushes are one JSON object each: raw for clients that ask for JSON,
HTML-escaped for all others, as Docker's own CLI expects. Files come side by side, each with lines of its own;
a file that is in the store already gets none. Beside the contract's fields a line has the job's phase, its
rate and how far all of it is, and a layer its name.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, Literal

import msgspec

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.library.messages import (
    CancelPull,
    CancelPush,
    LeavePull,
    NoteModel,
    Pull,
    Pulled,
    Push,
    Pushed,
)
from greenroom.actors.limits import Id, Name, Secret
from greenroom.actors.progress import pull_job, push_job
from greenroom.actors.values import Model, Part, Progress
from greenroom.runner.http.archives import Archives
from greenroom.runner.http.bodies import read_json
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import HttpRefusal, json_response, wants_json
from greenroom.runner.http.idempotency import counted
from greenroom.runner.http.port import JSON, AnyResponse, Request, Response
from greenroom.runner.http.progress_stream import stream_job
from greenroom.runner.models.references import BadReference, Reference, familiar, shown
from greenroom.runner.units import size_text

_TAR = "application/x-tar"


class CreateBody(msgspec.Struct, rename="kebab"):
    """`POST /models/create`."""

    reference: Name = msgspec.field(name="from", default="")
    bearer_token: Secret = ""
    force: bool = False
    """Also what cannot fit on the disk or run on this machine."""
    waiter: Id = ""
    """A name that no other client has, for `leave`."""


class AdoptBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /models/adopt`."""

    name: Name
    """What it is to be called."""
    path: Name
    """A GGUF file, a folder of safetensors, or a manifest in a store of Ollama's; absolute."""
    copy: bool = False
    """Copy its files if they cannot be shared with the store."""
    waiter: Id = ""
    """A name that no other client has, for `leave`."""


class CancelPullBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /models/cancel`."""

    reference: Name = msgspec.field(name="from", default="")
    leave: bool = False
    """Only if no other client waits for it."""
    waiter: Id = ""
    """Who leaves, as the pull was asked for."""


class PushBody(msgspec.Struct, rename="kebab"):
    """`POST /models/{reference}/push`; may be left out."""

    bearer_token: Secret = ""


class Transfers:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._archives = Archives()

    async def create(self, request: Request) -> AnyResponse:
        """Have a model in the store, and tell how far it is."""
        body = await read_json(request, CreateBody, what="the body must be an object with from")
        self._context.greenroom.see_that_it_is_ours(body.reference, "from")
        ask = Pull(
            reference=canonical(body.reference),
            token=body.bearer_token,
            force=body.force,
            waiter=body.waiter or request.id,
            caller=await self._context.callers.looked_up(request),
        )
        return await self._pulled(request, ask)

    async def adopt(self, request: Request) -> AnyResponse:
        """Have a model that another program keeps on this machine in the store, and tell how far it is."""
        body = await read_json(request, AdoptBody, what="the body must be an object with name and path")
        if not body.path.startswith("/"):
            raise HttpRefusal(400, "bad_model_name", "The path must be absolute.", param="path")
        ask = Pull(
            reference=as_tag(body.name, "name"),
            origin=body.path,
            copy=body.copy,
            waiter=body.waiter or request.id,
            caller=await self._context.callers.looked_up(request),
        )
        return await self._pulled(request, ask)

    async def _pulled(self, request: Request, ask: Pull) -> AnyResponse:
        greenroom = self._context.greenroom
        lines = TransferLines(pull_job(ask.reference), "pull", raw=wants_json(request))
        reply = greenroom.system.ask(ask, cause=request.id)
        with counted(greenroom.system, reply, LeavePull(reference=ask.reference, waiter=ask.waiter)):
            return await stream_job(request, greenroom.board, pull_job(ask.reference), reply, lines)

    async def cancel(self, request: Request) -> Response:
        body = await read_json(request, CancelPullBody, what="the body must be an object with from")
        cancel = CancelPull(reference=canonical(body.reference), leave=body.leave, waiter=body.waiter)
        cancelled = await self._context.greenroom.system.ask(cancel, cause=request.id)
        return json_response({"ended": cancelled.ended})

    async def push(self, request: Request) -> AnyResponse:
        """Publish a model. It ends when the last client that waits for it has gone."""
        body = await read_json(request, PushBody)
        name = request.params["reference"]
        model = self._context.greenroom.model(name, "from")
        reference = published_as(name, model)
        greenroom = self._context.greenroom
        lines = TransferLines(push_job(reference), "push", raw=wants_json(request))
        ask = Push(model_id=model.id, reference=reference, token=body.bearer_token)
        reply = greenroom.system.ask(ask)
        try:
            return await stream_job(request, greenroom.board, push_job(reference), reply, lines)
        except (asyncio.CancelledError, ConnectionError):
            greenroom.system.tell(CancelPush(reference=reference, model_id=model.id))
            raise

    async def load(self, request: Request) -> AnyResponse:
        """Store the model in the archive that is sent; it gets no tag."""
        greenroom = self._context.greenroom
        model = await self._archives.load(request, greenroom.store)
        await greenroom.system.ask(NoteModel(model=model), cause=request.id)
        last = TransferLines("load", "pull", raw=True).success("Model loaded successfully")
        # The id is no part of the contract; clients that know the archive can compute it.
        return Response(last, content_type=JSON, headers={"X-Model-Id": model.id})

    async def export(self, request: Request) -> AnyResponse:
        name = request.params["reference"]
        model = self._context.greenroom.model(name)
        quoted = shown(name).replace("\\", "_").replace('"', "_")
        headers = {"Content-Type": _TAR, "Content-Disposition": f'attachment; filename="{quoted}.tar"'}
        return await self._archives.send(request, headers, self._context.greenroom.store, model)


def canonical(text: str) -> str:
    """The form of a reference that wire, library and store share. Raises HttpRefusal: 400."""
    try:
        reference = Reference.parse(text)
    except BadReference as error:
        raise HttpRefusal(400, "bad_model_name", str(error), param="from") from None
    if reference.scheme == "path" and not reference.path.startswith("/"):
        raise HttpRefusal(
            400,
            "bad_model_name",
            "The path must be absolute: the daemon runs in another folder.",
            param="from",
        )
    return reference.wanted


def as_tag(text: str, param: str = "target") -> str:
    """The form a tag is stored in. Raises HttpRefusal: 400."""
    try:
        reference = Reference.parse(text)
    except BadReference as error:
        raise HttpRefusal(400, "bad_model_name", str(error), param=param) from None
    if reference.scheme not in ("oci", "huggingface") or reference.digest:
        raise HttpRefusal(
            400,
            "bad_model_name",
            f"{shown(text)} cannot be a tag: tags look like my-model:v1 or REGISTRY/YOU/MODEL:v1.",
            param=param,
        )
    return str(reference)


def published_as(name: str, model: Model) -> str:
    """The tag a model is pushed under: the one that was named, or the only one that names a registry."""
    try:
        named = Reference.parse(name).stored_tag
    except BadReference:
        named = ""
    places = [tag for tag in model.tags if Reference.parse(tag).scheme == "oci"]
    if named in model.tags:
        if named not in places and places:
            also = ", ".join(familiar(tag) for tag in places)
            sentence = f"{shown(name)} does not name a place on a registry, but the model has names that do."
            raise HttpRefusal(
                400, "bad_model_name", sentence, advice=f"Push one of them: {also}", param="from"
            )
        return named
    if len(places) == 1:
        return places[0]
    advice = "Name one of them." if places else "Give it one: greenroom tag MODEL REGISTRY/YOU/MODEL"
    many = f"has {len(places)} tags on registries" if places else "has no tag on a registry"
    raise HttpRefusal(400, "bad_model_name", f"{shown(name)} {many}.", advice=advice, param="from")


TransferMode = Literal["pull", "push", "verify"]

_VERBS = {"pull": "Downloaded", "push": "Uploaded", "verify": "Verified"}
_MOVING = {"pull": "downloading", "push": "uploading", "verify": "verifying"}
_ESCAPES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ('"', "&#34;"))

_encode = msgspec.json.Encoder().encode


class TransferLines:
    """The lines of one transfer, in order: the bytes of a layer never go back and end at its size."""

    def __init__(self, job: str, mode: TransferMode, *, raw: bool) -> None:
        self.content_type = JSON if raw else "text/plain"
        self._job = job
        self._raw = raw
        self._mode: TransferMode = mode
        # What has no files of its own to tell of is one layer; clients go by characters 7 to 19 of its id.
        self._whole = f"sha256:{hashlib.sha256(job.encode()).hexdigest()}"
        self._layers: dict[str, Part] = {}
        """As sent last."""
        self._done = 0
        self._total = 0

    def again(self) -> TransferLines:
        """The same for another client, from the beginning."""
        return TransferLines(self._job, self._mode, raw=self._raw)

    def progress(self, progress: Progress) -> bytes:
        """A line for each layer that has moved; otherwise what is going on, if there is something to say."""
        more: dict[str, Any] = {"phase": progress.phase}
        if progress.rate:
            more["rate"] = progress.rate
        if progress.phase != _MOVING[self._mode]:
            if progress.total:
                more |= {"done": progress.done, "of": progress.total}
            return self._line("progress", progress.message, **more) if progress.message else b""
        self._total = max(progress.total, progress.done)
        self._done = max(self._done, progress.done)
        whole = (Part(id=self._whole, name="", size=self._total, done=self._done),)
        moved = b"".join(
            self._moved(part, **more) for part in progress.parts or (whole if self._done else ())
        )
        if moved or not progress.message:
            return moved
        # Nothing moves, and that is worth a line: without it clients go on showing the last rate.
        return self._line("progress", progress.message, done=self._done, of=self._total, **more)

    def heartbeat(self) -> bytes:
        """An empty line, which clients skip."""
        return b"\n"

    def success(self, result: Pulled | Pushed | str) -> bytes:
        """The last line; before it, the rest of each layer whose last steps were not sent."""
        rest = b""
        for part in tuple(self._layers.values()):
            self._done = self._total
            rest += self._moved(msgspec.structs.replace(part, done=part.size), phase=_MOVING[self._mode])
        if isinstance(result, Pushed):
            message = "Model pushed successfully"
        elif isinstance(result, Pulled):
            cached = f"Using cached model: {size_text(result.model.size)}"
            message = "Model pulled successfully" if result.fresh else cached
        else:
            message = result
        return rest + self._line("success", message)

    def error(self, refusal: Refusal) -> bytes:
        """The last line of a transfer that failed."""
        return self._line("error", f"Error: {refusal.sentence()}", code=refusal.code, kind=refusal.kind)

    def _moved(self, part: Part, **more: Any) -> bytes:
        sent = self._layers.get(part.id)
        if sent is not None and part.done <= sent.done:
            return b""
        self._layers[part.id] = part
        layer: dict[str, Any] = {"id": part.id, "size": part.size, "current": part.done}
        if part.name:
            layer["name"] = part.name
        # Beside the contract's fields: how far the whole of it is, with what needed no moving.
        more |= {"done": self._done, "of": self._total}
        return self._line("progress", f"{_VERBS[self._mode]}: {_megabytes(part.done)}", layer=layer, **more)

    def _line(self, type_: str, message: str, *, layer: dict[str, Any] | None = None, **more: Any) -> bytes:
        line = {
            "type": type_,
            "message": message,
            "total": self._total if layer else 0,
            "layer": layer or {"size": 0, "current": 0},
            "mode": self._mode,
            **more,
        }
        data = _encode(line)
        if not self._raw:
            text = data.decode()
            for plain, escaped in _ESCAPES:
                text = text.replace(plain, escaped)
            data = text.encode()
        return data + b"\n"


def _megabytes(size: int) -> str:
    """Mebibytes, which Docker Model Runner calls MB."""
    return f"{size / 2**20:.2f} MB"
