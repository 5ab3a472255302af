"""Why a model is loaded where it is, still loading, quarantined, or not loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from greenroom.actors.conversation_log import ConversationsRestored, ConversationsSaved
from greenroom.actors.daemon_log import DaemonStarted
from greenroom.actors.library.events import ModelCommitted
from greenroom.actors.scheduler.backend_choice import in_a_row
from greenroom.actors.scheduler.events import (
    BackendChosen,
    BreakerOpened,
    EvictionDecided,
    LoadFailed,
    LoadRefused,
    ModelQuarantined,
)
from greenroom.actors.scheduler.state import (
    NOT_THE_MODELS_FAULT,
    OVER_MEMORY,
    BreakerState,
    LoadState,
    Quarantine,
    counts_against_model,
)
from greenroom.actors.values import Model
from greenroom.runner.diagnosis import stop_reasons
from greenroom.runner.diagnosis.configured import changes, last_change
from greenroom.runner.diagnosis.engine_history import EngineHistory, usual_seconds
from greenroom.runner.diagnosis.explanation import Explanation, Remedy, Words, counted, full_stop, listed
from greenroom.runner.diagnosis.history import Happening, History, latest, of_type
from greenroom.runner.diagnosis.lost_devices import lost
from greenroom.runner.diagnosis.model_history import ModelHistory
from greenroom.runner.diagnosis.old_journals import preferred_backend
from greenroom.runner.diagnosis.times import clock, moment
from greenroom.runner.diagnosis.why_pull import adopted_from, why_not_here
from greenroom.runner.diagnosis.why_refused import told_aside, why_refused
from greenroom.runner.units import format_duration, format_size

_DECISIVE = (LoadRefused, EvictionDecided, LoadFailed, BreakerOpened, ModelQuarantined)
_SLOW = 3.0
"""A load is slow when it takes so many times what earlier ones took."""


def why_model(model: ModelHistory) -> Explanation:
    """Find what decided.

    1. It is not in the store: because of its pull or its removal, or it was never pulled.
    2. It is loaded, or being loaded.
    3. The last decision about it: a refusal, an eviction, a failure.
    4. There was none: it was never requested.
    """
    stored = model.history.library.models.get(model.id)
    if stored is None:  # 1
        return why_not_here(model)
    loads = [one for one in model.history.scheduler.loads.values() if one.spec.model_id == model.id]
    if loads:  # 2
        found = _loaded(model, loads)
    else:
        decided = [one for one in model.own if isinstance(one.event, _DECISIVE)]
        aside = [one for one in decided if isinstance(one.event, LoadRefused) and one.event.binding]
        decisive = next((one for one in reversed(decided) if one not in aside), aside[-1] if aside else None)
        found = _never_requested(model, stored) if decisive is None else _not_loaded(model, decisive)  # 4, 3
        found.also += tuple(_being_installed(model, stored))
        if aside and decisive is not aside[-1]:
            found.also += (told_aside(aside[-1], model.now),)
    for quarantine in model.quarantines():
        _tell_quarantine(found, model, quarantine)
    found.also += tuple(_conversations(model))
    return found


def _conversations(model: ModelHistory) -> Iterator[str]:
    """What was saved of its conversations, and what that was good for."""
    saved = [one for _, one in of_type(model.own, ConversationsSaved)]
    restored = [one for _, one in of_type(model.own, ConversationsRestored)]
    if not saved and not restored:
        return
    count, tokens = sum(one.count for one in saved), sum(one.tokens for one in restored)
    seconds = format_duration(round(sum(one.seconds for one in restored)))
    good = f"{tokens:,} tokens were restored, which saved {seconds} of reading" if tokens else "none restored"
    yield f"What it had read of conversations was saved {counted(count, 'time')} lately; {good}."


# 2


def _loaded(model: ModelHistory, loads: Sequence[LoadState]) -> Explanation:
    """The latest of several loads, which are of several modes."""
    load = max(loads, key=lambda one: one.admitted_at)
    spec = load.spec
    engine = model.engine(spec.engine_id)
    engine = engine or EngineHistory(engine_id=spec.engine_id, admitted_at=load.admitted_at)
    engine.spec = engine.spec or spec
    found = _ready(model, engine) if engine.state == "ready" else _loading(model, engine)
    also = [
        f"It is also loaded in {one.spec.mode} mode, as engine {one.spec.engine_id}."
        for one in loads
        if one is not load
    ]
    also += _failed_modes(model, {one.spec.mode for one in loads})
    also += _placed_again(model, engine)
    if pinned_by := model.pinned_by(load):
        also.append(f"It is pinned: {pinned_by}.")
    found.also = (*also, *_why_backend(engine.chosen), *found.also)
    found.steps += tuple(one.step for one in (*engine.happenings, *model.done_for(engine)))
    found.numbers["memory"] = float(spec.memory)
    if engine.admitted is not None:
        found.numbers["promised"] = float(engine.admitted.reserved)
        found.numbers["budget"] = float(engine.admitted.budget)
    return found


def _ready(model: ModelHistory, engine: EngineHistory) -> Explanation:
    assert engine.spec is not None
    now, backend = model.now, engine.spec.backend
    cause, because = engine.wanted_by(model.name, model.history)
    mode = "" if engine.spec.mode == "completion" else f" in {engine.spec.mode} mode"
    found = Explanation(
        state="loaded",
        cause=cause,
        answer=(
            f"{model.name} is loaded: engine {engine.engine_id} has served it on {backend}{mode} since "
            f"{moment(engine.ready_at or engine.began, now)}, because {because}."
        ),
        remedies=(Remedy(aim="To unload it", command=f"greenroom unload {model.name}"),),
    )
    if loss := _lost_device(model, engine):
        found.answer = f"{model.name} runs elsewhere because {loss} {found.answer}"
        found.cause = "device_lost"
    elif missed := _missed_layers(model, engine):
        found.answer = f"{missed} {found.answer}"
        found.cause = "layers_missed"
    else:
        if engine.admitted is not None and engine.admitted.placed:
            found.answer += f" {engine.admitted.placed}"
        found.answer += _replaced(model, engine)
        before = _before(model, engine)
        if before is not None and before.failed is not None and before.failed.failure.code == OVER_MEMORY:
            found.cause = OVER_MEMORY
    if engine.ready is not None and engine.ready.seconds:
        found.numbers["load_seconds"] = engine.ready.seconds
    if engine.adopted_at:
        found.cause = "adopted"
        found.answer += (
            " It outlived the daemon that started it; the next daemon re-adopted it at "
            f"{clock(engine.adopted_at, now)}."
        )
        found.steps = tuple(one.step for one in model.daemons(engine.began, engine.adopted_at))
    if model.history.daemon.running_pid == 0:
        found.also = ("Greenroom is not running: it shut down cleanly and left its engines running.",)
    if better := preferred_backend(engine.chosen):
        aim = f"To load it on {better} next time"
        found.remedies = (Remedy(aim=aim, command=stop_reasons.install(better)), *found.remedies)
    return found


def _lost_device(model: ModelHistory, engine: EngineHistory) -> str:
    """The sentence when the engine before this one lost its device, and this one does not use that."""
    assert engine.spec is not None
    before = _before(model, engine)
    loss = lost(before, model.history.daemons, model.now) if before is not None else None
    if loss is None or loss.device in {engine.spec.device, *(one.device for one in engine.spec.placement)}:
        return ""
    return loss.sentence


def _missed_layers(model: ModelHistory, engine: EngineHistory) -> str:
    """The sentence when less of it lies on devices than was planned; empty otherwise."""
    loaded, spec = engine.loaded, engine.spec
    if loaded is None or spec is None or loaded.loaded.layers >= loaded.planned:
        return ""
    reason = f": {loaded.loaded.reason}" if loaded.loaded.reason else ""
    count = loaded.loaded.layers
    where = f"has {count} of {spec.layers} layers on devices" if count else "is computed by the processor"
    return f"{model.name} {where}, and {loaded.planned} layers were planned for devices{reason}."


def _loading(model: ModelHistory, engine: EngineHistory) -> Explanation:
    assert engine.spec is not None
    now = model.now
    elapsed = max(0.0, now - engine.began)
    doing = {
        "waiting": "its engine is about to start",
        "starting": "its engine is starting",
        "loading": f"its process started at {clock(engine.spawned_at, now)} and is reading the model",
        "stopping": f"its engine is being stopped: {engine.stop.reason if engine.stop is not None else ''}",
    }.get(engine.state, "its engine has just stopped")
    found = Explanation(
        state="loading",
        cause="loading",
        answer=(
            f"{model.name} has been loading on {engine.spec.backend} since {moment(engine.began, now)}, "
            f"because {engine.wanted_by(model.name, model.history)[1]}: {doing}."
        ),
        numbers={"elapsed": round(elapsed, 3)},
        remedies=(
            Remedy(aim="To follow its log", command=f"greenroom logs -f {engine.engine_id}"),
            Remedy(aim="To see its progress", command="greenroom status"),
        ),
    )
    usual = usual_seconds(model.engines, engine.spec)
    if usual:
        from statistics import median

        typical = found.numbers["usual_seconds"] = median(usual)
        some = f"{len(usual)} earlier loads on this installation" if len(usual) > 1 else "The previous load"
        found.answer += f" {some} took {format_duration(typical)}{' (median)' if len(usual) > 2 else ''}."
        if elapsed > _SLOW * typical:
            found.cause = "slow"
            found.answer += f" This one has taken {elapsed / typical:.0f} times as long so far."
    else:
        found.answer += " It is the first load on this installation, so there is nothing to compare it with."
    if model.history.daemon.running_pid == 0:
        found.cause = "not_running"
        found.also = ("Greenroom is not running: it shut down cleanly while the engine was loading.",)
    return found


def _failed_modes(model: ModelHistory, loaded: Collection[str]) -> Iterator[str]:
    """The modes whose last engine failed: a client may have lost an answer to one of these."""
    last = {one.spec.mode: one for one in model.engines if one.spec is not None}
    for mode, engine in last.items():
        if mode not in loaded and engine.failed is not None:
            answer = model.failure(engine).answer
            yield f"In {mode} mode it is not loaded: {answer}"


def _before(model: ModelHistory, engine: EngineHistory) -> EngineHistory | None:
    """The engine before this one in the same mode."""
    before = [
        one
        for one in model.engines
        if one.spec is not None
        and engine.spec is not None
        and one.spec.mode == engine.spec.mode
        and one.began < engine.began
    ]
    return before[-1] if before else None


def _replaced(model: ModelHistory, engine: EngineHistory) -> str:
    """A sentence, after a space: the one before it stopped working, or was configured differently."""
    before = _before(model, engine)
    if before is not None and before.failed is not None and before.failed.was_ready:
        failure = model.failure(before, its_engine="which")
        if failure.cause == "device_lost":
            return f" It replaced engine {before.engine_id}: {model.failure(before).answer}"
        return f" It replaced engine {before.engine_id}, {failure.answer}"
    assert engine.spec is not None
    done = [
        one for one in changes(model.history, model.id, engine.spec.mode) if one.happening.at <= engine.began
    ]
    if before is not None and before.evicted is not None and before.evicted.reason == "reconfigured":
        mine = [one for one in done if one.happening.record.cause == before.evicted_by]
        if mine and engine.caused_by != before.evicted_by:
            return f" It was loaded again because {mine[-1].who(model.history)} configured {mine[-1].told()}."
    if before is not None and before.evicted is not None and before.evicted.reason == "larger_context":
        old = before.spec.context_size if before.spec is not None else 0
        who = model.history.who(before.evicted_by) or "a request"
        if before.evicted_by == engine.caused_by:
            who = "that request"
        size = f"{engine.spec.context_size} tokens{f' instead of {old}' if old else ''}"
        return f" It was loaded again because {who} asked for a context of {size}."
    context = [one for one in done if one.sets("context_size")]
    if not context or context[-1].happening.record.cause == engine.caused_by:
        return ""
    what, at = context[-1].told(), clock(context[-1].happening.at, model.now)
    return f" It runs with {what}, as {context[-1].who(model.history)} configured at {at}."


def _placed_again(model: ModelHistory, engine: EngineHistory) -> Iterator[str]:
    """What is new about where its layers lie, compared with the engine before this one."""
    before = _before(model, engine)
    old, new = before.spec if before is not None else None, engine.spec
    if old is None or new is None or old.layers != new.layers or old.on_devices == new.on_devices:
        return
    yield (
        f"{new.on_devices} of its {new.layers} layers are on devices since it was loaded again; before, "
        f"{old.on_devices} were."
    )


def _why_backend(chosen: BackendChosen | None) -> Iterator[str]:
    if chosen is not None and chosen.reasons:
        yield f"Why {chosen.backend}: {'; '.join(chosen.reasons)}."


# 3


def _not_loaded(model: ModelHistory, decisive: Happening) -> Explanation:
    breaker = model.breaker()
    quarantined = next(iter(reversed(model.quarantines())), None)
    match decisive.event:
        case ModelQuarantined() if quarantined is not None:
            found = _of_quarantine(model, quarantined)
            found.state = "unloaded"
        case EvictionDecided() as e:
            cause = decisive.record.cause
            found = stop_reasons.of_eviction(e, decisive.at, model.history, model.now, cause=cause)
            found.state = "unloaded"
        case LoadRefused(code=code) if code == "breaker_open" and breaker is not None:
            found = _of_breaker(model, breaker)
            found.state = "failed"
        case LoadRefused() as e:
            found = why_refused(model, e, decisive)
            found.state = "refused"
        case _:
            failed = model.engine(decisive.about.engine) if decisive.about.engine else model.last_failed()
            failure = failed.failed if failed is not None else None
            # What is no fault of the model's is newer than what opened its breaker.
            counts = failure is None or counts_against_model(failure.failure)
            found = _of_breaker(model, breaker) if breaker and counts else _of_failure(model, failed)
            found.state = "failed"
    chosen = latest(model.own, BackendChosen)
    if found.state != "refused" and chosen is not None:
        found.also += tuple(_why_backend(chosen[1]))
    found.answer = f"{model.name} is not loaded: {found.answer}"
    found.steps = (*(one.step for one in _episode(model, decisive)), *found.steps)
    return found


def _of_failure(model: ModelHistory, failed: EngineHistory | None) -> Explanation:
    """It did not start or stopped working, once or a few times."""
    assert failed is not None
    found = model.failure(failed)
    assert failed.failed is not None
    failure = failed.failed.failure
    if failure.blame and not counts_against_model(failure):
        return found
    if failure.code in NOT_THE_MODELS_FAULT:
        # It says nothing about the model: what happened to the daemon says more.
        found.steps = tuple(one.step for one in model.daemons(failed.began, failed.failed_at))
        return found
    flags, target = _flags_of(model, failed)
    if flags:
        without = f"greenroom configure {target}--reset flags"
        found.answer += f" {flags}"
        found.remedies = (Remedy(aim="To load it without these flags", command=without), *found.remedies)
    count = model.failures(failed)
    if count > 1:
        others = [one for one in model.engines if one.failed is not None and one is not failed]
        found.also += stop_reasons.attempts(others[-(count - 1) :], model.now)
    found.numbers["failures"] = float(max(count, 1))
    return found


def _flags_of(model: ModelHistory, failed: EngineHistory) -> tuple[str, str]:
    """A sentence about the flags that an engine was started with and did not survive, and the model's name as
    commands take it; empty if it was ready, or none were configured.
    """
    assert failed.failed is not None
    if failed.failed.was_ready or failed.spec is None or not failed.spec.flags:
        return "", ""
    change = last_change(model.history, model.id, failed.spec.mode, "flags")
    if change is None or not change.event.flags:
        return "", ""
    who, at = change.who(model.history), clock(change.happening.at, model.now)
    mode = "" if failed.spec.mode == "completion" else f"--mode {failed.spec.mode} "
    flags = " ".join(change.event.flags)
    return f"It was loaded with the flags {flags}, which {who} configured at {at}.", f"{model.name} {mode}"


def _of_breaker(model: ModelHistory, breaker: BreakerState) -> Explanation:
    """It keeps failing, so loads are suspended for a while."""
    now, failed = model.now, model.last_failed()
    found = Explanation(cause="breaker_open")
    if failed is not None:
        found = model.failure(failed)
    if breaker.until > now:
        found.cause = "breaker_open"
    until = moment(breaker.until, now)
    then = f"will not be retried before {until}" if breaker.until > now else "will be retried on request"
    tried = [one for one in model.engines if one.failed is not None][-breaker.failures :]
    found.answer = (
        f"it has failed {in_a_row(breaker.failures)} and {then}. The last failure: {breaker.reason}"
    )
    found.numbers |= {
        "failures": float(breaker.failures),
        "until": breaker.until,
        "retry_in": round(max(0.0, breaker.until - now), 3),
    }
    found.also = stop_reasons.attempts(tried, now)
    found.steps = tuple(
        one.step for engine in tried for one in engine.happenings if isinstance(one.event, LoadFailed)
    )
    return found


def _episode(model: ModelHistory, decisive: Happening) -> list[Happening]:
    """From the start of the engine in question, or from the refusal, to the present."""
    engine = model.engine(decisive.about.engine) if decisive.about.engine else model.last_failed()
    if isinstance(decisive.event, LoadRefused) and decisive.event.code != "breaker_open":
        engine = None
    begin = engine.happenings[0].record.seq if engine is not None else decisive.record.seq
    adopted = engine is not None and engine.adopted_at
    daemons = model.daemons(engine.began, engine.adopted_at) if engine is not None and adopted else []
    return [*daemons, *(one for one in model.own if one.record.seq >= begin)]


# 4


def _never_requested(model: ModelHistory, stored: Model) -> Explanation:
    # Rarely needed, and not quick to import.
    from greenroom.runner.backends.discovery import BACKENDS

    committed = latest(model.own, ModelCommitted)
    since = f" since {moment(committed[0].at, model.now)}" if committed is not None else ""
    never = "but was never requested"
    if committed is not None and not committed[1].job and _is_first_look(committed[0], model.history):
        never = "where this journal begins, and has not been requested since"
    facts = ", ".join(one for one in (format_size(stored.size), stored.format, stored.quantization) if one)
    origin = adopted_from(model, committed[1].job) if committed is not None else ""
    adopted = f", adopted from {origin}," if origin else ","
    able = [name for name, one in BACKENDS.items() if stored.format in one.formats]
    here = [name for name in able if model.history.backend(name).usable is not None]
    possible = [name for name in able if not model.verdicts.get(name)]
    found = Explanation(
        state="unloaded",
        cause="never_asked",
        answer=(f"{model.name} is not loaded: it has been in the store{since} ({facts}){adopted} {never}."),
        numbers={"size": float(stored.size)},
        steps=tuple([one.step for one in model.own if one.record.stream == "library"][-4:]),
        remedies=(Remedy(aim="To load it", command=stop_reasons.run(model.name)),),
    )
    if here:
        is_or_are = "is" if len(here) == 1 else "are"
        found.also = (f"{listed(here)} can serve it and {is_or_are} installed.",)
    else:
        which = "which is not installed" if len(able) == 1 else "none of which is installed"
        found.also = (f"It needs {listed(able, 'or')}, {which}.",)
        if possible:
            first = Remedy(aim=f"To install {possible[0]}", command=stop_reasons.install(possible[0]))
            found.remedies = (first, *found.remedies)
    return found


def _is_first_look(committed: Happening, history: History) -> bool:
    """Whether the first daemon of this journal found a model in the store: what was before is unknown."""
    starts = [one.record for one in history.daemons if isinstance(one.event, DaemonStarted)]
    if not starts or (len(starts) > 1 and starts[1].seq < committed.record.seq):
        return False
    return committed.record.cause in ("", starts[0].id)


def _being_installed(model: ModelHistory, stored: Model) -> Iterator[str]:
    """Backends that are being installed for a request and could serve this model."""
    backends = model.history.installer.backends
    wanted = [name for name, one in backends.items() if one.job and one.job.wanted_by == "request"]
    if not wanted:
        return
    from greenroom.runner.backends.discovery import BACKENDS

    for name in wanted:
        if name in BACKENDS and stored.format in BACKENDS[name].formats:
            yield f"{name}, which reads {stored.format}, is being installed for a request."


# quarantines


def _of_quarantine(model: ModelHistory, one: Quarantine) -> Explanation:
    """It failed on the newer version, and has not been loaded on the older one since."""
    failed = [step for engine in _failed_there(model, one) for step in engine.happenings]
    return Explanation(
        cause="quarantined",
        answer=(
            f"it failed {in_a_row(one.failures)} on {one.backend} {one.version} and is quarantined there. "
            f"Its next load uses {one.backend} {one.back_to_version}."
        ),
        steps=tuple(step.step for step in failed if isinstance(step.event, LoadFailed)),
        remedies=(Remedy(aim="To load it", command=stop_reasons.run(model.name)),),
    )


def _tell_quarantine(found: Explanation, model: ModelHistory, one: Quarantine) -> None:
    """Which version the model fails on, with the numbers, the last output and the way back."""
    engines = _failed_there(model, one)
    last = engines[-1].words if engines else ()
    version = f"{one.backend} {one.version}"
    told = full_stop(
        f"It has been quarantined on {version} since {moment(one.since, model.now)}: it failed "
        f"{in_a_row(one.failures)} there but has run on {one.backend} {one.back_to_version}, which serves it "
        f"instead. The last failure: {one.reason}"
    )
    found.also = (*found.also, told)
    found.numbers["quarantined_after"] = float(one.failures)
    decided = [
        happening.step
        for happening in model.own
        if isinstance(happening.event, ModelQuarantined)
        and happening.event.installation_id == one.installation_id
    ]
    found.steps += tuple(decided[-1:])
    if last and not any(words.lines == last for words in found.words):
        found.words += (Words(of=f"Last lines on {version}", lines=last),)
    found.remedies += (
        Remedy(
            aim=f"To try it on {version} again",
            command=f"greenroom upgrade-runner --backend {one.backend} --version {one.version}",
        ),
        Remedy(
            aim=f"To use {one.back_to_version} for every model",
            command=f"greenroom rollback-runner --backend {one.backend} --version {one.back_to_version}",
        ),
    )


def _failed_there(model: ModelHistory, one: Quarantine) -> list[EngineHistory]:
    """The engines that led to it, the latest last."""
    where = (one.backend, one.installation_id)
    there = [
        engine
        for engine in model.engines
        if engine.failed is not None and (engine.failed.backend, engine.failed.installation_id) == where
    ]
    return there[-one.failures :]
