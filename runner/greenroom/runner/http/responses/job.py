"""One response that is made in the background: a request without a client, and its answer as events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from greenroom.actors.kernel.errors import Refusal
from greenroom.runner.http.port import EVENT_STREAM, Request, Stream
from greenroom.runner.http.responses.input import Item
from greenroom.runner.http.responses.response import ResponseTranslation
from greenroom.runner.http.responses.response_events import EventLog
from greenroom.runner.record.row import Note


class Job:
    """It ends by itself, or with `end`. Lives in one event loop."""

    def __init__(self, asked: Request, owner: str, grown: Callable[[Job, int], None]) -> None:
        """`grown` is called with the size of each new event."""
        self.owner = owner
        self.log = EventLog()
        self.request = _Unattended(asked, self)
        self._asked = asked
        self.translation: JobTranslation | None = None
        """Once the request has been understood."""
        self.input: list[Item] = []
        """The items of its own request."""
        self.ending: Refusal | None = None
        """Why it is to end early."""
        self.cancelled = False
        """A client has asked for the end."""
        self.is_accepted = asyncio.Event()
        """It is queued: its client may leave."""
        self.is_over = asyncio.Event()
        self._grown = grown

    @property
    def id(self) -> str:
        """The response's."""
        return str(self.response["id"])

    @property
    def response(self) -> dict[str, Any]:
        """As it is now."""
        assert self.translation is not None
        return self.translation.response

    def translate(
        self,
        fields: Mapping[str, Any],
        before: Iterable[Item],
        own: list[Item],
        keep: Callable[[dict[str, Any]], None],
    ) -> JobTranslation:
        """`keep` gets the response when it has ended."""
        self.input = own
        self.translation = JobTranslation(fields, [*before, *own], self._tell, keep)
        return self.translation

    def accept(self) -> Stream:
        """Nothing but the scheduler and an engine can refuse it any more. The stream of its answer."""
        assert self.translation is not None
        # The record's row is this request's from now on, and ends with it.
        self._asked.note = Note()
        self.translation.queue()
        self.is_accepted.set()
        return _Unsent(self.log)

    def end(self, why: Refusal, *, cancelled: bool = False) -> None:
        """End it soon, unless it has ended."""
        if self.ending is None and not (self.translation is not None and self.translation.ended):
            self.ending, self.cancelled = why, cancelled

    def close(self, stopping: Refusal) -> None:
        """Its request is no more. What has no end by then was ended, or the daemon stops."""
        if self.translation is not None and self.is_accepted.is_set():
            if self.cancelled:
                self.translation.cancel()
            elif not self.translation.ended:
                self.ending = self.ending or stopping
                self.translation.error(self.ending, None, self.request.id)
            self.request.refused = self.request.refused or self.ending
        self.log.end()
        self.is_over.set()
        # What the model has read may be large, and is not needed for the events.
        self.translation, self.input = None, []

    def _tell(self, event: bytes) -> None:
        self.log.add(event)
        if (kept := self.request.note.kept) is not None:
            kept.add(event)
        self._grown(self, len(event))


class JobTranslation(ResponseTranslation):
    """Its events go to a log, and none to a stream."""

    def __init__(
        self,
        fields: Mapping[str, Any],
        items: Iterable[Item],
        tell: Callable[[bytes], None],
        keep: Callable[[dict[str, Any]], None],
    ) -> None:
        # The engine streams in any case: so what it has said stays when it is ended.
        super().__init__({**fields, "stream": True}, items, store=True, keep=keep)
        self._tell = tell

    def queue(self) -> None:
        """The request is accepted, and waits for an engine."""
        self.response["status"] = "queued"
        whole = {"response": self.response}
        self._event("response.created", whole)
        self._event("response.queued", whole)

    def entered(self) -> None:
        if self.response["status"] == "queued":
            self.response["status"] = "in_progress"
            self._event("response.in_progress", {"response": self.response})

    @property
    def ended(self) -> bool:
        """It was given to `keep`."""
        return self._keep is None

    def begin(self) -> bytes:
        return b""

    def cancel(self) -> None:
        """It ends here. The API has no event for it but that of an answer that is not complete."""
        if not self.ended:
            self._close("incomplete")
            self.response["status"] = "cancelled"
            self._event("response.incomplete", {"response": self.response})
            self._kept()

    def error(self, refusal: Refusal, param: str | None, request_id: str) -> bytes:
        return b"" if self.ended else super().error(refusal, param, request_id)

    def _event(self, name: str, fields: Mapping[str, Any]) -> bytes:
        event = super()._event(name, fields)
        self._tell(event)
        return event


class _Unattended(Request):
    """A request that goes on without its client: it is gone only when its job is ended."""

    def __init__(self, asked: Request, job: Job) -> None:
        self.method, self.path, self.target = asked.method, asked.path, asked.target
        self.query_string, self._query = asked.query_string, dict(asked.query)
        self.headers, self.params, self.route = asked.headers, dict(asked.params), asked.route
        self.id, self.answer_headers = asked.id, asked.answer_headers
        self.known_body = asked.known_body
        self.note = asked.note
        self._peer, self._remote = asked.peer, asked.remote
        self._job = job

    @property
    def query(self) -> Mapping[str, str]:
        return self._query

    @property
    def content_length(self) -> int | None:
        return None

    def body_now(self) -> bytes | None:
        return self.known_body

    async def read(self) -> bytes:
        return b""

    @property
    def gone(self) -> bool:
        return self._job.ending is not None

    @property
    def connection(self) -> object:
        return self

    @property
    def peer(self) -> object:
        return self._peer

    @property
    def local(self) -> object:
        """None: the connection may be another client's by now, and its process is not looked up again."""
        return None

    @property
    def remote(self) -> str:
        return self._remote

    def unread(self) -> int:
        return 0

    async def start(
        self,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,  # noqa: ARG002 - there is no head
        length: int | None = None,  # noqa: ARG002
    ) -> Stream:
        return _Unsent(self._job.log, status)

    def close(self) -> None:
        """There is no connection."""

    def abort(self) -> None:
        """There is no connection."""


class _Unsent(Stream):
    """The answer to no client: its events are in the log already, and its comments go to those who follow."""

    content_type = EVENT_STREAM

    def __init__(self, log: EventLog, status: int = 200) -> None:
        self.status = status
        self._log = log

    @property
    def keeps_up(self) -> bool:
        return True

    def push(self, data: bytes) -> None:
        """An event, which the log has."""

    async def write(self, data: bytes) -> None:
        if data.startswith(b":"):
            self._log.say(data)

    async def end(self) -> None:
        """There is nothing to send."""
