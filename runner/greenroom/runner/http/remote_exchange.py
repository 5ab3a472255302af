"""A request to a remote backend: like one to an engine, but nothing is loaded for it.

1. The model's name says which backend to use. If it did not answer the last check, it is checked again, at
   most once a second, and the request is refused if it still does not answer.
2. The request gets a slot of the backend, from its gate or from the scheduler.
3. It is sent with the backend's own name for the model, the backend's key, and only a few of the client's
   headers. If the connection turns out to be closed, a new one replaces it once; there is no other retry.
4. The answer is passed through; errors are reworded.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from greenroom.actors.gates import Place
from greenroom.actors.limits import escaped
from greenroom.actors.values import Model
from greenroom.runner.backends.base import Dialect
from greenroom.runner.http.admission import Admission, slots_of
from greenroom.runner.http.aiohttp_adapter import read_body
from greenroom.runner.http.bodies import NOT_UNDERSTOOD
from greenroom.runner.http.engine_errors import engine_error, error_body, said_in
from greenroom.runner.http.engine_requests import (
    TOO_LONG,
    Checked,
    RequestTarget,
    Routing,
    check,
    routing_of,
    translate,
)
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.http.event_stream import Unfinished
from greenroom.runner.http.inference import OURS, Exchange
from greenroom.runner.http.port import EVENT_STREAM, JSON, AnyResponse, Response
from greenroom.runner.http.remote_connections import BadCertificate, RemoteConnection, TooSilent
from greenroom.runner.http.remote_models import find_remote_model
from greenroom.runner.http.tool_prompt import ToolPrompt
from greenroom.runner.http.upstream import Connection, Lost, Unreached, first_chunk
from greenroom.runner.remotes.asking import refused
from greenroom.runner.remotes.model import RemoteModel
from greenroom.runner.remotes.reading import clause
from greenroom.runner.remotes.watch import Remote, Remotes
from greenroom.runner.units import format_duration

_FORWARDED = ("accept", "accept-language", "traceparent")
"""The client's headers that are sent to the backend."""
_PLAIN = Dialect(model_name="")
_LATER = 2.0
_LATEST = 3600.0
"""Seconds after which a client should retry: by default, and at most."""
_WORDS = 300
"""The maximum number of characters quoted from a backend's error."""
_OWN_WORDS = frozenset({TOO_LONG, "engine_refused", "engine_failed", "engine_busy", "not_offered"})
"""Codes whose messages are true only of local engines."""


class RemoteExchange(Exchange):
    remote: Remote
    own: str
    """The backend's own name for the model, as the client wrote it. Both are set before it serves."""

    async def _serve(self) -> AnyResponse:
        context, request, kind, remote = self._context, self._request, self._kind, self.remote
        settings = context.greenroom.settings
        body = await read_body(request, settings.max_body)
        routing, note = routing_of(body), self._note
        note.asked = self._asked_as = routing.model
        note.backend = remote.name
        preloads = request.headers.get("X-Preload-Only", "").lower() == "true"
        if preloads:
            note.family = "management"
        if self._backend:
            message = f'"{routing.model}" is a model of {remote.name}, but the path names {self._backend}.'
            raise HttpRefusal(404, "other_backend", message, advice="Leave the backend out of the path.")
        model = note.model = await find_remote_model(remote, self.own, routing.model)
        if context.record.bodies_left:
            context.record.take_body(note, body)
        if preloads:
            return Response()
        self._ours = OURS
        right = await check(body, kind.dialogue)
        if right.unread:
            request.ignore(right.unread)
        translation = self._translation = kind.translate(right.fields) if kind.translate else None
        if translation is not None:
            request.ignore(name for name in (*right.unknown, *translation.ignored) if name not in OURS)
            right = Checked(msgspec.json.encode(translation.chat), translation.chat)
        streams = right.fields.get("stream") and kind.end
        right = await self._filtered(model, right)
        if self._accepted is not None:
            self._stream = self._accepted()
        admission = self._admit(model, routing, right.fields)
        if streams and (self._translation is None or self._translation.content_type == EVENT_STREAM):
            self._timer = asyncio.get_running_loop().call_later(settings.progress_after, self._begin_to_talk)
        place, upstream, first = await self._first_byte(admission, model, right)
        try:
            return await self._pass_on(place, model, upstream, first)
        except Unfinished:
            raise self._broke_off("it ended its stream before the end of its answer") from None
        except Lost as lost:
            raise self._gone(lost) from None

    async def _tool_prompt(self, model: Model, fields: Mapping[str, Any]) -> ToolPrompt | None:  # noqa: ARG002
        return None  # the remote backend applies its own template

    def _admit(
        self,
        model: Model,  # noqa: ARG002 - all of its models share its slots
        routing: Routing,
        fields: Mapping[str, Any],
    ) -> Admission:
        context, request, user = self._context, self._request, fields.get("user", "")
        remote = self.remote.name
        self._admission = Admission(
            context.greenroom,
            context.ids,
            context.sent_requests,
            Model(id=remote),
            routing.model,
            "completion",
            remote,
            caller=context.callers.at_once(request, user),
            look_up=lambda: context.callers.looked_up(request, user),
            slots=min(slots_of(fields), self.remote.settings.slots),
            first_id=request.id,
            note=self._note,
        )
        return self._admission

    async def _first_byte(
        self, admission: Admission, model: Model, right: Checked
    ) -> tuple[Place, Connection, bytes]:
        assert isinstance(model, RemoteModel)
        place = await admission.enter()
        self._note.caller, self._note.engine = admission.caller, place.engine_id
        sent = translate(right.body, _PLAIN, model.own, self._ours)
        path = self.remote.settings.path + self._kind.path.removeprefix("/v1")
        admission.send_to(place.engine_id)
        if self._translation is not None:
            self._translation.entered()
        pool = self._context.remote_pools.of(self.remote)
        try:
            connection = await pool.connected()
            while True:
                self._upstream = connection
                try:
                    await connection.ask(path, self._headers(), sent)
                    first = await first_chunk(connection)
                except Lost as lost:
                    if connection.is_fresh or isinstance(lost, TooSilent):
                        raise
                    connection = await pool.fresh()  # the idle connection had been closed
                else:
                    break
        except Unreached as error:
            self.remote.ask_again()
            code = "backend_not_trusted" if isinstance(error, BadCertificate) else "backend_unreachable"
            raise HttpRefusal(
                503,
                code,
                f"{self.remote.name} ({self.remote.settings.url}) cannot be reached: {error}.",
                advice=f"greenroom why {self.remote.name} says more.",
                retry_after=_LATER,
            ) from None
        except Lost as lost:
            raise self._gone(lost) from None
        await self._see_that_it_answers(connection, first)
        return place, connection, first

    def _headers(self) -> dict[str, str]:
        headers = {
            name: value for name in _FORWARDED if (value := self._request.headers.get(name)) is not None
        }
        headers |= {"User-Agent": "greenroom", "Content-Type": JSON}
        return headers | ({"Authorization": key} if (key := self.remote.authorization) else {})

    async def _see_that_it_answers(self, connection: RemoteConnection, first: bytes) -> None:
        """Raise a refusal unless this is an API's answer."""
        if 200 <= connection.status < 300 and connection.content_type not in (JSON, EVENT_STREAM):
            kind = escaped(connection.content_type or "no content type", 60)
            raise self._broken(f"answered with {kind} instead of {JSON}", "Check its url.")
        if not 200 <= connection.status < 300:
            body = await error_body(connection, first)
            raise self._refusal(connection.status, body, connection.headers)

    def _seen(self, body: bytes) -> bytes:
        try:
            found = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        except NOT_UNDERSTOOD:
            found = {}
        if self._kind.answers not in found and self._kind.mode == "completion":
            raise self._broken(f"answered without {self._kind.answers}", "Check its url.")
        return body

    def _spoken(self, place: Place, model: Model) -> str | None:  # noqa: ARG002
        return model.own if isinstance(model, RemoteModel) else None

    # when it fails

    def _refused_by(self, status: int, body: bytes, place: Place) -> HttpRefusal:  # noqa: ARG002
        return self._refusal(status, body, {})

    def _refusal(self, status: int, body: bytes, headers: Mapping[str, str]) -> HttpRefusal:
        """The refusal for an error that the backend sent, in a stream or instead of an answer."""
        name, asked = self.remote.name, self._asked_as
        words = self._clean(said_in(body))
        told = f": {words}" if words else ""
        if status in (401, 403) or 300 <= status < 400:
            if status in (401, 403):
                self.remote.ask_again()
            failure = refused(self.remote.settings, status, headers.get("Location", ""))
            return HttpRefusal(
                502, f"backend_{failure.code}", f"{name}: {clause(failure)}.", advice=failure.advice
            )
        if status in (429, 503):
            return HttpRefusal(
                status,
                "backend_busy",
                f"{name} accepts no more requests at the moment{told}.",
                retry_after=_retry_after(headers.get("Retry-After", "")),
            )
        known = engine_error(status, body, RequestTarget(name, asked, self._kind.param))
        if known.refusal.code not in _OWN_WORDS:
            return known
        if status >= 500 and status != 501 and known.refusal.code != TOO_LONG:
            return HttpRefusal(
                502, "backend_failed", f"{name} failed on this request (status {status}){told}."
            )
        if known.refusal.code == TOO_LONG:
            message = f'The prompt is too long for "{asked}"{told}.'
            return HttpRefusal(400, TOO_LONG, message, param=self._kind.param, advice="Shorten it.")
        if status in (404, 405, 501):
            path = self._kind.path
            return HttpRefusal(404, "not_offered", f'{name} does not support {path} for "{asked}"{told}.')
        return HttpRefusal(
            400 if status in (400, 422) else status, "backend_refused", f"{name} rejected this request{told}."
        )

    def _gone(self, lost: Lost) -> HttpRefusal:
        self._note.fault = "cut"
        self.remote.ask_again()
        if isinstance(lost, TooSilent):
            silence = format_duration(self.remote.settings.timeout)
            return HttpRefusal(
                504,
                "backend_timeout",
                f"{self.remote.name} sent nothing for {silence} while it had this request.",
                advice=f"To wait longer, set timeout in [backends.{self.remote.name}].",
            )
        return self._broke_off("it closed the connection before its answer was complete")

    def _broke_off(self, why: str) -> HttpRefusal:
        self._note.fault = "cut"
        return HttpRefusal(
            502,
            "backend_broke_off",
            f"{self.remote.name} broke off: {why}.",
            advice="Send the request again.",
        )

    def _broken(self, what: str, advice: str) -> HttpRefusal:
        return HttpRefusal(502, "backend_failed", f"{self.remote.name} {what}.", advice=advice)

    def _clean(self, words: str) -> str:
        """Its error text as one bounded line, without its key."""
        key = self.remote.authorization.removeprefix("Bearer ")
        words = words.replace(key, "***") if key else words
        return escaped(" ".join(words.split()), _WORDS).rstrip(".")


def _retry_after(said: str) -> float:
    """Seconds until a client should retry, from a header that holds a number or a date."""
    seconds = _LATER
    if said.strip().isdigit():
        seconds = float(said.strip()[:6])
    elif said:
        with contextlib.suppress(ValueError, TypeError):
            seconds = email.utils.parsedate_to_datetime(said).timestamp() - time.time()
    return min(_LATEST, max(1.0, seconds))


def elsewhere(remotes: Remotes) -> Callable[[str], Callable[..., Exchange] | None]:
    """Finds the factory of a request's exchange by the model's name, if a remote backend has that model."""

    def find(name: str) -> Callable[..., Exchange] | None:
        named = remotes.named(name)
        if named is None:
            return None

        def make(*of: Any) -> Exchange:
            exchange = RemoteExchange(*of)
            exchange.remote, exchange.own = named
            return exchange

        return make

    return find
