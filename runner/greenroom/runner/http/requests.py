"""`/requests`: the record of requests, for callers on the daemon's machine: it says what others do."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar, get_args

import msgspec
from msgspec import Meta

from greenroom.actors.limits import Name
from greenroom.runner.actor_states import NoSuchModel
from greenroom.runner.diagnosis.times import parse_time
from greenroom.runner.http.bodies import invalid, is_true, read_json
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import HttpRefusal, encoded
from greenroom.runner.http.port import AnyResponse, Request, Response
from greenroom.runner.models.references import shown
from greenroom.runner.record.recorder import Recorder
from greenroom.runner.record.row import Ending, Row, row_of
from greenroom.runner.record.table import LISTED, Bodies, NotUsable, RecordReader, RowFilter
from greenroom.runner.units import parse_duration

NDJSON = "application/x-ndjson"
MOST_BODIES = 1_000
"""Requests whose bodies may be asked for at once."""
_BEHIND = 1_000
"""Rows that a client may be behind; what comes then is not sent to it."""
_HEARTBEAT = 15.0
_STATUS = re.compile(r"[1-5](\d\d|xx)")
_WORDS = frozenset({"running", *get_args(Ending)} - {""})

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode


class RecordBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /requests/record`."""

    count: Annotated[int, Meta(ge=0, le=MOST_BODIES)]
    """Requests whose bodies are recorded from now on; 0 ends it."""
    model: Name = ""
    """Only those to this model."""


class BodiesWanted(msgspec.Struct):
    """Whether bodies are being recorded."""

    count: int
    """Requests whose bodies are still to be recorded."""
    model: str
    """Only those to this model; empty for any."""


class RecordedRequest(Row, frozen=True, kw_only=True):
    """A request with what was said, where that was recorded."""

    request: str | None = None
    response: str | None = None
    cut: bool = False
    """More was said than is kept."""


class Requests:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._recorded_model = ""

    async def all(self, request: Request) -> AnyResponse:
        """The last requests that fit the filters, the oldest first; with `follow`, each as it ends."""
        wanted, last, follow = self._filter(request), _last(request), is_true(request, "follow")
        record = record_for(self._context, request)
        if not follow:
            return encoded(await self._rows(record, wanted, last))
        with fed(record, _BEHIND) as news:
            rows = await self._rows(record, wanted, last) if "last" in request.query else []
            rows = [row for row in rows if row.outcome]
            stream = await request.start(headers={"Content-Type": NDJSON, "Cache-Control": "no-cache"})
            self._context.clients.goes_on(request, stream)
            sent = {row.id for row in rows}
            for row in rows:
                await stream.write(_encode(row) + b"\n")
            while True:
                try:
                    async with asyncio.timeout(_HEARTBEAT):
                        row = await news.get()
                except TimeoutError:
                    await stream.write(b"\n")
                    continue
                if wanted.takes(row) and row.id not in sent:
                    await stream.write(_encode(row) + b"\n")

    async def one(self, request: Request) -> Response:
        """A request by its id, under way or ended, with what was said where that was recorded."""
        record, name = record_for(self._context, request), request.params["id"]
        note = record.inside.get(name)
        if note is not None:
            return encoded(_with_bodies(row_of(note, time.perf_counter())))
        found = await reading(record, lambda reader: (reader.row(name), reader.bodies(name)))
        row, bodies = found or (None, None)
        if row is None:
            raise HttpRefusal(
                404,
                "request_not_found",
                f"There is no request {shown(name)} in the record.",
                advice="Old requests and most reads are not in it. To list the others: greenroom requests",
                param="id",
            )
        return encoded(_with_bodies(row, bodies))

    async def bodies_wanted(self, request: Request) -> Response:
        record = record_for(self._context, request)
        return encoded(self._wanted(record))

    async def record_bodies(self, request: Request) -> Response:
        """Record what is said in the next so many requests that a model answers."""
        record = record_for(self._context, request)
        body = await read_json(request, RecordBody)
        greenroom, model_id = self._context.greenroom, body.model.strip()
        if model_id and greenroom.remotes.named(model_id) is None:
            model_id = greenroom.model(body.model).id
        record.record_bodies(body.count, model_id)
        self._recorded_model = body.model
        return encoded(self._wanted(record))

    def _wanted(self, record: Recorder) -> BodiesWanted:
        return BodiesWanted(record.bodies_left, self._recorded_model if record.bodies_left else "")

    async def _rows(self, record: Recorder, wanted: RowFilter, last: int) -> list[Row]:
        ended = await reading(record, lambda reader: reader.rows(wanted, last)) or []
        running = [row for row in record.running() if wanted.takes(row)]
        return [*ended, *running][-last:] if last else []

    def _filter(self, request: Request) -> RowFilter:
        query = request.query
        model, status = query.get("model", ""), query.get("status", "").lower()
        if status and not (_STATUS.fullmatch(status) or status in _WORDS):
            words = ", ".join(sorted(_WORDS))
            raise invalid(f"status must be like 404 or 4xx, or one of {words}", param="status")
        found = None
        if model:
            # What is not in the store (any more) is found by the name it was asked for.
            with contextlib.suppress(NoSuchModel):
                found = self._context.greenroom.model(model)
        return RowFilter(
            model=model,
            model_id=found.id if found is not None else "",
            status=status,
            slow=_seconds(query.get("slow", "0"), parse_duration, "slow"),
            since=_seconds(query.get("since", "0s"), _since, "since"),
        )


def record_for(context: Context, request: Request) -> Recorder:
    """The record of requests. Raises HttpRefusal for callers elsewhere, and where none is kept."""
    if not request.is_local:
        raise HttpRefusal(
            403,
            "only_local",
            "The record of requests is only for callers on the daemon's machine: it says what others do.",
        )
    if not context.record.on:
        raise HttpRefusal(
            404,
            "not_recorded",
            "Requests are not recorded here: record_for or record_rows is 0 in the configuration.",
        )
    return context.record


async def reading(record: Recorder, read: Callable[[RecordReader], T]) -> T | None:
    """What is read from the record, once all that has ended is in it; None where there is none yet."""

    def work() -> T | None:
        try:
            with RecordReader(record.path.parent) as reader:
                return read(reader)
        except FileNotFoundError:
            return None

    await record.written()
    try:
        return await asyncio.to_thread(work)
    except NotUsable as error:
        raise HttpRefusal(503, "record_unusable", str(error), retry_after=5.0) from error


@contextlib.contextmanager
def fed(record: Recorder, behind: int) -> Iterator[asyncio.Queue[Row]]:
    """The requests that end inside, at most so many ahead of who takes them; what comes then is dropped."""
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[Row] = asyncio.Queue(behind)

    def put(rows: list[Row]) -> None:
        for row in rows:
            if news.full():
                return
            news.put_nowait(row)

    def tell(rows: list[Row]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(put, rows)

    with record.listening(tell):
        yield news


def _with_bodies(row: Row, bodies: Bodies | None = None) -> Any:
    fields = {name: getattr(row, name) for name in Row.__struct_fields__}
    return RecordedRequest(**fields, **(bodies._asdict() if bodies is not None else {}))


def _since(text: str) -> float:
    return 0.0 if text == "0s" else parse_time(text, time.time())


def _seconds(text: str, read: Callable[[str], float], name: str) -> float:
    try:
        return read(text)
    except ValueError as error:
        raise invalid(f"{name}: {error}", param=name) from None


def _last(request: Request) -> int:
    text = request.query.get("last", str(LISTED))
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and int(text) <= LISTED):
        raise invalid(f"last must be a number of requests up to {LISTED:,}", param="last")
    return int(text)
