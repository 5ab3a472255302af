"""The queue, first come first served and fair between callers: step 3 of a scheduler turn."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

from greenroom.actors.bounded_maps import remembered
from greenroom.actors.installer.messages import Ensure, PendingInstallRequests
from greenroom.actors.kernel.core import Tell, refuse
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.progress import install_job, load_job
from greenroom.actors.scheduler.backend_choice import Install, NotInstalled, Use, choose, diverted
from greenroom.actors.scheduler.effects import AdmitRequest, HoldGates, PublishRequestProgress
from greenroom.actors.scheduler.errors import (
    breaker_open,
    load_failed,
    never_fits,
    no_device_for,
    not_installable,
    not_ready_yet,
    pinned,
    undecided,
)
from greenroom.actors.scheduler.events import BackendChosen, LoadAdmitted, LoadRefused
from greenroom.actors.scheduler.eviction import eviction, make_room, room_for, yielding
from greenroom.actors.scheduler.ledger import context_reckoned
from greenroom.actors.scheduler.messages import Granted
from greenroom.actors.scheduler.placement import Need, Placement, Placements
from greenroom.actors.scheduler.quarantine import FAILURES_TO_OPEN, LONGEST_COOL_DOWN, cool_down
from greenroom.actors.scheduler.state import (
    BreakerState,
    FailedInstalls,
    ModelConfigState,
    Waiting,
    Wish,
    breaker_of,
    config_key,
    fits,
    pause_left,
)
from greenroom.actors.scheduler.turn_context import TurnContext
from greenroom.actors.sizes import format_size
from greenroom.actors.values import Engine, EngineSpec, Model
from greenroom.actors.variants import BEST

AGAIN = 5.0
"""Seconds after which a command to another actor is repeated: that is harmless, and it may have been lost."""
LOOK_FOR_MEMORY = 0.5
"""Seconds between two looks at what is free while a request waits for memory: no message tells of it."""
_CALLERS_REMEMBERED = 64
_UNSTORED = frozenset({"stopping", "model_not_found", "journal_full"})
"""Refusals that say nothing about a model in the store."""


class _Wait(NamedTuple):
    phase: str
    text: str
    follows: str = ""
    alive: float = 0.0
    """Monotonic second of the last sign of life from what it waits for; 0 if it gives none."""


class QueueStep:
    """Decides on every waiting request, until one of them has events."""

    def __init__(self, context: TurnContext) -> None:
        self._turn = context
        self._place = 0
        """In the queue, of the last request that was left waiting."""
        self._places = Placements(context)
        self._awaited: set[str] = set()
        """Backends whose installation is waited for."""
        self._behind: dict[str, Waiting] = {}
        """pool of memory → the request that what becomes free there is kept for."""
        self._full: set[str] = set()
        """Engines that a request is queued for: later ones do not overtake it there."""
        self._same: dict[tuple[object, ...], _Wait] = {}
        """What requests of one kind wait for, found out once: there may be hundreds."""

    def take(self) -> None:
        turn = self._turn
        turn.guarded(self._forget_wishes, doing="forget wishes")
        for waiting in self._in_turn():
            if turn.events:
                return
            one = waiting.request_id
            if not turn.guarded(partial(self._decide, waiting), doing="serve a request", about=one):
                no = undecided(waiting)
                if not turn.guarded(partial(self._refuse, waiting, no), doing="refuse it", about=one):
                    turn.answer(waiting, no)
        turn.guarded(self._send_awaited, doing="say what requests wait for")
        turn.guarded(self._hold_gates, doing="hold gates")

    def _decide(self, waiting: Waiting) -> None:
        kind = self._kind(waiting)
        if kind in self._same:
            self._wait(waiting, self._same[kind])
        else:
            self._serve(waiting)

    def _in_turn(self) -> list[Waiting]:
        """One request of each caller in turn, first the caller whose last turn was longest ago.

        A caller's own requests take turns the same way between its connections and users.
        """
        served = self._turn.volatile.served
        callers: dict[str, dict[str, list[Waiting]]] = defaultdict(lambda: defaultdict(list))
        for waiting in self._turn.queue:
            callers[waiting.caller.key][waiting.caller.share].append(waiting)
        lines: dict[str, list[Waiting]] = {}
        for caller, shares in callers.items():
            lines[caller] = _taking_turns(
                {share: (served.get(f"{caller}/{share}", -1), line) for share, line in shares.items()}
            )
        return _taking_turns({caller: (served.get(caller, -1), line) for caller, line in lines.items()})

    def _kind(self, waiting: Waiting) -> tuple[object, ...]:
        return (
            *(waiting.model_id, waiting.mode, waiting.backend, waiting.policy, waiting.slots),
            waiting.context_size,
            self._is_patient(waiting),
        )

    def _is_patient(self, waiting: Waiting) -> bool:
        """Whether it has waited for so long that nothing may overtake it."""
        since = max(waiting.since, waiting.bereft)
        return self._turn.now.monotonic - since >= self._turn.limits.max_wait / 2

    def _serve(self, waiting: Waiting) -> None:
        """Decide on one waiting request.

        a. The daemon is stopping, or the model is not in the store: refused.
        b. A ready engine serves it: a slot, and the answer. If every slot is taken it is queued, and later
           requests do not overtake it. If it wants a larger context than the engine has, the engine ends
           after those inside, and the next load has the largest context that any request waits for.
        c. A load it can use is in flight: it waits for that one.
        d. An owner has not sent its list in this life: it waits, since the free memory is not known.
        e. A backend is chosen; one that must be installed first is waited for, or refused by policy. If the
           installation in use has broken this model, an older one serves it: see `quarantine`.
        f. The breaker of this model on this installation is open, or its last load has just failed for
           another reason than the model: refused, with the time to retry.
        g. It can never fit: refused with the numbers. It fits: a load. It does not fit now: the least
           recently used idle engines are evicted, or it waits for memory, which is kept for it.
        h. It has waited too long: refused; the load or installation goes on.
        """
        turn, volatile = self._turn, self._turn.volatile
        if volatile.draining:  # a
            self._refuse(
                waiting, refuse("stopping", "Greenroom is stopping.", kind="unavailable", retry_after=5.0)
            )
            return
        if (remote := turn.limits.remotes.get(waiting.backend)) is not None:
            self._enter(waiting, [remote])  # it has nothing to load, and the front door knows if it is there
            return
        model = volatile.models.get(waiting.model_id) if volatile.models is not None else None
        if volatile.models is not None and model is None:
            name = waiting.model_ref
            missing = f'model "{name}" is not in the store; run: greenroom pull {name}'
            self._refuse(waiting, refuse("model_not_found", missing, kind="not_found", subject=name))
            return
        serving = [engine for engine in turn.serving() if fits(engine.spec, waiting)]  # b
        if serving:
            large = [one for one in serving if _context_of(one.spec, model) >= waiting.context_size]
            if large or not turn.storing:
                self._enter(waiting, large or serving)
                return
            for engine in serving:
                ended = eviction(engine, volatile, turn.now, "larger_context")
                turn.record(ended, cause=waiting.asked_by)
            return
        load = next((one for one in turn.state.loads.values() if fits(one.spec, waiting)), None)  # c
        if load is not None:
            text = f"loading {waiting.model_ref} on {load.spec.backend}"
            self._wait_for(waiting, _Wait("loading", text, load_job(load.spec.engine_id)))
            return
        if model is None or volatile.statuses is None or turn.silent:  # d
            silent = ", ".join(turn.silent) or "what is installed"
            self._wait_for(waiting, _Wait("starting", f"checking what is already running ({silent})"))
            return
        choice = choose(  # e
            model, waiting.mode, waiting.backend, waiting.policy, turn.facts, volatile.statuses
        )
        if isinstance(choice, Refusal):
            self._refuse(waiting, choice)
        elif isinstance(choice, Install):
            self._install(waiting, choice)
        else:
            self._load(waiting, model, diverted(choice, model.id, turn.state, volatile.statuses))

    # b

    def _enter(self, waiting: Waiting, serving: Sequence[Engine]) -> None:
        turn = self._turn
        for engine in serving:
            one = engine.spec.engine_id
            if one not in self._full and turn.has_room(engine.spec, waiting.slots):
                self._grant(waiting, engine)
                return
        self._full |= {engine.spec.engine_id for engine in serving}
        slots = sum(engine.spec.slots for engine in serving)
        readings = [turn.volatile.gates.get(engine.spec.engine_id) for engine in serving]
        wanted = "a slot" if waiting.slots == 1 else f"{waiting.slots} slots at once"
        text = f"queued for {wanted} of {waiting.model_ref}, which has {slots}"
        quiet = min((one.quiet_for for one in readings if one is not None), default=math.inf)
        alive = turn.now.monotonic - quiet
        self._wait_for(waiting, _Wait("queued", text, alive=alive))

    def _hold_gates(self) -> None:
        """New requests for an engine queue behind those already queued for it."""
        turn = self._turn
        held = {one for one, reading in turn.volatile.gates.items() if reading.held}
        # An engine whose gate opens in this turn may have more requests than slots, too.
        if not turn.events and held != self._full:
            turn.effects.append(HoldGates(engine_ids=tuple(sorted(self._full))))

    def _grant(self, waiting: Waiting, engine: Engine) -> None:
        spec = engine.spec
        one, by = spec.engine_id, waiting.caller
        admit = AdmitRequest(engine_id=one, request_id=waiting.request_id, caller=by, slots=waiting.slots)
        self._turn.effects.append(admit)
        self._turn.answer(
            waiting, Granted(engine_id=spec.engine_id, backend=spec.backend, endpoint=engine.endpoint)
        )
        granted = self._turn.granted
        slots = min(waiting.slots, spec.slots) if spec.slots else 1
        granted[spec.engine_id] = granted.get(spec.engine_id, 0) + slots
        served = self._turn.volatile.served
        now = max(served.values(), default=-1) + 1
        for one in (waiting.caller.key, f"{waiting.caller.key}/{waiting.caller.share}"):
            served = remembered(served, one, now, _CALLERS_REMEMBERED)
        self._turn.update(served=served)

    # e

    def _forget_wishes(self) -> None:
        """Drop what the installer has decided on, and failures of what is now installed."""
        statuses = self._turn.volatile.statuses or {}
        settled = {
            name
            for name, wish in self._turn.volatile.wishes.items()
            if self._turn.volatile.heard.get(name) == wish.token
            or (name in statuses and (statuses[name].job or statuses[name].current is not None))
        }
        installed = {name for name, status in statuses.items() if status.current is not None}
        wishes = {name: wish for name, wish in self._turn.volatile.wishes.items() if name not in settled}
        failed = {
            name: one for name, one in self._turn.volatile.failed_installs.items() if name not in installed
        }
        self._turn.update(wishes=wishes, failed_installs=failed)

    def _install(self, waiting: Waiting, choice: Install) -> None:
        """Wait for an installation.

        1. The installer has a job: wait for it.
        2. The job it waited for has ended, or its `Ensure` led to none: refused with the reason.
        3. Several jobs for requests have just failed: refused with the reason and the time to retry.
        4. The installer has an `Ensure` already: wait for its list; send it again if none comes.
        5. Otherwise send one.
        """
        turn, backend = self._turn, choice.backend
        status = (turn.volatile.statuses or {}).get(backend)
        failure = status.failure if status is not None else None
        wish = turn.volatile.wishes.get(backend)
        failed = turn.volatile.failed_installs.get(backend)
        now = turn.now.monotonic
        if status is not None and status.job:  # 1
            if waiting.job != status.job:
                waiting = turn.change(waiting, job=status.job)
        elif waiting.job or (waiting.token and (wish is None or wish.token != waiting.token)):  # 2
            self._note_failed_install(backend, waiting.job or waiting.token)
            self._refuse(waiting, not_installable(backend, failure))
            return
        elif failed is not None and failed.until > now:  # 3
            self._refuse(waiting, not_installable(backend, failure, failed.until - now))
            return
        else:
            if wish is None or now - wish.sent_at >= AGAIN:  # 4, 5
                token = wish.token if wish is not None else waiting.request_id
                facts = next((one for one in turn.facts if one.name == backend), None)
                ensure = Ensure(
                    backend=backend,
                    variant=BEST if facts is not None and facts.best_first else "",
                    wanted_by="request",
                    token=token,
                    caller=waiting.caller,
                )
                turn.effects.append(Tell(command=ensure, cause=waiting.asked_by))
                wish = Wish(token=token, sent_at=now)
                turn.update(wishes={**turn.volatile.wishes, backend: wish})
            if waiting.token != wish.token:
                waiting = turn.change(waiting, token=wish.token)
        self._awaited.add(backend)
        text = f"installing {backend}, since {choice.reason}"
        # Not `_wait_for`: each request must note the job it waits for.
        self._wait(waiting, _Wait("installing", text, install_job(backend)))

    def _send_awaited(self) -> None:
        """The installer keeps a job that its client has left if requests wait for it."""
        turn = self._turn
        sent, at = turn.volatile.awaited_sent
        awaited, now = frozenset(self._awaited), turn.now.monotonic
        if awaited != sent or (awaited and now - at >= AGAIN):
            turn.effects.append(Tell(command=PendingInstallRequests(backends=awaited)))
            turn.update(awaited_sent=(awaited, now))

    def _note_failed_install(self, backend: str, last: str) -> None:
        """Count each job once, however many requests waited for it."""
        old = self._turn.volatile.failed_installs.get(backend)
        if old is not None and old.last == last:
            return
        count = (old.count if old is not None else 0) + 1
        until = self._turn.now.monotonic + cool_down(count) if count >= FAILURES_TO_OPEN else 0.0
        failed = FailedInstalls(count=count, last=last, until=until)
        self._turn.update(failed_installs={**self._turn.volatile.failed_installs, backend: failed})

    # f, g

    def _load(self, waiting: Waiting, model: Model, choice: Use) -> None:
        turn = self._turn
        spec = self._spec(waiting, model, choice)
        key = breaker_of(spec)
        breaker = turn.state.breakers.get(key)
        if breaker is not None and (left := self._cooling(key, breaker)) > 0:  # f
            self._refuse(waiting, breaker_open(waiting, choice.backend, breaker, left))
            return
        if (left := pause_left(turn.volatile.setbacks, key, turn.now.monotonic)) > 0:
            self._refuse(waiting, load_failed(spec, turn.volatile.setbacks[key].failure, left))
            return
        facts = next(one for one in turn.facts if one.name == choice.backend)
        places = self._places.of(spec, model, facts)
        if not places:  # g
            self._refuse(waiting, no_device_for(waiting.model_ref, choice.backend))
            return
        able = [one for one in places if all(need.size <= need.account.memory.budget for need in one.needs)]
        if not able:  # g
            self._refuse_for_good(waiting, places)
            return
        open_ones = [one for one in able if not self._pins_before(one)]
        unclaimed = [one for one in open_ones if not any(need.device in self._behind for need in one.needs)]
        best = self._best(unclaimed)
        if not open_ones:
            # The last places are those that ask least of devices.
            last = next(one for one in able if one.rank == able[-1].rank)
            need, held = self._pins_before(last)[0]
            self._refuse(waiting, pinned(waiting, need.size, held, need.account, need.name))
        elif not unclaimed:
            pools = [need.device for need in open_ones[0].needs if need.device in self._behind]
            text = f"waiting for memory, behind {self._behind[pools[0]].model_ref}"
            self._wait_for(waiting, _Wait("waiting_for_memory", text))
        elif not (fitting := [one for one in best if one.fits]):
            self._make_room(waiting, best)
        elif not turn.storing:
            self._refuse(waiting, _not_stored())
        else:
            place = max(fitting, key=lambda one: one.room)
            self._admit(waiting, self._places.grown(place, model, facts), choice)

    def _best(self, places: Sequence[Placement]) -> Sequence[Placement]:
        """The preferred ones of those that fit, or for which enough engines are idle or ending; else all."""
        ranks = [list(some) for _, some in groupby(places, key=lambda one: one.rank)]
        able = (
            some for some in ranks if any(one.fits for one in some) or room_for(self._turn, some) is not None
        )
        return next(able, places)

    def _refuse_for_good(self, waiting: Waiting, places: Sequence[Placement]) -> None:
        """No place is large enough: name the largest of those that ask least of devices."""
        places = [one for one in places if one.rank == places[-1].rank]
        needs = [need for one in places for need in one.needs if need.size > need.account.memory.budget]
        need = max(needs, key=lambda need: need.account.memory.budget)
        context = places[-1].spec.context_size
        self._refuse(waiting, never_fits(waiting.model_ref, need.size, need.account, need.name, context))

    def _pins_before(self, place: Placement) -> list[tuple[Need, int]]:
        """Pools of a place in which pinned models hold the memory, and how much they hold."""
        held = [(need, self._turn.pinned(need.device)) for need in place.needs]
        return [(need, size) for need, size in held if need.size > need.account.memory.budget - size]

    def _cooling(self, key: str, breaker: BreakerState) -> float:
        """Seconds until the breaker may be tried again."""
        if not breaker.until:
            return 0.0
        turn, name = self._turn, f"{key}@{breaker.until}"
        until = turn.volatile.cooling.get(name)
        if until is None:
            left = min(max(0.0, breaker.until - turn.now.wall), LONGEST_COOL_DOWN)
            until = turn.now.monotonic + left
            turn.update(cooling={**turn.volatile.cooling, name: until})
        return until - turn.now.monotonic

    def _spec(self, waiting: Waiting, model: Model, choice: Use) -> EngineSpec:
        turn = self._turn
        config = turn.state.configs.get(config_key(model.id, waiting.mode), ModelConfigState())
        context_size = model.context_size if config.context_size is None else config.context_size
        same = (one for one in turn.queue if (one.model_id, one.mode) == (model.id, waiting.mode))
        wished = max(one.context_size for one in (waiting, *same))
        if wished > context_reckoned(context_size, model.context_length):
            context_size = wished
        return EngineSpec(
            engine_id=f"{int(turn.now.wall * 1000):x}-{turn.state.admitted + 1}",
            backend=choice.backend,
            installation_id=choice.installation_id,
            model_id=model.id,
            model_ref=waiting.model_ref,
            mode=waiting.mode,
            context_size=context_size,
            flags=config.flags or (),
        )

    def _admit(self, waiting: Waiting, place: Placement, choice: Use) -> None:
        turn, spec = self._turn, place.spec
        chosen = BackendChosen(
            model_id=spec.model_id,
            model_ref=spec.model_ref,
            mode=spec.mode,
            backend=spec.backend,
            installation_id=spec.installation_id,
            reasons=choice.reasons,
            preferred=choice.preferred,
        )
        key = config_key(spec.model_id, spec.mode)
        account = turn.account()
        device = turn.account(spec.device) if spec.device else None
        admitted = LoadAdmitted(
            spec=spec,
            reserved=account.reserved + spec.memory,
            budget=account.memory.budget,
            device_reserved=device.reserved + spec.device_memory if device is not None else 0,
            device_budget=device.memory.budget if device is not None else 0,
            refused_before=turn.volatile.refused.get(key, 0),
            caller=waiting.caller,
            placed=place.reason,
        )
        turn.record(chosen, admitted, cause=waiting.asked_by)
        turn.update(
            begun={**turn.volatile.begun, spec.engine_id: turn.now.monotonic},
            refused={k: v for k, v in turn.volatile.refused.items() if k != key},
        )

    def _make_room(self, waiting: Waiting, places: Sequence[Placement]) -> None:
        turn = self._turn
        room = room_for(turn, places)
        if room is not None and room.victims and not turn.storing:
            self._refuse(waiting, _not_stored())
            return
        if room is not None:
            make_room(turn, room, waiting)
        # Memory that is being freed is kept for this request. While it waits for engines in use, models that
        # fit overtake it, but only until it is patient, unless it waits for other programs' memory.
        place = room.place if room is not None else max(places, key=lambda one: one.room)
        lacking = [need for need in place.needs if need.lacking]
        comes = all(
            need.account.memory.available + yielding(turn, need.device) >= need.size for need in lacking
        )
        if room is not None or (self._is_patient(waiting) and comes):
            self._behind |= {need.device: waiting for need in lacking}
        need = lacking[0]
        where = f" on {need.name}" if need.device else ""
        needed, free = format_size(need.size), format_size(need.account.free)
        text = f"waiting for memory: it needs {needed}, {free} is free{where}"
        turn.wakes.append(turn.now.monotonic + LOOK_FOR_MEMORY)
        self._wait_for(waiting, _Wait("waiting_for_memory", text))

    # h

    def _wait_for(self, waiting: Waiting, wait: _Wait) -> None:
        """Let it wait for this, and all others of its kind too."""
        self._same[self._kind(waiting)] = wait
        self._wait(waiting, wait)

    def _wait(self, waiting: Waiting, wait: _Wait) -> None:
        turn, now = self._turn, self._turn.now.monotonic
        place = self._place + 1
        moved, bereft, longest = waiting.moved, waiting.bereft, turn.limits.max_wait
        if waiting.phase == "queued" and wait.phase != "queued":
            # Its engine is gone: the time in that queue does not count for the next one.
            bereft = now
        since = max(waiting.since, bereft)
        if wait.phase == "queued":
            # Answers may take long, and the health monitor notices an engine that hangs. What counts is that
            # the queue moves, or that requests ahead are being answered.
            moved = now if not 0 < waiting.place <= place else moved
            since, longest = max(since, moved, wait.alive), turn.limits.max_queued
        if now - since >= longest:  # h
            self._refuse(waiting, not_ready_yet(waiting, now - waiting.since, wait.text))
            return
        turn.wakes.append(since + longest)
        self._place = place
        if (waiting.until, waiting.bereft) != (since + longest, bereft):
            waiting = turn.change(waiting, until=since + longest, bereft=bereft)
        if (waiting.follows, waiting.said, waiting.place) != (wait.follows, wait.text, place):
            turn.change(
                waiting, phase=wait.phase, follows=wait.follows, said=wait.text, place=place, moved=moved
            )
            turn.effects.append(
                PublishRequestProgress(
                    request_id=waiting.request_id,
                    phase=wait.phase,
                    message=wait.text,
                    follows=wait.follows,
                    place=place,
                )
            )

    def _refuse(self, waiting: Waiting, refusal: Refusal) -> None:
        """Refuse it, and store the reason if it is new for this model since its last load."""
        turn = self._turn
        turn.answer(waiting, refusal)
        if refusal.code in _UNSTORED:
            return
        key = config_key(waiting.model_id, waiting.mode)
        count = turn.volatile.refused.get(key, 0) + 1
        turn.update(refused={**turn.volatile.refused, key: count})
        if refusal.code not in turn.state.refusals.get(key, ()):
            refused = LoadRefused(
                model_id=waiting.model_id,
                model_ref=waiting.model_ref,
                mode=waiting.mode,
                code=refusal.code,
                message=refusal.message,
                numbers=refusal.numbers,
                count=count,
                advice=refusal.advice,
                backends=refusal.backends if isinstance(refusal, NotInstalled) else (),
                caller=waiting.caller,
                binding=waiting.backend,
            )
            turn.record(refused, cause=waiting.asked_by)


def _context_of(spec: EngineSpec, model: Model | None) -> int:
    """Tokens that each request in an engine may fill."""
    return context_reckoned(spec.context_size, model.context_length if model is not None else 0)


def _taking_turns(lines: Mapping[str, tuple[int, list[Waiting]]]) -> list[Waiting]:
    """The first of each line, then the second of each; first the line whose turn was longest ago."""
    ranked = [(rank, last, waiting) for last, line in lines.values() for rank, waiting in enumerate(line)]
    # Sorting is stable: lines with the same last turn stay in the order they came.
    return [waiting for *_, waiting in sorted(ranked, key=lambda one: one[:2])]


def _not_stored() -> Refusal:
    return refuse(
        "journal_full",
        "No model can be loaded because the journal cannot be written. Loaded models still work.",
        advice="Free space on the disk that holds Greenroom's data directory, then try again.",
        kind="exhausted",
    )
