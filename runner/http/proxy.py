"""One inference request, from its arrival to its last byte.

1. Read the body, bounded; find out the model. Refusals here are immediate.
2. Enter the gate of a ready engine, or ask the scheduler for a place.
3. Send the request on and wait for the first byte of the answer. An engine that cannot be reached has
   seen nothing, so the scheduler is asked again; one that dies with the request inside is replaced once.
4. Pass the bytes through as they come. An engine that dies now is one error frame and `[DONE]`.
5. Whatever happened: close the way to the engine, then leave the gate.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import msgspec
from aiohttp import web
from greenroom.actors.facts import Mode, Model
from greenroom.actors.gates import Place
from greenroom.actors.kernel.errors import Refusal, Refused
from greenroom.actors.progress import request_job
from greenroom.runner.http.admission import Admission
from greenroom.runner.http.bodies import NOT_UNDERSTOOD, Routing, read_body, routing_of
from greenroom.runner.http.dialects import Renaming, translate
from greenroom.runner.http.door import Door
from greenroom.runner.http.errors import HttpRefusal, answer, answer_error, frame, refusal_of
from greenroom.runner.http.go_text import keep_alive_of
from greenroom.runner.http.headers import forwarded, request_id_of, returned
from greenroom.runner.http.progress_stream import sentence_of
from greenroom.runner.http.stream import Stream
from greenroom.runner.http.upstreams import Answer, Lost, Unreached
from greenroom.runner.http.waiting import EVENT_STREAM, Waiting

_REACH_FOR = 5.0
"""Seconds to go on asking for an engine that can be reached: an exit is noticed in hundredths of one."""
_REACH_PAUSE = 0.025
_OURS = frozenset({"keep_alive"})
"""Fields that are for us and that an engine might refuse."""
_OBITUARY = 1.0
"""Seconds to wait for the reason of an engine's death."""
_TOLD = 64 * 1024
"""Bytes of an engine's error that are read when it must be put into a frame."""


@dataclass(frozen=True)
class Kind:
    """What a route asks of an engine."""

    mode: Mode
    path: str
    """Where the engine has it."""
    done: bool = False
    """Its streams end with `data: [DONE]`, so one that ends without was cut off."""


class Exchange:
    """One request and its answer."""

    def __init__(self, door: Door, request: web.Request, kind: Kind, backend: str) -> None:
        """`backend`, unless empty, is binding."""
        self._door = door
        self._request = request
        self._kind = kind
        self._backend = backend
        self._asked_as = ""
        self._ours: frozenset[str] = frozenset()
        self._admission: Admission | None = None
        self._waiting: Waiting | None = None
        self._upstream: Answer | None = None
        self._response: web.StreamResponse | None = None

    async def serve(self) -> web.StreamResponse:
        """Do all of it."""
        try:
            return await self._serve()
        except ConnectionError:
            raise  # the client has left
        except Exception as error:  # noqa: BLE001 - whatever it is, a stream that has begun gets its end
            return await self._refuse(error)
        finally:
            if self._waiting is not None:
                self._waiting.cancel()
            if self._upstream is not None:
                self._upstream.close()
            if self._admission is not None:
                self._admission.leave()

    async def farewell(self) -> web.StreamResponse:
        """The last answer when the front door closes with this request inside."""
        refusal = Refusal(
            code="stopping",
            message="Greenroom stops, and this request ends with it.",
            advice="Send it again in a moment.",
            status=503,
            retry_after=5.0,
        )
        response = self._response or (self._waiting.response if self._waiting is not None else None)
        if response is None:
            return answer(self._request, refusal, "openai")
        return await self._last_words(response, refusal)

    async def _serve(self) -> web.StreamResponse:
        door, request = self._door, self._request
        settings = door.backstage.settings
        body = await read_body(request, settings.max_body)
        routing = routing_of(body)
        model = door.model(routing.model)
        self._asked_as = routing.model
        admission = self._admission = Admission(
            door.backstage,
            door.ids,
            model,
            asked_as=routing.model,
            mode=self._kind.mode,
            backend=self._backend,
            caller=request.remote or "",
            request_id=request_id_of(request),
            keep_alive=_keep_alive(routing),
        )
        self._ours = _OURS if routing.keep_alive is not None else frozenset()
        if request.headers.get("X-Preload-Only", "").lower() == "true":
            await admission.enter()
            return web.Response()
        if routing.stream:
            self._waiting = Waiting(
                request,
                after=settings.progress_after,
                headers={"Cache-Control": "no-cache"},
                say=self._what_goes_on,
            )
            self._waiting.begin()
        place, upstream, first = await self._first_byte(admission, model, body)
        return await self._pass_on(place, model, upstream, first)

    # to the engine

    async def _first_byte(
        self, admission: Admission, model: Model, body: bytes
    ) -> tuple[Place, Answer, bytes]:
        """Send the request until an engine has begun to answer it."""
        loop = asyncio.get_running_loop()
        path = self._kind.path
        if self._request.query_string:
            path = f"{path}?{self._request.rel_url.raw_query_string}"
        headers = forwarded(self._request)
        give_up, losses = 0.0, 0
        while True:
            place = await admission.enter(afresh=give_up > 0 or losses > 0)
            dialect = self._door.backstage.backends[place.backend].dialect
            translated = translate(body, dialect, dialect.spoken(model.id), self._ours)
            last_byte = self._door.backstage.gates.last_byte(place.engine_id)
            try:
                upstream = await self._door.upstreams.post(
                    place.endpoint, path, translated, headers, last_byte
                )
                self._upstream = upstream
                return place, upstream, await _first_chunk(upstream)
            except Unreached:
                give_up = give_up or loop.time() + _REACH_FOR
                if loop.time() >= give_up:
                    raise HttpRefusal(
                        503,
                        "engine_unreachable",
                        f'The {place.backend} engine that serves "{self._asked_as}" cannot be reached.',
                        advice=f"greenroom why {self._asked_as} says more.",
                        retry_after=5.0,
                    ) from None
            except Lost:
                losses += 1
                if losses > 1:
                    raise Refused(await self._obituary(place, "before it had answered")) from None
            if self._upstream is not None:
                self._upstream.close()
                self._upstream = None
            admission.leave()
            await asyncio.sleep(_REACH_PAUSE)

    # to the client

    async def _pass_on(
        self, place: Place, model: Model, upstream: Answer, chunk: bytes
    ) -> web.StreamResponse:
        response = await self._waiting.end() if self._waiting is not None else None
        spoken = self._door.backstage.backends[place.backend].dialect.spoken(model.id)
        rename = None if spoken in (None, self._asked_as) else Renaming(str(spoken), self._asked_as)
        if upstream.content_type == EVENT_STREAM and upstream.status == 200:
            if response is None:
                response = await self._begin(upstream)
            return await self._stream(response, place, upstream, chunk, rename)
        if response is not None:
            # The stream has begun with comments; what the engine says instead of one is its end.
            return await self._last_words(response, await _told_by(upstream, chunk))
        if rename is not None:
            return await self._renamed(place, upstream, chunk, rename)
        response = await self._begin(upstream, upstream.length)
        while chunk:
            await response.write(chunk)
            try:
                chunk = await upstream.read()
            except Lost:
                # The head promised a whole answer. Cutting the connection is the only way to take it back.
                self._hang_up()
        await response.write_eof()
        return response

    async def _begin(self, upstream: Answer, length: int | None = None) -> web.StreamResponse:
        response = web.StreamResponse(status=upstream.status, headers=returned(upstream))
        if length is not None:
            response.content_length = length
        await response.prepare(self._request)
        self._response = response
        return response

    async def _stream(
        self,
        response: web.StreamResponse,
        place: Place,
        upstream: Answer,
        chunk: bytes,
        rename: Renaming | None,
    ) -> web.StreamResponse:
        stream = Stream(self._request, response, rename)
        try:
            await stream.pass_on(upstream, chunk)
        except Lost:
            return await self._broken_off(response, place)
        if not await stream.end(done=self._kind.done):
            return await self._broken_off(response, place)
        return response

    async def _renamed(
        self, place: Place, upstream: Answer, chunk: bytes, rename: Renaming
    ) -> web.StreamResponse:
        try:
            body = rename(chunk + await upstream.rest())
        except Lost:
            raise Refused(await self._obituary(place, "before it had answered")) from None
        return web.Response(status=upstream.status, headers=returned(upstream), body=body)

    # when it does not go well

    async def _refuse(self, error: Exception) -> web.StreamResponse:
        response = self._response
        if self._waiting is not None:
            response = await self._waiting.end() or response
        if response is None:
            return answer_error(self._request, error, "openai")
        return await self._last_words(response, refusal_of(error))

    async def _broken_off(self, response: web.StreamResponse, place: Place) -> web.StreamResponse:
        # Half an event may have been sent; a blank line ends it, and a second one does no harm.
        await response.write(b"\n\n")
        return await self._last_words(response, await self._obituary(place, "in mid-stream"))

    async def _last_words(self, response: web.StreamResponse, refusal: Refusal) -> web.StreamResponse:
        if response.content_type != EVENT_STREAM:
            self._hang_up()
        await response.write(frame(refusal))
        await response.write_eof()
        return response

    def _hang_up(self) -> None:
        transport = self._request.transport
        if transport is not None:
            transport.abort()
        raise ConnectionResetError("the answer could not be completed")

    async def _obituary(self, place: Place, when: str) -> Refusal:
        """Why an engine is gone, once its runner knows."""
        summary = "it closed the connection"
        for _ in range(round(_OBITUARY / _REACH_PAUSE)):
            engines = self._door.backstage.engines()
            engine = next((one for one in engines if one.spec.engine_id == place.engine_id), None)
            if engine is None or engine.state == "gone":
                if engine is not None and engine.exit is not None and engine.exit.summary:
                    summary = engine.exit.summary.rstrip(".")
                break
            await asyncio.sleep(_REACH_PAUSE)
        return Refusal(
            code="engine_died",
            message=f'The {place.backend} engine that served "{self._asked_as}" ended {when}: {summary}.',
            advice="Send the request again; another engine will be started.",
            status=502,
        )

    def _what_goes_on(self) -> str:
        request_id = self._admission.request_id if self._admission is not None else ""
        board = self._door.backstage.board
        progress = board.latest(request_job(request_id))
        if progress is None:
            return f"waiting for {self._asked_as}"
        return f"waiting for {self._asked_as}: {sentence_of(progress, board)}"


def _keep_alive(routing: Routing) -> float | None:
    if routing.keep_alive is None:
        return None
    try:
        return keep_alive_of(routing.keep_alive)
    except ValueError as error:
        raise HttpRefusal(400, "invalid_request", f"keep_alive: {error}.", param="keep_alive") from None


async def _first_chunk(upstream: Answer) -> bytes:
    first = await upstream.read()
    if not first and upstream.status == 200 and upstream.length != 0:
        # An answer that is delimited by the end of the connection ends the same way when its engine dies.
        raise Lost("the engine closed the connection")
    return first


async def _told_by(upstream: Answer, chunk: bytes) -> Refusal:
    """What an engine answered instead of a stream, as a refusal."""
    try:
        body = chunk + await upstream.rest(_TOLD)
    except Lost:
        body = chunk
    told: object = None
    with contextlib.suppress(*NOT_UNDERSTOOD):
        told = msgspec.json.decode(body)
    if isinstance(told, dict):
        told = told.get("error") or told.get("detail") or told.get("message")
        if isinstance(told, dict):
            told = told.get("message")
    message = str(told) if told else body[:1000].decode(errors="replace").strip()
    status = upstream.status if upstream.status >= 400 else 502
    return Refusal(code="engine_refused", message=message or f"The engine answered {status}.", status=status)
