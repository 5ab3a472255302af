"""`POST /engines/slots`: a slot in an engine, for a program on this machine that talks to the engine itself.

The answer's first line says where the engine is. Its end is the slot's: the client has it for as long as it
keeps the connection open.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated

import msgspec
from msgspec import Meta

from greenroom.actors.gates import Place
from greenroom.actors.limits import BackendName, Name
from greenroom.actors.values import Mode
from greenroom.runner.http.admission import Admission
from greenroom.runner.http.bodies import read_json
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.port import AnyResponse, Request
from greenroom.runner.http.requests import NDJSON


class SlotBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /engines/slots`."""

    model: Name
    mode: Mode = "completion"
    backend: BackendName = ""
    """Unless empty, the only one that may serve it."""
    wait: Annotated[float, Meta(gt=0)] | None = None
    """Seconds to wait for it at most; without it the setting `max_wait` holds."""


class HeldSlot(msgspec.Struct):
    """The first line of the answer."""

    engine_id: str
    backend: str
    socket: str
    """The path of the unix socket at which the engine speaks HTTP, with an OpenAI API at its root."""


class EngineSlots:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def hold(self, request: Request) -> AnyResponse:
        """Take a slot, say where its engine is, and keep it until the client leaves."""
        context = self._context
        if not request.is_local:
            raise HttpRefusal(
                403,
                "not_allowed",
                "Only programs on the daemon's machine can hold a slot in an engine.",
                advice="From elsewhere, send requests for completions or embeddings.",
            )
        body = await read_json(request, SlotBody)
        if body.backend in {one.name for one in context.greenroom.remotes}:
            raise HttpRefusal(
                400,
                "not_ours",
                f"{body.backend} is an engine that someone else runs: there is no socket of it here.",
                advice=f"Send requests for {body.backend}/MODEL instead.",
                param="backend",
                subject=body.backend,
            )
        note = request.note
        note.asked, note.model = body.model, context.greenroom.model(body.model)
        admission = Admission(
            context.greenroom,
            context.ids,
            context.sent_requests,
            note.model,
            body.model,
            body.mode,
            body.backend,
            caller=context.callers.at_once(request, ""),
            look_up=lambda: context.callers.looked_up(request, ""),
            first_id=request.id,
            note=note,
        )
        try:
            place = await _within(body.wait, admission)
            note.caller = admission.caller
            admission.send_to(place.engine_id)
            stream = await request.start(headers={"Content-Type": NDJSON})
            context.clients.goes_on(request, stream)
            taken = HeldSlot(place.engine_id, place.backend, place.endpoint)
            await stream.write(msgspec.json.encode(taken) + b"\n")
            await asyncio.Event().wait()  # cancelled when the client leaves
            return stream
        finally:
            # The engine may still be at work on what it was sent.
            admission.leave(early=True)


async def _within(seconds: float | None, admission: Admission) -> Place:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await admission.enter()
    raise HttpRefusal(
        503,
        "not_in_time",
        f"No slot for {admission.asked_as} came free within {seconds:g} s.",
        advice="Wait longer, or free one: greenroom ps shows the engines.",
        retry_after=5.0,
    )
