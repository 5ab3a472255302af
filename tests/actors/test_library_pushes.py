"""Pushes: joined, cancelled, and recorded once."""

from __future__ import annotations

from typing import Any

from greenroom.actors.library.effects import (
    CancelSend,
    SendModel,
)
from greenroom.actors.library.events import (
    ModelPushed,
    PushFailed,
)
from greenroom.actors.library.messages import (
    CancelPush,
    Push,
    Pushed,
)
from greenroom.actors.reports import Happened
from greenroom.actors.testing import Case
from greenroom.actors.values import Cancelled, Failure, Model
from library_life import SMOL, new_life
from scheduler_stage import NO_SPACE, OFFLINE

KEY_OF_PUSH = f"push/r/m:1@{SMOL.id}"
OTHER = Model(id="sha256:other", tags=("x:1",), size=1)


def push(case: Case[Any, Any]) -> Case[Any, Any]:
    return case.when(Push(model_id=SMOL.id, reference="r/m:1", token="secret"))


def test_a_push_is_recorded_when_the_model_is_published() -> None:
    case = push(new_life(store=(SMOL,))).then()
    assert case.of(SendModel) == [SendModel(model_id=SMOL.id, reference="r/m:1", token="secret")]
    case.when(Happened(event=ModelPushed(reference="r/m:1", model_id=SMOL.id, sent=5, seconds=2.0))).then(
        ModelPushed(model_id=SMOL.id, reference="r/m:1", sent=5, seconds=2.0)
    )
    assert case.answers == {KEY_OF_PUSH: Pushed(reference="r/m:1", model_id=SMOL.id, sent=5)}
    assert not case.volatile.sending


def test_a_push_to_the_same_reference_joins_and_ends_only_when_no_caller_waits() -> None:
    case = push(push(new_life(store=(SMOL,))))
    assert not case.of(SendModel)
    assert case.when(CancelPush(reference="r/m:1")).reply == Cancelled(ended=False)
    assert case.when(CancelPush(reference="r/m:1")).of(CancelSend)
    gone = Failure(kind="cancelled", code="cancelled", message="cancelled")
    case.when(Happened(event=PushFailed(reference="r/m:1", model_id=SMOL.id, failure=gone))).then(PushFailed)
    assert case.answers[KEY_OF_PUSH].code == "cancelled"
    assert case.when(CancelPush(reference="r/m:1")).reply == Cancelled(ended=False)


def test_a_push_of_an_absent_model_is_refused() -> None:
    assert push(new_life()).refusal.kind == "not_found"


def test_a_push_of_another_model_to_the_same_reference_is_refused() -> None:
    case = push(new_life(store=(SMOL, OTHER)))
    case.when(Push(model_id=OTHER.id, reference="r/m:1"))
    assert (case.refusal.kind, case.refusal.code) == ("conflict", "conflict")
    assert not case.of(SendModel)
    case.when(CancelPush(reference="r/m:1", model_id=OTHER.id))
    assert case.reply == Cancelled(ended=False)
    case.when(Happened(event=ModelPushed(reference="r/m:1", model_id=SMOL.id, sent=5))).then(ModelPushed)
    assert list(case.answers) == [KEY_OF_PUSH]
    assert case.when(Push(model_id=OTHER.id, reference="r/m:1")).of(SendModel)


def test_a_push_unknown_to_a_rebuilt_actor_answers_only_callers_that_wanted_that_model() -> None:
    case = new_life(store=(SMOL, OTHER))
    case.when(Push(model_id=OTHER.id, reference="r/m:1"))
    case.when(Happened(event=ModelPushed(reference="r/m:1", model_id=SMOL.id, sent=5))).then(ModelPushed)
    assert list(case.answers) == [KEY_OF_PUSH]
    assert case.volatile.sending["r/m:1"].model_id == OTHER.id


def test_a_push_that_joins_one_being_cancelled_is_not_cancelled_with_it() -> None:
    case = push(new_life(store=(SMOL,)))
    case.when(CancelPush(reference="r/m:1"))
    assert push(case).refusal.code == "conflict"


def test_a_push_that_fails_again_and_again_is_stored_once() -> None:
    case = new_life(store=(SMOL,))
    for number in range(5):
        push(case)
        case.when(Happened(event=PushFailed(reference="r/m:1", model_id=SMOL.id, failure=OFFLINE)))
        case.then(*[PushFailed] * (not number))
        assert case.answers[KEY_OF_PUSH].code == OFFLINE.code
    push(case)
    case.when(Happened(event=PushFailed(reference="r/m:1", model_id=SMOL.id, failure=NO_SPACE))).then(
        PushFailed
    )
