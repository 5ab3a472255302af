"""The store over HTTP: list, inspect, pull, tag, remove; as in Docker Model Runner's contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from aiohttp import web
from greenroom.actors.facts import Model, Progress
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.messages import LIBRARY, CancelPull, Pull, Pulled, Removed, RemoveModel, TagModel
from greenroom.actors.progress import pull_job
from greenroom.runner.http.bodies import read_json
from greenroom.runner.http.door import Door
from greenroom.runner.http.errors import JSON, HttpRefusal, wants_json
from greenroom.runner.http.progress_stream import megabytes, stream_job
from greenroom.runner.models.references import BadReference, Reference, is_id, normalise

_LIMIT = 2**20
"""Bytes of a body that only names things."""
_ESCAPES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ('"', "&#34;"))

_encode = msgspec.json.Encoder().encode


class CreateBody(msgspec.Struct, rename="kebab"):
    """`POST /models/create`."""

    reference: str = msgspec.field(name="from", default="")
    bearer_token: str = ""


class CancelBody(msgspec.Struct):
    """`POST /models/cancel`."""

    reference: str = msgspec.field(name="from", default="")
    leave: bool = False
    """Only if nobody else waits for it."""


class PullLines:
    """The contract's progress lines (raw JSON, or HTML-escaped for clients that do not ask for JSON)."""

    def __init__(self, *, raw: bool) -> None:
        self.content_type = JSON if raw else "text/plain"
        self._raw = raw

    def progress(self, progress: Progress) -> bytes:
        """Bytes when there are any; otherwise what is going on."""
        message = f"Downloaded: {megabytes(progress.done)}" if progress.done else progress.message
        if not message:
            return b""
        layer = {"id": progress.job, "size": progress.total, "current": progress.done}
        return self._line("progress", message, progress.total, layer if progress.done else None)

    def heartbeat(self) -> bytes:
        """An empty line, which clients skip."""
        return b"\n"

    def success(self, result: Pulled) -> bytes:
        """The last line."""
        size = _size(result.model)
        return self._line(
            "success", "Model pulled successfully" if result.fresh else f"Using cached model: {size}"
        )

    def error(self, refusal: Refusal) -> bytes:
        """The last line of a pull that failed."""
        return self._line("error", f"Error: {refusal.sentence()}", code=refusal.code)

    def _line(
        self, kind: str, message: str, total: int = 0, layer: dict[str, Any] | None = None, **more: str
    ) -> bytes:
        line = {
            "type": kind,
            "message": message,
            "total": total,
            "layer": layer or {"size": 0, "current": 0},
            "mode": "pull",
            **more,
        }
        data = _encode(line)
        if not self._raw:
            text = data.decode()
            for plain, escaped in _ESCAPES:
                text = text.replace(plain, escaped)
            data = text.encode()
        return data + b"\n"


class Models:
    """The handlers."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def routes(self) -> Iterator[web.RouteDef]:
        """All of them; the order matters, for a reference may hold slashes."""
        yield web.post("/models/create", self.create)
        yield web.post("/models/cancel", self.cancel)
        yield web.get("/models", self.all)
        yield web.post("/models/{reference:.+}/tag", self.tag)
        yield web.get("/models/{reference:.+}", self.one)
        yield web.delete("/models/{reference:.+}", self.remove)

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Have a model in the store, and tell how far it is."""
        body = await read_json(request, _LIMIT, CreateBody, what="it is no JSON object with a from")
        reference = _wanted(body.reference)
        backstage = self._door.backstage

        async def pull() -> web.StreamResponse:
            reply = backstage.system.ask(LIBRARY, Pull(reference=reference, token=body.bearer_token))
            lines = PullLines(raw=wants_json(request))
            return await stream_job(request, backstage.board, pull_job(reference), reply, lines)

        return await self._door.visitors.attend(request, pull)

    async def cancel(self, request: web.Request) -> web.Response:
        """End a pull."""
        body = await read_json(request, _LIMIT, CancelBody, what="it is no JSON object with a from")
        cancel = CancelPull(reference=_wanted(body.reference), leave=body.leave)
        cancelled = await self._door.backstage.system.ask(LIBRARY, cancel)
        return web.json_response({"ended": cancelled.ended})

    async def all(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        """Every model that is here."""
        return web.json_response([_described(model) for model in self._door.backstage.models()])

    async def one(self, request: web.Request) -> web.Response:
        """One model, by any of its names."""
        return web.json_response(_described(self._door.model(request.match_info["reference"])))

    async def tag(self, request: web.Request) -> web.Response:
        """Give a model another tag."""
        repository, tag = request.query.get("repo", ""), request.query.get("tag", "")
        if not repository or not tag:
            raise HttpRefusal(400, "invalid_request", "missing repo or tag query parameter")
        model = self._door.model(request.match_info["reference"])
        target = f"{repository}:{tag}"
        await self._door.backstage.system.ask(LIBRARY, TagModel(model_id=model.id, tag=_canonical(target)))
        return web.json_response(
            {"message": f'Model tagged successfully with "{target}"', "target": target}, status=201
        )

    async def remove(self, request: web.Request) -> web.Response:
        """Remove a tag, and with its last one the model; by id, the model."""
        name = request.match_info["reference"]
        model = self._door.model(name)
        force = _is_true(request.query.get("force"))
        remove = RemoveModel(model_id=model.id, tag=_tag_meant(name, model), force=force)
        removed = await self._door.backstage.system.ask(LIBRARY, remove)
        if not isinstance(removed, Removed):
            return web.json_response([{"Untagged": remove.tag}])
        gone = [{"Untagged": tag} for tag in removed.untagged]
        return web.json_response(gone + [{"Deleted": model_id} for model_id in removed.deleted])


def _wanted(text: str) -> str:
    """One form for all ways to write a name that still tells whether a registry was typed.

    `smollm2` may come from the catalogue, `docker.io/ai/smollm2` from that registry alone.
    """
    _canonical(text)
    return normalise(text)


def _canonical(text: str) -> str:
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


def _described(model: Model) -> dict[str, Any]:
    config: dict[str, Any] = {
        "format": "safetensors" if model.format == "safetensors-mlx" else model.format,
        "quantization": model.quantization,
        "parameters": model.parameters,
        "architecture": model.architecture,
        "size": _size(model),
        "context_size": model.context_length,
    }
    described: dict[str, Any] = {"id": model.id}
    if model.tags:
        described["tags"] = list(model.tags)
    return described | {
        "created": int(model.created),
        "config": {name: value for name, value in config.items() if value},
    }


def _size(model: Model) -> str:
    return f"{model.size / 2**20:.2f} MiB" if model.size else ""


def _is_true(text: str | None) -> bool:
    return text is not None and text in ("", "1", "t", "T", "TRUE", "true", "True")
