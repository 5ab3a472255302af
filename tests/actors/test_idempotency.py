"""Commands that come twice with one key."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.actors import idempotency
from greenroom.actors.idempotency import (
    REMEMBERED_FOR,
    AwaitKeyed,
    BeginKeyed,
    Begun,
    CommandAnswered,
    CommandKeyed,
    EndKeyed,
    Idempotency,
    Outcome,
    UnderWay,
)
from greenroom.actors.kernel.core import Answer, Later
from greenroom.actors.testing import Case, given

KEYED = CommandKeyed(key="k", command="c", name="POST /engines")
BEGIN = BeginKeyed(key="k", command="c", name="POST /engines")
DONE = Outcome(status=202, content_type="application/json", body="{}", location="/engines/mlx")
ANSWERED = CommandAnswered(
    key="k", status=202, content_type="application/json", body="{}", location="/engines/mlx"
)


def answers(case: Any) -> list[Any]:
    return [one for one in case.effects if isinstance(one, Answer)]


def reply_of(case: Case[Any, Any]) -> Any:
    """Of any type: mypy believes that it stays the one that was looked at last."""
    return case.reply


def test_the_first_command_is_carried_out_and_repeats_meanwhile_get_its_answer() -> None:
    case = given(Idempotency()).when(BEGIN).then(KEYED)
    assert isinstance(case.reply, Begun)
    case.when(BEGIN).then()
    assert isinstance(case.reply, UnderWay)
    case.when(AwaitKeyed(key="k")).then()
    assert reply_of(case) == Later("k")
    case.when(EndKeyed(key="k", outcome=DONE)).then(ANSWERED)
    assert answers(case) == [Answer(key="k", outcome=DONE)]
    # Who has heard that it is under way, and begins to wait a moment too late, gets it too.
    case.when(AwaitKeyed(key="k")).then()
    assert reply_of(case) == DONE


def test_a_repeated_command_gets_the_same_answer_even_after_a_restart() -> None:
    case = given(Idempotency(), KEYED, ANSWERED).when(BEGIN).then()
    assert case.reply == DONE


def test_what_the_end_of_a_daemon_interrupted_is_carried_out_again() -> None:
    case = given(Idempotency(), KEYED).when(BEGIN).then()
    assert isinstance(case.reply, Begun)


def test_another_command_with_the_same_key_is_refused_before_and_after_the_answer() -> None:
    other = BeginKeyed(key="k", command="d", name="POST /engines")
    for history in ((KEYED,), (KEYED, ANSWERED)):
        case = given(Idempotency(), *history).when(other).then()
        assert (case.reply.kind, case.reply.code) == ("conflict", "idempotency_key_reused")


def test_a_command_without_an_outcome_is_carried_out_when_it_is_repeated() -> None:
    case = given(Idempotency()).when(BEGIN).when(EndKeyed(key="k")).then()
    (answer,) = answers(case)
    assert (answer.outcome.kind, answer.outcome.retry_after) == ("unavailable", 1.0)
    case.when(AwaitKeyed(key="k")).then()
    assert case.reply == answer.outcome
    case.when(BEGIN).then()
    assert isinstance(case.reply, Begun)


def test_a_temporary_refusal_is_answered_and_not_kept() -> None:
    busy = Outcome(status=503, body="Later.", retry_after=2.0, passing=True)
    case = given(Idempotency()).when(BEGIN).when(EndKeyed(key="k", outcome=busy)).then()
    assert answers(case) == [Answer(key="k", outcome=busy)]
    case.when(BEGIN).then()
    assert isinstance(case.reply, Begun)


def test_a_key_is_forgotten_after_a_day() -> None:
    case = given(Idempotency(), KEYED, ANSWERED).advance(REMEMBERED_FOR)
    case.when(BeginKeyed(key="k", command="d", name="POST /engines")).then(CommandKeyed)
    assert isinstance(case.reply, Begun)


def test_only_the_last_keys_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "REMEMBERED", 20)
    monkeypatch.setattr(idempotency, "NEWEST", 8)
    many = [CommandKeyed(key=f"k{number}", command="c", name="n") for number in range(25)]
    case = given(Idempotency(), *many)
    assert [*case.state.keys] == [f"k{number}" for number in range(5, 25)]
