"""Looking after what is on the disk: verify a model, prune, and how much there is of everything."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import msgspec
from aiohttp import web

from greenroom.actors.addresses import INSTALLER, LIBRARY
from greenroom.actors.installer.messages import DropFetched
from greenroom.actors.kernel.errors import Refusal, Refused
from greenroom.actors.library.messages import NoteDamage, Prune, RemoveModel
from greenroom.actors.library.pulls import refusal_of
from greenroom.actors.values import Model, Progress
from greenroom.runner.disk_usage import measure
from greenroom.runner.errors import JobFailed
from greenroom.runner.http.bodies import read_json
from greenroom.runner.http.door import Door, shown_name
from greenroom.runner.http.errors import wants_json
from greenroom.runner.http.headers import request_id_of
from greenroom.runner.http.progress_stream import stream_job
from greenroom.runner.http.transfer_lines import TransferLines
from greenroom.runner.models.references import familiar
from greenroom.runner.waits import in_thread

_DEFAULT_BACKEND = "llama.cpp"


class PruneBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /models/prune`; may be left out."""

    untagged: bool = False
    """Also models that have no name any more."""


class Upkeep:
    """The handlers."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._verifying = asyncio.Lock()
        """One at a time: it is the disk that takes the time."""

    def routes(self) -> Iterator[web.RouteDef]:
        """All of them."""
        yield web.get("/engines/df", self.df)
        yield web.post("/models/prune", self.prune)
        yield web.post("/models/{reference:.+}/verify", self.verify)

    async def df(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        """Bytes on disk, each once."""
        backstage = self._door.backstage
        try:
            blobs = await in_thread(backstage.store.blobs)
        except JobFailed as failed:
            raise Refused(refusal_of(failed.failure)) from None
        usage = await in_thread(lambda: measure(backstage.home, blobs))
        return web.json_response(
            {
                "models_disk_usage": usage.models,
                "default_backend_disk_usage": usage.backends.get(_DEFAULT_BACKEND, 0),
                "backends_disk_usage": usage.backends,
                "models_shared_disk_usage": usage.models_shared,
                "unfinished_disk_usage": usage.unfinished,
                "cache_disk_usage": usage.cache,
                "engines_disk_usage": usage.engines,
                "journal_disk_usage": usage.journal,
                "other_disk_usage": usage.other,
                "total_disk_usage": usage.total,
            }
        )

    async def prune(self, request: web.Request) -> web.Response:
        """Remove what no model and no installation needs.

        If asked for, models without a name too, unless they are in use. `kept_for` names backends that are
        being installed: what was fetched for installations stays until that has ended.
        """
        body = await read_json(request, PruneBody)
        system = self._door.backstage.system
        deleted: list[str] = []
        freed = 0
        for model in self._door.backstage.models() if body.untagged else ():
            if model.tags:
                continue
            try:
                removed = await system.ask(
                    LIBRARY, RemoveModel(model_id=model.id), cause=request_id_of(request)
                )
            except Refused:
                continue
            deleted += removed.deleted
            freed += removed.freed
        pruned = await system.ask(LIBRARY, Prune())
        dropped = await system.ask(INSTALLER, DropFetched())
        return web.json_response(
            {
                "deleted": deleted,
                "freed": freed + pruned.freed + dropped.freed,
                "kept_for": dropped.kept_for,
            }
        )

    async def verify(self, request: web.Request) -> web.StreamResponse:
        """Read every byte of a model. A damaged one counts as gone, and the next pull repairs it."""
        model = self._door.model(request.match_info["reference"])
        job = f"verify/{model.id}"
        lines = TransferLines(job, "verify", raw=wants_json(request))

        async def verify() -> web.StreamResponse:
            cancel = threading.Event()
            try:
                return await stream_job(
                    request,
                    self._door.backstage.board,
                    job,
                    self._verified(request, model, job, cancel),
                    lines,
                )
            finally:
                cancel.set()

        return await self._door.visitors.attend(request, verify)

    async def _verified(self, request: web.Request, model: Model, job: str, cancel: threading.Event) -> str:
        backstage = self._door.backstage
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            backstage.board.publish(Progress(job=job, phase="verifying", done=done, total=model.size))

        def read() -> tuple[str, ...]:
            return backstage.store.verify(model.id, cancel=cancel, count=count, condemn=True)

        try:
            async with self._verifying:
                problems = await in_thread(read)
        except JobFailed as failed:
            raise Refused(refusal_of(failed.failure)) from None
        finally:
            backstage.board.clear(job)
        if not problems:
            return f"{familiar(shown_name(model))} is whole: every byte is what it was when it arrived"
        reason = " ".join(problems)
        damage = NoteDamage(model_id=model.id, reason=f"it is damaged: {reason}")
        await backstage.system.ask(LIBRARY, damage, cause=request_id_of(request))
        name = familiar(shown_name(model))
        raise Refused(
            Refusal(
                code="model_damaged",
                message=f"{name} is damaged: {reason}",
                advice=f"Fetch what is missing: greenroom pull {name}",
            )
        )
