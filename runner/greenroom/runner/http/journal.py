"""The journal over HTTP, in the words of the commands: `/log`, `/log/summary`, `/replay` and `/bundle`.

Each reads the whole journal, in threads and a few at a time. A client that reads nothing is disconnected.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import msgspec

from greenroom.actors.journal.port import Record
from greenroom.actors.journal.sqlite import SqliteJournal
from greenroom.runner.diagnosis.times import parse_time
from greenroom.runner.http.archives import Turns, deliver
from greenroom.runner.http.bodies import invalid, is_true
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import HttpRefusal, encoded, json_response
from greenroom.runner.http.port import EVENT_STREAM, TEXT, AnyResponse, Request, Response, Stream

if TYPE_CHECKING:
    from greenroom.runner.diagnosis.event_log import EventQuery, Line, ToldEvents
    from greenroom.runner.diagnosis.host_actors import HostActors

NDJSON = "application/x-ndjson"
GZIP = "application/gzip"
LAST = 10_000
"""Events that `last` may ask for: they are held in memory."""
_PIECE = 500
"""Events that are read and sent together."""
FOLLOWERS = 32
_HEARTBEAT = 15.0
_NAMES = ("about", "model", "backend", "engine", "stream", "cause")
T = TypeVar("T")
_encode = msgspec.json.Encoder().encode


class JournalRoutes:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._turns = Turns("Too many clients are reading the journal.")
        self._followers: set[asyncio.Event] = set()
        """Set when there is news."""
        self._loop: asyncio.AbstractEventLoop | None = None

    async def log(self, request: Request) -> AnyResponse:
        """The events that are wanted, as lines of JSON or as events of a stream; `follow` sends new ones."""
        # Asked rarely, and more to import than most of a front context.
        from greenroom.runner.diagnosis.event_log import AFTER, JOURNAL

        query, last = _query(request), _number(request, "last", LAST)
        follow = is_true(request, "follow")
        if follow and len(self._followers) >= FOLLOWERS:
            raise HttpRefusal(
                503, "busy", f"{FOLLOWERS} clients follow the journal already.", retry_after=10.0
            )
        if request.method == "HEAD":
            return Response(content_type=_content_type(request))
        greenroom = self._context.greenroom
        journal = greenroom.system.journal
        with self._news() if follow else contextlib.nullcontext(asyncio.Event()) as news:
            async with self._turns.turn():
                after = await _after(request, journal.read)
                events = await _about(query, journal.read, greenroom.host_actors)
                lines = _lines(events, journal.read(), after)
                if last is not None:
                    lines = iter(await to_its_end(lambda: deque(lines, last)))
                piece = await _next(lines)
                if not piece and after > events.seq and request.query.get("after"):
                    raise _no_such_event(f"There is no event {after}: the last one is {events.seq}.")
                if not piece and not follow and events.seq and (unknown := events.unknown()):
                    raise HttpRefusal(404, "unknown_name", " ".join(unknown))
                stream = await request.start(
                    headers={
                        "Content-Type": _content_type(request),
                        "Cache-Control": "no-cache",
                        JOURNAL: journal.id if isinstance(journal, SqliteJournal) else greenroom.life,
                        AFTER: str(after),
                    }
                )
                if follow:
                    self._context.clients.goes_on(request, stream)
                while piece and not follow:
                    await _send(request, stream, piece)
                    piece = await _next(lines)
            while piece:
                # Without the turn: one that takes its time must not keep others waiting.
                await _send(request, stream, piece)
                async with self._turns.turn():
                    piece = await _next(lines)
            while follow:
                try:
                    async with asyncio.timeout(_HEARTBEAT):
                        await news.wait()
                except TimeoutError:
                    await deliver(request, stream, b": still connected\n\n" if _is_stream(request) else b"\n")
                    continue
                news.clear()
                lines = _lines(events, journal.read(after=events.seq), after)
                while piece := await _next(lines):
                    await _send(request, stream, piece)
        await stream.end()
        return stream

    async def summary(self, request: Request) -> Response:
        """What has happened since a moment, counted."""
        from greenroom.runner.diagnosis.summary import Summary, summarize
        from greenroom.runner.record.table import NotUsable, RecordReader

        now = time.time()
        until = _time(request, "until")
        end = now if until is None else until
        since = _time(request, "since")
        begin = end - 86_400.0 if since is None else since
        journal, record = self._context.greenroom.system.journal, self._context.record

        def read() -> Summary:
            with contextlib.ExitStack() as stack:
                try:
                    rows = stack.enter_context(RecordReader(record.path.parent))
                except (FileNotFoundError, NotUsable):
                    rows = None
                return summarize(journal.read(), begin, end, rows)

        await record.written()
        async with self._turns.turn():
            return encoded(await to_its_end(read))

    async def replay(self, request: Request) -> Response:
        """The state of every actor after an event, as JSON, or as text for a client that asks for that."""
        from greenroom.runner.diagnosis.overview import overview
        from greenroom.runner.diagnosis.replay import NoSuchEvent, as_builtins, event_at, replay

        at, greenroom = request.query.get("at", ""), self._context.greenroom
        journal, hosts = greenroom.system.journal, greenroom.host_actors
        as_text = request.headers.get("Accept", "").startswith("text/plain")

        def read() -> Response:
            until = event_at(at, journal.read, time.time()) if at else None
            snapshot = replay(journal.read(), until=until, hosts=hosts)
            if as_text:
                return Response(f"{overview(snapshot)}\n".encode(), content_type=TEXT)
            return json_response(as_builtins(snapshot))

        try:
            async with self._turns.turn():
                return await to_its_end(read)
        except NoSuchEvent as error:
            raise HttpRefusal(404, "no_such_event", str(error), param="at") from None
        except ValueError as error:
            raise invalid(f"at: {error}", param="at") from None

    async def bundle(self, request: Request) -> Response:
        """The archive for a bug report; for callers elsewhere without the requests of others."""
        from greenroom.runner.diagnosis.bundle import Bundle, pack
        from greenroom.runner.diagnosis.known_secrets import redactor_here

        settings, with_requests = self._context.greenroom.settings, request.is_local
        stem = time.strftime("greenroom-bundle-%Y%m%d-%H%M%S")

        def collect() -> bytes:
            parts = Bundle(settings, redactor_here(settings), with_requests=with_requests).parts()
            archive = io.BytesIO()
            pack(parts, archive, stem)
            return archive.getvalue()

        headers = {"Content-Disposition": f'attachment; filename="{stem}.tar.gz"'}
        if request.method == "HEAD":
            return Response(content_type=GZIP, headers=headers)
        await self._context.record.written()
        async with self._turns.turn():
            return Response(await to_its_end(collect), content_type=GZIP, headers=headers)

    @contextlib.contextmanager
    def _news(self) -> Iterator[asyncio.Event]:
        """Set whenever an event has been stored."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._context.greenroom.system.on_record(self._tell)
        news = asyncio.Event()
        self._followers.add(news)
        try:
            yield news
        finally:
            self._followers.discard(news)

    def _tell(self, _: Record) -> None:
        loop = self._loop
        if loop is None:
            return
        for news in tuple(self._followers):
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(news.set)


async def to_its_end(work: Callable[[], T]) -> T:
    """Run in a thread. A client that leaves keeps its turn until the thread is done, so that few are busy."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


async def _about(query: EventQuery, read: Callable[[], Iterator[Record]], hosts: HostActors) -> ToldEvents:
    from greenroom.runner.diagnosis.event_log import ToldEvents

    try:
        return await to_its_end(lambda: ToldEvents(query, read, hosts))
    except LookupError as error:
        raise HttpRefusal(404, "unknown_name", str(error.args[0]), param="about") from None


def _lines(events: ToldEvents, records: Iterator[Record], after: int) -> Iterator[Line]:
    from greenroom.runner.diagnosis.event_log import Line

    return (Line.of(one, text) for one, text in events.lines(records, after=after))


async def _send(request: Request, stream: Stream, piece: list[Line]) -> None:
    await deliver(request, stream, b"".join(_worded(request, one) for one in piece))


async def _next(lines: Iterator[Line]) -> list[Line]:
    return await to_its_end(lambda: list(itertools.islice(lines, _PIECE)))


def _worded(request: Request, line: Line) -> bytes:
    data = _encode(line)
    if _is_stream(request):
        return b"id: %d\nevent: %s\ndata: %s\n\n" % (line.seq, line.type.encode(), data)
    return data + b"\n"


def _is_stream(request: Request) -> bool:
    return request.headers.get("Accept", "") == EVENT_STREAM


def _content_type(request: Request) -> str:
    return EVENT_STREAM if _is_stream(request) else NDJSON


def _query(request: Request) -> EventQuery:
    from greenroom.runner.diagnosis.event_log import EventQuery

    query = request.query
    return EventQuery(
        **{name: query.get(name, "") for name in _NAMES},
        kinds=tuple(one.strip() for one in query.get("kind", "").split(",") if one.strip()),
        problems=is_true(request, "problems"),
        since=_time(request, "since"),
        until=_time(request, "until"),
    )


def _time(request: Request, name: str) -> float | None:
    text = request.query.get(name, "")
    try:
        return parse_time(text, time.time()) if text else None
    except ValueError as error:
        raise invalid(f"{name}: {error}", param=name) from None


def _number(request: Request, name: str, most: int) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) <= most):
        raise invalid(f"{name} must be a whole number up to {most:,}", param=name)
    return int(text)


async def _after(request: Request, read: Callable[[], Iterator[Record]]) -> int:
    """The number of the event after which to begin: a browser says what it has when it connects again."""
    from greenroom.runner.diagnosis.stored_events import position

    seen = request.headers.get("Last-Event-ID", "")
    if seen.isascii() and seen.isdecimal() and len(seen) < 19:
        return int(seen)
    given = request.query.get("after", "")
    try:
        return await to_its_end(lambda: position(given, read)) if given else 0
    except LookupError as error:
        raise _no_such_event(str(error)) from None
    except ValueError as error:
        raise invalid(f"after: {error}", param="after") from None


def _no_such_event(sentence: str) -> HttpRefusal:
    return HttpRefusal(404, "no_such_event", sentence, param="after")
