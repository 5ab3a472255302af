"""`/v1/responses`: making a response, and what can be done with those that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from greenroom.actors.limits import escaped
from greenroom.runner.http.aiohttp_adapter import read_body
from greenroom.runner.http.bodies import NOT_UNDERSTOOD, invalid
from greenroom.runner.http.context import Context
from greenroom.runner.http.engine_requests import Kind
from greenroom.runner.http.errors import HttpRefusal, encoded
from greenroom.runner.http.inference import inference
from greenroom.runner.http.port import AnyResponse, Request, Response
from greenroom.runner.http.responses.fields import RESPONSES
from greenroom.runner.http.responses.input import Item, items_of, references_in
from greenroom.runner.http.responses.job import Job
from greenroom.runner.http.responses.jobs import Jobs
from greenroom.runner.http.responses.response import ResponseTranslation, TokenCount
from greenroom.runner.http.responses.response_events import Follower, forgotten
from greenroom.runner.http.responses.store import (
    UNFINISHED,
    NotYetEnded,
    StoredResponse,
    StoreUnusable,
    Unlinked,
)
from greenroom.runner.http.translation import Translation

_CREATE = Kind("completion", "/v1/chat/completions", RESPONSES, param="input", end=b"data: [DONE]")
_COUNT = Kind("completion", "/v1/chat/completions/input_tokens", RESPONSES, param="input")
_PAGE, _LONGEST_PAGE = 20, 100
"""Items of a list where nothing else is asked for, and at most."""
_DIGITS = 12
"""Of the number of an event."""

T = TypeVar("T")


class _Asked(msgspec.Struct, gc=False):
    """What has to be known of a request before it can be translated."""

    input: Any = None
    previous_response_id: Any = None
    store: Any = None
    stream: Any = None
    background: Any = None


_decode_asked = msgspec.json.Decoder(_Asked).decode


class Responses:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.responses
        self._jobs = Jobs(context)
        self._keeping: set[asyncio.Task[None]] = set()
        """Responses that are about to be kept."""

    async def create(self, request: Request) -> AnyResponse:
        asked = await self._asked(request)
        if asked.background is True:
            return await self._begun(request, asked)
        stores = self._context.greenroom.settings.store_responses
        store = stores and asked.store is not False
        if asked.store is True and not stores:
            request.ignore(["store"])
        owner = asyncio.ensure_future(self._owner(request)) if store else None
        before, found = await self._referred(request, asked)

        def translated(fields: Mapping[str, Any]) -> Translation:
            own = _resolved(items_of(fields["input"]), found)

            def keep(response: dict[str, Any]) -> None:
                if owner is not None:
                    self._keep(owner, own, response)

            return ResponseTranslation(fields, [*before, *own], store=store, keep=keep)

        return await inference(self._context, replace(_CREATE, translate=translated))(request)

    async def _begun(self, request: Request, asked: _Asked) -> AnyResponse:
        """Begin a response that goes on without its client, and answer at once, or with its events."""
        if not self._context.greenroom.settings.store_responses:
            raise HttpRefusal(
                400,
                "not_stored",
                "Background responses must be stored, and store_responses is false in the configuration.",
                advice="Leave out background.",
                param="background",
            )
        backend, owner = request.backend, await self._owner(request)
        # It goes on without its connection, and its process can be looked up only while that is open.
        await self._context.callers.looked_up(request)
        before, found = await self._referred(request, asked)
        job = self._jobs.new(request, owner)
        begun = await self._context.clients.attend(request, lambda: self._start(job, backend, before, found))
        if not job.is_accepted.is_set() or asked.stream is not True or begun.status >= 400:
            return begun
        return await self._followed(Follower(request, job.log))

    async def _start(
        self, job: Job, backend: str, before: list[Item], found: Mapping[str, Item]
    ) -> AnyResponse:
        """The response once it is queued, and kept so; or the refusal."""
        kept: list[Awaitable[None]] = []
        queued: list[Response] = []

        def translated(fields: Mapping[str, Any]) -> Translation:
            own = _resolved(items_of(fields["input"]), found)
            return job.translate(
                fields, before, own, lambda ended: self._store.finish(StoredResponse(job.owner, own, ended))
            )

        def accepted() -> None:
            queued.append(encoded(job.response))
            kept.append(
                self._store.begin(StoredResponse(job.owner, job.input, {**job.response, "output": []}))
            )

        kind = replace(_CREATE, translate=translated)
        refused = await self._jobs.start(job, kind, backend, accepted)
        if refused is not None:
            return refused
        try:
            await self._answered(kept[0])
        except HttpRefusal as refusal:
            job.end(refusal.refusal)
            raise
        return queued[0]

    async def _followed(self, follower: Follower) -> AnyResponse:
        """A client that is there when the front door closes gets the end, which that makes."""
        return await self._context.clients.attend(follower.request, follower.serve, follower.serve)

    async def count(self, request: Request) -> AnyResponse:
        """How many tokens a request would be read as."""
        before, found = await self._referred(request, await self._asked(request))

        def translated(fields: Mapping[str, Any]) -> Translation:
            return TokenCount(fields, [*before, *_resolved(items_of(fields["input"]), found)])

        return await inference(self._context, replace(_COUNT, translate=translated))(request)

    async def one(self, request: Request) -> AnyResponse:
        """A response as it is now; with `stream` its events, those after `starting_after`, to its end."""
        query = request.query
        if query.get("stream") not in ("true", "1"):
            return await self._context.clients.attend(request, lambda: self._whole(request))
        after = _number(query.get("starting_after", "-1"))
        log = self._jobs.log((await self._found(request)).id)
        if log is None:
            raise forgotten()
        return await self._followed(Follower(request, log, after))

    async def _whole(self, request: Request) -> Response:
        return encoded((await self._found(request)).response)

    async def remove(self, request: Request) -> Response:
        found = await self._found(request)
        if (job := self._jobs.running(found.id)) is not None:
            await self._jobs.cancel(job)
        self._jobs.forget(found.id)
        await self._answered(self._store.delete(found.id, found.owner))
        return encoded({"id": found.id, "object": "response.deleted", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        """The response as it has ended; again, and after another end, the same."""
        found = await self._found(request)
        if not found.response["background"]:
            raise HttpRefusal(
                400,
                "not_cancellable",
                "Only background responses can be cancelled, and this one is not.",
                advice="To stop any other response, close its connection.",
            )
        if (job := self._jobs.running(found.id)) is not None:
            await self._jobs.cancel(job)
        elif found.response["status"] in UNFINISHED:
            raise HttpRefusal(
                409,
                "made_elsewhere",
                "Another server of the same program is making this response.",
                advice="Cancel it there.",
            )
        return await self._whole(request)

    async def input_items(self, request: Request) -> Response:
        """The items that the model read for a response, those of earlier responses too; a page of them."""
        found, query = await self._found(request), request.query
        items = list(found.input)
        if (previous := found.response.get("previous_response_id")) is not None:
            items = [*await self._conversation(previous, found.owner), *items]
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise invalid("order must be asc or desc", param="order")
        if order == "desc":
            items.reverse()
        limit = _limit(query.get("limit", str(_PAGE)))
        if (after := query.get("after")) is not None:
            at = next((index for index, item in enumerate(items) if item["id"] == after), None)
            if at is None:
                raise invalid("after is not the id of an item of this response", param="after")
            items = items[at + 1 :]
        page = items[:limit]
        first, last = (page[0]["id"], page[-1]["id"]) if page else ("", "")
        ids = {"first_id": first, "last_id": last}
        return encoded({"object": "list", "data": page, "has_more": len(items) > limit, **ids})

    # what is referred to

    async def _asked(self, request: Request) -> _Asked:
        body = request.known_body = await read_body(request, self._context.greenroom.settings.max_body)
        try:
            return _decode_asked(body or b"{}")
        except NOT_UNDERSTOOD:
            return _Asked()  # it is refused with all that is wrong with it

    async def _referred(self, request: Request, asked: _Asked) -> tuple[list[Item], dict[str, Item]]:
        """The items of earlier responses that it goes on from, and those that its own input names."""
        references, previous = references_in(asked.input), asked.previous_response_id
        if not references and not isinstance(previous, str):
            return [], {}
        if not self._context.greenroom.settings.store_responses:
            raise HttpRefusal(
                400,
                "not_stored",
                "No responses are stored here: store_responses is false in the configuration.",
                advice="Send the whole conversation as input.",
                param="previous_response_id" if isinstance(previous, str) else "input",
            )
        owner = await self._owner(request)
        await self._kept()
        before = await self._conversation(previous, owner) if isinstance(previous, str) else []
        return before, await self._answered(self._store.items(references, owner)) if references else {}

    async def _conversation(self, response_id: str, owner: str) -> list[Item]:
        try:
            return await self._answered(self._store.conversation(response_id, owner))
        except Unlinked as missing:
            # 400 as at OpenAI: clients send the whole conversation then.
            code = "previous_response_not_found"
            raise _not_found(str(missing), code, "previous_response_id", status=400) from None
        except NotYetEnded as running:
            raise HttpRefusal(
                400,
                "previous_response_not_ended",
                f"The response {escaped(str(running), 80)} has not ended yet.",
                advice="Wait until it has, or cancel it.",
                param="previous_response_id",
            ) from None

    async def _found(self, request: Request) -> StoredResponse:
        """The response that the path names. Raises HttpRefusal: 404."""
        response_id = request.params["response"]
        owner = await self._owner(request)
        await self._kept()
        found = await self._answered(self._store.get(response_id, owner))
        job = self._jobs.running(response_id)
        if found is not None and job is None and found.response["status"] in UNFINISHED:
            # It may have ended since: then its end is what the store has now.
            found = await self._answered(self._store.get(response_id, owner))
        if found is None:
            raise _not_found(response_id, "response_not_found", None)
        return found if job is None else StoredResponse(owner, found.input, job.response)

    async def _answered(self, asked: Awaitable[T]) -> T:
        try:
            return await asked
        except StoreUnusable as error:
            raise HttpRefusal(
                503, "responses_unusable", f"The stored responses cannot be used: {error}.", retry_after=5.0
            ) from error

    # whose they are

    async def _owner(self, request: Request) -> str:
        owner = await self._context.callers.owner(request)
        if not owner:
            raise HttpRefusal(
                503,
                "caller_left",
                "The connection closed before it was known whose request this is.",
                advice="Send the request again.",
                retry_after=1.0,
            )
        return owner

    def _keep(self, owner: asyncio.Future[str], own: list[Item], response: dict[str, Any]) -> None:
        async def put() -> None:
            self._store.put(StoredResponse(await owner, own, response))

        task = asyncio.get_running_loop().create_task(put())
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _kept(self) -> None:
        """Wait for what is about to be kept: a client may go on from it at once."""
        if self._keeping:
            await asyncio.wait(self._keeping)


def _resolved(items: list[Item], found: Mapping[str, Item]) -> list[Item]:
    """The items, each reference replaced by what it refers to. Raises HttpRefusal: 404."""
    for index, item in enumerate(items):
        if item["type"] == "item_reference" and item["id"] not in found:
            raise _not_found(item["id"], "item_not_found", f"input[{index}].id", what="item")
    return [found[item["id"]] if item["type"] == "item_reference" else item for item in items]


def _not_found(
    name: str, code: str, param: str | None, what: str = "response", *, status: int = 404
) -> HttpRefusal:
    return HttpRefusal(
        status,
        code,
        f"There is no {what} {escaped(name, 80)} here: it was not stored, was deleted, or has expired.",
        param=param,
    )


def _number(text: str) -> int:
    if text != "-1" and not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise invalid("starting_after must be the sequence_number of an event", param="starting_after")
    return int(text)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= _LONGEST_PAGE):
        raise invalid(f"limit must be from 1 to {_LONGEST_PAGE}", param="limit")
    return int(text)
