"""One inference request, from its arrival to its last byte.

1. Read the body, bounded; find out the model; refuse what needs no engine to be refused.
2. Enter the gate of a ready engine, or ask the scheduler for a place.
3. Send the request on and wait for the first byte of the answer. An engine that cannot be reached has
   seen nothing, so the scheduler is asked again; one that dies with the request inside is replaced once,
   unless it died of this request.
4. Pass the bytes through as they come. An engine's error is put in our words. An engine that
   dies now is one error frame, and the end of the connection.
5. In any case: close the connection to the engine, then leave the gate. While a grant may be on its way,
   leaving abandons it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from greenroom.actors.gates import Place
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.scheduler.ledger import context_reckoned
from greenroom.actors.slot_choice import SlotChoice
from greenroom.actors.values import Model
from greenroom.runner.http.admission import Admission, slots_of
from greenroom.runner.http.aiohttp_adapter import read_body
from greenroom.runner.http.answer_filters import FilteredTranslation, Untranslated
from greenroom.runner.http.context import Context
from greenroom.runner.http.cut_inputs import Uncountable, cut_by
from greenroom.runner.http.defaults import with_defaults
from greenroom.runner.http.engine_errors import (
    answer_in,
    broke_off,
    engine_error,
    error_body,
    lost,
    suspected,
    unreachable,
)
from greenroom.runner.http.engine_requests import (
    TAKES_SLOT,
    TOO_LONG,
    Checked,
    Kind,
    Prompt,
    RequestTarget,
    Routing,
    check,
    ignored_by,
    parts_of,
    refuse_what_it_cannot,
    routing_of,
    spoken_by,
    translate,
    wished_context,
    wished_keep_alive,
    with_slot,
)
from greenroom.runner.http.errors import (
    SHUT_DOWN,
    HttpRefusal,
    answer,
    answer_error,
    frame,
    refusal_of,
)
from greenroom.runner.http.event_stream import EventStream, Held, ReadWatch, Said, Unfinished
from greenroom.runner.http.port import (
    DEVICE_HEADER,
    EVENT_STREAM,
    EXPLAIN_HEADER,
    JSON,
    AnyResponse,
    Handler,
    Request,
    Response,
    Stream,
)
from greenroom.runner.http.progress_stream import KeepAlive
from greenroom.runner.http.stop_sequences import StopSequences
from greenroom.runner.http.suspects import fingerprint
from greenroom.runner.http.tool_prompt import ToolPrompt
from greenroom.runner.http.translation import Renaming, Translation
from greenroom.runner.http.upstream import Connection, Lost, Unreached, first_chunk, forwarded, returned
from greenroom.runner.http.wait_text import WaitText
from greenroom.runner.record.counts import counts_of
from greenroom.runner.units import format_size

_log = logging.getLogger(__name__)

_REACH_FOR = 5.0
"""Seconds to keep asking for an engine that can be reached: an exit is noticed within hundredths of one."""
_REACH_PAUSE = 0.025
OURS = frozenset({"keep_alive", "num_ctx"})
"""Fields that are for us and that an engine might refuse."""
_TURN = 30.0
"""Seconds a request that was inside a dying engine with others waits for its turn to be retried alone."""
WHOLE = 256_000_000
"""Bytes of an answer that must be whole before it is sent on."""
_PIECE = 64 * 1024
"""Bytes of a body that are written at once."""
_HASHED_AT_ONCE = 64 * 1024
"""Bytes of a request; longer ones are hashed on a thread."""
_HEAD = 4_096
"""Bytes of a whole answer in which its tokens are looked for, beside its end."""


def inference(context: Context, kind: Kind) -> Handler:
    async def serve(request: Request) -> AnyResponse:
        exchange = Exchange(context, request, kind, request.backend)
        return await context.clients.attend(request, exchange.serve, exchange.farewell)

    return serve


class Exchange:
    def __init__(
        self,
        context: Context,
        request: Request,
        kind: Kind,
        backend: str,
        accepted: Callable[[], Stream] | None = None,
    ) -> None:
        """`backend`, unless empty, is binding.

        `accepted` is called once nothing but the scheduler and an engine can refuse the request. It gives the
        stream of the answer, which from then on says how the request ends.
        """
        self._context = context
        self._request = request
        self._note = request.note
        self._note.family = kind.family
        self._kind = kind
        self._backend = backend
        self._accepted = accepted
        self._asked_as = ""
        self._elsewhere: Exchange | None = None
        """Serves it, if no engine of ours does."""
        self._ours: frozenset[str] = frozenset()
        self._admission: Admission | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._keep_alive: KeepAlive | None = None
        self._wait_text: WaitText | None = None
        self._upstream: Connection | None = None
        self._stream: Stream | None = None
        """The answer, once its head was sent by us."""
        self._translation: Translation | None = None
        self._context_size = 0
        self._prompt: Prompt = ()
        self._keeps = (True, True)
        """What an engine has read of it may stay in its slot, and on the disk."""
        self._events: EventStream | None = None
        self._watch: ReadWatch | None = None
        self._fingerprint = b""
        self._turn = contextlib.AsyncExitStack()
        """Held while this request is retried alone."""
        self._has_turn = False

    async def serve(self) -> AnyResponse:
        try:
            return await self._serve()
        except ConnectionError:
            raise  # the client has left
        except Exception as error:  # noqa: BLE001 - whatever it is, a stream that has begun gets its end
            return await self._refuse(error)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._keep_alive is not None:
                self._keep_alive.cancel()
            if self._watch is not None:
                self._watch.end()
            early = self._upstream is None or not self._upstream.complete
            if self._upstream is not None:
                self._upstream.close()
            if self._admission is not None:
                self._note.caller = self._admission.caller
                self._admission.leave(early=early)
            if self._note.restored is not None:
                cached = counts_of(self._note.head, self._note.before, self._note.last).cached
                self._context.greenroom.conversation_saver.restorer.judge(self._note.restored, cached)
            if self._has_turn:
                await self._turn.aclose()

    async def farewell(self) -> AnyResponse:
        """The last answer when the front door closes with this request inside."""
        if self._elsewhere is not None:
            return await self._elsewhere.farewell()
        stream = self._stream or (self._keep_alive.stream if self._keep_alive is not None else None)
        if stream is None:
            return answer(self._request, SHUT_DOWN, self._kind.family)
        return await self._last_words(stream, SHUT_DOWN)

    async def _serve(self) -> AnyResponse:
        context, request, kind = self._context, self._request, self._kind
        settings = context.greenroom.settings
        body = await read_body(request, settings.max_body)
        routing, note = routing_of(body), self._note
        note.asked = routing.model
        if context.elsewhere is not None and (other := context.elsewhere(routing.model)) is not None:
            request.known_body = body
            elsewhere: Exchange = other(context, request, kind, self._backend, self._accepted)
            self._elsewhere = elsewhere
            return await elsewhere.serve()
        preloads = request.headers.get("X-Preload-Only", "").lower() == "true"
        if preloads:
            note.family = "management"  # no model answers it
        model = note.model = context.greenroom.model(routing.model)
        self._asked_as = routing.model
        if context.record.bodies_left:
            context.record.take_body(note, body)
        if routing.keep_alive is not None or routing.num_ctx is not None:
            self._ours = OURS
            self._context_size = wished_context(routing, model)
        if preloads:
            await self._admit(model, routing, {}).enter()
            return Response()
        right = await check(body, kind.dialogue)
        if right.unread:
            request.ignore(right.unread)
        stays = right.fields.get("cache_prompt") is not False and settings.conversations != "off"
        self._keeps = (stays, right.fields.get("store") is not False)
        translation = self._translation = kind.translate(right.fields) if kind.translate else None
        if translation is not None:
            request.ignore(name for name in (*right.unknown, *translation.ignored) if name not in OURS)
            chat, size = translation.chat, translation.context_size
            if size:
                self._context_size = min(size, model.context_length or size)
            right = Checked(msgspec.json.encode(chat), chat)
        if model.has_defaults and kind.mode == "completion":
            settled = translation.settled if translation is not None else ()
            right = with_defaults(right, await context.defaults.of(model), kind.path, settled)
        await context.abilities.look(
            model, kind.mode, self._backend, right.fields, self._asked(self._backend), self._context_size
        )
        streams = right.fields.get("stream") and kind.end
        right = await self._filtered(model, right)
        self._prompt = parts_of(right.fields, kind.path)
        if self._is_suspect(model, right.body):
            raise suspected(self._asked_as)
        if self._accepted is not None:
            self._stream = self._accepted()
        admission = self._admit(model, routing, right.fields)
        if streams and (self._translation is None or self._translation.content_type == EVENT_STREAM):
            # Not at once, so that an immediate refusal keeps its status.
            self._timer = asyncio.get_running_loop().call_later(settings.progress_after, self._begin_to_talk)
        place, upstream, first = await self._first_byte(admission, model, right)
        try:
            if translation is not None and translation.cuts and not 200 <= upstream.status < 300:
                upstream, first = await self._send_cut(place, model, right, upstream, first)
            return await self._pass_on(place, model, upstream, first)
        except Unfinished:
            raise broke_off(place, self._asked_as, "in mid-stream") from None
        except Lost:
            # It has begun to answer, and perhaps the client to read, so there is no retry.
            when = "before its answer was complete" if self._events is None else "in mid-stream"
            raise await self._lost(place, model, right.body, when) from None

    async def _filtered(self, model: Model, right: Checked) -> Checked:
        """The request without what is done here in the engine's place."""
        stops = self._translation.stops if self._translation is not None else ()
        prompt = await self._tool_prompt(model, right.fields)
        filters = [*([StopSequences(stops)] if stops else []), *([prompt] if prompt is not None else [])]
        if not filters:
            return right
        inner = self._translation or Untranslated(right.body, self._asked_as, self._kind.answers)
        whole = inner.chat if self._translation is None else right.fields
        self._translation = outer = FilteredTranslation(inner, filters)
        chat = outer.filtered(whole)
        return Checked(msgspec.json.encode(chat), chat)

    async def _tool_prompt(self, model: Model, fields: Mapping[str, Any]) -> ToolPrompt | None:
        return await self._context.abilities.tool_prompt(model, fields)

    def _admit(self, model: Model, routing: Routing, fields: Mapping[str, Any]) -> Admission:
        """The way in for a request with these fields."""
        context, request, user = self._context, self._request, fields.get("user", "")
        self._admission = Admission(
            context.greenroom,
            context.ids,
            context.sent_requests,
            model,
            routing.model,
            self._kind.mode,
            self._backend,
            caller=context.callers.at_once(request, user),
            look_up=lambda: context.callers.looked_up(request, user),
            slots=slots_of(fields),
            first_id=request.id,
            keep_alive=wished_keep_alive(routing),
            context_size=self._context_size,
            prompt=self._prompt,
            keeps=self._keeps,
            note=self._note,
        )
        return self._admission

    # to the engine

    async def _first_byte(
        self, admission: Admission, model: Model, right: Checked
    ) -> tuple[Place, Connection, bytes]:
        """Send the request until an engine has begun to answer it."""
        loop = asyncio.get_running_loop()
        # Without the query, in which some clients have their keys.
        path = self._kind.path
        headers = forwarded(self._request)
        give_up, losses = 0.0, 0
        while True:
            place = await admission.enter(skip_gate=give_up > 0 or losses > 0)
            self._note.caller = admission.caller
            dialect = self._context.greenroom.backends[place.backend].dialect
            refuse_what_it_cannot(place.backend, dialect, right.fields)
            if names := ignored_by(dialect, right.fields, right.body):
                self._request.ignore(
                    names if self._translation is None else map(self._translation.named, names)
                )
            translated = translate(right.body, dialect, spoken_by(dialect, model), self._ours)
            backend = self._context.greenroom.backends[place.backend]
            saves = backend.conversations == "slots" and path in TAKES_SLOT
            if saves and (choice := admission.take_slot()) is not None:
                goes_on, is_ours = await self._go_on(choice, admission, model, len(right.body))
                # Of a request that names no slot, llama.cpp looks in its memory for all prompts.
                is_free = choice.alone and backend.keeps_prompts_of_no_slot and is_ours
                number = None if is_free else choice.number
                translated = with_slot(translated, number, keeps=self._keeps[0] and goes_on)
            last_byte = self._context.greenroom.gates.last_byte(place.engine_id)
            admission.send_to(place.engine_id)
            self._note.engine, self._note.backend, self._note.fault = place.engine_id, place.backend, ""
            if self._request.headers.get(EXPLAIN_HEADER) == "1":
                where = self._context.greenroom.where(place.engine_id)
                self._request.answer_headers[DEVICE_HEADER] = ascii(where)[1:-1]
            if self._translation is not None:
                self._translation.entered()
            try:
                upstream = await self._context.upstreams.post(
                    place.endpoint, path, translated, headers, last_byte
                )
                self._upstream = upstream
                return place, upstream, await first_chunk(upstream)
            except Unreached:
                early = False
                give_up = give_up or loop.time() + _REACH_FOR
                if loop.time() >= give_up:
                    raise unreachable(place, self._asked_as) from None
            except Lost:
                early = True
                losses += 1
                died = await self._lost(place, model, right.body, "before it had answered")
                if losses > 1 or died.refusal.status < 500 or self._is_suspect(model, right.body):
                    raise died from None
            if self._upstream is not None:
                self._upstream.close()
                self._upstream = None
            admission.leave(early=early)
            await self._wait_for_turn(model, right.body)
            await asyncio.sleep(_REACH_PAUSE)

    async def _go_on(
        self, choice: SlotChoice, admission: Admission, model: Model, size: int
    ) -> tuple[bool, bool]:
        """Restore what the slot lacks of the prompt, if it is on the disk, and see whose the request is.

        Returns whether what the slot holds is for this caller, and whether all is that the engine has read.
        """
        context, saver = self._context, self._context.greenroom.conversation_saver
        if saver.loses(choice):
            await admission.in_slot(lambda: saver.before_loss(choice, admission.request_id))
        if saver.reads_at_once(choice.engine_id, size):
            return True, True
        has_all = bool(choice.held) and choice.lost is None
        needs_none = not choice.source and (has_all or model.id not in saver.models)
        owner = context.callers.owner_at_once(self._request)
        if owner is None:
            if needs_none and context.greenroom.gates.has_one_owner(choice.engine_id):
                context.keep(self._own(choice))  # looking takes too long for a user who is alone
                return True, True
            owner = await context.callers.owner(self._request)
        is_ours = context.greenroom.gates.own(choice, owner, self._note.counted)
        goes_on = choice.owner in ("", owner)
        if not goes_on:
            choice = choice._replace(held=0)
        elif needs_none:
            return True, is_ours
        restorer, saves = saver.restorer, saver.saves and all(self._keeps)
        at_once = size <= _HASHED_AT_ONCE
        if saves and not (at_once and restorer.is_new(choice, self._prompt, owner)):
            found = await admission.in_slot(lambda: restorer.restore(choice, self._prompt, owner))
            self._note.restored = found
            goes_on = goes_on or (found is not None and found.tokens > 0)
        return goes_on, is_ours

    async def _own(self, choice: SlotChoice) -> None:
        owner = await self._context.callers.owner(self._request)
        self._context.greenroom.gates.own(choice, owner, self._note.counted)

    async def _send_cut(
        self, place: Place, model: Model, right: Checked, upstream: Connection, chunk: bytes
    ) -> tuple[Connection, bytes]:
        """Send inputs that the engine has refused as too long once more, cut. Raises Lost and HttpRefusal."""
        refused = engine_error(upstream.status, await error_body(upstream, chunk), self._asked(place.backend))
        engine = self._context.greenroom.engine(place.engine_id)
        size = context_reckoned(engine.spec.context_size, model.context_length) if engine is not None else 0
        limit = int(refused.refusal.numbers.get("n_ctx", size))
        if refused.refusal.code != TOO_LONG or limit <= 0:
            raise refused
        upstream.close()
        headers = forwarded(self._request)
        dialect = self._context.greenroom.backends[place.backend].dialect
        name = spoken_by(dialect, model)

        async def send(path: str, body: bytes) -> Connection:
            try:
                self._upstream = await self._context.upstreams.post(place.endpoint, path, body, headers)
            except Unreached:
                raise Lost("the engine cannot be reached any more") from None
            return self._upstream

        try:
            inputs = await cut_by(send, right.fields["input"], limit, name or "", WHOLE)
        except Uncountable:
            raise refused from None
        body = msgspec.json.encode({**right.fields, "input": inputs})
        again = await send(self._kind.path, translate(body, dialect, name, self._ours))
        return again, await first_chunk(again)

    async def _wait_for_turn(self, model: Model, body: bytes) -> None:
        """Requests that were inside a dying engine together are retried one at a time, to find the cause."""
        suspects = self._context.suspects
        if self._has_turn or not suspects.deaths or suspects.counts(self._print_of(model, body)) != 1:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TURN):
                await self._turn.enter_async_context(suspects.turn)
                self._has_turn = True

    # to the client

    async def _pass_on(self, place: Place, model: Model, upstream: Connection, chunk: bytes) -> AnyResponse:
        begun = await self._stop_talking()
        if begun is not None and self._wait_text is not None and (said := self._wait_text.done()):
            await begun.write(said)
        if not 200 <= upstream.status < 300:
            if self._admission is not None:
                self._context.greenroom.gates.forget(self._admission.request_id)
            raise self._refused_by(upstream.status, await error_body(upstream, chunk), place)
        spoken = self._spoken(place, model)
        rename = None if spoken in (None, self._asked_as) else Renaming(str(spoken), self._asked_as)
        self._watch = ReadWatch(
            self._request,
            self._context.greenroom.settings.unread_for,
            lambda: self._context.wanted(place.engine_id),
        )
        self._watch.begin()
        if upstream.content_type == EVENT_STREAM:
            self._note.first = time.perf_counter()
            change = self._translation or rename
            held = Held(upstream.status) if self._translation and self._translation.gathers else None
            stream = held or begun or await self._begin(upstream)
            self._events = EventStream(self._request, stream, self._watch, change, self._kind.end)
            try:
                await self._events.pass_on(upstream, chunk)
            except Said as said:
                raise self._refused_by(500, said.event, place) from None
            return stream if held is None else Response(held.body, status=held.status, content_type=JSON)
        if begun is not None:
            # The stream has begun with comments, and cannot carry a whole answer.
            raise HttpRefusal(
                502, "engine_failed", f"The {place.backend} engine did not answer with a stream."
            )
        if rename is not None or self._translation is not None:
            body = chunk + await upstream.rest(WHOLE)
            if len(body) > WHOLE or not upstream.complete:
                message = f"The {place.backend} engine's answer is larger than {format_size(WHOLE)}."
                raise HttpRefusal(502, "engine_failed", message)
            self._note.head, self._note.last = body[:_HEAD], body
            if self._translation is not None:
                body = self._translation.whole(answer_in(place, body, self._translation.answers))
            elif rename is not None:
                body = rename(self._seen(body))
            self._request.served = upstream.status
            return Response(body, status=upstream.status, headers=returned(upstream))
        stream, note = await self._begin(upstream, upstream.length), self._note
        note.head = chunk[:_HEAD]
        while chunk:
            note.before, note.last = note.last, chunk
            for start in range(0, len(chunk), _PIECE):
                piece = chunk[start : start + _PIECE]
                self._watch.sent += len(piece)
                await stream.write(piece)
            try:
                chunk = await upstream.read()
            except Lost:
                # The head announced a whole answer. Cutting the connection is the only way to take it back.
                note.fault = "cut"
                self._hang_up()
        await stream.end()
        self._request.served = stream.status
        return stream

    def _seen(self, body: bytes) -> bytes:
        """A whole answer that is passed on; what is wrong with one of our engines is found elsewhere."""
        return body

    def _spoken(self, place: Place, model: Model) -> str | None:
        """What the engine's answers call the model, as far as we know."""
        dialect = self._context.greenroom.backends[place.backend].dialect
        engine = self._context.greenroom.engine(place.engine_id)
        return spoken_by(dialect, model) or (engine.spec.model_ref if engine is not None else None)

    async def _begin(self, upstream: Connection, length: int | None = None) -> Stream:
        headers = returned(upstream)
        if self._translation is not None:
            headers["Content-Type"] = self._translation.content_type
        self._stream = await self._request.start(status=upstream.status, headers=headers, length=length)
        return self._stream

    # when it fails

    def _refused_by(self, status: int, body: bytes, place: Place) -> HttpRefusal:
        return engine_error(status, body, self._asked(place.backend))

    async def _refuse(self, error: Exception) -> AnyResponse:
        if self._translation is not None and isinstance(error, HttpRefusal):
            error = self._translation.renamed(error)
        stream = await self._stop_talking() or self._stream
        if stream is None:
            return answer_error(self._request, error, self._kind.family)
        return await self._last_words(stream, refusal_of(error), getattr(error, "param", None))

    async def _last_words(self, stream: Stream, refusal: Refusal, param: str | None = None) -> AnyResponse:
        """End a stream that has begun with an error, and its connection: so no client takes it for whole."""
        self._request.refused = refusal
        translation = self._translation
        if self._wait_text is not None and (said := self._wait_text.failed(refusal)):
            await stream.write(said)
        if stream.content_type != (EVENT_STREAM if translation is None else translation.content_type):
            self._hang_up()
        if translation is None and self._events is not None and self._events.in_event:
            # Part of an event was sent; a blank line ends it.
            await stream.write(b"\n\n")
        if translation is not None:
            await stream.write(translation.error(refusal, param, self._request.id))
        else:
            await stream.write(frame(refusal, param, self._kind.family, self._request.id))
        await stream.end()
        self._request.served = stream.status
        self._request.close()
        return stream

    def _hang_up(self) -> None:
        self._request.abort()
        raise ConnectionResetError("the answer could not be completed")

    async def _lost(self, place: Place, model: Model, body: bytes, when: str) -> HttpRefusal:
        greenroom, suspects = self._context.greenroom, self._context.suspects
        refusal = await lost(
            greenroom, suspects, place, self._asked_as, lambda: self._print_of(model, body), when
        )
        self._note.fault = "cut" if refusal.refusal.code == "engine_broke_off" else "died"
        return refusal

    def _is_suspect(self, model: Model, body: bytes) -> bool:
        """Whether engines have ended, as it seems, because of this request."""
        suspects = self._context.suspects
        return bool(suspects.deaths) and suspects.counts(self._print_of(model, body)) > 1

    def _print_of(self, model: Model, body: bytes) -> bytes:
        if not self._fingerprint:
            self._fingerprint = fingerprint(model.id, self._kind.path, body)
        return self._fingerprint

    def _asked(self, backend: str) -> RequestTarget:
        return RequestTarget(backend or "serving", self._asked_as, self._kind.param)

    # while it waits

    def _begin_to_talk(self) -> None:
        greenroom, admission = self._context.greenroom, self._admission
        text = self._wait_text = WaitText(self._request, greenroom.board, self._asked_as)

        def say() -> bytes:
            return text.about(admission.request_id if admission is not None else "")

        self._keep_alive = KeepAlive(self._request, greenroom.settings.progress_after, say)

    async def _stop_talking(self) -> Stream | None:
        """The stream, if comments have begun it."""
        if self._timer is not None:
            self._timer.cancel()
        return await self._keep_alive.end() if self._keep_alive is not None else None
