"""`why poet unloaded`: the last time that this happened to a model, whatever has happened since."""

from __future__ import annotations

from collections.abc import Mapping

from greenroom.actors.kernel.core import Event
from greenroom.actors.library.events import ModelRemoved
from greenroom.actors.scheduler.events import EvictionDecided, LoadFailed, LoadRefused
from greenroom.runner.diagnosis import stop_reasons
from greenroom.runner.diagnosis.explanation import Explanation, full_stop
from greenroom.runner.diagnosis.history import Happening
from greenroom.runner.diagnosis.model_history import ModelHistory
from greenroom.runner.diagnosis.times import moment

_UNLOADED, _FAILED = (EvictionDecided, LoadFailed), (LoadFailed,)
_MEANT: Mapping[str, tuple[type[Event], ...]] = {
    **dict.fromkeys(("unloaded", "evicted", "stopped", "gone", "ended"), _UNLOADED),
    **dict.fromkeys(("crashed", "failed", "failing", "died", "dead", "killed", "stalled"), _FAILED),
    "refused": (LoadRefused,),
    **dict.fromkeys(("removed", "deleted"), (ModelRemoved,)),
}

_OVER = frozenset(("unloaded", "failed", "refused", "not_here"))
"""States whose answer is about what happened last."""


def add_last_time(found: Explanation, question: str, model: ModelHistory) -> None:
    """If a word of the question asks for it, and the answer is about something else."""
    word = next((one for one in question.lower().split() if one in _MEANT), "")
    if not word:
        return
    kinds = _MEANT[word]
    happening = next((one for one in reversed(model.own) if isinstance(one.event, kinds)), None)
    if happening is None:
        found.also = (f"According to the journal, it has never been {word}.", *found.also)
        return
    is_told = found.state in _OVER and any(one.seq == happening.record.seq for one in found.steps)
    if is_told:
        return
    found.also = (full_stop(f"The last time: {_told(happening, model)}"), *found.also)
    found.steps += (happening.step,)


def _told(happening: Happening, model: ModelHistory) -> str:
    match happening.event:
        case EvictionDecided() as e:
            return stop_reasons.of_eviction(
                e, happening.at, model.history, model.now, cause=happening.record.cause
            ).answer
        case LoadRefused() as e:
            return stop_reasons.of_refusal(e, happening.at, model.name, model.now).answer
        case LoadFailed():
            engine = model.engine(happening.about.engine)
            assert engine is not None, "its failure is among its events"
            return model.failure(engine).answer
        case _:
            return f"it was removed at {moment(happening.at, model.now)}"
