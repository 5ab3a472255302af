"""Backends over HTTP: install, uninstall, list, and the verbs about versions.

On `GET|POST /engines` and `GET|DELETE /engines/{name}` what takes long is not waited for: 202 and a
`Location` to follow. On `/engines/install-backend` and its like the answer is the contract's: nothing until
it is finished, then 200 and an empty body; `Accept: application/x-ndjson` or `text/event-stream` brings the
progress. A client that leaves ends nothing; `/engines/cancel-install` does.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal, Self

import msgspec

from greenroom.actors.installer.messages import (
    Activate,
    BackendStatus,
    CancelInstall,
    Ensure,
    Ensured,
    LeaveInstall,
    PlanInstall,
    Uninstall,
    Verified,
    VerifyBackend,
)
from greenroom.actors.kernel.core import Command
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.limits import BackendName, Id, Version
from greenroom.actors.progress import install_job
from greenroom.actors.values import BackendFacts, Installation, Progress, VariantFacts
from greenroom.actors.variants import BEST, RankedVariant
from greenroom.runner.backends.source_build import PREFIX
from greenroom.runner.http.bodies import checked, invalid, is_true, read_json
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import encoded, json_response, wants_json
from greenroom.runner.http.idempotency import answered, counted
from greenroom.runner.http.port import EVENT_STREAM, AnyResponse, Request, Response
from greenroom.runner.http.progress_stream import stream_job

_AT_ONCE = 0.5
"""Seconds within which an answer goes out as the answer itself; past them the client follows the Location."""

NDJSON = "application/x-ndjson"
_encode = msgspec.json.Encoder().encode

Build = Literal["", "native", "cuda", "rocm", "vulkan"]

IGNORED_BACKENDS = "X-Ignored-Backends"
"""A header: why backends that distributions declare are ignored, as a JSON list."""


class WantedBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /engines`. With a mistyped `version` the pinned one would be installed."""

    name: BackendName = ""
    version: Version = ""
    """Empty means any that is installed, else the pinned one; `pinned`, `latest`, or a version."""
    variant: Version = ""
    """A build for other devices, by name; `best` for the first in the machine's order."""
    build: Build = ""
    """Compile it on this machine: for its processor alone, or for graphics devices too."""
    reinstall: bool = False


class NamedBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /engines/activate-backend`, `POST /engines/verify-backend`."""

    backend: BackendName = ""
    version: Version = ""
    variant: Version = ""


class InstallBody(msgspec.Struct):
    """`POST /engines/install-backend`."""

    backend: BackendName = ""
    version: Version = ""
    variant: Version = ""
    reinstall: bool = False
    build: Build = ""
    """Compile it on this machine."""
    dry_run: bool = False
    waiter: Id = ""
    """A name that no other client has, for `leave`."""


class UninstallBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /engines/uninstall-backend`. With a mistyped `version` all of them would go."""

    backend: BackendName = ""
    version: Version | None = None
    """None means all."""
    variant: Version = ""
    """Empty means all."""
    force: bool = False
    """Do not wait for requests inside its engines."""


class CancelInstallBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /engines/cancel-install`."""

    backend: BackendName = ""
    version: Version = ""
    variant: Version = ""
    build: Build = ""
    job: Id = ""
    """This one and no other."""
    leave: bool = False
    """Only if no other client waits for it."""
    waiter: Id = ""
    """The client that leaves, by the name it installed under."""


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
        said = {"message": refusal.message, "advice": refusal.advice, "code": refusal.code}
        return self.encode({"type": "error", **said, "kind": refusal.kind})

    def encode(self, line: dict[str, Any]) -> bytes:
        """The object as this content type has it."""
        return _encode(line) + b"\n"


class EventLines(ObjectLines):
    """The same objects as server-sent events; an error is an event of that name."""

    content_type = EVENT_STREAM

    def heartbeat(self) -> bytes:
        return b":\n\n"

    def encode(self, line: dict[str, Any]) -> bytes:
        name = b"event: error\n" if line["type"] == "error" else b""
        return name + b"data: " + _encode(line) + b"\n\n"


class Backends:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def list(self, request: Request) -> Response:  # noqa: ARG002 - a handler
        """Every backend this Greenroom knows, installable here or not."""
        greenroom = self._context.greenroom
        response = encoded([self._described(one) for one in greenroom.statuses()])
        if greenroom.ignored_backends:
            response.headers[IGNORED_BACKENDS] = json.dumps(greenroom.ignored_backends)
        return response

    async def inspect(self, request: Request) -> Response:
        return encoded(self._named(self._context.backend(request.params["name"])))

    async def install(self, request: Request) -> AnyResponse:
        """Have a backend, or a version of it: 200 when it is installed, 202 when it has to be built."""
        body = await read_json(request, WantedBody, "name")
        name = self._context.backend(body.name)
        wish = Ensure(
            backend=name,
            version=body.version,
            variant=self._wished(name, body),
            wanted_by="explicit",
            repair=body.reinstall,
            caller=await self._context.callers.looked_up(request),
        )
        here = await self._soon(request, wish) is not None
        return self._followed(f"{request.path.rstrip('/')}/{name}", name, 200 if here else 202)

    async def uninstall(self, request: Request) -> AnyResponse:
        """Remove a backend, or a `version`: 200 with the bytes when it is gone, 202 while engines drain."""
        name = self._context.backend(request.params["name"])
        force = _forced(request)
        version = version_meant(request.query.get("version"))
        variant: str = checked(request.query.get("variant", ""), Version, "variant")
        ask = Uninstall(backend=name, version=version, variant=variant, force=force)
        gone = await self._soon(request, ask)
        if gone is None:
            return self._followed(request.path, name, 202)
        return encoded(gone)

    async def activate(self, request: Request) -> AnyResponse:
        """Switch to another installation; without a version, to the one before the current."""
        body = await read_json(request, NamedBody, "backend")
        ask = Activate(
            backend=self._context.backend(body.backend), version=body.version, variant=body.variant
        )
        ensured = await self._context.greenroom.system.ask(ask, cause=request.id)
        return encoded({"installation": ensured.installation})

    async def verify(self, request: Request) -> AnyResponse:
        """Read every file of a backend's installations, or of all; what is damaged is broken from then on."""
        body = await read_json(request, NamedBody)
        greenroom = self._context.greenroom
        names = (
            [self._context.backend(body.backend)] if body.backend else [one.name for one in greenroom.facts]
        )
        asks = [greenroom.system.ask(VerifyBackend(backend=name), cause=request.id) for name in names]
        found: list[Verified] = [await ask for ask in asks]
        return encoded([one for one in found if one.checked or body.backend])

    async def install_and_wait(self, request: Request) -> AnyResponse:
        body = await read_json(request, InstallBody, "backend")
        backend = self._context.backend(body.backend)
        variant = self._wished(backend, body)
        greenroom = self._context.greenroom
        if body.dry_run:
            plan = PlanInstall(backend=backend, variant=variant, version=body.version)
            return encoded(await greenroom.system.ask(plan))
        waiter = body.waiter or request.id
        ensure = Ensure(
            backend=backend,
            version=body.version,
            variant=variant,
            wanted_by="explicit",
            repair=body.reinstall,
            waiter=waiter,
            caller=await self._context.callers.looked_up(request),
        )
        reply = greenroom.system.ask(ensure, cause=request.id)
        lines = _lines(request, backend)
        leave = LeaveInstall(backend=backend, variant=variant, version=body.version, waiter=waiter)
        with counted(greenroom.system, reply, leave):
            if lines is None:
                return await answered(request, reply, lambda _: Response())
            return await stream_job(request, greenroom.board, install_job(backend), reply, lines)

    async def uninstall_and_wait(self, request: Request) -> AnyResponse:
        """Remove a backend, or a version of it, once its engines have drained."""
        body = await read_json(request, UninstallBody, "backend")
        backend = self._context.backend(body.backend)
        version = version_meant(body.version)
        ask = Uninstall(backend=backend, version=version, variant=body.variant, force=body.force)
        reply = self._context.greenroom.system.ask(ask, cause=request.id)
        return await answered(
            request, reply, lambda gone: encoded(gone) if wants_json(request) else Response()
        )

    async def cancel(self, request: Request) -> Response:
        body = await read_json(request, CancelInstallBody, "backend")
        backend = self._context.backend(body.backend)
        cancel = CancelInstall(
            backend=backend,
            version=body.version,
            variant=self._wished(backend, body) if body.leave else _variant(body.build, body.variant),
            job=body.job,
            reason="every client waiting for it disconnected" if body.leave else "requested by the user",
            leave=body.leave,
            waiter=body.waiter,
        )
        cancelled = await self._context.greenroom.system.ask(cancel, cause=request.id)
        return json_response({"ended": cancelled.ended})

    # inside

    def _wished(self, backend: str, body: WantedBody | InstallBody | CancelInstallBody) -> str:
        """The variant that a client asks for: if it leaves that open and none is installed, what requests for
        models would install."""
        variant = _variant(body.build, body.variant)
        facts = next(one for one in self._context.greenroom.facts if one.name == backend)
        if variant or body.version or not facts.best_first:
            return variant
        status = next(one for one in self._context.greenroom.statuses() if one.name == backend)
        return BEST if status.current is None else ""

    async def _soon(self, request: Request, command: Command[Any]) -> Any:
        """The answer if it comes at once, else None: the job goes on without us. Raises its refusal."""
        asked = asyncio.ensure_future(self._context.greenroom.system.ask(command, cause=request.id))
        try:
            done, _ = await asyncio.wait({asked}, timeout=_AT_ONCE)
            return asked.result() if done else None
        finally:
            asked.cancel()

    def _followed(self, location: str, name: str, status: int) -> Response:
        response = encoded(self._named(name), status=status)
        response.headers["Location"] = location
        return response

    def _named(self, name: str) -> dict[str, Any]:
        (status,) = (one for one in self._context.greenroom.statuses() if one.name == name)
        return self._described(status)

    def _described(self, status: BackendStatus) -> dict[str, Any]:
        greenroom, name = self._context.greenroom, status.name
        facts: BackendFacts = next(one for one in greenroom.facts if one.name == name)
        using: dict[str, int] = {}
        for engine in greenroom.engines():
            if engine.spec.backend == name and engine.state != "gone":
                using[engine.spec.installation_id] = using.get(engine.spec.installation_id, 0) + 1
        return {
            "name": name,
            "title": greenroom.backends[name].title,
            "state": status.state,
            "version": status.current.version if status.current is not None else "",
            "pinned_version": facts.version,
            "installations": [
                _installed(one, facts, status, using.get(one.id, 0))
                | {"no_restore": greenroom.builder.no_restore(one)}
                for one in status.installations
            ],
            "size": sum(one.size for one in status.installations),
            "verdict": facts.verdict,
            "deferred": facts.deferred,
            "variant": facts.variant_of(status.current) if status.current is not None else "",
            "variants": _variants(facts, status),
            "offered": status.offered,
            "formats": facts.formats,
            "modes": facts.modes,
            "job": self._job(status),
            "quarantines": [one for one in self._context.greenroom.quarantines() if one.backend == name],
            "failure": status.failure,
            "install": "" if facts.verdict else f"greenroom install-runner --backend {name}",
        }

    def _job(self, status: BackendStatus) -> dict[str, Any] | None:
        if not status.job:
            return None
        progress = self._context.greenroom.board.latest(install_job(status.name))
        known = msgspec.to_builtins(progress) if progress is not None else {}
        return {
            **known,
            "id": status.job,
            "attempt": status.attempt,
            "retry_at": status.retry_at,
            "queue": status.queue,
        }


def _variant(build: Build, variant: str) -> str:
    if build and variant:
        raise invalid("name a variant or a build, not both", param="build")
    return f"{PREFIX}{build}" if build else variant


def _forced(request: Request) -> bool:
    """`?force=true`. What is not understood is refused, and an empty one is no: too much might go for it."""
    return bool(request.query.get("force")) and is_true(request, "force")


def _variants(facts: BackendFacts, status: BackendStatus) -> list[dict[str, Any]]:
    """A backend's builds, the one to use first; without the order while that is unknown."""
    declared = {one.name: one for one in facts.variants}
    ranked = status.variants or tuple(
        RankedVariant(name=one.name, usable=True, reason="") for one in facts.variants
    )
    ready = {facts.variant_of(one) for one in status.installations if not one.broken}
    return [
        {
            **msgspec.to_builtins(one),
            "title": declared[one.name].title,
            "hashes": hashes_of(declared[one.name], facts, status),
            "installed": one.name in ready,
            "failure": status.tried.get(one.name),
            "install": f"greenroom install-runner --backend {facts.name} --variant {one.name}",
        }
        for one in ranked
        if one.name in declared
    ]


def hashes_of(variant: VariantFacts, facts: BackendFacts, status: BackendStatus) -> str:
    """Where those of what is installed of a variant come from, else those of what would be."""
    there = [one for one in status.installations if facts.variant_of(one) == variant.name and not one.broken]
    latest = max(there, key=lambda one: one.built_at, default=None)
    is_another = latest is not None and variant.version not in ("", latest.version)
    return "shipped" if variant.is_locked and not is_another else "resolved at installation"


def _installed(one: Installation, facts: BackendFacts, status: BackendStatus, engines: int) -> dict[str, Any]:
    return {
        **msgspec.to_builtins(one),
        "variant": facts.variant_of(one),
        "current": status.current is not None and status.current.id == one.id,
        "retiring": one.id in status.retiring,
        "engines": engines,
    }


def version_meant(said: str | None) -> str:
    """The version to uninstall; empty for all, which only a request without a version means.

    Raises HttpRefusal: 400 for what is no version, and for an empty one, as a script with an unset variable
    sends it: all versions would go.
    """
    if said is not None and not said.strip():
        raise invalid("the version is empty", param="version")
    version: str = checked(said or "", Version, "version")
    return version


def _lines(request: Request, backend: str) -> ObjectLines | None:
    accepted = request.headers.get("Accept", "")
    if EVENT_STREAM in accepted:
        return EventLines(backend)
    return ObjectLines(backend) if "ndjson" in accepted else None
