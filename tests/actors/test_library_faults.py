"""What raises while the library goes on costs one pull; the others, and the list of models, go on."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.actors import events as ev
from greenroom.actors import library_pulls
from greenroom.actors import messages as msg
from greenroom.actors.effects import FetchModel
from greenroom.actors.facts import Model
from greenroom.actors.kernel.core import Recovered
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.library import Library
from greenroom.actors.testing import Case, given


def raises_on(bad: str, real: Any, of: Any) -> Any:
    def picky(*arguments: Any) -> Any:
        if of(*arguments) == bad:
            raise ZeroDivisionError(bad)
        return real(*arguments)

    return picky


def test_a_pull_that_cannot_be_gone_on_with_fails_and_the_others_go_on(monkeypatch) -> None:
    library = Library()
    case: Case[Any, Any] = given(library)
    case.when(Recovered()).rest().when(msg.ModelsSeen(models=())).rest()
    monkeypatch.setattr(library, "_wait", raises_on("bad", library._wait, lambda pull, _now: pull.reference))
    case.faults_allowed = True
    for reference in ("good", "bad", "fine"):
        case.when(msg.Pull(reference=reference))
    answers: dict[str, Any] = {}
    for _ in range(4):
        case.settle()
        answers |= case.answers
    assert sorted(one.reference for one in case.of(FetchModel)) == ["fine", "good"]
    refusal = answers["pull/bad"]
    assert isinstance(refusal, Refusal)
    assert refusal.code == "internal"
    assert sorted(case.state.pulls) == ["fine", "good"]
    assert [one.event.failure.blame for one in case.history if isinstance(one.event, ev.PullFailed)] == [
        "ours"
    ]
    assert {(one.doing, one.about) for one in case.faults} == {("go on with a pull", "pull.2")}


def test_a_wish_that_cannot_be_decided_on_is_refused_and_the_models_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case: Case[Any, Any] = given(Library())
    case.when(Recovered()).rest()
    case.when(msg.Pull(reference="bad")).when(msg.Pull(reference="good")).rest()
    picky = raises_on("bad", library_pulls.pull, lambda _state, ask, *_: ask.reference)
    monkeypatch.setattr(library_pulls, "pull", picky)
    case.faults_allowed = True
    case.when(msg.ModelsSeen(models=(Model(id="sha256:m", tags=("m",), size=1),))).rest()
    assert case.answers["pull/bad"].code == "internal"
    assert [one.reference for one in case.of(FetchModel)] == ["good"]
    assert [len(one.models) for one in case.told(msg.SCHEDULER)] == [1]
    assert {(one.doing, one.about) for one in case.faults} == {("begin a pull", "bad")}
