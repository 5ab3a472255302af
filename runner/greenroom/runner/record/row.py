"""One request: a `Note` is filled in while it is under way, and the recorder makes a `Row` of it later."""

from __future__ import annotations

import itertools
import re
from typing import Literal

import msgspec

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.limits import escaped
from greenroom.actors.values import Caller, Model
from greenroom.runner.conversations.restoration import Restoration
from greenroom.runner.models.references import familiar
from greenroom.runner.record.bodies import Kept
from greenroom.runner.record.counts import counts_of

Ending = Literal["", "whole", "left", "died", "cut", "refused", "cancelled"]
"""How a request ended. Empty: it is under way. `whole`: the response was complete. `left`: the client
disconnected first. `died`: the engine exited. `cut`: the response was cut short. `refused`: the client got an
error. `cancelled`: Greenroom was shutting down, or a job was cancelled.
"""
ID = re.compile(r"r-[0-9a-f]{8}-\d{1,18}")

LEFT = 499
"""The status recorded if the client disconnected."""
_CANCELLED = frozenset({"abandoned", "cancelled", "stopped", "stopping"})
_NAME, _PATH, _AGENT, _SENTENCE = 300, 300, 200, 1_000
"""Maximum characters of each."""
_LOADING, _INSTALLING = "loading", "installing"


class Note(msgspec.Struct):
    """What the front door notes about a request. Times are `time.perf_counter` seconds unless stated."""

    id: str = ""
    method: str = ""
    path: str = ""
    family: str = ""
    at: float = 0.0
    """When it arrived, in seconds since 1970."""
    began: float = 0.0
    first: float = 0.0
    """When the first piece of a streamed response came; 0 if none did."""
    ended: float = 0.0
    address: str = ""
    agent: str = ""
    caller: Caller | None = None
    asked: str = ""
    """The model's name as the client wrote it."""
    model: Model | None = None
    backend: str = ""
    engine: str = ""
    status: int = 0
    refusal: Refusal | None = None
    fault: Ending = ""
    """Set if the refusal alone does not tell how the request ended."""
    broken: Ending = ""
    """Set if the response did not end in order."""
    phases: list[tuple[float, str]] | None = None
    """When each phase of the wait for an engine began; an empty phase ends the wait. None: no wait."""
    frames: int = 0
    """Number of events in a streamed response."""
    head: bytes = b""
    before: bytes = b""
    last: bytes = b""
    """Of the engine's response: its beginning, if it is not streamed, and its last two pieces."""
    kept: Kept | None = None
    """The bodies, if they are recorded."""
    restored: Restoration | None = None
    """What was found of the conversation on the disk; None if it was not looked for."""

    def counted(self) -> tuple[int | None, int | None]:
        """Tokens of the prompt and of the answer, as far as the engine has reported them."""
        return counts_of(self.head, self.before, self.last)[:2]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Seconds count from its arrival unless stated."""

    id: str
    at: float
    """When it arrived, in seconds since 1970."""
    method: str
    path: str
    """As sent, without the query."""
    family: str = ""
    """`openai`, `anthropic`, `ollama`, or `management` for requests that no model answers."""
    address: str = ""
    caller: str = ""
    """Who sent it: the name of an API key, a process of this machine, or the address."""
    caller_kind: str = ""
    """`key`, `process` or `address`."""
    user_agent: str = ""
    asked: str = ""
    """The model's name as the client wrote it."""
    model: str = ""
    """The model that `asked` resolved to; empty if none did."""
    model_id: str = ""
    backend: str = ""
    engine: str = ""
    status: int = 0
    outcome: Ending = ""
    code: str = ""
    """The error code; empty if there was no error."""
    sentence: str = ""
    queued: float = 0.0
    """Seconds spent waiting for a slot or for memory."""
    installing: float = 0.0
    """Seconds spent waiting for a backend to be installed."""
    loading: float = 0.0
    """Seconds spent waiting for the model to be loaded."""
    first_token: float | None = None
    """Seconds to the first piece of a streamed response."""
    seconds: float = 0.0
    """Seconds to the end."""
    tokens_in: int | None = None
    tokens_out: int | None = None
    estimated: bool = False
    """Whether `tokens_out` counts events of the stream, because the engine reported no number."""
    tokens_per_second: float | None = None
    """Generation speed, without the time for the prompt."""
    recorded: bool = False
    """Whether the bodies were recorded."""
    tokens_cached: int | None = None
    """Of `tokens_in`: those that the engine did not read for this request."""
    tokens_restored: int = 0
    """Of these: those that it had been given from the disk for it."""
    seconds_saved: float = 0.0
    """How long it would have taken to read them."""
    restored_from: float = 0.0
    """When they had been saved, in seconds since 1970."""
    restored_why: str = ""
    """Why they had been saved then; of a request without any, why there were none, if that is known."""


def row_of(note: Note, now: float | None = None) -> Row:
    """The row of a request that has ended or, with `now`, of one under way."""
    ended = note.ended if now is None else now
    waits = _waits(note, ended)
    counts = counts_of(note.head, note.before, note.last)
    out, estimated = counts.tokens_out, False
    if out is None and note.frames > 1:
        # One event of a stream is no token, but names the role or the finish reason; the last is `[DONE]`.
        over = 1 if now is not None or outcome_of(note) != "whole" else 2
        out, estimated = max(0, note.frames - over), True
    took = ended - note.first if note.first else 0.0
    speed = counts.per_second
    if speed is None and out and took > 0:
        speed = out / took
    caller, refusal, model = note.caller or Caller(), note.refusal, note.model
    restored = note.restored or Restoration()
    return Row(
        id=note.id,
        at=note.at,
        method=escaped(note.method, 20),
        path=escaped(note.path, _PATH),
        family=note.family,
        address=note.address,
        caller=escaped(caller.name or caller.id or note.address, _NAME),
        caller_kind=caller.kind or ("address" if note.address else ""),
        user_agent=escaped(note.agent, _AGENT),
        asked=escaped(note.asked, _NAME),
        model=escaped(_name_of(model), _NAME) if model is not None else "",
        model_id=model.id if model is not None else "",
        backend=note.backend,
        engine=note.engine,
        status=note.status,
        outcome=outcome_of(note) if now is None else "",
        code=refusal.code if refusal is not None else "",
        sentence=escaped(refusal.sentence(), _SENTENCE) if refusal is not None else "",
        queued=round(waits["queued"], 6),
        installing=round(waits[_INSTALLING], 6),
        loading=round(waits[_LOADING], 6),
        first_token=round(note.first - note.began, 6) if note.first else None,
        seconds=round(max(0.0, ended - note.began), 6),
        tokens_in=counts.tokens_in,
        tokens_out=out,
        estimated=estimated,
        tokens_per_second=round(speed, 3) if speed is not None else None,
        recorded=note.kept is not None,
        tokens_cached=counts.cached,
        tokens_restored=restored.tokens if counts.cached is None else min(restored.tokens, counts.cached),
        seconds_saved=round(restored.seconds, 3),
        restored_from=restored.saved_at,
        restored_why=escaped(restored.why(), _SENTENCE),
    )


def outcome_of(note: Note) -> Ending:
    refusal = note.refusal
    if refusal is not None and refusal.code in _CANCELLED:
        return "cancelled"
    if note.fault:
        return note.fault
    if refusal is not None:
        return "cut" if note.first else "refused"
    if note.broken:
        return note.broken
    if note.status == LEFT:
        return "left"
    return "whole" if note.status < 400 else "refused"


def _waits(note: Note, ended: float) -> dict[str, float]:
    waits = {"queued": 0.0, _INSTALLING: 0.0, _LOADING: 0.0}
    for (since, phase), (until, _) in itertools.pairwise([*(note.phases or ()), (ended, "")]):
        if phase:
            waits[phase if phase in waits else "queued"] += max(0.0, until - since)
    return waits


def _name_of(model: Model) -> str:
    named = (tag for tag in model.tags if not tag.startswith(("file:", "pypi:")))
    tag = next(named, model.tags[0] if model.tags else "")
    return familiar(tag) if tag else model.id
