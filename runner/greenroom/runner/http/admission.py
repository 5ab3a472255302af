"""How a request gets a slot in an engine, and gives it back.

A slot comes from the open gate of a ready engine, or from the scheduler. It is given back exactly once, and
not before the engine has stopped working on the request.

The caller of a request is the local process at the other end of the connection, or else the address. One
that finds a free slot is recorded under its address, which costs nothing. The process is looked up only for
requests that have to queue, because there callers take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from greenroom.actors.gates import GateBoard, Place
from greenroom.actors.installer.messages import PlanInstall
from greenroom.actors.kernel.errors import ActorStopped, KernelError, Refusal, Refused
from greenroom.actors.limits import ID, SLOTS, escaped
from greenroom.actors.progress import request_job
from greenroom.actors.scheduler.ledger import context_reckoned
from greenroom.actors.scheduler.messages import Abandon, CallerFound, Granted, Keep, Serve
from greenroom.actors.slot_choice import SlotChoice
from greenroom.actors.values import Caller, Engine, Mode, Model, Plan, Progress
from greenroom.runner.conversations.prompt_hashes import chain_of
from greenroom.runner.daemon import Greenroom
from greenroom.runner.http.engine_requests import RequestIds
from greenroom.runner.http.port import Request
from greenroom.runner.record.row import Note
from greenroom.runner.systems import here
from greenroom.runner.systems.peer_processes import Ends, Looks, among, ends_of, process_callers, within
from greenroom.runner.systems.processes import groups, wants_to_work

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

_PLAN_WITHIN = 2.0
"""Seconds to wait for the size of a download, for a refusal."""
_LOOK_AFTER = 0.1
"""Seconds a request waits before the process that sent it is looked up."""
_REBUILDS = 5
"""How often a request survives a rebuild of the scheduler."""
_AFTERMATH = 5.0
"""Seconds during which an engine may still die of a request whose client has left."""
LONGEST = 30.0
"""Seconds a slot is kept at most after its client has left: batches last two."""
_PAUSE = 0.015
_STILL = 2
"""Looks in a row that must find an engine still: between two tokens it is so for a moment."""
_ENGINES = 64
"""Engines that are remembered beyond those that have requests."""


def slots_of(fields: Mapping[str, Any]) -> int:
    """Slots that a request takes: one for each answer it wants at the same time."""
    prompt = fields.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    answers = max(fields.get("n", 1), fields.get("best_of", 1))
    return min(prompts * int(answers), SLOTS)


class _EngineRequests:
    """Of one engine."""

    __slots__ = ("inside", "left")

    def __init__(self) -> None:
        self.inside: set[str] = set()
        self.left: deque[float] = deque()
        """When clients left before their answers were complete, lately; on the monotonic clock."""


class SentRequests:
    """The requests that each engine has been sent, and how many it may still work on without a client.

    Engines notice a closed connection only between two batches, up to seconds later. If the slot were free
    by then, an engine that is still busy would look idle and might be ended or given to others. So a request
    that leaves early and is the last one inside keeps its slot until the engine is still. One for a front
    door; lives in one event loop.
    """

    def __init__(
        self,
        gates: GateBoard,
        engine: Callable[[str], Engine | None],
        keep: Callable[[Coroutine[Any, Any, None], Callable[[], None]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`engine` finds an engine by its id; `keep` runs something in the background, and something then."""
        self._gates = gates
        self._engine = engine
        self._keep = keep
        self._clock = clock
        self._engines: dict[str, _EngineRequests] = {}

    def __len__(self) -> int:
        """Engines that are remembered."""
        return len(self._engines)

    def count(self, engine_id: str) -> int:
        """Requests that an engine has, or had seconds ago when their clients left: it may die of any."""
        sent = self._engines.get(engine_id)
        if sent is None:
            return 0
        since = self._clock() - _AFTERMATH
        return len(sent.inside) + sum(at > since for at in sent.left)

    def add(self, engine_id: str, request_id: str) -> None:
        """The request is sent to the engine."""
        if len(self._engines) > _ENGINES:
            self._engines = {one: who for one, who in self._engines.items() if who.inside or self._late(who)}
        self._engines.setdefault(engine_id, _EngineRequests()).inside.add(request_id)

    def release(
        self, engine_id: str, request_id: str, give_back: Callable[[], None], *, early: bool = False
    ) -> None:
        """Its answer is complete, or it is let go of `early`. `give_back` is called once the slot is free."""
        sent = self._engines.setdefault(engine_id, _EngineRequests())
        sent.inside.discard(request_id)
        if early:
            sent.left.append(self._clock())
        if self._may_work(sent, engine_id, request_id):
            self._keep(self._until_still(sent, engine_id, request_id), give_back)
            return
        give_back()
        if not sent.inside and not sent.left:
            self._engines.pop(engine_id, None)

    def _late(self, sent: _EngineRequests) -> bool:
        """Whether a client has left early within the time that an engine may need to notice."""
        since = self._clock() - LONGEST
        while sent.left and sent.left[0] <= since:
            sent.left.popleft()
        return bool(sent.left)

    def _may_work(self, sent: _EngineRequests, engine_id: str, request_id: str) -> bool:
        """Whether the engine may be working for no client at all once this request has left."""
        return self._late(sent) and self._gates.inside(engine_id) <= {request_id}

    async def _until_still(self, sent: _EngineRequests, engine_id: str, request_id: str) -> None:
        """Wait until the engine is still, or others are inside, who make it busy anyway."""
        still = 0
        while still < _STILL and self._may_work(sent, engine_id, request_id):
            engine = self._engine(engine_id)
            if engine is None or engine.state == "gone" or not engine.pid:
                return
            still = 0 if await asyncio.to_thread(_works, engine.pid) else still + 1
            await asyncio.sleep(_PAUSE)
        if still >= _STILL:
            sent.left.clear()


def _works(pid: int) -> bool:
    return wants_to_work(groups([pid])[pid])


@dataclass
class Admission:
    """How one request gets a slot in an engine's gate, and gives it back."""

    greenroom: Greenroom
    ids: RequestIds
    sent_requests: SentRequests
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
    prompt: tuple[object, ...] = ()
    """Its parts: of several engines, the one that has read most of them is entered."""
    keeps: tuple[bool, bool] = (True, True)
    """What is read of it may stay in its slot, and go to the disk."""
    note: Note | None = None
    """For the record of requests: gets the phases of a wait."""
    request_id: str = ""
    """The id under which the slot is held or awaited; else empty."""
    _original: str = ""
    """The id of the client's request, which further attempts are made for."""
    _sent_to: str = ""
    """The engine that has the request; empty while none has."""
    _asked: bool = False
    _grant_due: bool = False
    _in_slot: asyncio.Future[Any] | None = None

    async def enter(self, *, skip_gate: bool = False) -> Place:
        """Wait for a slot. Raises Refused and the kernel's other errors.

        With `skip_gate` the scheduler is asked in any case: the gate that is open may be that of an engine
        which has just died.
        """
        assert not self.request_id
        self.request_id, self.first_id = self.first_id or self.ids.next(), ""
        self._original = self._original or self.request_id
        if not skip_gate and not self._wants_more():
            place = self.greenroom.gates.enter(
                self.model.id,
                self.mode,
                self.backend,
                self.request_id,
                self.caller,
                self.slots,
                self.prompt,
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
            self.request_id = self.ids.next()  # the old one may still hold a slot
        raise AssertionError("the last round returns or raises")

    def take_slot(self) -> SlotChoice | None:
        """The slot of its engine that has read most of the prompt; None where the engine chooses."""
        stays, goes_to_disk = self.keeps
        return self.greenroom.gates.take_slot(
            self.request_id,
            self.prompt,
            lambda: chain_of(self.prompt).hashes,
            key=self.caller.key if self.caller.kind == "key" else "",
            keeps=stays,
            kept=goes_to_disk,
        )

    def send_to(self, engine_id: str) -> None:
        """From now on the engine may work on the request, or die of it."""
        self._sent_to = engine_id
        self.sent_requests.add(engine_id, self.request_id)

    async def in_slot(self, work: Callable[[], _T]) -> _T:
        """Read or write the slot's content on a thread; the slot is kept until that has ended."""
        self._in_slot = asyncio.ensure_future(asyncio.to_thread(work))
        return await asyncio.shield(self._in_slot)

    def leave(self, *, early: bool = False) -> None:
        """Give the slot back, or stop waiting for one; `early`, the answer is not complete. Idempotent.

        Does not wait: while the engine may work for a client that left, the slot is kept in the background.
        """
        request_id, self.request_id = self.request_id, ""
        engine_id, self._sent_to = self._sent_to, ""
        if not request_id:
            return
        gates = self.greenroom.gates
        if engine_id:
            self.sent_requests.release(engine_id, request_id, lambda: gates.leave(request_id), early=early)
        else:
            gates.forget(request_id)  # its slot has read nothing of it
            if self._in_slot is not None:  # a client that leaves does not end what is done there
                self._in_slot.add_done_callback(lambda _: gates.leave(request_id))
            else:
                gates.leave(request_id)
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
            on_behalf=self._original if self._original != self.request_id else "",
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
            with self._phases():
                granted: Granted = await self.greenroom.system.ask(serve, cause=self.request_id)
        except Refused as refused:
            self._grant_due = False
            raise Refused(await self._sized(refused.refusal)) from None
        finally:
            if look is not None:
                look.cancel()
        self._grant_due = False
        return Place(granted.engine_id, granted.backend, granted.endpoint)

    @contextlib.contextmanager
    def _phases(self) -> Iterator[None]:
        """Note what is waited for inside."""
        if self.note is None:
            yield
            return
        phases = self.note.phases = self.note.phases or []

        def note(phase: str) -> None:
            if not phases or phases[-1][1] != phase:
                phases.append((time.perf_counter(), phase))

        def take(progress: Progress) -> None:
            note(progress.phase)

        note("queued")
        stop = self.greenroom.board.listen(request_job(self.request_id), take)
        try:
            yield
        finally:
            stop()
            note("")

    async def _find_caller(self) -> None:
        """Look up the caller while its request waits already: callers take turns."""
        look_up, self.look_up = self.look_up, None
        if look_up is None:
            return
        # A request that is granted at once takes no turn, and a look-up costs some hundredths of a second.
        await asyncio.sleep(_LOOK_AFTER)
        found = await look_up()
        saver = self.greenroom.conversation_saver
        if self.prompt and all(self.keeps) and self.model.id in saver.models:
            saver.look_ahead(self.model.id, self.prompt, owner_of(found))
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
        keep = Keep(
            model_id=self.model.id, mode=self.mode, keep_alive=self.keep_alive, request_id=self._original
        )
        # It is about the time after this request: not worth an error.
        with contextlib.suppress(KernelError):
            self.greenroom.system.tell(keep, cause=self.request_id)


# who asks

_RECENT = 8
"""Processes that are looked at before all others are."""
LOOK_WITHIN = 2.0
"""Seconds after which a caller is filed under its user: many open files make this slow."""
_OWNER_WITHIN = 20.0
"""Seconds to wait for an owner where only processes tell it."""


class Callers:
    """The callers of one front context. Lives in one event loop."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[object, Caller] = weakref.WeakKeyDictionary()
        self._recent: dict[int, Caller] = {}
        """The last few callers that are processes, by pid."""
        self._owners: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()
        self._processes = Looks(process_callers)

    def __len__(self) -> int:
        """Connections whose process has been looked up."""
        return len(self._known)

    def at_once(self, request: Request, user: str = "") -> Caller:
        """What is known without looking. `user` is the client's own word, and divides the caller's share."""
        connection = request.connection
        return self._described(request, user, self._known.get(connection) if connection is not None else None)

    def _described(self, request: Request, user: str, known: Caller | None) -> Caller:
        share = _share(request, user)
        if known is None:
            address = request.remote
            return Caller(kind="address" if address else "", id=address, name=address, share=share)
        return Caller(kind=known.kind, id=known.id, name=known.name, share=share)

    def goes_on(self, request: Request, connection: object) -> None:
        """Take `connection`, which has no socket to look up, for one of the request's caller."""
        if request.connection is None:
            return
        if (known := self._known.get(request.connection)) is not None:
            self._known[connection] = known
        if (owner := self._owners.get(request.connection)) is not None:
            self._owners[connection] = owner

    def introduce(self, connection: object, caller: Caller) -> None:
        """Who asks on a connection that cannot be looked up."""
        self._known[connection] = caller

    async def looked_up(self, request: Request, user: str = "") -> Caller:
        """The same, once the process behind a connection from this machine has been looked up."""
        connection = request.connection
        ends = (
            ends_of(request.peer, request.local)
            if connection is not None and connection not in self._known
            else None
        )
        if connection is None or ends is None:
            return self.at_once(request, user)
        found = await within(LOOK_WITHIN, self._process(ends))
        if found is not None:
            self._note(found)
        else:
            # It took too long, or the files of another user's processes cannot be read.
            uid = here.socket_user(*ends)
            if uid is not None and uid >= 0:
                found = Caller(kind="process", id=f"{uid}/", name=f"a process of user {uid}")
        if found is not None:
            self._known[connection] = found
        # The connection may have closed in the meantime.
        return self._described(request, user, found or self._known.get(connection))

    async def owner(self, request: Request) -> str:
        """Whose it is what the request leaves here, always the same for one user of this machine; "" if the
        client left before that was known.

        The system is asked for this one connection, which takes no thread: a busy machine cannot delay it
        until the client has gone.
        """
        if (known := self.owner_at_once(request)) is not None:
            return known
        connection, ends = request.connection, ends_of(request.peer, request.local)
        if connection is None or ends is None:
            return ""  # the client has left
        found = await within(_OWNER_WITHIN, self._process(ends))
        if owner := owner_of(self._described(request, "", found)):
            self._owners[connection] = owner
        return owner

    def owner_at_once(self, request: Request) -> str | None:
        """The same; None where only processes tell it."""
        connection = request.connection
        if connection is None:
            return ""
        if (known := self._owners.get(connection)) is not None:
            return known
        ends = ends_of(request.peer, request.local)
        if ends is None:
            return owner_of(self.at_once(request))
        uid = here.socket_user(*ends)
        if uid is not None and uid >= 0:
            self._owners[connection] = f"user:{uid}"
        return None if uid is None else self._owners.get(connection, "")

    async def _process(self, ends: Ends) -> Caller | None:
        # Most clients have asked before, each time on another connection.
        found = await asyncio.to_thread(among, ends, tuple(self._recent.items()))
        return found if found is not None else await self._processes.find(ends)

    def _note(self, caller: Caller) -> None:
        pid = int(caller.id.rpartition("/")[2])
        self._recent.pop(pid, None)
        self._recent = dict([*self._recent.items()][-(_RECENT - 1) :])
        self._recent[pid] = caller


def owner_of(caller: Caller) -> str:
    """Whose it is what a caller leaves here: a key's, a user's of this machine whatever the process, or an
    address's.
    """
    return f"user:{caller.id.partition('/')[0]}" if caller.kind == "process" else caller.key


def _share(request: Request, user: str) -> str:
    if user:
        return escaped(f"user {user}", ID)
    peer = request.peer
    return str(peer[1]) if isinstance(peer, tuple) and len(peer) > 1 else ""
