"""Why a model is not loaded although it is here; and whether it is."""

from __future__ import annotations

import msgspec

from greenroom.actors.library.events import ModelCommitted
from greenroom.actors.scheduler.events import (
    BackendChosen,
    BreakerOpened,
    EvictionDecided,
    LoadFailed,
    LoadRefused,
    ModelQuarantined,
)
from greenroom.actors.scheduler.state import NOT_THE_MODELS_FAULT, BreakerState, counts_against_model
from greenroom.actors.values import Model
from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.diagnosis import endings
from greenroom.runner.diagnosis.endings import Ending
from greenroom.runner.diagnosis.explanation import Remedy
from greenroom.runner.diagnosis.finding import Finding, tool_words
from greenroom.runner.diagnosis.history import Happening, latest
from greenroom.runner.diagnosis.lives import Life
from greenroom.runner.diagnosis.names import shown_model
from greenroom.runner.diagnosis.story import Story
from greenroom.runner.diagnosis.times import moment
from greenroom.runner.diagnosis.why_loaded import why_backend_of, why_loaded
from greenroom.runner.diagnosis.why_pull import why_not_here
from greenroom.runner.diagnosis.why_quarantined import of_quarantine, with_quarantines
from greenroom.runner.units import format_size

_DECISIVE = (LoadRefused, EvictionDecided, LoadFailed, BreakerOpened, ModelQuarantined)


def why_model(story: Story) -> Finding:
    """Find what decided.

    1. It is not here: because of its pull, its removal, or nobody.
    2. It is loaded, or being loaded.
    3. The last thing that was decided about it: a refusal, an eviction, a failure.
    4. Nothing was: nobody has asked for it.
    """
    model = story.history.library.models.get(story.id)
    if model is None:  # 1
        return why_not_here(story)
    loads = [one for one in story.history.scheduler.loads.values() if one.spec.model_id == story.id]
    if loads:  # 2
        return with_quarantines(story, why_loaded(story, loads))
    decisive = next((one for one in reversed(story.own) if isinstance(one.event, _DECISIVE)), None)
    finding = _never_asked(story, model) if decisive is None else _not_loaded(story, decisive)  # 4, 3
    finding.also = [*finding.also, *_on_its_way(story, model)]
    return with_quarantines(story, finding)


def _not_loaded(story: Story, decisive: Happening) -> Finding:
    breaker = story.breaker()
    quarantined = next(iter(reversed(story.quarantines())), None)
    match decisive.event:
        case ModelQuarantined() if quarantined is not None:
            state, ending = "unloaded", of_quarantine(story, quarantined)
        case EvictionDecided() as e:
            state, ending = "unloaded", endings.of_eviction(e, decisive.at, story.history, story.now)
        case LoadRefused(code=code) if code == "breaker_open" and breaker is not None:
            state, ending = "failed", _of_breaker(story, breaker)
        case LoadRefused() as e:
            state, ending = "refused", _of_refusal(story, e, decisive.at)
        case _:
            failed = story.life(decisive.about.engine) if decisive.about.engine else story.last_failed()
            state = "failed"
            ending = _of_breaker(story, breaker) if breaker is not None else _of_failure(story, failed)
    also = [*ending.also]
    chosen = latest(story.own, BackendChosen)
    if state != "refused" and chosen is not None:
        also += why_backend_of(chosen[1], was=True)
    return Finding(
        state=state,
        cause=ending.cause,
        answer=f"{story.name} is not loaded: {ending.sentence}",
        numbers=ending.numbers,
        also=also,
        steps=[*_episode(story, decisive), *ending.steps],
        words=ending.words,
        remedies=ending.remedies,
    )


def _of_failure(story: Story, failed: Life | None) -> Ending:
    """It did not come up or stopped working, once or a few times."""
    assert failed is not None
    ending = endings.of_failure(failed, story.name, story.now)
    assert failed.failed is not None
    failure = failed.failed.failure
    if failure.blame and not counts_against_model(failure):
        return ending
    if failure.code in NOT_THE_MODELS_FAULT:
        # It says nothing of the model: what happened to the daemon says more.
        return msgspec.structs.replace(ending, steps=tuple(story.daemons(failed.began, failed.failed_at)))
    count = story.failures(failed)
    others = [one for one in story.lives if one.failed is not None and one is not failed]
    earlier = endings.attempts(others[-(count - 1) :], story.now) if count > 1 else ()
    numbers = {**ending.numbers, "failures": float(max(count, 1))}
    return msgspec.structs.replace(ending, numbers=numbers, also=(*ending.also, *earlier))


def _of_breaker(story: Story, breaker: BreakerState) -> Ending:
    """It keeps dying and is left alone."""
    now, failed = story.now, story.last_failed()
    last = endings.of_failure(failed, story.name, now) if failed is not None else None
    is_open = breaker.until > now
    until = moment(breaker.until, now)
    left_alone = (
        f"it is left alone until {until}"
        if is_open
        else f"it was left alone until {until} and may be tried again"
    )
    tried = [one for one in story.lives if one.failed is not None][-breaker.failures :]
    return Ending(
        cause="breaker_open" if is_open or last is None else last.cause,
        at=last.at if last is not None else breaker.until,
        sentence=(
            f"it has failed {breaker.failures} times in a row, so {left_alone}. "
            f"The last failure: {breaker.reason}"
        ),
        numbers={
            **(last.numbers if last is not None else {}),
            "failures": float(breaker.failures),
            "until": breaker.until,
            "retry_in": round(max(0.0, breaker.until - now), 3),
        },
        also=endings.attempts(tried, now),
        steps=tuple(one for life in tried for one in life.happenings if isinstance(one.event, LoadFailed)),
        words=last.words if last is not None else (),
        remedies=last.remedies if last is not None else (),
    )


def _of_refusal(story: Story, refused: LoadRefused, at: float) -> Ending:
    """With how the backend it names has been since."""
    ending = endings.of_refusal(refused, at, story.name, story.now)
    if refused.code == "no_room":
        return msgspec.structs.replace(ending, also=(*ending.also, *_pinned(story)))
    backend = endings.named_backend(refused.message)
    if not backend:
        return ending
    state = story.history.backend(backend)
    about = [
        one for one in story.history.backends.get(backend, ()) if one.record.stream == f"install/{backend}"
    ]
    numbers, also, remedies, words = dict(ending.numbers), list(ending.also), ending.remedies, ending.words
    if state.usable is not None:
        also.append(f"{backend} {state.usable.version} is installed by now: the next request is served.")
        remedies = (Remedy(aim="To load it", command=endings.run(story.name)),)
    elif state.job is not None:
        also.append(f"{backend} is being installed.")
        remedies = (Remedy(aim="How far that is", command=f"greenroom why {backend}"), *remedies[-1:])
    elif state.failure is not None:
        numbers["attempts"] = float(_attempts(about))
        words = tool_words(state.failure.detail)
    return msgspec.structs.replace(
        ending, numbers=numbers, also=tuple(also), steps=tuple(about[-6:]), words=words, remedies=remedies
    )


def _pinned(story: Story) -> list[str]:
    """Who holds memory and stays until told to go."""
    return [
        f"{shown_model(load.spec.model_id, story.history)} holds {format_size(load.spec.memory)} "
        f"and stays: {why}."
        for load in story.history.scheduler.loads.values()
        if (why := story.stays(load))
    ]


def _never_asked(story: Story, model: Model) -> Finding:
    committed = latest(story.own, ModelCommitted)
    since = moment(committed[0].at, story.now) if committed is not None else "the beginning"
    facts = ", ".join(one for one in (format_size(model.size), model.format, model.quantization) if one)
    able = [name for name, one in BACKENDS.items() if model.format in one.formats]
    here = [name for name in able if story.history.backend(name).usable is not None]
    possible = [name for name in able if not story.verdicts.get(name)]
    remedies = [Remedy(aim="To load it", command=endings.run(story.name))]
    if here:
        also = f"{' or '.join(here)} can serve it and is installed."
    else:
        which = "which is not installed" if len(able) == 1 else "of which none is installed"
        also = f"It needs {' or '.join(able)}, {which}."
        if possible:
            remedies.insert(0, Remedy(aim=f"To install {possible[0]}", command=endings.install(possible[0])))
    return Finding(
        state="unloaded",
        cause="never_asked",
        answer=(f"{story.name} is not loaded: it is here since {since} ({facts}), but was never requested."),
        numbers={"size": float(model.size)},
        also=[also],
        steps=[one for one in story.own if one.record.stream == "library"][-4:],
        remedies=remedies,
    )


def _episode(story: Story, decisive: Happening) -> list[Happening]:
    """From the beginning of the engine in question, or from the refusal, to the present."""
    life = story.life(decisive.about.engine) if decisive.about.engine else story.last_failed()
    if isinstance(decisive.event, LoadRefused) and decisive.event.code != "breaker_open":
        life = None
    begin = life.happenings[0].record.seq if life is not None else decisive.record.seq
    daemons = story.daemons(life.began, life.adopted_at) if life is not None and life.adopted_at else []
    return [*daemons, *(one for one in story.own if one.record.seq >= begin)]


def _on_its_way(story: Story, model: Model) -> list[str]:
    """Installations that a request has begun and that would serve this model."""
    return [
        f"{name} is being installed because a request needs it, and it reads {model.format}."
        for name, one in story.history.installer.backends.items()
        if one.job is not None
        and one.job.wanted_by == "request"
        and name in BACKENDS
        and model.format in BACKENDS[name].formats
    ]


def _attempts(about: list[Happening]) -> int:
    """Of the last job to install a backend."""
    job = next((one.about.job for one in reversed(about) if one.about.job), "")
    return 1 + sum(one.about.job == job and one.record.type == "install_attempt_failed" for one in about)
