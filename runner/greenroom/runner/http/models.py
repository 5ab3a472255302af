"""The store over HTTP: list, inspect, tag, repackage, remove; as in Docker Model Runner's contract."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from greenroom.actors.addresses import LIBRARY
from greenroom.actors.kernel.errors import KernelError, Refused
from greenroom.actors.library.messages import Prune, Removed, RemoveModel, RepackageModel, TagModel
from greenroom.actors.library.pulls import refusal_of
from greenroom.actors.limits import CONTEXT, Name
from greenroom.actors.values import Model
from greenroom.runner.errors import JobCancelled, JobFailed
from greenroom.runner.http.bodies import read_json
from greenroom.runner.http.door import Door
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.headers import request_id_of
from greenroom.runner.http.queries import is_true
from greenroom.runner.http.serving import prospects
from greenroom.runner.http.transfers import canonical
from greenroom.runner.models.description import described, described_remote, files_of, template_of
from greenroom.runner.models.references import BadReference, Reference, is_id, shown
from greenroom.runner.waits import Cancel, in_thread

_REMOTES = 8
"""Questions to sources that are asked at once."""


class RepackageBody(msgspec.Struct):
    """`POST /models/{reference}/repackage`."""

    target: Name = ""
    context_size: Annotated[int, Meta(ge=1, le=CONTEXT)] | None = None


class Models:
    """The handlers."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._remotes = asyncio.Semaphore(_REMOTES)

    def routes(self) -> Iterator[web.RouteDef]:
        """All of them; the order matters, for a reference may hold slashes."""
        yield web.get("/models", self.all)
        yield web.post("/models/{reference:.+}/tag", self.tag)
        yield web.post("/models/{reference:.+}/repackage", self.repackage)
        yield web.post("/models/{reference:.+}/{action}", self.unknown_action)
        yield web.get("/models/{reference:.+}", self.one)
        yield web.delete("/models/purge", self.purge)
        yield web.delete("/models/{reference:.+}", self.remove)

    async def all(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        """Every model that is here."""
        return web.json_response([described(model) for model in self._door.backstage.models()])

    async def one(self, request: web.Request) -> web.StreamResponse:
        """One model, by any of its names: what it is, of which files, and what would serve it."""
        name = request.match_info["reference"]
        if is_true(request, "remote"):
            return await self._door.visitors.attend(request, lambda: self._remote(name))
        model = self._door.model(name)
        store = self._door.backstage.store
        try:
            files, config = await in_thread(lambda: files_of(store, model.id))
        except JobFailed as failed:
            raise Refused(refusal_of(failed.failure)) from None
        try:
            template = await in_thread(lambda: template_of(store, model.id))
        except JobFailed:
            template = None  # damaged: the files say so
        more = {"source": model.source, "bytes": model.size, "files": files, "chat_template": template}
        # In a thread: what engines may use depends on limits that are read from files.
        serving = await asyncio.to_thread(prospects, self._door, model)
        return web.json_response(described(model, config) | more | {"serving": serving})

    async def _remote(self, name: str) -> web.Response:
        """What a source has under a name; what is stored is not looked at."""
        cancel = Cancel()
        look_up = self._door.backstage.puller.look_up
        try:
            reference = canonical(name)
            async with self._remotes:
                published = await in_thread(lambda: look_up(reference, cancel))
        except JobFailed as failed:
            raise Refused(refusal_of(failed.failure)) from None
        except JobCancelled:
            raise HttpRefusal(499, "cancelled", "The client disconnected.") from None
        finally:
            cancel.set()
        return web.json_response(described_remote(published))

    async def tag(self, request: web.Request) -> web.Response:
        """Give a model another tag."""
        repository, tag = request.query.get("repo", ""), request.query.get("tag", "")
        if not repository or not tag:
            raise HttpRefusal(400, "invalid_request", "missing repo or tag query parameter")
        model = self._door.model(request.match_info["reference"])
        target = f"{repository}:{tag}"
        await self._door.backstage.system.ask(
            LIBRARY, TagModel(model_id=model.id, tag=_as_tag(target)), cause=request_id_of(request)
        )
        return web.json_response(
            {"message": f'Model tagged successfully with "{target}"', "target": target}, status=201
        )

    async def repackage(self, request: web.Request) -> web.Response:
        """Store a model once more with another configuration; its files are shared."""
        body = await read_json(request, RepackageBody, aliases={"context-size": "context_size"})
        if not body.target:
            raise HttpRefusal(400, "invalid_request", "target is required")
        name = request.match_info["reference"]
        model = self._door.model(name)
        repackage = RepackageModel(
            model_id=model.id, tag=_as_tag(body.target), context_size=body.context_size
        )
        await self._door.backstage.system.ask(LIBRARY, repackage, cause=request_id_of(request))
        return web.json_response(
            {
                "message": f'Model repackaged successfully as "{body.target}"',
                "source": name,
                "target": body.target,
            },
            status=201,
        )

    async def unknown_action(self, request: web.Request) -> web.Response:
        """There are no others."""
        action = shown(request.match_info["action"])
        raise HttpRefusal(404, "no_such_path", f'unknown action "{action}"')

    async def remove(self, request: web.Request) -> web.Response:
        """Remove a tag, and with its last one the model; by id, the model. 409 while it is in use."""
        name = request.match_info["reference"]
        model = self._door.model(name)
        force = is_true(request, "force")
        remove = RemoveModel(model_id=model.id, tag=_tag_meant(name, model), force=force)
        removed = await self._door.backstage.system.ask(LIBRARY, remove, cause=request_id_of(request))
        if not isinstance(removed, Removed):
            return web.json_response([{"Untagged": remove.tag}])
        gone = [{"Untagged": tag} for tag in removed.untagged]
        return web.json_response(gone + [{"Deleted": model_id} for model_id in removed.deleted])

    async def purge(self, request: web.Request) -> web.Response:
        """Remove all models, and what no model needs. Those in use stay, unless it is forced."""
        force = is_true(request, "force")
        system = self._door.backstage.system
        kept: list[KernelError] = []
        for model in self._door.backstage.models():
            remove = RemoveModel(model_id=model.id, all_tags=True, force=force)
            try:
                await system.ask(LIBRARY, remove, cause=request_id_of(request))
            except Refused as refused:
                # Somebody else may have removed it a moment ago.
                if refused.refusal.kind != "not_found":
                    kept.append(refused)
        await system.ask(LIBRARY, Prune())
        if kept:
            raise kept[0]
        return web.Response()


def _as_tag(text: str) -> str:
    """The form a tag is stored in. Raises HttpRefusal: 400."""
    try:
        reference = Reference.parse(text)
    except BadReference as error:
        raise HttpRefusal(400, "bad_model_name", str(error), param="target") from None
    if reference.scheme not in ("oci", "huggingface") or reference.digest:
        raise HttpRefusal(
            400,
            "bad_model_name",
            f"{shown(text)} cannot be a tag: tags look like my-model:v1 or REGISTRY/YOU/MODEL:v1.",
            param="target",
        )
    return str(reference)


def _tag_meant(name: str, model: Model) -> str:
    """The tag a name stands for; empty when it names the model itself."""
    if is_id(name) or "@sha256:" in name:
        return ""
    try:
        tag = Reference.parse(name).stored_tag
    except BadReference:
        return ""
    # A partial name stands for the model's only tag.
    return tag if tag in model.tags or len(model.tags) != 1 else model.tags[0]
