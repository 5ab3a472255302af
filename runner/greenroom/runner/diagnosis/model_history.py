"""A model's part of the history: its events, and the engines that have served it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from greenroom.actors.kernel.core import Event
from greenroom.actors.scheduler.events import EvictionDecided, KeepAliveWished, LoadAdmitted
from greenroom.actors.scheduler.state import BreakerState, LoadState, Quarantine, breaker_key, config_key
from greenroom.runner.diagnosis.engine_history import EngineHistory, engines_in
from greenroom.runner.diagnosis.explanation import Explanation
from greenroom.runner.diagnosis.history import Happening, History, of_type
from greenroom.runner.diagnosis.names import shown_model
from greenroom.runner.diagnosis.stop_reasons import of_failure


class ModelHistory:
    """What a question about a model is answered from."""

    def __init__(
        self, model_id: str, history: History, now: float, verdicts: Mapping[str, str], asked: str = ""
    ) -> None:
        """`verdicts`: the backends that are known, with why this machine cannot run them. `asked`: the name
        in the question, by which the answer calls the model if it is one of its names.
        """
        self.id = model_id
        self.history = history
        self.now = now
        self.verdicts = verdicts
        self.name = shown_model(model_id, history, asked)

    @cached_property
    def events(self) -> Sequence[Happening]:
        """Including those of other models that made room for it."""
        return self.history.events_of(self.id)

    @cached_property
    def own(self) -> list[Happening]:
        return [one for one in self.events if self._is_own(one)]

    @cached_property
    def engines(self) -> list[EngineHistory]:
        return engines_in(self.own)

    def own_of_type(self, *kinds: type[Event]) -> list[Happening]:
        """Those of its own events that have one of these types."""
        return [one for one in self.history.models.of_type(self.id, *kinds) if self._is_own(one)]

    def engine(self, engine_id: str) -> EngineHistory | None:
        return next((one for one in self.engines if one.engine_id == engine_id), None)

    def last_failed(self) -> EngineHistory | None:
        """Its last engine that did not start or stopped working."""
        return next((one for one in reversed(self.engines) if one.failed is not None), None)

    def failure(self, engine: EngineHistory, its_engine: str = "its engine") -> Explanation:
        """Why one of its engines did not start, or stopped working."""
        return of_failure(engine, self.name, self.now, daemons=self.history.daemons, its_engine=its_engine)

    def failures(self, engine: EngineHistory) -> int:
        """How often it has failed in a row where this engine failed."""
        failed = engine.failed
        if failed is None:
            return 0
        key = breaker_key(failed.model_id, failed.backend, failed.installation_id)
        return self.history.scheduler.breakers.get(key, BreakerState()).failures

    def breaker(self) -> BreakerState | None:
        """The latest that is open; none of installations it is quarantined on."""
        breakers = self.history.scheduler.breakers
        away = self.history.scheduler.quarantines
        mine = [
            one
            for key, one in breakers.items()
            if key.startswith(f"{self.id}|") and one.until and key not in away
        ]
        return max(mine, key=lambda one: one.until, default=None)

    def quarantines(self) -> list[Quarantine]:
        """Installations it fails on, and what serves it instead; the oldest first."""
        return [one for one in self.history.scheduler.quarantines.values() if one.model_id == self.id]

    def pinned_by(self, load: LoadState) -> str:
        """Why a load is pinned; empty when it is not."""
        config = self.history.scheduler.configs.get(config_key(load.spec.model_id, load.spec.mode))
        if load.kept:
            wishes = [
                one
                for one, wish in of_type(self.history.events_of(load.spec.model_id), KeepAliveWished)
                if wish.engine_id == load.spec.engine_id and wish.keep_alive < 0
            ]
            who = self.history.who(wishes[-1].record.cause) if wishes else ""
            return f"{who or 'a request'} asked for it"
        pinned = config is not None and config.keep_alive is not None and config.keep_alive < 0
        return "its keep-alive is forever" if pinned else ""

    def daemons(self, since: float, until: float) -> list[Happening]:
        """Starts and stops of the daemon in between."""
        return [one for one in self.history.daemons if since <= one.at <= until + 1]

    def done_for(self, engine: EngineHistory) -> list[Happening]:
        """What else was done for a load: models evicted, backends installed."""
        admitted = next((one for one in engine.happenings if isinstance(one.event, LoadAdmitted)), None)
        if admitted is None:
            return []
        caused = self.history.caused_by(admitted.record.cause)
        # When several requests wait for the same memory, any of them may be served first.
        before = self._end_of_the_one_before(engine)
        room = [
            one
            for one, event in of_type(self.events, EvictionDecided)
            if event.model_id != self.id and before <= one.record.seq < admitted.record.seq
        ]
        evicted = {one.about.engine for one in (*caused, *room) if isinstance(one.event, EvictionDecided)}
        jobs = {one.about.job for one in caused if one.about.job}
        ended = [
            one
            for engine_id in evicted
            for one in self.history.events_of_engine(engine_id)
            if one.record.type in ("engine_exited", "engine_lost")
        ]
        backends = self.history.backends.values() if jobs else ()
        installed = [one for events in backends for one in events if one.about.job in jobs]
        return [*caused, *room, *ended, *installed]

    def _end_of_the_one_before(self, engine: EngineHistory) -> int:
        before = [one for one in self.engines if one.began < engine.began]
        return before[-1].happenings[-1].record.seq if before else 0

    def _is_own(self, one: Happening) -> bool:
        """Whether an event is about this model, and not about one evicted for it."""
        if not one.about.engine:
            return True
        return self.history.subjects.engine(one.about.engine)[0] in ("", self.id)
