"""A library of one life, its store, and the pull that most tests are about."""

from __future__ import annotations

from typing import Any

from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Recovered
from greenroom.actors.library.core import Library
from greenroom.actors.library.events import (
    PullRequested,
)
from greenroom.actors.library.messages import (
    ModelList,
    ModelsSeen,
    Pull,
)
from greenroom.actors.scheduler.messages import SCHEDULER
from greenroom.actors.testing import Case, given
from greenroom.actors.values import Failure, Model
from reports import pull_failed

NOW = Moment(wall=1_700_000_000.0, monotonic=1_000.0)
REF = "docker.io/ai/smollm2:latest"
KEY = f"pull/{REF}"
SMOL = Model(id="sha256:smol", tags=(REF,), size=98)


def new_life(*history: Any, store: tuple[Model, ...] = (), looked: bool = True) -> Case[Any, Any]:
    case = given(Library(), *history, now=NOW)
    case.when(Recovered()).rest()
    return case.when(ModelsSeen(models=store)).rest() if looked else case


def listed(case: Case[Any, Any]) -> tuple[Model, ...]:
    """The models of the one list that the scheduler was sent by the last step."""
    (told,) = case.told(SCHEDULER)
    assert isinstance(told, ModelList)
    return told.models


def pull(case: Case[Any, Any], **more: Any) -> Any:
    case.when(Pull(**{"reference": REF, **more}))
    reply = case.reply
    case.rest()
    return reply


def requested(**more: Any) -> PullRequested:
    return PullRequested(**{"job": "pull.1", "reference": REF, **more})


def fails(case: Case[Any, Any], failure: Failure, job: str = "pull.1") -> Case[Any, Any]:
    return case.when(pull_failed(job, failure)).rest()
