"""Gates count the requests inside each engine, and their slots. They outlive a rebuild of the scheduler.

The front door enters the gate of a ready engine without a message or a commit, and leaves it whatever
happens. Only the scheduler opens and closes gates, and reserves a place for a request it grants.

An engine has a limited number of slots, each with room for the whole context. When all are taken, the next
request queues at the scheduler, and the gate is *held*: later requests queue behind it instead of taking the
next free slot.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from greenroom.actors.fork import on_fork
from greenroom.actors.kernel.clock import Clock
from greenroom.actors.kernel.core import Effect
from greenroom.actors.progress import ProgressBoard, request_job
from greenroom.actors.scheduler.effects import (
    AdmitRequest,
    CloseGate,
    HoldGates,
    LeaveGate,
    LoadAgain,
    OpenGate,
    PublishRequestProgress,
    RemoveGates,
)
from greenroom.actors.slot_choice import (
    Chain,
    Counted,
    SlotChoice,
    SlotContent,
    best_slot,
    most_read,
    source_of,
)
from greenroom.actors.values import Caller, Mode, Progress

_EMPTIED_PAUSE = 0.05
_NAMED = 3
"""Requests that a reading names."""
_NOBODY = Caller()


class Place(NamedTuple):
    engine_id: str
    backend: str
    endpoint: str


class LastByte:
    """When an engine last sent anything, on the monotonic clock.

    The readers of an engine's answers set `at` for every piece, without a lock: that must cost nothing.
    """

    __slots__ = ("asked_at", "asked_since", "at", "doubted_at", "left_at")

    def __init__(self, at: float = 0.0) -> None:
        self.at = at
        self.asked_at = 0.0
        """When a request last entered the empty engine; `at` is set to the same."""
        self.asked_since = at
        """When the first request entered after the last byte."""
        self.left_at = 0.0
        """When a request last left the engine empty, or while no byte had come out since it entered."""
        self.doubted_at = 0.0
        """When the front door last received an invalid answer from it."""

    def ask(self, now: float) -> None:
        """A request has entered the empty engine: its silence counts from now on.

        Further requests that end without an answer do not restart the count.
        """
        if self.at != self.asked_at:
            self.asked_since = now
        self.at = self.asked_at = now

    @property
    def unanswered_since(self) -> float:
        """When the first request entered that no byte has followed; 0 if there is none."""
        return self.asked_since if self.at == self.asked_at else 0.0


class Slot(NamedTuple):
    """One of an engine's slots, and the request that has it."""

    engine_id: str
    number: int
    """From 0. A request with a number beyond the engine's slots waits inside the engine."""
    request_id: str
    caller: Caller


class GateReading(NamedTuple):
    open: bool
    inside: int
    idle_since: float
    """Monotonic second since which it has been empty; meaningless while it is not."""
    served: int
    """Requests that have left it."""
    quiet_since: float = 0.0
    """Monotonic second of the last byte that came out, or of the first entry if that was later."""
    some: tuple[str, ...] = ()
    """Ids of some of the requests inside, for display."""
    unanswered_since: float = 0.0
    """Monotonic second of the first entry that no byte has followed; 0 if there is none."""
    doubted_at: float = 0.0
    """Monotonic second of its last invalid answer; 0 if there was none."""
    left_at: float = 0.0
    """Monotonic second at which a request last left it empty or without any answer, by the same clock."""
    slots: int = 0
    """Requests it takes at once; 0 means no limit."""
    used: int = 0
    held: bool = False
    """Requests are queued for it: only the scheduler admits any."""
    quiet_for: float = 0.0
    """Seconds since `quiet_since`."""

    def has_room(self, slots: int, more: int = 0) -> bool:
        """Whether so many slots are free, with `more` taken since this reading.

        A request for more slots than there are needs all of them.
        """
        return not self.slots or self.used + more + min(slots, self.slots) <= self.slots


class _Gate:
    __slots__ = (
        *("backend", "endpoint", "held", "idle_since", "inside", "key", "last_byte", "open", "served"),
        *("slots", "used", "contents", "chosen", "owners"),
    )

    def __init__(self, key: tuple[str, Mode], backend: str, endpoint: str, now: float, slots: int) -> None:
        self.key = key
        self.backend = backend
        self.endpoint = endpoint
        self.open = True
        self.held = False
        self.slots = slots
        self.used = 0
        self.inside: dict[str, tuple[Caller, tuple[int, ...]]] = {}
        """request → its caller and slot numbers."""
        self.contents: dict[int, SlotContent] = {}
        """slot number → what it has read; the one used longest ago first."""
        self.owners: set[str] = set()
        """The callers it has read for, as far as that was looked up."""
        self.chosen: set[str] = set()
        """Requests inside whose slot will not change any more."""
        self.idle_since = now
        self.served = 0
        self.last_byte = LastByte(now)


class GateBoard:
    """All gates. Thread-safe; nothing in here waits."""

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        bytes_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`monotonic` is the scheduler's clock, for idle time; `bytes_clock` the one used for `LastByte`."""
        self._bytes_clock = bytes_clock
        self._gates: dict[str, _Gate] = {}
        self._places: dict[str, str] = {}
        self._serials = itertools.count(1)
        self._lock = threading.Lock()
        self._monotonic = monotonic
        self.on_empty: Callable[[str], None] | None = None
        """Called with the engine's id, outside the lock, when the last request has left it."""
        self.on_open: Callable[[str], None] | None = None
        """Called with the engine's id, outside the lock, when its gate has opened for the first time."""
        self.on_freed: Callable[[str], None] | None = None
        """Called with the engine's id, outside the lock, when a slot that a request is queued for is free."""
        on_fork(self)

    def forked(self) -> None:
        """The engines are the parent's."""
        self._lock = threading.Lock()
        self._gates, self._places = {}, {}
        self.on_empty = self.on_freed = self.on_open = None

    # the scheduler's side

    def open(
        self, engine_id: str, model_id: str, mode: Mode, backend: str, endpoint: str, slots: int = 0
    ) -> None:
        """Admit requests for this model and mode, `slots` at once (0: no limit). Idempotent."""
        with self._lock:
            gate = self._gates.get(engine_id)
            if gate is None:
                now = self._monotonic()
                self._gates[engine_id] = _Gate((model_id, mode), backend, endpoint, now, slots)
            else:
                gate.open = True
        if gate is None and self.on_open is not None:
            self.on_open(engine_id)

    def hold(self, engine_ids: Iterable[str]) -> None:
        """Requests are queued for exactly these engines."""
        held = set(engine_ids)
        freed: list[str] = []
        with self._lock:
            for engine_id, gate in self._gates.items():
                if engine_id in held and not gate.held and gate.used < gate.slots:
                    # A request may have left since the scheduler read the gate, which was not reported.
                    freed.append(engine_id)
                gate.held = engine_id in held
        for engine_id in freed:
            if self.on_freed is not None:
                self.on_freed(engine_id)

    def close(self, engine_id: str) -> None:
        """Admit no further requests; those inside stay."""
        with self._lock:
            gate = self._gates.get(engine_id)
            if gate is not None:
                gate.open = False

    def remove(self, engine_id: str) -> None:
        """The engine has ended, and with it all requests inside."""
        with self._lock:
            gate = self._gates.pop(engine_id, None)
            for request_id in gate.inside if gate is not None else ():
                self._places.pop(request_id, None)

    def keep(self, engine_ids: Iterable[str]) -> None:
        """Remove the gates of all engines but these."""
        wanted = set(engine_ids)
        with self._lock:
            gone = [known for known in self._gates if known not in wanted]
        for engine_id in gone:
            self.remove(engine_id)

    def reserve(self, engine_id: str, request_id: str, caller: Caller = _NOBODY, slots: int = 1) -> bool:
        """Put a granted request inside, as long as the gate is open."""
        with self._lock:
            gate = self._gates.get(engine_id)
            if gate is None or not gate.open:
                return False
            self._put_inside(gate, engine_id, request_id, caller, slots)
            return True

    def readings(self) -> dict[str, GateReading]:
        now = self._bytes_clock()
        with self._lock:
            return {
                engine_id: GateReading(
                    *(gate.open, len(gate.inside), gate.idle_since, gate.served, gate.last_byte.at),
                    *(tuple(islice(gate.inside, _NAMED)), gate.last_byte.unanswered_since),
                    slots=gate.slots,
                    used=gate.used,
                    held=gate.held,
                    quiet_for=max(0.0, now - gate.last_byte.at),
                    doubted_at=gate.last_byte.doubted_at,
                    left_at=gate.last_byte.left_at,
                )
                for engine_id, gate in self._gates.items()
            }

    def slots(self, engine_id: str) -> tuple[Slot, ...]:
        """The slots of an engine that are taken, by number."""
        with self._lock:
            gate = self._gates.get(engine_id)
            inside = gate.inside.items() if gate is not None else ()
            taken = [
                Slot(engine_id, index, request_id, caller)
                for request_id, (caller, indexes) in inside
                for index in indexes
            ]
        return tuple(sorted(taken, key=lambda slot: slot.number))

    # the front door's side

    def enter(
        self,
        model_id: str,
        mode: Mode,
        backend: str,
        request_id: str,
        caller: Caller = _NOBODY,
        slots: int = 1,
        prompt: Sequence[object] = (),
    ) -> Place | None:
        """Enter an open gate of this model and mode (and backend, unless empty) with so many free slots: of
        several, the one whose engine has read most of the prompt's parts.

        None if there is none: the request then queues at the scheduler, and so do those after it.
        """
        best: tuple[int, str, _Gate] | None = None
        with self._lock:
            for engine_id, gate in self._gates.items():
                if not (gate.open and gate.key == (model_id, mode) and backend in ("", gate.backend)):
                    continue
                if gate.slots and (gate.held or gate.used + min(slots, gate.slots) > gate.slots):
                    gate.held = True
                    continue
                held = most_read(gate.contents.values(), prompt) if len(self._gates) > 1 else 0
                if best is None or held > best[0]:
                    best = held, engine_id, gate
            if best is None:
                return None
            _, engine_id, gate = best
            self._put_inside(gate, engine_id, request_id, caller, slots)
            return Place(engine_id, gate.backend, gate.endpoint)

    def take_slot(
        self,
        request_id: str,
        prompt: Sequence[object],
        chain: Chain,
        *,
        key: str = "",
        keeps: bool = True,
        kept: bool = True,
    ) -> SlotChoice | None:
        """Choose among the free slots of the request's engine. None where the engine chooses itself.

        `chain` makes the prompt's hashes, which only slots of an earlier daemon need. Without `keeps` nothing
        is to stay of the request; without `kept` nothing on the disk.
        """
        with self._lock:
            engine_id = self._places.get(request_id, "")
            gate = self._gates.get(engine_id)
            if gate is None or not gate.slots:
                return None
            caller, indexes = gate.inside[request_id]
            others = [(one, taken) for one, (_, taken) in gate.inside.items() if one != request_id]
            settled = {index for one, taken in others if one in gate.chosen or taken[1:] for index in taken}
            free = [index for index in range(gate.slots) if index not in settled]
            if len(indexes) != 1 or not free:
                for index in free:
                    gate.contents.pop(index, None)
                return None
            number, held = best_slot(gate.contents, free, prompt, chain, key)
            for one, (other, taken) in gate.inside.items():
                if taken == (number,) and one != request_id:
                    gate.inside[one] = (other, indexes)  # it had this one only until it chooses
            gate.inside[request_id] = (caller, (number,))
            gate.chosen.add(request_id)
            serial, before = next(self._serials), gate.contents.pop(number, None)
            lost = before if before is not None and held < len(before.parts) else None
            source = None
            if keeps and (lost is not None or not held):  # a conversation that goes on needs no other slot
                busy = {index for _, taken in others for index in taken}
                idle = {index: one for index, one in gate.contents.items() if index not in busy}
                source = source_of(idle, prompt, chain, key, held)
            if keeps and prompt:
                gate.contents[number] = SlotContent(tuple(prompt), key, kept=kept, serial=serial)
            return SlotChoice(
                engine_id, number, held, lost, serial, gate.slots == 1, before.owner if before else "", source
            )

    def forget(self, request_id: str) -> None:
        """What the request's slot holds is not known: its engine has refused it."""
        with self._lock:
            gate = self._gates.get(self._places.get(request_id, ""))
            if gate is not None and request_id in gate.chosen:
                for index in gate.inside[request_id][1]:
                    gate.contents.pop(index, None)

    def contents(self, engine_id: str) -> dict[int, SlotContent]:
        """What the engine's slots have read, by number, without those that requests have now."""
        with self._lock:
            gate = self._gates.get(engine_id)
            if gate is None:
                return {}
            taken = {index for _, indexes in gate.inside.values() for index in indexes}
            return {number: one for number, one in gate.contents.items() if number not in taken}

    def own(self, choice: SlotChoice, owner: str, counted: Counted) -> bool:
        """Whose a slot's content is, unless another request has it by now, and how to count its tokens.

        Returns whether the engine has read for no other owner, as far as that is known.
        """
        with self._lock:
            gate = self._gates.get(choice.engine_id)
            content = gate.contents.get(choice.number) if gate is not None else None
            if gate is not None and content is not None and content.serial == choice.serial:
                gate.contents[choice.number] = content._replace(owner=owner, counted=counted)
            if gate is not None and owner:
                gate.owners.add(owner)
            return gate is None or gate.owners <= {owner}

    def has_one_owner(self, engine_id: str) -> bool:
        """Whether an engine has read for one owner at most, as far as that is known."""
        gate = self._gates.get(engine_id)
        return gate is None or len(gate.owners) < 2

    def forget_content(self, engine_id: str, serial: int) -> None:
        """A slot does not hold this, it has turned out."""
        with self._lock:
            gate = self._gates.get(engine_id)
            if gate is not None:
                gate.contents = {number: one for number, one in gate.contents.items() if one.serial != serial}

    def learn(self, engine_id: str, contents: Mapping[int, SlotContent]) -> None:
        """What the slots of an adopted engine hold, as far as no request has used them since."""
        with self._lock:
            gate = self._gates.get(engine_id)
            if gate is not None:
                used = {index for _, indexes in gate.inside.values() for index in indexes}
                learnt = {
                    number: one._replace(serial=next(self._serials))
                    for number, one in contents.items()
                    if number < gate.slots and number not in used and number not in gate.contents
                }
                gate.contents = {**learnt, **gate.contents}
                gate.owners.update(one.owner for one in contents.values() if one.owner)

    def is_wanted(self, engine_id: str) -> bool:
        gate = self._gates.get(engine_id)
        return gate is not None and gate.held

    def leave(self, request_id: str) -> None:
        """Leave, wherever the request is. Idempotent; never fails."""
        with self._lock:
            engine_id = self._places.pop(request_id, None)
            gate = self._gates.get(engine_id) if engine_id is not None else None
            if gate is None or engine_id is None:
                return
            _, indexes = gate.inside.pop(request_id)
            gate.chosen.discard(request_id)
            gate.used -= len(indexes)
            gate.served += 1
            empty, held = not gate.inside, gate.held
            if empty:
                gate.idle_since = self._monotonic()
            if empty or gate.last_byte.unanswered_since:
                gate.last_byte.left_at = self._bytes_clock()
        if held and self.on_freed is not None:
            self.on_freed(engine_id)
        elif empty and self.on_empty is not None:
            self.on_empty(engine_id)

    def last_byte(self, engine_id: str) -> LastByte:
        """To be set for every piece of an answer that this engine sends."""
        gate = self._gates.get(engine_id)
        return gate.last_byte if gate is not None else LastByte()

    def doubt(self, engine_id: str) -> None:
        """Note an invalid answer from a running engine, so that the health monitor checks the engine."""
        self.last_byte(engine_id).doubted_at = self._bytes_clock()

    def inside(self, engine_id: str) -> frozenset[str]:
        with self._lock:
            gate = self._gates.get(engine_id)
            return frozenset(gate.inside) if gate is not None else frozenset()

    def _put_inside(self, gate: _Gate, engine_id: str, request_id: str, caller: Caller, slots: int) -> None:
        # A request has only one place: leaving would not free a second one.
        other = self._gates.get(self._places.get(request_id, ""))
        if other is not None:
            _, indexes = other.inside.pop(request_id)
            other.chosen.discard(request_id)
            other.used -= len(indexes)
        if not gate.inside:
            gate.last_byte.ask(self._bytes_clock())
        indexes = _free_slots(gate, min(slots, gate.slots) if gate.slots else 1)
        gate.inside[request_id] = (caller, indexes)
        gate.used += len(indexes)
        self._places[request_id] = engine_id


def _free_slots(gate: _Gate, count: int) -> tuple[int, ...]:
    if not gate.slots:
        # Without a limit they are not numbered: there may be hundreds.
        return (len(gate.inside),)
    taken = {index for _, indexes in gate.inside.values() for index in indexes}
    return tuple(islice((index for index in itertools.count() if index not in taken), count))


class Emptied:
    """Tells the scheduler that engines have emptied, but not for each of a thousand quick requests.

    A request that enters and leaves the gate of a ready engine costs no message. But an eviction or a stop
    may be waiting for it to leave, so that is reported: at once the first time, then in batches every 50 ms.
    Without that pause the scheduler's thread competes with requests for the interpreter, which makes each
    cost half as much again. A `GateBoard` calls it. Thread-safe and quick.
    """

    def __init__(self, clock: Clock, tell: Callable[[str], None], pause: float = _EMPTIED_PAUSE) -> None:
        """`tell` receives an engine's id, on the request's or the clock's thread; it must not raise."""
        self._clock = clock
        self._tell = tell
        self._pause = pause
        self._lock = threading.Lock()
        self._pausing = False
        self._since: dict[str, None] = {}

    def __call__(self, engine_id: str) -> None:
        with self._lock:
            if self._pausing:
                self._since[engine_id] = None
                return
            self._pausing = True
        self._tell(engine_id)
        self._clock.call_at(self._clock.now().monotonic + self._pause, self._go_on)

    def _go_on(self) -> None:
        with self._lock:
            since, self._since = self._since, {}
            self._pausing = bool(since)
        if since:
            for engine_id in since:
                self._tell(engine_id)
            self._clock.call_at(self._clock.now().monotonic + self._pause, self._go_on)


class GateEffects:
    """Opens and closes gates, admits granted requests, and publishes what the others wait for."""

    def __init__(
        self, gates: GateBoard, board: ProgressBoard, load_again: Callable[[LoadAgain], None] | None = None
    ) -> None:
        """`load_again` begins to load a model that no client waits for; it must not block."""
        self._gates = gates
        self._board = board
        self._load_again = load_again or (lambda _: None)

    def perform(self, effect: Effect, cause: str) -> None:
        match effect:
            case OpenGate() as e:
                self._gates.open(e.engine_id, e.model_id, e.mode, e.backend, e.endpoint, e.slots)
            case HoldGates(engine_ids=held):
                self._gates.hold(held)
            case CloseGate(engine_id=one):
                self._gates.close(one)
            case RemoveGates(keep=keep):
                self._gates.keep(keep)
            case AdmitRequest(engine_id=one, request_id=request) as e:
                self._gates.reserve(one, request, e.caller, e.slots)
                self._board.clear(request_job(request))
            case LoadAgain():
                self._load_again(effect)
            case LeaveGate(request_id=request):
                self._gates.leave(request)
                self._board.clear(request_job(request))
            case PublishRequestProgress() as e:
                self._board.publish(
                    Progress(
                        job=request_job(e.request_id),
                        phase=e.phase,
                        message=e.message,
                        follows=e.follows,
                        place=e.place,
                    )
                )
            case _:
                raise TypeError(f"no gate performs {type(effect).__name__} ({cause})")
