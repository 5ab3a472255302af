"""What a client that waits is sent: the progress of its job or of its request, then the answer.

A client that leaves stops watching; the job goes on. A refusal that comes before any progress has its own
status; after that the status is 200 and the refusal is the last line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from greenroom.actors.idempotency import Outcome
from greenroom.actors.kernel.errors import KernelError, Refusal
from greenroom.actors.progress import ProgressBoard
from greenroom.actors.values import Progress
from greenroom.runner.http.errors import DoorRefusal, refusal_of
from greenroom.runner.http.idempotency import REPLAYED, hand_over, refused_as, replayed
from greenroom.runner.http.port import EVENT_STREAM, AnyResponse, Request, Response, Stream
from greenroom.runner.units import format_size

_log = logging.getLogger(__name__)

_PAUSE = 0.1
"""Seconds between two lines of the same phase."""
_HEARTBEAT = 5.0
"""Seconds after which a silent job gets a line, so that neither client nor proxy gives up."""
_QUEUE = 100


class ProgressFormat(Protocol):
    """How a stream of this content type says things. Empty bytes are not sent."""

    content_type: str

    def again(self) -> ProgressFormat:
        """The same for another client, from the beginning."""
        ...

    def progress(self, progress: Progress) -> bytes:
        """A line about where the job is."""
        ...

    def heartbeat(self) -> bytes:
        """A line that says nothing."""
        ...

    def success(self, result: Any, /) -> bytes:
        """The last line, with the answer."""
        ...

    def error(self, refusal: Refusal) -> bytes:
        """The last line of a job that failed."""
        ...


class Feed:
    """The progress of one job, from whichever thread publishes it, for one loop. Steps of a phase merge."""

    def __init__(self, board: ProgressBoard, job: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._steps: deque[Progress] = deque(maxlen=_QUEUE)
        self._news = asyncio.Event()
        self._stop = board.listen(job, self._hear)
        latest = board.latest(job)
        if latest is not None:
            self._take(latest)

    def close(self) -> None:
        self._stop()

    def next(self) -> Progress | None:
        """The oldest step that has not been taken."""
        step = self._steps.popleft() if self._steps else None
        if not self._steps:
            self._news.clear()
        return step

    async def wait(self) -> None:
        await self._news.wait()

    def _hear(self, progress: Progress) -> None:
        # The loop may be closed already while a job goes on.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, progress)

    def _take(self, progress: Progress) -> None:
        if self._steps and self._steps[-1].phase == progress.phase:
            self._steps.pop()
        self._steps.append(progress)
        self._news.set()


async def stream_job(
    request: Request,
    board: ProgressBoard,
    job: str,
    reply: Awaitable[Any],
    lines: ProgressFormat,
    *,
    headers: Mapping[str, str] | None = None,
    unwatched: Callable[[Any], Response] | None = None,
) -> AnyResponse:
    """Stream a job's progress, and its answer at the end. Raises a refusal that comes before any progress.

    Args:
        headers: Of the answer.
        unwatched: Makes the answer to a job without any progress; by default, that is its last line.
    """
    feed = Feed(board, job)
    answer = asyncio.ensure_future(reply)
    keyed = request.keyed
    if keyed is not None:
        keyed.told_by(lambda joiner, outcome: _join(joiner, board, job, outcome, lines))
    news: asyncio.Task[None] | None = None
    stream: Stream | None = None
    try:
        while not answer.done():
            news = news or asyncio.ensure_future(feed.wait())
            await asyncio.wait({answer, news}, timeout=_HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                break
            line = lines.heartbeat()
            if news.done():
                news = None
                step = feed.next()
                line = lines.progress(step) if step is not None else b""
            if line:
                # Not before there is something to say: what is refused at once keeps its status.
                stream = stream or await _begin(request, lines, headers)
                await stream.write(line)
            if news is None:
                await asyncio.wait({answer}, timeout=_PAUSE)
        if stream is None and unwatched is not None:
            return unwatched(answer.result())
        if stream is None:
            last = lines.success(answer.result())
            if keyed is not None:
                keyed.outcome = _said(lines, last)
            stream = await _begin(request, lines, headers)
            await stream.write(last)
        else:
            # What came just before the end would otherwise be missing from it.
            while (step := feed.next()) is not None:
                await stream.write(lines.progress(step))
            try:
                last = lines.success(answer.result())
                outcome = _said(lines, last)
            except KernelError as error:
                request.refused = refusal_of(error)
                last = lines.error(request.refused)
                outcome = refused_as(error, lambda _: _said(lines, last))
            if keyed is not None:
                keyed.outcome = outcome
            await stream.write(last)
        await stream.end()
        return stream
    finally:
        feed.close()
        if not answer.done():
            hand_over(
                request,
                answer,
                lambda result: _said(lines, lines.success(result)),
                lambda refusal: _said(lines, lines.error(refusal)),
            )
        if news is not None:
            news.cancel()


class _Joined:
    """The lines for a command that is sent a second time: the first one's answer ends them."""

    def __init__(self, lines: ProgressFormat) -> None:
        self.content_type = lines.content_type
        self.again = lines.again
        self.progress = lines.progress
        self.heartbeat = lines.heartbeat
        self.error = lines.error

    def success(self, outcome: Outcome) -> bytes:
        """The last line, as the first one got it; a line about it when that one had no stream."""
        if outcome.content_type != self.content_type:
            return self.error(
                DoorRefusal(code="refused", message=outcome.body.strip(), status=outcome.status)
            )
        return outcome.body.encode()


async def _join(
    request: Request, board: ProgressBoard, job: str, outcome: Awaitable[Outcome], lines: ProgressFormat
) -> AnyResponse:
    joined = _Joined(lines.again())
    return await stream_job(
        request, board, job, outcome, joined, headers={REPLAYED: "true"}, unwatched=replayed
    )


def sentence_of(progress: Progress, board: ProgressBoard | None = None) -> str:
    """Where a job is, for people; with a board, also where the job is that it waits for."""
    followed = board.latest(progress.follows) if board is not None and progress.follows else None
    text = progress.message or progress.phase.replace("_", " ")
    if progress.place:
        text = f"number {progress.place} in the queue, {text}"
    if followed is not None:
        return f"{text}: {sentence_of(followed)}"
    if progress.percent is not None:
        text += f" ({progress.percent}%)"
    elif progress.total:
        text += f" ({format_size(progress.done)} of {format_size(progress.total)})"
    elif progress.done:
        text += f" ({format_size(progress.done)})"
    return text


def _said(lines: ProgressFormat, last: bytes) -> Outcome | None:
    return Outcome(status=200, content_type=lines.content_type, body=last.decode())


async def _begin(request: Request, lines: ProgressFormat, headers: Mapping[str, str] | None) -> Stream:
    more = headers or {}
    return await request.start(
        headers={"Cache-Control": "no-cache", "Content-Type": lines.content_type, **more}
    )


def comment(sentence: str) -> bytes:
    """A sentence as a comment of a stream."""
    # A line end inside would begin an event.
    return b": " + " ".join(sentence.split()).encode() + b"\n\n"


class KeepAlive:
    """The answer to a streaming client that waits for an engine: it begins with comments.

    They say what is going on; clients skip lines that begin with a colon.
    """

    def __init__(self, request: Request, pause: float, say: Callable[[], bytes]) -> None:
        """`say` makes what is written every `pause` seconds; `comment` makes that of a sentence."""
        self._request = request
        self._pause = min(_HEARTBEAT, max(pause, 0.1))
        self._say = say
        self._over = asyncio.Event()
        self.stream: Stream | None = None
        """The answer, once its head has been sent."""
        self._task = asyncio.get_running_loop().create_task(self._talk())

    async def end(self) -> Stream | None:
        """Say no more; from now on the caller alone writes to the stream, if it has begun."""
        # Not cancelled but asked to end: it may be in the middle of the head or of a comment.
        self._over.set()
        await self._task
        return self.stream

    def cancel(self) -> None:
        """The client has left, or everything is over. Does not wait."""
        self._task.cancel()

    async def _talk(self) -> None:
        headers = {"Cache-Control": "no-cache", "Content-Type": EVENT_STREAM}
        try:
            stream = self.stream = await self._request.start(headers=headers)
            while not self._over.is_set():
                if said := self._say():
                    await stream.write(said)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause):
                        await self._over.wait()
        except ConnectionError:
            _log.debug("the client left while it waited")
