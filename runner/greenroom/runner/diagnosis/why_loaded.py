"""Why a model is loaded where it is, or is still being loaded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import median

from greenroom.actors.scheduler.events import BackendChosen, LoadAdmitted
from greenroom.actors.scheduler.state import LoadState
from greenroom.runner.diagnosis import endings
from greenroom.runner.diagnosis.explanation import Remedy
from greenroom.runner.diagnosis.finding import Finding
from greenroom.runner.diagnosis.lives import Life, usual_seconds
from greenroom.runner.diagnosis.story import Story
from greenroom.runner.diagnosis.times import clock, moment
from greenroom.runner.units import format_duration

_SLOW = 3.0
"""A load that takes so many times what earlier ones took is slow."""


def why_loaded(story: Story, loads: Sequence[LoadState]) -> Finding:
    """Of several loads, which are of several modes, the latest one is told of."""
    load = max(loads, key=lambda one: one.admitted_at)
    spec = load.spec
    life = story.life(spec.engine_id) or Life(engine_id=spec.engine_id, admitted_at=load.admitted_at)
    life.spec = life.spec or spec
    also = [
        f"It is loaded in {one.spec.mode} mode too, as engine {one.spec.engine_id}."
        for one in loads
        if one is not load
    ]
    also += _down(story, {one.spec.mode for one in loads})
    also += _replaced(story, life)
    finding = _ready(story, life) if life.state == "ready" else _loading(story, life)
    stays = story.stays(load)
    if stays:
        also.append(f"It stays until it is unloaded: {stays}.")
    finding.also = [*also, *why_backend_of(life.chosen), *finding.also]
    finding.steps = [*finding.steps, *life.happenings, *story.done_for(life)]
    finding.numbers["memory"] = float(spec.memory)
    if life.admitted is not None:
        finding.numbers["promised"] = float(life.admitted.promised)
        finding.numbers["budget"] = float(life.admitted.budget)
    return finding


def _down(story: Story, loaded: Collection[str]) -> list[str]:
    """The modes whose last engine failed: who asks may have lost his answer to one of these."""
    last = {life.spec.mode: life for life in story.lives if life.spec is not None}
    return [
        f"In {mode} mode it is not loaded: {endings.of_failure(life, story.name, story.now).sentence}"
        for mode, life in last.items()
        if mode not in loaded and life.failed is not None
    ]


def _replaced(story: Story, life: Life) -> list[str]:
    """The engine before this one, if that stopped working: its place is what this one took."""
    before = [
        one
        for one in story.lives
        if one.spec is not None
        and life.spec is not None
        and one.spec.mode == life.spec.mode
        and one.began < life.began
    ]
    if not before or before[-1].failed is None or not before[-1].failed.was_ready:
        return []
    sentence = endings.of_failure(before[-1], story.name, story.now).sentence
    return [f"It replaces engine {before[-1].engine_id}: {sentence}"]


def why_backend_of(chosen: BackendChosen | None, *, was: bool = False) -> list[str]:
    """Why this backend and no other, as a sentence."""
    if chosen is None or not chosen.reasons:
        return []
    return [f"It {'ran' if was else 'runs'} on {chosen.backend} because: {'; '.join(chosen.reasons)}."]


def who_wanted(life: Life, name: str) -> tuple[str, str]:
    """Who an engine was started for: in a word, and as the end of `because …`."""
    admitted = next((one for one in life.happenings if isinstance(one.event, LoadAdmitted)), None)
    cause = admitted.record.cause if admitted is not None else ""
    if cause.startswith("warm-"):
        return "warm", f"the settings want {name} to be warm"
    if cause.startswith("restore-"):
        return "restored", f"{name} was loaded when the daemon before ended"
    return "asked_for", f"request {cause} wanted {name}" if cause else f"{name} was requested"


def preferred_absent(chosen: BackendChosen | None) -> str:
    """The backend that would have been preferred, were it installed; it is named in the reasons only."""
    for reason in chosen.reasons if chosen is not None else ():
        name, words, _ = reason.partition(" would be preferred but is not installed")
        if words:
            return name
    return ""


def _ready(story: Story, life: Life) -> Finding:
    assert life.spec is not None
    now, backend = story.now, life.spec.backend
    since = moment(life.ready_at or life.began, now)
    cause, because = who_wanted(life, story.name)
    mode = "" if life.spec.mode == "completion" else f" in {life.spec.mode} mode"
    finding = Finding(
        state="loaded",
        cause=cause,
        answer=(
            f"{story.name} is loaded: engine {life.engine_id} serves it on {backend}{mode} since "
            f"{since}, because {because}."
        ),
        numbers={},
        remedies=[Remedy(aim="To unload it", command=f"greenroom unload {story.name}")],
    )
    if life.ready is not None and life.ready.seconds:
        finding.numbers["load_seconds"] = life.ready.seconds
    if life.adopted_at:
        finding.cause = "adopted"
        finding.answer += (
            " It has outlived the daemon that started it and was taken over by the next one at "
            f"{clock(life.adopted_at, now)}."
        )
        finding.steps = story.daemons(life.began, life.adopted_at)
    if story.history.daemon.running_pid == 0:
        finding.also = ["Greenroom itself does not run: it stopped in order and left its engines running."]
    better = preferred_absent(life.chosen)
    if better:
        remedy = Remedy(aim=f"To have it on {better} from its next load on", command=endings.install(better))
        finding.remedies = [remedy, *finding.remedies]
    return finding


def _loading(story: Story, life: Life) -> Finding:
    assert life.spec is not None
    now = story.now
    elapsed = max(0.0, now - life.began)
    doing = {
        "waiting": "its engine is about to be started",
        "starting": "its engine is being started",
        "loading": f"its process runs since {clock(life.spawned_at, now)} and reads the model",
        "stopping": f"it is being given up, {life.stop.reason if life.stop is not None else ''}",
    }.get(life.state, "its engine has just ended")
    finding = Finding(
        state="loading",
        cause="loading",
        answer=(
            f"{story.name} is being loaded on {life.spec.backend} since {moment(life.began, now)}: {doing}."
        ),
        numbers={"elapsed": round(elapsed, 3)},
        remedies=[
            Remedy(aim="What its engine says", command=f"greenroom logs -f {life.engine_id}"),
            Remedy(aim="How far it is", command="greenroom status"),
        ],
    )
    usual = usual_seconds(story.lives, life.spec)
    if usual:
        typical = finding.numbers["usual_seconds"] = median(usual)
        some = f"{len(usual)} earlier loads on this installation" if len(usual) > 1 else "The load before it"
        finding.answer += f" {some} took {format_duration(typical)}{' (median)' if len(usual) > 2 else ''}."
        if elapsed > _SLOW * typical:
            finding.cause = "slow"
            finding.answer += f" This one takes {elapsed / typical:.0f} times as long so far."
    else:
        finding.answer += " It is the first on this installation, so nothing is known of how long it takes."
    if story.history.daemon.running_pid == 0:
        finding.cause = "not_running"
        finding.also = ["Greenroom itself does not run: it stopped in order while the engine was loading."]
    return finding
