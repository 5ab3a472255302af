"""What an inference request passes before it is inside an engine.

1. `Abilities`: what its model or backend cannot do is refused before anything is loaded.
2. `Suspects`: a request that may have crashed engines is not sent to another.
3. `Admission`: it gets a slot, from the open gate of a ready engine or from the scheduler.
4. `translate`: fields that its engine must not see go, and the model gets the engine's name for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from greenroom.actors.gates import Place
from greenroom.actors.installer.messages import PlanInstall
from greenroom.actors.kernel.errors import ActorStopped, KernelError, Refusal, Refused
from greenroom.actors.limits import SLOTS
from greenroom.actors.progress import request_job
from greenroom.actors.scheduler.ledger import context_reckoned
from greenroom.actors.scheduler.messages import Abandon, CallerFound, Granted, Keep, Serve
from greenroom.actors.values import Caller, Mode, Model, Plan
from greenroom.runner.backends.base import Dialect
from greenroom.runner.daemon import Greenroom

_log = logging.getLogger(__name__)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

_PLAN_WITHIN = 2.0
"""Seconds to wait for the size of a download, for a refusal."""
_LOOK_AFTER = 0.1
"""Seconds a request waits before the process that sent it is looked up."""
_REBUILDS = 5
"""How often a request survives a rebuild of the scheduler."""


def slots_of(fields: Mapping[str, Any]) -> int:
    """Slots that a request takes: one for each answer it wants at the same time."""
    prompt = fields.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    answers = max(fields.get("n", 1), fields.get("best_of", 1))
    return min(prompts * int(answers), SLOTS)


def spoken_by(dialect: Dialect, model: Model) -> str | None:
    """What the engine calls the model, or None when it takes any name."""
    return dialect.spoken(model.id) if dialect.model_name else None


def translate(body: bytes, dialect: Dialect, name: str | None, ours: frozenset[str] = frozenset()) -> bytes:
    """The body as the engine may see it, without what is `ours`; `name` is what it calls the model."""
    dropped = dialect.dropped | ours if ours else dialect.dropped
    if name is None and not dropped:
        return body
    fields = _fields.decode(body)
    for field in dropped:
        fields.pop(field, None)
    if name is not None:
        fields["model"] = msgspec.Raw(msgspec.json.encode(name))
    return msgspec.json.encode(fields)


def dropped_of(body: bytes, dialect: Dialect) -> list[str]:
    """The fields of a body that the engine does not get; the client gets a list of them."""
    return sorted(dialect.dropped & _fields.decode(body).keys()) if dialect.dropped else []


# slots


class RequestIds:
    """Ids for requests: unique forever, since they stand in the journal as causes."""

    def __init__(self) -> None:
        self._stem = secrets.token_hex(4)
        self._count = itertools.count(1)

    def next(self) -> str:
        return f"r-{self._stem}-{next(self._count)}"


@dataclass
class Admission:
    """How one request gets a slot in an engine's gate, and gives it back."""

    greenroom: Greenroom
    ids: RequestIds
    model: Model
    asked_as: str
    """The model's name as the client wrote it."""
    mode: Mode
    backend: str = ""
    """Unless empty, it is binding."""
    caller: Caller = Caller()  # noqa: RUF009 - frozen
    """What is known of it at once."""
    look_up: Callable[[], Awaitable[Caller]] | None = None
    """Finds out more about the caller, for a request that has to queue."""
    slots: int = 1
    """Slots that it needs."""
    first_id: str = ""
    """Used for the first attempt; each further one has an id of its own."""
    keep_alive: float | None = None
    """Seconds the model stays after this request; negative means indefinitely."""
    context_size: int = 0
    """Tokens that it may fill at least, whatever is configured; 0 leaves that open."""
    request_id: str = ""
    """The id under which the slot is held or awaited; else empty."""
    _asked: bool = False
    _grant_due: bool = False

    async def enter(self, *, skip_gate: bool = False) -> Place:
        """Wait for a slot. Raises Refused and the kernel's other errors.

        With `skip_gate` the scheduler is asked in any case: the gate that is open may be that of an engine
        which has just died.
        """
        assert not self.request_id
        self.request_id, self.first_id = self.first_id or self.ids.next(), ""
        if not skip_gate and not self._wants_more():
            place = self.greenroom.gates.enter(
                self.model.id, self.mode, self.backend, self.request_id, self.caller, self.slots
            )
            if place is not None:
                self._wish()
                return place
        for rebuilds in range(_REBUILDS + 1):
            try:
                return await self._ask()
            except ActorStopped:
                # A rebuilt scheduler has forgotten which requests wait, and nothing else.
                if rebuilds == _REBUILDS or self.greenroom.system.failure is not None:
                    raise
            self.leave()
            await asyncio.sleep(0.05 * (rebuilds + 1))
            self.request_id = self.ids.next()
        raise AssertionError("the last round returns or raises")

    def leave(self) -> None:
        """Give the slot back, or stop waiting for one."""
        request_id, self.request_id = self.request_id, ""
        if not request_id:
            return
        self.greenroom.gates.leave(request_id)
        if self._asked:
            self._asked = False
            self.greenroom.board.clear(request_job(request_id))
        if self._grant_due:
            self._grant_due = False
            # Without a scheduler nothing can be granted any more.
            with contextlib.suppress(KernelError):
                self.greenroom.system.tell(Abandon(request_id=request_id), cause=request_id)

    def _wants_more(self) -> bool:
        """Whether an engine of this model has too small a context for the request."""
        return self.context_size > 0 and any(
            context_reckoned(one.spec.context_size, self.model.context_length) < self.context_size
            for one in self.greenroom.engines()
            if one.state == "ready" and (one.spec.model_id, one.spec.mode) == (self.model.id, self.mode)
        )

    async def _ask(self) -> Place:
        serve = Serve(
            request_id=self.request_id,
            model_id=self.model.id,
            model_ref=self.asked_as,
            mode=self.mode,
            backend=self.backend,
            caller=self.caller,
            slots=self.slots,
            keep_alive=self.keep_alive,
            context_size=self.context_size,
            held=True,
        )
        self._asked = self._grant_due = True
        look = asyncio.create_task(self._find_caller()) if self.look_up is not None else None
        # The scheduler limits the wait; should it end, so does the wait.
        try:
            granted: Granted = await self.greenroom.system.ask(serve, cause=self.request_id)
        except Refused as refused:
            self._grant_due = False
            raise Refused(await self._sized(refused.refusal)) from None
        finally:
            if look is not None:
                look.cancel()
        self._grant_due = False
        return Place(granted.engine_id, granted.backend, granted.endpoint)

    async def _find_caller(self) -> None:
        """Look up the caller while its request waits already: callers take turns."""
        look_up, self.look_up = self.look_up, None
        if look_up is None:
            return
        # A request that is granted at once takes no turn, and a look-up costs some hundredths of a second.
        await asyncio.sleep(_LOOK_AFTER)
        found = await look_up()
        if found != self.caller:
            self.caller = found
            # It only decides about turns: not worth an error.
            with contextlib.suppress(KernelError):
                told = CallerFound(request_id=self.request_id, caller=found)
                self.greenroom.system.tell(told, cause=self.request_id)

    async def _sized(self, refusal: Refusal) -> Refusal:
        """A refusal for want of a backend, with how much installing it would fetch."""
        if refusal.code != "backend_not_installed" or refusal.numbers:
            return refusal
        try:
            plan: Plan = await self.greenroom.system.ask(
                PlanInstall(backend=refusal.subject), timeout=_PLAN_WITHIN
            )
        except KernelError as error:
            # Without the size the refusal is still right.
            _log.info("no size for %s: %s", refusal.subject, error)
            return refusal
        return msgspec.structs.replace(refusal, numbers={"download_bytes": float(plan.download_bytes)})

    def _wish(self) -> None:
        """Send the scheduler the keep-alive of a request that found a free slot and so has not asked it."""
        if self.keep_alive is None:
            return
        keep = Keep(model_id=self.model.id, mode=self.mode, keep_alive=self.keep_alive)
        # It is about the time after this request: not worth an error.
        with contextlib.suppress(KernelError):
            self.greenroom.system.tell(keep, cause=self.request_id)
