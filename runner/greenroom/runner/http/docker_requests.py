"""`GET /engines/requests`: the record of requests as Docker Model Runner has it.

A list has the last ten requests to each model; a stream has each as it ends. Bodies are null unless they were
recorded, and streamed answers are folded into whole ones. In a stream long bodies are cut, and long
settings left out: Docker's own client ends silently at a line of 64 KiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from greenroom.actors.scheduler.state import config_key
from greenroom.runner.http.answer_filters import Completion
from greenroom.runner.http.bodies import NOT_UNDERSTOOD, is_true
from greenroom.runner.http.configuring import MODES, as_configured
from greenroom.runner.http.context import Context
from greenroom.runner.http.errors import json_response
from greenroom.runner.http.port import EVENT_STREAM, AnyResponse, Request
from greenroom.runner.http.requests import fed, reading, record_for
from greenroom.runner.record.row import LEFT, Row
from greenroom.runner.record.table import Bodies, RecordReader

_EACH = 10
_BEHIND = 100
"""Requests that a client may be behind; what comes then is not sent to it."""
_HEARTBEAT = 15.0
_LONGEST = 20_000
"""Bytes, as JSON, of each text of a record in a stream."""
_SETTING = 1_000
"""The same for each setting of its model."""
_TEXTS = ("request", "response", "error")

Said = Mapping[str, Bodies]
"""By the id of a request."""


class DockerRequests:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def requests(self, request: Request) -> AnyResponse:
        record = record_for(self._context, request)
        existing, wanted = is_true(request, "include_existing"), request.query.get("model", "")
        if request.headers.get("Accept", "") == EVENT_STREAM:
            return await self._stream(request, wanted, existing=existing)
        model_id = self._context.greenroom.model(wanted).id if wanted else ""
        rows, said = await reading(record, _latest) or ([], {})
        grouped: dict[str, list[Row]] = {}
        for row in rows:
            grouped.setdefault(row.model_id, []).append(row)
        # A model has an entry as soon as an engine has it.
        for engine in self._context.greenroom.engines():
            if engine.state in ("starting", "ready"):
                grouped.setdefault(engine.spec.model_id, [])
        return json_response(
            [self._entry(one, one, rows, said) for one, rows in grouped.items() if model_id in ("", one)]
        )

    async def _stream(self, request: Request, wanted: str, *, existing: bool) -> AnyResponse:
        record = self._context.record
        with fed(record, _BEHIND) as news:
            stream = await request.start(headers={"Content-Type": EVENT_STREAM, "Cache-Control": "no-cache"})
            self._context.clients.goes_on(request, stream)
            sent: set[str] = set()
            if existing:
                rows, said = await reading(record, _latest) or ([], {})
                sent = {row.id for row in rows}
                for row in rows:
                    if wanted in ("", row.asked):
                        await stream.write(self._event("existing_request", row, said))
            await stream.write(b'event: connected\ndata: {"status": "connected"}\n\n')
            while True:
                try:
                    async with asyncio.timeout(_HEARTBEAT):
                        row = await news.get()
                except TimeoutError:
                    await stream.write(b": still connected\n\n")
                    continue
                if row.id in sent or not row.model_id or row.family == "management":
                    continue
                if wanted in ("", row.asked):
                    said = await reading(record, functools.partial(_said, rows=[row])) or {}
                    await stream.write(self._event("new_request", row, said))

    def _event(self, kind: str, row: Row, said: Said) -> bytes:
        entry = self._entry(row.model_id, row.asked, [row], said)
        (record,) = entry["records"]
        record |= {name: _cut(record[name]) for name in _TEXTS if record.get(name)}
        config = entry["config"]
        entry["config"] = {one: value for one, value in config.items() if len(json.dumps(value)) < _SETTING}
        return f"event: {kind}\ndata: {json.dumps([entry])}\n\n".encode()

    def _entry(self, model_id: str, name: str, rows: list[Row], said: Said) -> dict[str, Any]:
        configs = self._context.greenroom.configs()
        found = (configs.get(config_key(model_id, mode)) for mode in MODES)
        config = next((one for one in found if one is not None), None)
        return {
            "count": len(rows),
            "model": name,
            "config": as_configured(config) if config is not None else {},
            "records": [as_docker(row, said.get(row.id)) for row in rows],
        }


def _latest(reader: RecordReader) -> tuple[list[Row], Said]:
    rows = reader.latest_of_models(_EACH)
    return rows, _said(reader, rows)


def _said(reader: RecordReader, rows: Iterable[Row]) -> Said:
    found = ((row.id, reader.bodies(row.id)) for row in rows if row.recorded)
    return {name: bodies for name, bodies in found if bodies is not None}


def as_docker(row: Row, said: Bodies | None) -> dict[str, Any]:
    """One of Docker's records, with our id beside its own."""
    status = row.status
    if status == LEFT:
        # Docker says 408 where nothing was answered.
        status = 408 if row.first_token is None else 200
    record: dict[str, Any] = {
        "id": f"{row.model_id}_{int(row.at * 1e9)}",
        "request_id": row.id,
        "model": row.asked,
        "method": row.method,
        "url": row.path,
        "request": said.request if said is not None else None,
        "response": None,
        "timestamp": int(row.at),
        "status_code": status,
    }
    if row.code:
        record["error"] = _error_of(row, said)
    elif said is not None:
        record["response"] = folded(said.response)
    if row.user_agent:
        record["user_agent"] = row.user_agent
    return record


def _error_of(row: Row, said: Bodies | None) -> str:
    if said is None or row.status < 400:
        return json.dumps({"error": {"message": row.sentence, "code": row.code}})
    try:
        msgspec.json.decode(said.response.encode())
    except NOT_UNDERSTOOD:
        return json.dumps({"error": said.response.strip()})
    return said.response


def _cut(text: str) -> str:
    """As much of a text as one record of a stream may have."""
    kept = text
    while (size := len(json.dumps(kept))) > _LONGEST:
        kept = kept[: (len(kept) * _LONGEST) // size]
    return kept if kept == text else f"{kept}...[truncated {len(text) - len(kept)} chars]"


def folded(answer: str) -> str:
    """The whole answer that a stream of events amounts to; any other answer as it is."""
    chunks = list(_events_in(answer))
    if not chunks:
        return answer
    if any("type" in one for one in chunks):
        return json.dumps(_message(chunks))
    completion = Completion()
    for one in chunks:
        completion.add(one)
    whole = completion.completion
    for choice in whole["choices"]:
        choice["finish_reason"] = choice.get("finish_reason") or "stop"
        choice["message"].setdefault("role", "assistant")
    return json.dumps(whole)


def _events_in(answer: str) -> Iterator[dict[str, Any]]:
    for line in answer.splitlines():
        # The last one may have been cut off.
        with contextlib.suppress(*NOT_UNDERSTOOD):
            if line.startswith("data:") and isinstance(event := msgspec.json.decode(line[5:].encode()), dict):
                yield event


def _message(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A message of Anthropic's, or a response of OpenAI's, from the events of its stream."""
    message: dict[str, Any] = {"type": "message", "role": "assistant"}
    text = ""
    for event in events:
        if isinstance(event.get("response"), dict):
            message = dict(event["response"])
        match event.get("type"):
            case "message_start":
                message |= event.get("message") or {}
            case "content_block_delta":
                text += str((event.get("delta") or {}).get("text") or "")
            case "message_delta":
                message |= event.get("delta") or {}
                message["usage"] = (message.get("usage") or {}) | (event.get("usage") or {})
    return message | {"content": [{"type": "text", "text": text}]} if "output" not in message else message
