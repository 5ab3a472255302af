"""Everything fails at random, from four threads at once; all guarantees hold."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from counter_bench import Bench
from counting import COUNTER, Add, Await, Counter, Do, Done, Release, Run, Total
from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import JournalFull
from greenroom.actors.kernel.errors import ActorStopped, Refused
from greenroom.actors.kernel.event_store import replay
from greenroom.actors.kernel.supervision import REBUILD_WINDOW
from greenroom.actors.testing import FaultyJournal


class Moody(Counter):
    """Fails now and then in all it does but `apply`, which a rebuild needs."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.moody = True

    def _called(self, name: str, what: object) -> None:
        if self.moody and name != "apply" and self.chance.random() < 0.02:
            raise random.Random(name).choice([ValueError, SystemExit, MemoryError])(name)


@pytest.mark.parametrize("seed", range(6))
def test_acknowledged_commands_are_stored_once_and_every_caller_is_answered(
    make_bench: Callable[..., Bench], seed: Any
) -> None:
    chance = random.Random(seed)
    core = Moody(chance)
    bench = make_bench(FaultyJournal(MemoryJournal()), counter=core)

    def effect_handler(effect: object, cause: str) -> None:
        if core.moody and chance.random() < 0.02:
            raise OSError("no such program")

    bench.effect_handler.on[Done] = effect_handler
    core.moody = False
    bench.start()
    core.moody = True
    acknowledged: list[float] = []
    unsure: list[float] = []
    replies = []
    moving = threading.Lock()

    def live(number: int) -> None:
        own = random.Random(seed * 100 + number)
        for turn in range(60):
            amount = 10.0**number
            what = own.choice(
                [Add(by=amount), Add(by=amount, times=2), Total(), Await(key="k"), Do(what="x")]
            )
            reply = bench.system.ask(what, to=COUNTER)
            replies.append(reply)
            bench.system.tell(Release(key="k"), to=COUNTER)
            try:
                reply.get(timeout=20)
                if isinstance(what, Add):
                    acknowledged.append(what.by * what.times)
            except Refused:
                pass  # refused is: nothing has happened
            except ActorStopped:
                if isinstance(what, Add):
                    unsure.append(what.by * what.times)
            if own.random() < 0.1:
                bench.system.tell(Run(what=lambda: 1 / 0), to=COUNTER)
            with moving:
                # Time goes on, so that the limit on rebuilds is not what is tested here.
                bench.clock.advance(REBUILD_WINDOW / 2)
            if turn % 7 == 0:
                bench.journal.fault = JournalFull("no space") if own.random() < 0.1 else None

    threads = [threading.Thread(target=live, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    bench.journal.fault = None
    core.moody = False
    bench.clock.advance(REBUILD_WINDOW)
    bench.system.rest()
    assert bench.failures == []
    bench.system.tell(Release(key="k"), to=COUNTER)
    bench.system.rest()
    assert all(reply.done() for reply in replies)
    live_state = bench.system.state(COUNTER)
    assert sum(acknowledged) <= live_state.total <= sum(acknowledged) + sum(unsure)
    again, _ = replay(bench.journal.read(), bench.system.store.codec, [Counter()])
    assert again[COUNTER].state == live_state
