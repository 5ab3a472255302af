"""Models that are loaded at the start give back what they were granted."""

from __future__ import annotations

import queue
from typing import Any

from greenroom.actors.kernel.answers import Reply
from greenroom.actors.scheduler.messages import Abandon, Granted, Serve
from greenroom.runner.preload import Wanted, preload

GRANTED = Granted(engine_id="e", backend="b", endpoint="s")


class Scheduler:
    """Notes what it is asked and told, and answers when the test does."""

    def __init__(self) -> None:
        self.asked: queue.Queue[tuple[Serve, Reply[Any]]] = queue.Queue()
        self.abandoned: queue.Queue[str] = queue.Queue()

    def ask(self, serve: Serve, **_: object) -> Reply[Any]:
        reply = Reply[Any]()
        self.asked.put((serve, reply))
        return reply

    def tell(self, abandon: Abandon, **_: object) -> None:
        self.abandoned.put(abandon.request_id)


def test_a_model_that_is_loaded_gives_its_slot_back_while_another_one_loads() -> None:
    system: Any = Scheduler()
    preload(system, [Wanted("sha256:slow", "slow"), Wanted("sha256:quick", "quick")], 300.0)
    slow, quick = (system.asked.get(timeout=10) for _ in range(2))
    for serve, reply in (quick, slow):
        reply.set(GRANTED)
        assert system.abandoned.get(timeout=10) == serve.request_id
