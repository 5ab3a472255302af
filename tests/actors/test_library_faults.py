"""What raises while the library goes on costs one pull; the others, and the list of models, go on."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.actors.kernel.core import Recovered
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.library import pulls as library_pulls
from greenroom.actors.library.core import Library
from greenroom.actors.library.effects import FetchModel
from greenroom.actors.library.events import PullFailed
from greenroom.actors.library.messages import ModelsSeen, Pull
from greenroom.actors.testing import Case, given
from greenroom.actors.values import Model
from library_life import listed


def raises_on(bad: str, real: Any, of: Any) -> Any:
    def picky(*arguments: Any) -> Any:
        if of(*arguments) == bad:
            raise ZeroDivisionError(bad)
        return real(*arguments)

    return picky


def test_a_pull_that_cannot_be_resumed_fails_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case: Case[Any, Any] = given(Library())
    case.when(Recovered()).rest().when(ModelsSeen(models=())).rest()
    picky = raises_on("bad", library_pulls.seconds_left, lambda pull, *_: pull.reference)
    monkeypatch.setattr(library_pulls, "seconds_left", picky)
    case.faults_allowed = True
    for reference in ("good", "bad", "fine"):
        case.when(Pull(reference=reference))
    answers: dict[str, Any] = {}
    for _ in range(4):
        case.settle()
        answers |= case.answers
    assert sorted(one.reference for one in case.of(FetchModel)) == ["fine", "good"]
    refusal = answers["pull/bad"]
    assert isinstance(refusal, Refusal)
    assert refusal.code == "internal"
    assert sorted(case.state.pulls) == ["fine", "good"]
    assert [one.event.failure.blame for one in case.history if isinstance(one.event, PullFailed)] == ["ours"]
    assert {(one.doing, one.about) for one in case.faults} == {("go on with a pull", "pull.2")}


def test_a_pull_that_cannot_be_decided_on_is_refused_and_the_models_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case: Case[Any, Any] = given(Library())
    case.when(Recovered()).rest()
    case.when(Pull(reference="bad")).when(Pull(reference="good")).rest()
    picky = raises_on("bad", library_pulls.pull, lambda _state, ask, *_: ask.reference)
    monkeypatch.setattr(library_pulls, "pull", picky)
    case.faults_allowed = True
    case.when(ModelsSeen(models=(Model(id="sha256:m", tags=("m",), size=1),))).rest()
    assert case.answers["pull/bad"].code == "internal"
    assert [one.reference for one in case.of(FetchModel)] == ["good"]
    assert len(listed(case)) == 1
    assert {(one.doing, one.about) for one in case.faults} == {("begin a pull", "bad")}
