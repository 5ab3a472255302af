"""Backends as resources: `GET|POST /engines`, `GET|DELETE /engines/{name}`, and the verbs about versions.

What takes long is not waited for: 202 and a `Location` to follow. A client that leaves ends nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
from aiohttp import web

from greenroom.actors.addresses import INSTALLER
from greenroom.actors.installer.messages import (
    Activate,
    BackendStatus,
    Ensure,
    Uninstall,
    Verified,
    VerifyBackend,
)
from greenroom.actors.kernel.core import Command
from greenroom.actors.limits import BackendName, Version
from greenroom.actors.progress import install_job
from greenroom.actors.values import BackendFacts, Installation
from greenroom.runner.http.bodies import invalid, read_json
from greenroom.runner.http.door import Door
from greenroom.runner.http.headers import request_id_of
from greenroom.runner.http.installs import version_meant
from greenroom.runner.http.queries import is_true

_AT_ONCE = 0.5
"""Seconds within which an answer goes out as the answer itself; past them the client follows the Location."""

_encode = msgspec.json.Encoder().encode


class WantedBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /engines`. With a mistyped `version` the pinned one would be installed."""

    name: BackendName = ""
    version: Version = ""
    """Empty means any that is installed, else the pinned one; `pinned`, `latest`, or a version."""
    reinstall: bool = False


class NamedBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /engines/activate-backend`, `POST /engines/verify-backend`."""

    backend: BackendName = ""
    version: Version = ""


class Backends:
    """The handlers."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def routes(self) -> Iterator[web.RouteDef]:
        """All of them."""
        yield web.get("/engines", self.list)
        yield web.post("/engines", self.install)
        yield web.post("/engines/activate-backend", self.activate)
        yield web.post("/engines/verify-backend", self.verify)
        yield web.get("/engines/{name}", self.inspect)
        yield web.delete("/engines/{name}", self.uninstall)

    async def list(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        """Every backend this Greenroom knows, installable here or not."""
        return _json([self._described(one) for one in self._door.backstage.statuses()])

    async def inspect(self, request: web.Request) -> web.Response:
        """One backend."""
        return _json(self._named(self._door.backend(request.match_info["name"])))

    async def install(self, request: web.Request) -> web.StreamResponse:
        """Have a backend, or a version of it: 200 when it is here, 202 when it has to be built."""
        body = await self._body(request, WantedBody, "name is required")
        if not body.name:
            raise invalid("name is required")
        name = self._door.backend(body.name)
        wish = Ensure(
            backend=name,
            version=body.version,
            wanted_by="explicit",
            repair=body.reinstall,
            caller=await self._door.callers.looked_up(request),
        )
        here = await self._soon(request, wish) is not None
        return self._followed(f"{request.path.rstrip('/')}/{name}", name, 200 if here else 202)

    async def uninstall(self, request: web.Request) -> web.StreamResponse:
        """Remove a backend, or a `version`: 200 with the bytes when it is gone, 202 while engines drain."""
        name = self._door.backend(request.match_info["name"])
        force = _forced(request)
        version = version_meant(request.query.get("version"))
        gone = await self._soon(request, Uninstall(backend=name, version=version, force=force))
        if gone is None:
            return self._followed(request.path, name, 202)
        return _json(gone)

    async def activate(self, request: web.Request) -> web.StreamResponse:
        """Bring an installation that is here into use, without a version the one before the current."""
        body = await self._named_body(request)
        ask = Activate(backend=self._door.backend(body.backend), version=body.version)
        ensured = await self._door.backstage.system.ask(INSTALLER, ask, cause=request_id_of(request))
        return _json({"installation": ensured.installation})

    async def verify(self, request: web.Request) -> web.StreamResponse:
        """Read every file of a backend's installations, or of all; what is damaged is broken from then on."""
        body = await self._body(request, NamedBody)
        backstage = self._door.backstage
        names = [self._door.backend(body.backend)] if body.backend else [one.name for one in backstage.facts]

        async def verify() -> web.StreamResponse:
            cause = request_id_of(request)
            asks = [
                backstage.system.ask(INSTALLER, VerifyBackend(backend=name), cause=cause) for name in names
            ]
            found: list[Verified] = [await ask for ask in asks]
            return _json([one for one in found if one.checked or body.backend])

        return await self._door.visitors.attend(request, verify)

    # inside

    async def _soon(self, request: web.Request, command: Command) -> Any:
        """The answer if it comes at once, else None: the job goes on without us. Raises its refusal."""
        reply = self._door.backstage.system.ask(INSTALLER, command, cause=request_id_of(request))
        asked = asyncio.ensure_future(_answer(reply))
        try:
            done, _ = await asyncio.wait({asked}, timeout=_AT_ONCE)
            return asked.result() if done else None
        finally:
            asked.cancel()

    def _followed(self, location: str, name: str, status: int) -> web.Response:
        response = _json(self._named(name), status)
        response.headers["Location"] = location
        return response

    def _named(self, name: str) -> dict[str, Any]:
        (status,) = (one for one in self._door.backstage.statuses() if one.name == name)
        return self._described(status)

    def _described(self, status: BackendStatus) -> dict[str, Any]:
        backstage, name = self._door.backstage, status.name
        facts: BackendFacts = next(one for one in backstage.facts if one.name == name)
        using: dict[str, int] = {}
        for engine in backstage.engines():
            if engine.spec.backend == name and engine.state != "gone":
                using[engine.spec.installation_id] = using.get(engine.spec.installation_id, 0) + 1
        return {
            "name": name,
            "title": backstage.backends[name].title,
            "state": status.state,
            "version": status.current.version if status.current is not None else "",
            "pinned_version": facts.version,
            "installations": [_installed(one, status, using.get(one.id, 0)) for one in status.installations],
            "size": sum(one.size for one in status.installations),
            "verdict": facts.verdict,
            "deferred": facts.deferred,
            "formats": facts.formats,
            "modes": facts.modes,
            "job": self._job(status),
            "quarantines": [one for one in self._door.quarantines() if one.backend == name],
            "failure": status.failure,
            "install": "" if facts.verdict else f"greenroom install-runner --backend {name}",
        }

    def _job(self, status: BackendStatus) -> dict[str, Any] | None:
        if not status.job:
            return None
        progress = self._door.backstage.board.latest(install_job(status.name))
        known = msgspec.to_builtins(progress) if progress is not None else {}
        return {
            **known,
            "id": status.job,
            "attempt": status.attempt,
            "retry_at": status.retry_at,
            "queue": status.queue,
        }

    async def _named_body(self, request: web.Request) -> NamedBody:
        body: NamedBody = await self._body(request, NamedBody, "backend is required")
        if not body.backend:
            raise invalid("backend is required")
        return body

    async def _body(self, request: web.Request, kind: type[Any], what: str = "") -> Any:
        return await read_json(request, kind, what)


def _forced(request: web.Request) -> bool:
    """`?force=true`. What is not understood is refused, and an empty one is no: too much might go for it."""
    return bool(request.query.get("force")) and is_true(request, "force")


def _installed(one: Installation, status: BackendStatus, engines: int) -> dict[str, Any]:
    return {
        **msgspec.to_builtins(one),
        "current": status.current is not None and status.current.id == one.id,
        "retiring": one.id in status.retiring,
        "engines": engines,
    }


async def _answer(reply: Any) -> Any:
    return await reply


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=_encode(value), status=status, content_type="application/json")
