"""Why an older version of a backend serves a model: the newer one broke it."""

from __future__ import annotations

from greenroom.actors.scheduler.events import LoadFailed, ModelQuarantined
from greenroom.actors.scheduler.quarantine import in_a_row
from greenroom.actors.scheduler.state import Quarantine
from greenroom.runner.diagnosis import endings
from greenroom.runner.diagnosis.endings import Ending
from greenroom.runner.diagnosis.explanation import Remedy, Words
from greenroom.runner.diagnosis.finding import Finding, ended
from greenroom.runner.diagnosis.history import Happening
from greenroom.runner.diagnosis.lives import Life
from greenroom.runner.diagnosis.story import Story
from greenroom.runner.diagnosis.times import moment


def of_quarantine(story: Story, one: Quarantine) -> Ending:
    """It died on the newer version, and nothing has been loaded on the older one since."""
    lives = _failed_there(story, one)
    return Ending(
        cause="quarantined",
        at=one.since,
        sentence=(
            f"it has failed {in_a_row(one.failures)} on {one.backend} {one.version}, so it goes back to "
            f"{one.backend} {one.back_to_version}, which serves it from its next load on."
        ),
        steps=tuple(step for life in lives for step in life.happenings if isinstance(step.event, LoadFailed)),
        remedies=(Remedy(aim="To load it", command=endings.run(story.name)),),
    )


def with_quarantines(story: Story, finding: Finding) -> Finding:
    """Say on which versions the model dies, with the numbers, the last words and the way back."""
    for one in story.quarantines():
        lives = _failed_there(story, one)
        last = lives[-1].words if lives else ()
        version = f"{one.backend} {one.version}"
        finding.also = [
            *finding.also,
            ended(
                f"It is quarantined on {version} since {moment(one.since, story.now)}: it failed "
                f"{in_a_row(one.failures)} there and has run on {one.backend} {one.back_to_version}, "
                f"which serves it instead. The last failure: {one.reason}"
            ),
        ]
        finding.numbers = {**finding.numbers, "quarantined_after": float(one.failures)}
        finding.steps = [*finding.steps, *_decided(story, one)]
        if last and not any(words.lines == last for words in finding.words):
            finding.words = (*finding.words, Words(of=f"Last lines on {version}", lines=last))
        again = f"greenroom upgrade-runner --backend {one.backend} --version {one.version}"
        finding.remedies = [
            *finding.remedies,
            Remedy(aim=f"To try it on {version} again", command=again),
            Remedy(
                aim=f"To have every model on {one.back_to_version}",
                command=f"greenroom rollback-runner --backend {one.backend} --version {one.back_to_version}",
            ),
        ]
    return finding


def _failed_there(story: Story, one: Quarantine) -> list[Life]:
    """The engines that led to it, the last one last."""
    where = (one.backend, one.installation_id)
    there = [
        life
        for life in story.lives
        if life.failed is not None and (life.failed.backend, life.failed.installation_id) == where
    ]
    return there[-one.failures :]


def _decided(story: Story, one: Quarantine) -> list[Happening]:
    return [
        happening
        for happening in story.own
        if isinstance(happening.event, ModelQuarantined)
        and happening.event.installation_id == one.installation_id
    ][-1:]
