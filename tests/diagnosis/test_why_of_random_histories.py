"""In any history, `why` says something, names the newest cause, and agrees with `ps`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import note, settings
from hypothesis.stateful import rule

from greenroom.actors.engine_runner.messages import runner_address
from greenroom.actors.installer.messages import INSTALLER
from greenroom.actors.library.messages import LIBRARY
from greenroom.actors.scheduler.events import EvictionDecided, LoadFailed
from greenroom.actors.scheduler.messages import SCHEDULER
from greenroom.runner.diagnosis.explain import UnknownName, explain
from greenroom.runner.diagnosis.explanation import Explanation
from scheduler_machine import MODELS, RULES, Greenroom, no_logging

__all__ = ["no_logging"]

BACKENDS = {"llama.cpp": "", "mlx": ""}
GONE = ("unloaded", "failed", "refused", "not_here")
INSTALLING = ("installing", "waiting_to_retry")


class Asked(Greenroom):
    """The simulation of the scheduler's own tests, in which people ask `why` now and then."""

    @rule()
    def somebody_asks_why(self) -> None:
        self.ask_about_everything()

    def teardown(self) -> None:
        self.ask_about_everything()
        super().teardown()

    def ask_about_everything(self) -> None:
        simulation = self.simulation
        self.records = [record for record, _ in simulation.history]
        loads = simulation.system.state(SCHEDULER).loads
        for name in MODELS:
            if f"sha256:{name}" in simulation.system.state(LIBRARY).models:
                self.agrees_about_a_model(f"sha256:{name}", self.why(name), loads)
        for name in BACKENDS:
            self.agrees_about_a_backend(name)
            for engine_id, engine in simulation.system.state(runner_address(name)).engines.items():
                found = self.why(engine_id)
                assert (found.state == "gone") == (engine.state == "gone"), self.shown(found)
        for client in simulation.clients.values():
            if any(record.cause == client.request_id for record in self.records):
                self.why(client.request_id)
        for record in self.records[-3:]:
            assert self.why(record.id).cause == record.type
        for name in ("daemon", "queue", "memory", "requests", ""):
            self.why(name)

    def why(self, name: str) -> Explanation:
        """The answer, which is never silent."""
        found = explain(self.records, name, self.simulation.wall, backends=BACKENDS)
        assert found.answer.strip(), name
        assert found.state, name
        assert found.cause, name
        assert "None" not in found.answer, found.answer
        assert found.text(self.simulation.wall, width=80)
        return found

    def shown(self, found: Explanation) -> str:
        note("\n".join(f"{one.seq} {one.id} {one.type} {one.cause}" for one in self.records))
        return f"{found.name}: {found.state}: {found.answer}"

    def agrees_about_a_model(self, model_id: str, found: Explanation, loads: Any) -> None:
        system = self.simulation.system
        mine = {one for one, load in loads.items() if load.spec.model_id == model_id}
        assert (found.state in ("loaded", "loading")) == bool(mine), self.shown(found)
        if found.state == "loaded":
            states = [
                engine.state
                for name in BACKENDS
                for one, engine in system.state(runner_address(name)).engines.items()
                if one in mine
            ]
            assert "ready" in states, self.shown(found)
        newest = self.newest_end(model_id)
        if found.state in GONE and newest is not None:
            seq, event = newest
            assert seq in {one.seq for one in found.steps} or found.left_out, self.shown(found)
            if found.state == "unloaded" and isinstance(event, EvictionDecided):
                assert found.cause == event.reason, self.shown(found)
            if found.state != "refused":
                ended_by_itself = isinstance(event, LoadFailed)
                assert (found.state == "failed") == ended_by_itself, self.shown(found)

    def newest_end(self, model_id: str) -> tuple[int, Any] | None:
        """How an engine of the model ended last, or was to end; None if requests were refused since."""
        for record, stored in reversed(self.simulation.history):
            event = stored.event
            if getattr(event, "model_id", "") == model_id and record.type == "load_refused":
                return None
            if isinstance(event, EvictionDecided | LoadFailed) and event.model_id == model_id:
                return record.seq, event
        return None

    def agrees_about_a_backend(self, name: str) -> None:
        state = self.simulation.system.state(INSTALLER).of(name)
        found = self.why(name)
        assert (found.state == "installed") == (state.usable is not None), self.shown(found)
        if state.usable is None and not state.unread:
            assert (found.state in INSTALLING) == (state.job is not None), self.shown(found)


TestNormally = Asked.TestCase
TestNormally.settings = settings(RULES, max_examples=8, stateful_step_count=20)


class AskedForLonger(Asked):
    """The same, for much longer."""


TestForLonger = pytest.mark.timeout(3600)(pytest.mark.slow(AskedForLonger.TestCase))
TestForLonger.settings = settings(RULES, max_examples=600, stateful_step_count=60)


def test_a_name_that_no_event_has_is_refused_in_every_history() -> None:
    machine = Asked()
    machine.some_backends_are_installed({"llama.cpp"})
    records = [record for record, _ in machine.simulation.history]
    with pytest.raises(UnknownName):
        explain(records, "r-0a1b2c3d-999", machine.simulation.wall)
