"""The scheduler in a real shell whose journal is full: ready engines serve, other requests are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from greenroom.actors.engine_runner.messages import EngineList
from greenroom.actors.gates import GateBoard
from greenroom.actors.installer.messages import InstallationList
from greenroom.actors.journal.in_memory import MemoryJournal
from greenroom.actors.journal.port import JournalFull
from greenroom.actors.kernel.core import Effect
from greenroom.actors.kernel.errors import Refused
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.library.messages import ModelList
from greenroom.actors.scheduler.core import Scheduler
from greenroom.actors.scheduler.effects import AdmitRequest, OpenGate
from greenroom.actors.scheduler.ledger import Memory
from greenroom.actors.scheduler.messages import SCHEDULER, Serve
from greenroom.actors.testing import FaultyJournal, ManualClock, RecordingEffectHandler
from greenroom.actors.values import Engine
from scheduler_stage import GIB, LLAMA, installed, model

QWEN, PHI = model("qwen"), model("phi")


class OneScheduler:
    """One scheduler with real gates; the test plays all other actors."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.journal = FaultyJournal(MemoryJournal())
        self.gates = GateBoard(monotonic=lambda: self.clock.now().monotonic)
        self.effect_handler = RecordingEffectHandler({OpenGate: self._open, AdmitRequest: self._admit})
        self.system = ActorSystem(self.journal, clock=self.clock)
        self.system.register(Scheduler((LLAMA,)), effect_handler=self.effect_handler, observe=self._observe)
        self.system.start()
        self.life = self._life()

    def _open(self, effect: Any, cause: str) -> None:
        self.gates.open(effect.engine_id, effect.model_id, effect.mode, effect.backend, effect.endpoint)

    def _admit(self, effect: Any, cause: str) -> None:
        assert self.gates.reserve(effect.engine_id, effect.request_id)

    def _observe(self, volatile: Any) -> Any:
        memory = Memory(budget=8 * GIB, available=8 * GIB)
        return msgspec.structs.replace(volatile, gates=self.gates.readings(), memory=memory)

    def _life(self) -> str:
        now = self.clock.now()
        return f"{now.monotonic}/{now.draw}"

    def begin(self) -> None:
        self.system.tell(ModelList(models=(QWEN, PHI), version=1))
        told = InstallationList(backends=(installed("llama.cpp"),), version=1)
        self.system.tell(told)
        self.notify()

    def notify(self, *engines: Engine) -> None:
        told = EngineList(backend="llama.cpp", engines=engines, version=1, token=self.life)
        self.system.tell(told, to=SCHEDULER)
        self.system.rest()

    def serve(self, request_id: str, name: str) -> Any:
        ask = Serve(request_id=request_id, model_id=f"sha256:{name}", model_ref=name)
        return self.system.ask(ask)


@pytest.fixture
def scheduler() -> Iterator[OneScheduler]:
    scheduler = OneScheduler()
    scheduler.begin()
    yield scheduler
    scheduler.system.stop()


def ready(scheduler: OneScheduler, name: str) -> Engine:
    """A model that is loaded before anything goes wrong."""
    reply = scheduler.serve(f"load-{name}", name)
    scheduler.system.rest()
    loads = scheduler.system.state(SCHEDULER).loads.values()
    spec = next(load.spec for load in loads if load.spec.model_ref == name)
    engine = Engine(spec=spec, state="ready", since=scheduler.clock.now().wall, endpoint="/run/e.sock")
    scheduler.notify(engine)
    assert reply.get(timeout=5).engine_id == spec.engine_id
    scheduler.gates.leave(f"load-{name}")
    return engine


def test_what_is_ready_goes_on_serving_and_what_needs_a_load_is_refused(scheduler: OneScheduler) -> None:
    engine = ready(scheduler, "qwen")
    scheduler.journal.fault = JournalFull("no space left on device")
    cold, warm = scheduler.serve("r1", "phi"), scheduler.serve("r2", "qwen")
    with pytest.raises(Refused) as refused:
        cold.get(timeout=5)
    assert (refused.value.refusal.kind, refused.value.refusal.code) == ("exhausted", "journal_full")
    assert warm.get(timeout=5).engine_id == engine.spec.engine_id
    assert scheduler.gates.inside(engine.spec.engine_id) == {"r2"}


def test_a_grant_does_not_wait_for_another_requests_event(scheduler: OneScheduler) -> None:
    ready(scheduler, "qwen")
    scheduler.journal.fault = JournalFull("no space left on device")
    scheduler.gates.close(next(iter(scheduler.gates.readings())))
    # Both are decided on in one turn, in which the first one's event cannot be stored.
    replies = [scheduler.serve("r1", "phi"), scheduler.serve("r2", "qwen")]
    with pytest.raises(Refused):
        replies[0].get(timeout=5)
    assert replies[1].get(timeout=5)


def test_nothing_has_to_be_restarted_when_there_is_room_again(scheduler: OneScheduler) -> None:
    scheduler.journal.fault = JournalFull("no space left on device")
    with pytest.raises(Refused):
        scheduler.serve("r1", "phi").get(timeout=5)
    scheduler.journal.fault = None
    scheduler.serve("r2", "phi")
    scheduler.system.rest()
    assert len(scheduler.system.state(SCHEDULER).loads) == 1


def test_the_effects_of_what_could_not_be_stored_do_not_happen(scheduler: OneScheduler) -> None:
    scheduler.journal.fault = JournalFull("no space left on device")
    with pytest.raises(Refused):
        scheduler.serve("r1", "phi").get(timeout=5)
    assert not [one for one in scheduler.effect_handler.effects if isinstance(one, AdmitRequest)]
    assert all(isinstance(one, Effect) for one in scheduler.effect_handler.effects)
    assert not scheduler.system.state(SCHEDULER).loads
