"""Pulls: begun once, joined, retried, cancelled, and what a restart makes of them."""

from __future__ import annotations

import pytest

from greenroom.actors.kernel.core import Later, Recovered
from greenroom.actors.library.effects import (
    CancelFetch,
    FetchModel,
    PublishPullProgress,
)
from greenroom.actors.library.events import (
    ModelCommitted,
    ModelRemoved,
    PullAttemptFailed,
    PullCancelled,
    PullFailed,
)
from greenroom.actors.library.messages import (
    CancelPull,
    LeavePull,
    ModelsSeen,
    Pull,
    Pulled,
)
from greenroom.actors.values import Cancelled
from library_life import KEY, NOW, REF, SMOL, fails, new_life, pull, requested
from reports import pull_failed, pulled
from scheduler_stage import NO_SPACE, OFFLINE


def test_a_pull_of_an_absent_model_fetches_it() -> None:
    case = new_life()
    assert pull(case, token="secret") == Later(KEY)
    case.then(requested())
    assert case.of(FetchModel) == [FetchModel(job="pull.1", reference=REF, token="secret")]
    case.when(pulled("pull.1", SMOL)).rest().then(ModelCommitted)
    assert case.answers == {KEY: Pulled(model=SMOL, fresh=True)}
    assert case.told("scheduler")


def test_a_pull_never_stores_a_token_and_forgets_it_with_the_pull() -> None:
    case = new_life()
    pull(case, token="secret")
    assert not any("secret" in repr(one) for one in case.history)
    case.when(pulled("pull.1", SMOL)).rest()
    assert "secret" not in repr(case.volatile)


def test_fifty_pulls_at_once_fetch_once() -> None:
    case = new_life()
    fetches = 0
    for _ in range(50):
        pull(case)
        fetches += len(case.of(FetchModel))
    assert fetches == 1
    assert len(case.history) == 1


def test_a_pull_of_a_present_model_is_answered_at_once_if_only_a_request_wants_it() -> None:
    case = new_life(store=(SMOL,))
    assert pull(case, wanted_by="request") == Pulled(model=SMOL, fresh=False)
    case.then()


def test_a_pull_of_a_present_model_asks_the_source_whether_it_has_changed() -> None:
    case = new_life(store=(SMOL,))
    assert pull(case) == Later(KEY)
    assert case.of(FetchModel)
    case.when(pulled("pull.1", SMOL, fresh=False)).rest()
    case.then(ModelCommitted(job="pull.1", model=SMOL, fresh=False))
    assert case.answers == {KEY: Pulled(model=SMOL, fresh=False)}


def test_a_pull_of_what_the_journal_claims_waits_for_the_scan() -> None:
    claim = ModelCommitted(job="", model=SMOL)
    case = new_life(claim, looked=False)
    assert pull(case) == Later(KEY)
    case.when(ModelsSeen(models=())).rest()
    case.then(ModelRemoved, requested())
    assert case.of(FetchModel)


def test_a_pull_that_waited_for_the_scan_is_answered_by_it() -> None:
    case = new_life(looked=False)
    pull(case, wanted_by="request")
    case.when(ModelsSeen(models=(SMOL,))).rest()
    assert case.answers == {KEY: Pulled(model=SMOL, fresh=False)}


def test_a_pull_that_waits_for_the_scan_can_be_cancelled() -> None:
    case = new_life(looked=False)
    pull(case)
    case.when(CancelPull(reference=REF))
    assert case.answers[KEY].code == "cancelled"
    case.when(ModelsSeen(models=())).rest().then()


def test_a_pull_that_fails_for_a_while_is_retried() -> None:
    case = new_life()
    pull(case)
    fails(case, OFFLINE).then(PullAttemptFailed)
    assert not case.of(FetchModel)
    case.clock.jump(-86_400)
    case.wake()
    assert case.of(FetchModel)


def test_a_pull_that_fails_for_good_says_why_and_the_next_one_may_try_again() -> None:
    case = new_life()
    pull(case)
    fails(case, NO_SPACE).then(PullFailed)
    assert (case.answers[KEY].kind, case.answers[KEY].code) == ("exhausted", "no_space")
    assert pull(case) == Later(KEY)
    case.then(requested(job="pull.2"))


def test_a_pull_is_given_up_after_six_attempts() -> None:
    case = new_life()
    pull(case)
    for _ in range(5):
        fails(case, OFFLINE).then(PullAttemptFailed)
        case.wake()
    fails(case, OFFLINE).then(PullFailed)
    assert not any((case.volatile.fetching, case.volatile.due, case.volatile.waiting))


def test_a_pull_goes_on_for_as_long_as_each_attempt_makes_progress() -> None:
    case = new_life()
    pull(case)
    for _ in range(30):
        case.when(pull_failed("pull.1", OFFLINE, moved=True)).rest()
        case.then(PullAttemptFailed)
        assert case.wake_at is not None
        assert case.wake_at - case.now.monotonic <= 2.0
        case.wake()


def test_a_pull_from_a_source_that_never_answers_is_refused_within_seconds() -> None:
    case = new_life()
    pull(case)
    silent = pull_failed("pull.1", OFFLINE, reached=False)
    for _ in range(2):
        case.when(silent).rest().then(PullAttemptFailed)
        case.wake()
    case.when(silent).rest().then(PullFailed)
    assert case.answers[KEY].kind == "unavailable"
    assert case.now.monotonic - NOW.monotonic < 5.0


def test_a_pull_from_a_source_that_takes_long_to_fail_is_refused_after_the_first_attempt() -> None:
    case = new_life()
    pull(case)
    case.advance(10.0)
    case.when(pull_failed("pull.1", OFFLINE, reached=False)).rest()
    case.then(PullFailed)


def test_a_pull_for_which_no_caller_waits_is_patient_with_its_source() -> None:
    case = new_life(requested())
    case.advance(10.0)
    case.when(pull_failed("pull.1", OFFLINE, reached=False)).rest()
    case.then(PullAttemptFailed)


def test_a_pull_shows_what_it_waits_for() -> None:
    case = new_life()
    pull(case)
    fails(case, OFFLINE)
    (inform,) = case.of(PublishPullProgress)
    assert (inform.reference, inform.phase) == (REF, "waiting_to_retry")
    assert OFFLINE.message in inform.message
    case.when(CancelPull(reference=REF))
    assert case.of(PublishPullProgress) == [PublishPullProgress(reference=REF)]


def test_a_pull_is_forced_by_a_caller_that_joins_it_with_force() -> None:
    case = new_life()
    pull(case)
    pull(case, force=True)
    case.then(requested(force=True))
    fails(case, OFFLINE)
    case.wake()
    assert [one.force for one in case.of(FetchModel)] == [True]


def test_a_pull_that_is_cancelled_ends() -> None:
    case = new_life()
    pull(case)
    case.when(CancelPull(reference=REF))
    assert case.reply == Cancelled(ended=True)
    assert case.of(CancelFetch)
    assert case.answers[KEY].message == "The pull was cancelled: requested by the user."


def test_a_pull_that_one_caller_leaves_goes_on_while_another_waits() -> None:
    case = new_life()
    pull(case)
    pull(case)
    case.when(CancelPull(reference=REF, leave=True)).then()
    assert case.reply == Cancelled(ended=False)
    case.when(CancelPull(reference=REF, leave=True)).then(PullCancelled)


def test_a_pull_does_not_go_on_for_a_caller_that_has_gone() -> None:
    case = new_life()
    for name in "ab":
        case.when(Pull(reference=REF, waiter=name)).rest()
    case.when(LeavePull(reference=REF, waiter="a")).rest().then()
    case.when(CancelPull(reference=REF, leave=True, waiter="b")).then(PullCancelled)


def test_a_pull_that_does_not_exist_cannot_be_cancelled() -> None:
    assert new_life().when(CancelPull(reference=REF)).reply == Cancelled(ended=False)


def test_a_pull_that_was_cancelled_a_moment_before_its_last_step_has_brought_the_model() -> None:
    case = new_life()
    pull(case)
    case.when(CancelPull(reference=REF)).rest()
    case.when(pulled("pull.1", SMOL)).rest().then(ModelCommitted)
    assert case.state.models == {SMOL.id: SMOL}


def test_a_pull_that_is_reported_twice_counts_once() -> None:
    case = new_life()
    pull(case)
    case.when(pulled("pull.1", SMOL)).rest()
    case.when(pulled("pull.1", SMOL)).rest().then()
    fails(case, OFFLINE).then()


def test_a_pull_of_an_earlier_life_that_a_person_typed_goes_on() -> None:
    case = new_life(requested())
    case.then(PullAttemptFailed)
    (fetch,) = case.of(FetchModel)
    assert fetch.job == "pull.1"


def test_a_pull_of_an_earlier_life_that_only_a_request_wanted_ends() -> None:
    case = new_life(requested(wanted_by="request"))
    case.then(PullCancelled)
    assert not case.state.pulls


def test_a_pull_of_an_earlier_life_that_only_a_request_wanted_ends_also_between_attempts() -> None:
    waits = PullAttemptFailed(job="pull.1", attempt=1, failure=OFFLINE, retry_at=NOW.wall + 50)
    new_life(requested(wanted_by="request"), waits).then(PullCancelled)


def test_a_pull_of_an_earlier_life_that_a_person_joined_goes_on() -> None:
    case = new_life()
    pull(case, wanted_by="request")
    pull(case)
    case.then(requested())
    case.rebuild().when(Recovered()).rest()
    case.when(ModelsSeen(models=())).rest()
    assert REF in case.state.pulls


@pytest.mark.parametrize("wanted_by", ["request", "explicit"])
def test_a_rebuilt_library_leaves_a_pull_under_way_alone(wanted_by: str) -> None:
    case = new_life()
    pull(case, wanted_by=wanted_by)
    case.rebuild().when(Recovered()).rest()
    case.when(ModelsSeen(models=(), running=("pull.1",))).rest().then()
    assert pull(case, wanted_by=wanted_by) == Later(KEY)
    case.when(pulled("pull.1", SMOL)).rest().then(ModelCommitted)
    assert case.answers == {KEY: Pulled(model=SMOL, fresh=True)}


def test_a_pull_that_ended_between_two_lives_is_committed() -> None:
    case = new_life(requested(), store=(SMOL,)).then(ModelCommitted)
    assert not case.state.pulls


def test_a_pull_of_an_earlier_life_waits_at_most_the_bound_of_the_policy_for_a_retry() -> None:
    far = PullAttemptFailed(job="pull.1", attempt=1, failure=OFFLINE, retry_at=NOW.wall + 86_400)
    case = new_life(requested(), far).wake()
    assert case.now.monotonic - NOW.monotonic == pytest.approx(90.0)
    assert case.of(FetchModel)


def test_an_adoption_keeps_its_path_in_the_next_life() -> None:
    case = new_life()
    pull(case, origin="/other/x.gguf", copy=True)
    asked = requested(origin="/other/x.gguf", copy=True)
    case.then(asked)
    wanted = FetchModel(job="pull.1", reference=REF, origin="/other/x.gguf", copy=True)
    assert case.of(FetchModel) == [wanted]
    again = new_life(asked)
    assert [(one.origin, one.copy) for one in again.of(FetchModel)] == [("/other/x.gguf", True)]


def test_a_name_that_is_being_pulled_cannot_be_adopted_meanwhile() -> None:
    case = new_life(requested())
    refusal = pull(case, origin="/other/x.gguf")
    assert (refusal.code, refusal.kind) == ("conflict", "conflict")
    assert pull(case) == Later(KEY)
