"""A model's part of the history: its events, and the engines that ever served it."""

from __future__ import annotations

from collections.abc import Mapping

from greenroom.actors.scheduler.events import EvictionDecided, LoadAdmitted
from greenroom.actors.scheduler.state import BreakerState, LoadState, Quarantine, breaker_key, config_key
from greenroom.runner.diagnosis.history import Happening, History, of_type
from greenroom.runner.diagnosis.lives import Life, lives_in
from greenroom.runner.diagnosis.names import shown_model


class Story:
    """What a question about a model is answered from."""

    def __init__(self, model_id: str, history: History, now: float, verdicts: Mapping[str, str]) -> None:
        """`verdicts`: the backends that are known, with why this machine cannot run them."""
        self.id = model_id
        self.history = history
        self.now = now
        self.verdicts = verdicts
        self.name = shown_model(model_id, history)
        self.events = list(history.events_of(model_id))
        """Those of others that made room for it included."""
        self.own = [one for one in self.events if self._is_own(one)]
        self.lives = lives_in(self.own)

    def life(self, engine_id: str) -> Life | None:
        """One of its engines."""
        return next((one for one in self.lives if one.engine_id == engine_id), None)

    def last_failed(self) -> Life | None:
        """The last engine of it that did not come up or stopped working."""
        return next((one for one in reversed(self.lives) if one.failed is not None), None)

    def failures(self, life: Life) -> int:
        """How often it has failed in a row where this engine failed."""
        failed = life.failed
        if failed is None:
            return 0
        key = breaker_key(failed.model_id, failed.backend, failed.installation_id)
        return self.history.scheduler.breakers.get(key, BreakerState()).failures

    def breaker(self) -> BreakerState | None:
        """The one that was opened and not closed, the latest; not of what it is quarantined on."""
        breakers = self.history.scheduler.breakers
        away = self.history.scheduler.quarantines
        mine = [
            one
            for key, one in breakers.items()
            if key.startswith(f"{self.id}|") and one.until and key not in away
        ]
        return max(mine, key=lambda one: one.until, default=None)

    def quarantines(self) -> list[Quarantine]:
        """Installations it dies on, and what serves it instead; the oldest first."""
        return [one for one in self.history.scheduler.quarantines.values() if one.model_id == self.id]

    def stays(self, load: LoadState) -> str:
        """Why a load stays until it is told to go; empty when it does not."""
        config = self.history.scheduler.configs.get(config_key(load.spec.model_id, load.spec.mode))
        if load.kept:
            return "a request asked for that"
        pinned = config is not None and config.keep_alive is not None and config.keep_alive < 0
        return "it is configured so" if pinned else ""

    def daemons(self, since: float, until: float) -> list[Happening]:
        """Starts and stops of the daemon in between."""
        return [one for one in self.history.daemons if since <= one.at <= until + 1]

    def done_for(self, life: Life) -> list[Happening]:
        """What else was done for the sake of a load: room made, backends installed."""
        admitted = next((one for one in life.happenings if isinstance(one.event, LoadAdmitted)), None)
        if admitted is None:
            return []
        caused = self.history.caused_by(admitted.record.cause)
        # Of several requests that wait for the same room, any may be the one that is served first.
        before = self._end_of_the_one_before(life)
        room = [
            one
            for one, event in of_type(self.events, EvictionDecided)
            if event.model_id != self.id and before <= one.record.seq < admitted.record.seq
        ]
        engines = {one.about.engine for one in (*caused, *room) if isinstance(one.event, EvictionDecided)}
        jobs = {one.about.job for one in caused if one.about.job}
        ended = [
            one
            for events in self.history.models.values()
            for one in events
            if one.about.engine in engines and one.record.type in ("engine_exited", "engine_lost")
        ]
        installed = [
            one for events in self.history.backends.values() for one in events if one.about.job in jobs
        ]
        return [*caused, *room, *ended, *installed]

    def _end_of_the_one_before(self, life: Life) -> int:
        before = [one for one in self.lives if one.began < life.began]
        return before[-1].happenings[-1].record.seq if before else 0

    def _is_own(self, one: Happening) -> bool:
        """Whether an event is about this model, and not about one that made room for it."""
        if not one.about.engine:
            return True
        return self.history.subjects.engine(one.about.engine)[0] in ("", self.id)
