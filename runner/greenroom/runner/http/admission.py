"""How one request comes to a place in an engine's gate, and how it gives it back.

The place is given back exactly once, whatever happened: `leave` is called in a `finally`, is idempotent,
and does not wait. As long as no grant has been seen there may be one on its way, so leaving also abandons.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable

import msgspec

from greenroom.actors.gates import Place
from greenroom.actors.installer.messages import PlanInstall
from greenroom.actors.kernel.errors import ActorStopped, KernelError, Refusal, Refused
from greenroom.actors.progress import request_job
from greenroom.actors.scheduler.messages import Abandon, CallerFound, Granted, Keep, Serve
from greenroom.actors.values import Caller, Mode, Model, Plan
from greenroom.runner.daemon import Greenroom

_log = logging.getLogger(__name__)

_PLAN_WITHIN = 2.0
"""Seconds a refusal waits to hear how much would be fetched."""
_LOOK_AFTER = 0.1
"""Seconds a request has to wait before it is found out which process asks."""
_REBUILDS = 5
"""How often a request survives a rebuild of the scheduler."""


class RequestIds:
    """Ids for requests: unique for ever, since they stand in the journal as causes."""

    def __init__(self) -> None:
        self._stem = secrets.token_hex(4)
        self._count = itertools.count(1)

    def next(self) -> str:
        """A new id."""
        return f"r-{self._stem}-{next(self._count)}"


class Admission:
    """One request's way in and out."""

    def __init__(
        self,
        greenroom: Greenroom,
        ids: RequestIds,
        model: Model,
        *,
        asked_as: str,
        mode: Mode,
        backend: str = "",
        caller: Caller = Caller(),  # noqa: B008 - frozen
        look_up: Callable[[], Awaitable[Caller]] | None = None,
        places: int = 1,
        request_id: str = "",
        keep_alive: float | None = None,
    ) -> None:
        """`asked_as` is the model's name as the client wrote it; `backend`, unless empty, is binding.

        `caller` is what is known of it at once; `look_up` finds out more, for a request that has to queue.
        `places` are the slots it needs. `keep_alive` are the seconds the model stays after this request;
        negative means for ever.
        `request_id` is used the first time; every further attempt has an id of its own.
        """
        self._greenroom = greenroom
        self._ids = ids
        self._model = model
        self._asked_as = asked_as
        self._mode: Mode = mode
        self._backend = backend
        self._caller = caller
        self._look_up = look_up
        self._places = places
        self._first_id = request_id
        self._keep_alive = keep_alive
        self._asked = False
        self._grant_due = False
        self.request_id = ""
        """What the place is held under; empty while there is none and none is wanted."""

    async def enter(self, *, afresh: bool = False) -> Place:
        """Wait for a place. Raises Refused and the kernel's other errors.

        With `afresh` the scheduler is asked in any case: the gate that is open may be that of an engine
        which has just died.
        """
        assert not self.request_id
        self.request_id, self._first_id = self._first_id or self._ids.next(), ""
        if not afresh:
            place = self._greenroom.gates.enter(
                self._model.id, self._mode, self._backend, self.request_id, self._caller, self._places
            )
            if place is not None:
                self._wish()
                return place
        for rebuilds in range(_REBUILDS + 1):
            try:
                return await self._ask()
            except ActorStopped:
                # A scheduler that is rebuilt has forgotten who waits, and remembers everything else.
                if rebuilds == _REBUILDS or self._greenroom.system.failure is not None:
                    raise
            self.leave()
            await asyncio.sleep(0.05 * (rebuilds + 1))
            self.request_id = self._ids.next()
        raise AssertionError("the last round returns or raises")

    def leave(self) -> None:
        """Give the place back, or stop wanting one."""
        request_id, self.request_id = self.request_id, ""
        if not request_id:
            return
        self._greenroom.gates.leave(request_id)
        if self._asked:
            self._asked = False
            self._greenroom.board.clear(request_job(request_id))
        if self._grant_due:
            self._grant_due = False
            # Without a scheduler there is nobody who could still grant anything.
            with contextlib.suppress(KernelError):
                self._greenroom.system.tell(Abandon(request_id=request_id), cause=request_id)

    async def _ask(self) -> Place:
        serve = Serve(
            request_id=self.request_id,
            model_id=self._model.id,
            model_ref=self._asked_as,
            mode=self._mode,
            backend=self._backend,
            caller=self._caller,
            places=self._places,
            keep_alive=self._keep_alive,
            held=True,
        )
        self._asked = self._grant_due = True
        look = asyncio.create_task(self._find_caller()) if self._look_up is not None else None
        # The scheduler bounds the wait, by whether what is waited for gets on. Should it end, so does this.
        try:
            granted: Granted = await self._greenroom.system.ask(serve, cause=self.request_id)
        except Refused as refused:
            self._grant_due = False
            raise Refused(await self._sized(refused.refusal)) from None
        finally:
            if look is not None:
                look.cancel()
        self._grant_due = False
        return Place(granted.engine_id, granted.backend, granted.endpoint)

    async def _find_caller(self) -> None:
        """Find out more of the caller while its request waits already: turns are counted by it."""
        look_up, self._look_up = self._look_up, None
        if look_up is None:
            return
        # What is granted at once takes no turn, and looking costs some hundredths of a second.
        await asyncio.sleep(_LOOK_AFTER)
        found = await look_up()
        if found != self._caller:
            self._caller = found
            # It is about whose turn it is, and worth no error.
            with contextlib.suppress(KernelError):
                told = CallerFound(request_id=self.request_id, caller=found)
                self._greenroom.system.tell(told, cause=self.request_id)

    async def _sized(self, refusal: Refusal) -> Refusal:
        """A refusal for want of a backend, with how much installing it would fetch."""
        if refusal.code != "backend_not_installed" or refusal.numbers:
            return refusal
        try:
            plan: Plan = await self._greenroom.system.ask(
                PlanInstall(backend=refusal.subject), timeout=_PLAN_WITHIN
            )
        except KernelError as error:
            # The size is a courtesy: without it the answer is still the right one.
            _log.info("no size for %s: %s", refusal.subject, error)
            return refusal
        return msgspec.structs.replace(refusal, numbers={"download_bytes": float(plan.download_bytes)})

    def _wish(self) -> None:
        """Tell the scheduler how long the model is to stay: a request that walked in has not told it yet."""
        if self._keep_alive is None:
            return
        keep = Keep(model_id=self._model.id, mode=self._mode, keep_alive=self._keep_alive)
        # A wish is worth no error: it is about the time after this request.
        with contextlib.suppress(KernelError):
            self._greenroom.system.tell(keep, cause=self.request_id)
