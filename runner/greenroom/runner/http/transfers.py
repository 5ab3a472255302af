"""Models on their way in and out: pull, push, load, export."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
from aiohttp import web

from greenroom.actors.addresses import LIBRARY
from greenroom.actors.library.messages import CancelPull, CancelPush, LeavePull, NoteModel, Pull, Push
from greenroom.actors.limits import Id, Name, Secret
from greenroom.actors.progress import pull_job, push_job
from greenroom.actors.values import Model
from greenroom.runner.http.archives import Archives
from greenroom.runner.http.bodies import read_json
from greenroom.runner.http.door import Door
from greenroom.runner.http.errors import HttpRefusal, wants_json
from greenroom.runner.http.headers import request_id_of
from greenroom.runner.http.leaving import counted
from greenroom.runner.http.progress_stream import stream_job
from greenroom.runner.http.transfer_lines import TransferLines
from greenroom.runner.models.references import BadReference, Reference, familiar, shown

_TAR = "application/x-tar"


class CreateBody(msgspec.Struct, rename="kebab"):
    """`POST /models/create`."""

    reference: Name = msgspec.field(name="from", default="")
    bearer_token: Secret = ""
    force: bool = False
    """Also what cannot fit on the disk or run on this machine."""
    waiter: Id = ""
    """A name nobody else has, for `leave`."""


class CancelBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /models/cancel`."""

    reference: Name = msgspec.field(name="from", default="")
    leave: bool = False
    """Only if nobody else waits for it."""
    waiter: Id = ""
    """Who leaves, as the pull was asked for."""


class PushBody(msgspec.Struct, rename="kebab"):
    """`POST /models/{reference}/push`; may be left out."""

    bearer_token: Secret = ""


class Transfers:
    """The handlers."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._archives = Archives()

    def routes(self) -> Iterator[web.RouteDef]:
        """All of them; they come before the routes of `Models`, for a reference may hold slashes."""
        yield web.post("/models/create", self.create)
        yield web.post("/models/cancel", self.cancel)
        yield web.post("/models/load", self.load)
        yield web.post("/models/{reference:.+}/push", self.push)
        yield web.get("/models/{reference:.+}/export", self.export)

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Have a model in the store, and tell how far it is."""
        body = await read_json(request, CreateBody, what="it is no JSON object with a from")
        reference = canonical(body.reference)
        backstage = self._door.backstage
        lines = TransferLines(pull_job(reference), "pull", raw=wants_json(request))

        async def pull() -> web.StreamResponse:
            waiter = body.waiter or request_id_of(request)
            ask = Pull(
                reference=reference,
                token=body.bearer_token,
                force=body.force,
                waiter=waiter,
                caller=await self._door.callers.looked_up(request),
            )
            reply = backstage.system.ask(LIBRARY, ask, cause=request_id_of(request))
            with counted(backstage.system, reply, LIBRARY, LeavePull(reference=reference, waiter=waiter)):
                return await stream_job(request, backstage.board, pull_job(reference), reply, lines)

        return await self._door.visitors.attend(request, pull)

    async def cancel(self, request: web.Request) -> web.Response:
        """End a pull."""
        body = await read_json(request, CancelBody, what="it is no JSON object with a from")
        cancel = CancelPull(reference=canonical(body.reference), leave=body.leave, waiter=body.waiter)
        cancelled = await self._door.backstage.system.ask(LIBRARY, cancel, cause=request_id_of(request))
        return web.json_response({"ended": cancelled.ended})

    async def push(self, request: web.Request) -> web.StreamResponse:
        """Publish a model. It ends when the last client that waits for it has gone."""
        body = await read_json(request, PushBody)
        name = request.match_info["reference"]
        model = self._door.model(name, "from")
        reference = _published_as(name, model)
        backstage = self._door.backstage
        lines = TransferLines(push_job(reference), "push", raw=wants_json(request))

        async def push() -> web.StreamResponse:
            ask = Push(model_id=model.id, reference=reference, token=body.bearer_token)
            reply = backstage.system.ask(LIBRARY, ask)
            try:
                return await stream_job(request, backstage.board, push_job(reference), reply, lines)
            except (asyncio.CancelledError, ConnectionError):
                backstage.system.tell(LIBRARY, CancelPush(reference=reference, model_id=model.id))
                raise

        return await self._door.visitors.attend(request, push)

    async def load(self, request: web.Request) -> web.StreamResponse:
        """Store the model in the archive that is sent; it gets no tag."""
        backstage = self._door.backstage

        async def load() -> web.StreamResponse:
            model = await self._archives.load(request, backstage.store)
            await backstage.system.ask(LIBRARY, NoteModel(model=model), cause=request_id_of(request))
            lines = TransferLines("load", "pull", raw=True)
            # The id is no part of the contract; clients that know the archive can compute it.
            return web.Response(
                body=lines.success("Model loaded successfully"),
                content_type="application/json",
                headers={"X-Model-Id": model.id},
            )

        return await self._door.visitors.attend(request, load)

    async def export(self, request: web.Request) -> web.StreamResponse:
        """A model as an archive."""
        name = request.match_info["reference"]
        model = self._door.model(name)
        quoted = shown(name).replace("\\", "_").replace('"', "_")

        async def send() -> web.StreamResponse:
            response = web.StreamResponse(
                headers={"Content-Disposition": f'attachment; filename="{quoted}.tar"'}
            )
            response.content_type = _TAR
            await self._archives.send(request, response, self._door.backstage.store, model)
            return response

        return await self._door.visitors.attend(request, send)


def canonical(text: str) -> str:
    """The one form of a reference that everybody uses: wire, library, store. Raises HttpRefusal: 400."""
    try:
        reference = Reference.parse(text)
    except BadReference as error:
        raise HttpRefusal(400, "bad_model_name", str(error), param="from") from None
    if reference.scheme == "path" and not reference.path.startswith("/"):
        raise HttpRefusal(
            400,
            "bad_model_name",
            "A path must be absolute here: the daemon does not run in your folder.",
            param="from",
        )
    return reference.wanted


def _published_as(name: str, model: Model) -> str:
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
