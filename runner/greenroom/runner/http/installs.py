"""Installing and uninstalling backends over HTTP.

Without a wish for progress the answer is the contract's: nothing until it is finished, then 200 and an
empty body. `Accept: application/x-ndjson` or `text/event-stream` brings the progress. A client that leaves
ends nothing; `/engines/cancel-install` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import msgspec
from aiohttp import web

from greenroom.actors.addresses import INSTALLER
from greenroom.actors.installer.messages import (
    CancelInstall,
    Ensure,
    Ensured,
    LeaveInstall,
    PlanInstall,
    Uninstall,
    Uninstalled,
)
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.limits import BackendName, Id, Version
from greenroom.actors.progress import install_job
from greenroom.actors.values import Progress
from greenroom.runner.http.bodies import checked, invalid, read_json
from greenroom.runner.http.door import Door
from greenroom.runner.http.errors import wants_json
from greenroom.runner.http.following import answered
from greenroom.runner.http.headers import request_id_of
from greenroom.runner.http.leaving import counted
from greenroom.runner.http.progress_stream import stream_job
from greenroom.runner.http.waiting import EVENT_STREAM

NDJSON = "application/x-ndjson"

_encode = msgspec.json.Encoder().encode


class InstallBody(msgspec.Struct):
    """`POST /engines/install-backend`."""

    backend: BackendName = ""
    version: Version = ""
    reinstall: bool = False
    dry_run: bool = False
    waiter: Id = ""
    """A name nobody else has, for `leave`."""


class UninstallBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /engines/uninstall-backend`. With a mistyped `version` all of them would go."""

    backend: BackendName = ""
    version: Version | None = None
    """None means all."""
    force: bool = False
    """Do not wait for those whom its engines answer."""


class CancelBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /engines/cancel-install`."""

    backend: BackendName = ""
    version: Version = ""
    job: Id = ""
    """This one and no other."""
    leave: bool = False
    """Only if nobody else waits for it."""
    waiter: Id = ""
    """Who leaves, as the installation was asked for."""


class ObjectLines:
    """A JSON object a line."""

    content_type = NDJSON

    def __init__(self, backend: str) -> None:
        self._backend = backend

    def again(self) -> Self:
        """These remember nothing of what they have said."""
        return self

    def progress(self, progress: Progress) -> bytes:
        """`{"type": "progress", …}`: from the first line on with `done` and `total`."""
        line: dict[str, Any] = {"type": "progress", "done": 0, "total": 0}
        line |= msgspec.to_builtins(progress)
        left = progress.seconds_left
        return self.encode(line | ({"seconds_left": round(left, 1)} if left else {}))

    def heartbeat(self) -> bytes:
        """An empty line."""
        return b"\n"

    def success(self, result: Ensured) -> bytes:
        """`{"type": "success", …}`."""
        word = "installed successfully" if result.fresh else "is already installed"
        return self.encode(
            {
                "type": "success",
                "message": f"{self._backend} backend {word}",
                "already": not result.fresh,
                "installation": result.installation,
            }
        )

    def error(self, refusal: Refusal) -> bytes:
        """`{"type": "error", …}`."""
        return self.encode(
            {"type": "error", "message": refusal.message, "advice": refusal.advice, "code": refusal.code}
        )

    def encode(self, line: dict[str, Any]) -> bytes:
        """The object as this content type has it."""
        return _encode(line) + b"\n"


class EventLines(ObjectLines):
    """The same objects as server-sent events; an error is an event of that name."""

    content_type = EVENT_STREAM

    def heartbeat(self) -> bytes:
        """A comment."""
        return b":\n\n"

    def encode(self, line: dict[str, Any]) -> bytes:
        """One event."""
        name = b"event: error\n" if line["type"] == "error" else b""
        return name + b"data: " + _encode(line) + b"\n\n"


class Installs:
    """The handlers."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def routes(self) -> Iterator[web.RouteDef]:
        """All of them."""
        yield web.post("/engines/install-backend", self.install)
        yield web.post("/engines/uninstall-backend", self.uninstall)
        yield web.post("/engines/cancel-install", self.cancel)

    async def install(self, request: web.Request) -> web.StreamResponse:
        """Have a backend installed."""
        body = await self._body(request, InstallBody)
        backend = self._door.backend(body.backend)
        backstage = self._door.backstage

        async def plan() -> web.StreamResponse:
            found = await backstage.system.ask(INSTALLER, PlanInstall(backend=backend, version=body.version))
            return web.Response(body=_encode(found), content_type="application/json")

        async def install() -> web.StreamResponse:
            waiter = body.waiter or request_id_of(request)
            ensure = Ensure(
                backend=backend,
                version=body.version,
                wanted_by="explicit",
                repair=body.reinstall,
                waiter=waiter,
                caller=await self._door.callers.looked_up(request),
            )
            reply = backstage.system.ask(INSTALLER, ensure, cause=request_id_of(request))
            lines = _lines(request, backend)
            leave = LeaveInstall(backend=backend, version=body.version, waiter=waiter)
            with counted(backstage.system, reply, INSTALLER, leave):
                if lines is None:
                    return await answered(request, reply, lambda _: web.Response())
                return await stream_job(request, backstage.board, install_job(backend), reply, lines)

        return await self._door.visitors.attend(request, plan if body.dry_run else install)

    async def uninstall(self, request: web.Request) -> web.StreamResponse:
        """Remove a backend, or a version of it, once its engines have drained."""
        body = await self._body(request, UninstallBody)
        backend = self._door.backend(body.backend)
        version = version_meant(body.version)

        async def uninstall() -> web.StreamResponse:
            ask = Uninstall(backend=backend, version=version, force=body.force)
            reply = self._door.backstage.system.ask(INSTALLER, ask, cause=request_id_of(request))
            return await answered(request, reply, told)

        def told(gone: Uninstalled) -> web.Response:
            if wants_json(request):
                return web.Response(body=_encode(gone), content_type="application/json")
            return web.Response()

        return await self._door.visitors.attend(request, uninstall)

    async def cancel(self, request: web.Request) -> web.Response:
        """End an installation."""
        body = await self._body(request, CancelBody)
        cancel = CancelInstall(
            backend=self._door.backend(body.backend),
            version=body.version,
            job=body.job,
            reason="all that waited for it have left" if body.leave else "cancelled by the user",
            leave=body.leave,
            waiter=body.waiter,
        )
        cancelled = await self._door.backstage.system.ask(INSTALLER, cancel, cause=request_id_of(request))
        return web.json_response({"ended": cancelled.ended})

    async def _body(self, request: web.Request, kind: type[Any]) -> Any:
        body = await read_json(request, kind, what="backend is required")
        if not body.backend:
            raise invalid("backend is required")
        return body


def version_meant(said: str | None) -> str:
    """The version to uninstall; empty for all, which is meant only where nothing was said of a version.

    Raises HttpRefusal: 400 for what is none, and for an empty one, as a script with an unset variable sends
    it: all would go.
    """
    if said is not None and not said.strip():
        raise invalid("the version is empty", param="version")
    version: str = checked(said or "", Version, "version")
    return version


def _lines(request: web.Request, backend: str) -> ObjectLines | None:
    accepted = request.headers.get("Accept", "")
    if EVENT_STREAM in accepted:
        return EventLines(backend)
    return ObjectLines(backend) if "ndjson" in accepted else None
