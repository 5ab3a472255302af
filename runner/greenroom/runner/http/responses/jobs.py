"""The responses that are made in the background: how many, how long, and which of their events are kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from greenroom.actors.kernel.errors import Refusal, Refused
from greenroom.runner.http.context import Context
from greenroom.runner.http.engine_requests import Kind
from greenroom.runner.http.errors import HttpRefusal, answer, refusal_of
from greenroom.runner.http.inference import Exchange
from greenroom.runner.http.port import AnyResponse, Request, Stream
from greenroom.runner.http.responses.job import Job
from greenroom.runner.http.responses.response_events import EventLog
from greenroom.runner.units import format_size

MOST = 64
MOST_EACH = 32
"""Responses that are being made in the background; that number for one owner."""
LONGEST = 6 * 3600.0
"""Seconds that one may take."""
MOST_BYTES = 64_000_000
MOST_BYTES_IN_ALL = 256_000_000
"""Bytes of events that are kept."""
FOLLOWED = 600.0
"""Seconds that the events of a response are kept after its end."""
_ENDS = 10.0
"""Seconds to wait for the end of a job that was cancelled: it is noticed within hundredths of one."""

_CANCELLED = Refusal(code="cancelled", message="The response was cancelled.", kind="conflict")
_STOPPED = Refusal(
    code="stopping",
    message="Greenroom was stopped, which ended this response.",
    advice="Create it again.",
    kind="unavailable",
)
_TOO_LONG = Refusal(
    code="not_in_time",
    message=f"The response was stopped: it took more than {LONGEST / 3600:.0f} hours.",
    advice="Ask for less with max_output_tokens.",
    kind="unavailable",
)


class Jobs:
    """Those of one front door. Lives in one event loop."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._jobs: set[Job] = set()
        """Those that are not over, accepted or not."""
        self._running: dict[str, Job] = {}
        """Accepted ones by the ids of their responses."""
        self._ended: dict[str, EventLog] = {}
        """Events of those that are over, the oldest first."""
        self._bytes = 0
        """Of all events that are kept."""

    def running(self, response_id: str) -> Job | None:
        return self._running.get(response_id)

    def log(self, response_id: str) -> EventLog | None:
        """The events of a response, as long as they are kept."""
        job = self._running.get(response_id)
        return job.log if job is not None else self._ended.get(response_id)

    def new(self, request: Request, owner: str) -> Job:
        """One that is not started yet. Raises HttpRefusal, 429, when there are too many."""
        own = sum(job.owner == owner for job in self._jobs)
        if len(self._jobs) >= MOST or own >= MOST_EACH:
            whose, number = ("you have", own) if own >= MOST_EACH else ("all clients have", len(self._jobs))
            raise HttpRefusal(
                429,
                "too_many_background_responses",
                f"There are too many background responses: {whose} {number} in progress.",
                advice="Wait for one of them, or cancel one.",
                param="background",
                retry_after=5.0,
            )
        job = Job(request, owner, self._grown)
        self._context.callers.goes_on(request, job.request)
        self._jobs.add(job)
        return job

    async def start(
        self, job: Job, kind: Kind, backend: str, accepted: Callable[[], None]
    ) -> AnyResponse | None:
        """Run it, and wait until it is accepted, or refused: then this is the answer.

        `accepted` is called at the moment when it is. A job whose client leaves before is ended.
        """
        refused: list[AnyResponse] = []
        work = self._context.keep(
            self._run(job, kind, backend, refused, accepted), then=lambda: self._over(job)
        )
        waiting = asyncio.ensure_future(job.is_accepted.wait())
        try:
            await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            if not job.is_accepted.is_set():
                job.end(_CANCELLED)
        if job.is_accepted.is_set():
            return None
        if not refused:
            raise Refused(_STOPPED)
        return refused[0]

    async def cancel(self, job: Job) -> None:
        """End it, and wait for that. Raises HttpRefusal, 503, when that takes too long."""
        job.end(_CANCELLED, cancelled=True)
        try:
            async with asyncio.timeout(_ENDS):
                await job.is_over.wait()
        except TimeoutError:
            raise HttpRefusal(
                503, "not_in_time", "The response is being cancelled, and has not ended yet.", retry_after=5.0
            ) from None

    def forget(self, response_id: str) -> None:
        """Keep its events no longer. Idempotent."""
        log = self._ended.pop(response_id, None)
        if log is not None:
            self._bytes -= log.size
            log.forget()

    async def _run(
        self, job: Job, kind: Kind, backend: str, refused: list[AnyResponse], accepted: Callable[[], None]
    ) -> None:
        context = self._context

        def accept() -> Stream:
            stream = job.accept()
            self._running[job.id] = job
            accepted()
            return stream

        limit = asyncio.get_running_loop().call_later(LONGEST, job.end, _TOO_LONG)
        try:
            exchange = Exchange(context, job.request, kind, backend, accept)
            refused.append(await context.clients.attend(job.request, exchange.serve, exchange.farewell))
        except Exception as error:  # noqa: BLE001 - whatever it is, the response gets its end
            refusal = refusal_of(error)
            refused.append(answer(job.request, refusal, "openai"))
            job.end(refusal)
        finally:
            limit.cancel()

    def _over(self, job: Job) -> None:
        self._jobs.discard(job)
        response_id = job.id if job.is_accepted.is_set() else ""
        job.close(_STOPPED)
        if response_id:
            del self._running[response_id]
            self._ended[response_id] = job.log
            note = job.request.note
            note.status, note.refusal = 200, job.request.refused
            note.caller = note.caller or self._context.callers.at_once(job.request)
            self._context.record.end(note, time.perf_counter())
            self._make_room()
            asyncio.get_running_loop().call_later(FOLLOWED, self.forget, response_id)

    def _grown(self, job: Job, size: int) -> None:
        self._bytes += size
        if self._bytes > MOST_BYTES_IN_ALL:
            self._make_room()
        if job.log.size > MOST_BYTES or self._bytes > MOST_BYTES_IN_ALL:
            limit = MOST_BYTES if job.log.size > MOST_BYTES else MOST_BYTES_IN_ALL
            job.end(_too_large(limit))

    def _make_room(self) -> None:
        while self._ended and self._bytes > MOST_BYTES_IN_ALL:
            self.forget(next(iter(self._ended)))


def _too_large(limit: int) -> Refusal:
    return Refusal(
        code="response_too_large",
        message=f"The response was stopped: its events, or those of all responses, take more than "
        f"{format_size(limit)}.",
        advice="Ask for less with max_output_tokens, or without logprobs.",
        kind="exhausted",
    )
