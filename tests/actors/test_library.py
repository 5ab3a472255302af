"""The library: models, their names, and the pulls that bring them."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Later, Recovered, refuse
from greenroom.actors.library.core import Library
from greenroom.actors.library.effects import (
    AddTag,
    CancelFetch,
    CancelSend,
    DeleteModel,
    FetchModel,
    InspectModels,
    PublishPullProgress,
    RemoveTag,
    SendModel,
    StoreAgain,
    SweepStore,
)
from greenroom.actors.library.events import (
    ModelCommitted,
    ModelPushed,
    ModelRemoved,
    ModelTagged,
    PullAttemptFailed,
    PullCancelled,
    PullFailed,
    PullRequested,
    PushFailed,
)
from greenroom.actors.library.messages import (
    CancelPull,
    CancelPush,
    LeavePull,
    ModelList,
    ModelNoted,
    ModelsSeen,
    NoteDamage,
    NoteModel,
    Prune,
    Pruned,
    Pull,
    Pulled,
    Push,
    Pushed,
    Release,
    Released,
    Removed,
    RemoveModel,
    RepackageModel,
    Tagged,
    TagModel,
)
from greenroom.actors.reports import EffectEnded, Happened
from greenroom.actors.scheduler.messages import ForgetModel
from greenroom.actors.testing import Case, given
from greenroom.actors.values import Caller, Cancelled, Failure, Model, RequestSnapshot
from reports import deleted, pull_failed, pulled, repackaged, tags_written
from stage import NO_SPACE, OFFLINE

NOW = Moment(wall=1_700_000_000.0, monotonic=1_000.0)
REF = "docker.io/ai/smollm2:latest"
KEY = f"pull/{REF}"
SMOL = Model(id="sha256:smol", tags=(REF,), size=98)


def new_life(*history: Any, store: tuple[Model, ...] = (), looked: bool = True) -> Case[Any, Any]:
    case = given(Library(), *history, now=NOW)
    case.when(Recovered()).rest()
    return case.when(ModelsSeen(models=store)).rest() if looked else case


def pull(case: Case[Any, Any], **more: Any) -> Any:
    case.when(Pull(**{"reference": REF, **more}))
    reply = case.reply
    case.rest()
    return reply


def requested(**more: Any) -> PullRequested:
    return PullRequested(**{"job": "pull.1", "reference": REF, **more})


def fails(case: Case[Any, Any], failure: Failure, job: str = "pull.1") -> Case[Any, Any]:
    return case.when(pull_failed(job, failure)).rest()


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


def test_a_pull_of_what_the_journal_claims_waits_for_the_look() -> None:
    claim = ModelCommitted(job="", model=SMOL)
    case = new_life(claim, looked=False)
    assert pull(case) == Later(KEY)
    case.when(ModelsSeen(models=())).rest()
    case.then(ModelRemoved, requested())
    assert case.of(FetchModel)


def test_a_pull_that_waited_for_the_look_is_answered_by_it() -> None:
    case = new_life(looked=False)
    pull(case, wanted_by="request")
    case.when(ModelsSeen(models=(SMOL,))).rest()
    assert case.answers == {KEY: Pulled(model=SMOL, fresh=False)}


def test_a_pull_that_waits_for_the_look_can_be_cancelled() -> None:
    case = new_life(looked=False)
    pull(case)
    case.when(CancelPull(reference=REF))
    assert case.answers[KEY].code == "cancelled"
    case.when(ModelsSeen(models=())).rest().then()


def test_a_pull_that_fails_for_a_while_is_tried_again() -> None:
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


def test_the_store_is_looked_at_again_when_no_report_comes() -> None:
    case = new_life(looked=False)
    assert not case.told("scheduler")
    assert case.advance(30).rest().of(InspectModels)


def test_a_model_found_in_the_store_counts_although_the_journal_does_not_know_it() -> None:
    new_life(store=(SMOL,)).then(ModelCommitted(job="", model=SMOL))


def test_a_model_missing_in_the_store_is_missing_although_the_journal_knows_it() -> None:
    case = new_life(ModelCommitted(job="", model=SMOL)).then(ModelRemoved)
    assert not case.state.models


def test_a_store_that_cannot_be_read_changes_nothing() -> None:
    case = new_life(ModelCommitted(job="", model=SMOL), looked=False)
    case.when(EffectEnded(effect=InspectModels(), failure=OFFLINE)).rest().then()
    assert case.state.models == {SMOL.id: SMOL}


def test_tags_found_in_the_store_count() -> None:
    other = Model(id=SMOL.id, tags=("mine:latest",), size=98)
    case = new_life(ModelCommitted(job="", model=SMOL), store=(other,)).then(ModelTagged)
    assert case.state.models[SMOL.id].tags == ("mine:latest",)


def test_a_store_whose_index_was_lost_gets_back_the_tags_that_the_journal_knows() -> None:
    two = Model(id="sha256:two", tags=("x:1", "x:2"), size=1)
    history = [ModelCommitted(job="", model=one) for one in (SMOL, two)]
    case = new_life(*history, looked=False)
    here = (Model(id=SMOL.id, size=98), Model(id=two.id, tags=("x:1",), size=1))
    case.when(ModelsSeen(models=here, recovered=True)).rest().then()
    assert case.of(AddTag) == [AddTag(model_id=SMOL.id, tag=REF), AddTag(model_id=two.id, tag="x:2")]
    assert case.state.models[SMOL.id].tags == (REF,)
    case.when(tags_written(SMOL.id, REF, tags=(REF,))).rest()


def test_a_store_whose_index_was_lost_takes_no_tag_from_another_model() -> None:
    case = new_life(ModelCommitted(job="", model=SMOL), looked=False)
    other = Model(id="sha256:other", tags=(REF,), size=1)
    case.when(ModelsSeen(models=(Model(id=SMOL.id, size=98), other), recovered=True)).rest()
    assert not case.of(AddTag)
    assert case.state.tagged(REF) == other


def test_a_look_at_the_store_before_a_commit_does_not_undo_it() -> None:
    case = new_life()
    pull(case)
    case.when(pulled("pull.1", SMOL)).rest()
    case.when(ModelsSeen(models=())).rest().then()


def tagged(*tags: str) -> Case[Any, Any]:
    return new_life(store=(Model(id=SMOL.id, tags=tags, size=98),))


def test_tags_are_written_before_they_are_recorded() -> None:
    case = tagged("a")
    case.when(TagModel(model_id=SMOL.id, tag="b")).then()
    assert case.of(AddTag) == [AddTag(model_id=SMOL.id, tag="b")]
    case.when(tags_written(SMOL.id, "b", tags=("a", "b"))).then(ModelTagged)
    assert case.answers == {f"tag/{SMOL.id}/b": Tagged(tags=("a", "b"))}


def test_tags_asked_for_at_once_are_each_answered_when_they_are_written() -> None:
    case = tagged("a")
    case.when(TagModel(model_id=SMOL.id, tag="b")).when(TagModel(model_id=SMOL.id, tag="c"))
    case.when(tags_written(SMOL.id, "b", tags=("a", "b")))
    assert list(case.answers) == [f"tag/{SMOL.id}/b"]
    case.when(tags_written(SMOL.id, "c", tags=("a", "b", "c")))
    assert case.answers[f"tag/{SMOL.id}/c"] == Tagged(tags=("a", "b", "c"))


def test_tags_that_exist_already_change_nothing() -> None:
    case = tagged("a").when(TagModel(model_id=SMOL.id, tag="a")).then()
    assert case.reply == Tagged(tags=("a",))


def test_tags_of_an_absent_model_are_refused() -> None:
    assert new_life().when(TagModel(model_id="x", tag="a")).refusal.kind == "not_found"


def test_tags_are_taken_from_the_model_that_had_them() -> None:
    other = Model(id="sha256:other", tags=("a",), size=1)
    case = tagged("a")
    case.when(pulled("pull.9", other)).rest()
    assert case.state.models[SMOL.id].tags == ()


def test_tags_that_cannot_be_written_say_why() -> None:
    case = tagged("a").when(TagModel(model_id=SMOL.id, tag="b"))
    case.when(tags_written(SMOL.id, "b", tags=(), failure=NO_SPACE)).then()
    assert case.answers[f"tag/{SMOL.id}/b"].code == "no_space"


def test_tags_are_removed_one_by_one_and_the_model_with_the_last() -> None:
    case = tagged("a", "b")
    case.when(RemoveModel(model_id=SMOL.id, tag="b"))
    assert case.of(RemoveTag) == [RemoveTag(model_id=SMOL.id, tag="b")]
    case.when(tags_written(SMOL.id, "b", tags=("a",)))
    case.when(RemoveModel(model_id=SMOL.id, tag="a"))
    assert case.told("scheduler") == [Release(model_id=SMOL.id)]


def test_tags_that_a_model_does_not_have_cannot_be_removed() -> None:
    refusal = tagged("a").when(RemoveModel(model_id=SMOL.id, tag="b")).refusal
    assert refusal.kind == "not_found"


def test_a_removal_is_recorded_when_the_scheduler_has_let_go_and_the_files_are_gone() -> None:
    case = new_life(store=(SMOL,))
    case.when(RemoveModel(model_id=SMOL.id)).then()
    assert case.reply == Later(f"remove/{SMOL.id}")
    assert case.told("scheduler") == [Release(model_id=SMOL.id)]
    case.when(Released(model_id=SMOL.id)).then()
    assert case.of(DeleteModel) == [DeleteModel(model_id=SMOL.id)]
    case.when(Released(model_id=SMOL.id)).then()
    assert not case.of(DeleteModel)
    case.when(deleted(SMOL.id, freed=98)).then(ModelRemoved)
    removed = Removed(untagged=(REF,), deleted=(SMOL.id,), freed=98)
    assert case.answers == {f"remove/{SMOL.id}": removed}
    # How it was configured goes with it.
    assert case.told("scheduler") == [ForgetModel(model_id=SMOL.id, model_ref=REF)]


def test_a_removal_asked_for_twice_is_done_once() -> None:
    case = new_life(store=(SMOL,)).when(RemoveModel(model_id=SMOL.id))
    case.when(RemoveModel(model_id=SMOL.id))
    assert case.reply == Later(f"remove/{SMOL.id}")
    assert not case.told("scheduler")


def test_the_removal_of_a_model_in_use_is_refused_and_names_its_users() -> None:
    case = new_life(store=(SMOL,)).when(RemoveModel(model_id=SMOL.id))
    refusal = refuse("in_use", "It is in use.", kind="conflict")
    case.when(Released(model_id=SMOL.id, refusal=refusal)).rest().then()
    assert case.answers[f"remove/{SMOL.id}"] == refusal
    assert case.when(RemoveModel(model_id=SMOL.id, force=True)).told("scheduler") == [
        Release(model_id=SMOL.id, force=True)
    ]


def test_a_removal_asks_a_scheduler_that_does_not_answer_again() -> None:
    case = new_life(store=(SMOL,)).when(RemoveModel(model_id=SMOL.id)).rest()
    asked = case.advance(5).rest().told("scheduler")
    assert Release(model_id=SMOL.id) in asked
    case.when(Released(model_id=SMOL.id))
    assert Release(model_id=SMOL.id) not in case.advance(5).rest().told("scheduler")


def test_a_removal_takes_the_model_off_the_list_once_the_scheduler_agrees() -> None:
    case = new_life(store=(SMOL,)).when(RemoveModel(model_id=SMOL.id))
    (told,) = case.when(RequestSnapshot()).rest().told("scheduler")
    assert told.models == (SMOL,)  # type: ignore[attr-defined]
    case.when(Released(model_id=SMOL.id))
    (told,) = case.when(RequestSnapshot()).rest().told("scheduler")
    assert told.models == ()  # type: ignore[attr-defined]


def test_the_removal_of_a_model_with_several_tags_needs_force() -> None:
    case = new_life(store=(Model(id=SMOL.id, tags=("a", "b"), size=98),))
    assert case.when(RemoveModel(model_id=SMOL.id)).refusal.kind == "conflict"
    assert case.when(RemoveModel(model_id=SMOL.id, force=True)).told("scheduler")


def test_the_removal_of_an_absent_model_is_refused() -> None:
    assert new_life().when(RemoveModel(model_id="x")).refusal.kind == "not_found"


def test_a_removal_that_fails_leaves_the_model() -> None:
    case = new_life(store=(SMOL,)).when(RemoveModel(model_id=SMOL.id))
    case.when(deleted(SMOL.id, failure=NO_SPACE)).then()
    assert case.answers[f"remove/{SMOL.id}"].code == "no_space"
    assert pull(case, wanted_by="request") == Pulled(model=SMOL, fresh=False)
    assert case.told("scheduler")[0].models == (SMOL,)  # type: ignore[attr-defined]


def test_a_model_pulled_again_during_its_removal_is_fetched() -> None:
    case = new_life(store=(SMOL,)).when(RemoveModel(model_id=SMOL.id))
    assert pull(case) == Later(KEY)
    assert case.of(FetchModel)


def test_an_imported_or_loaded_model_is_recorded_once() -> None:
    case = new_life().when(NoteModel(model=SMOL)).then(ModelCommitted(job="", model=SMOL))
    assert case.reply == ModelNoted(model=SMOL)
    case.when(NoteModel(model=SMOL)).then()


def test_a_model_with_another_configuration_is_stored_then_recorded() -> None:
    case = new_life(store=(SMOL,))
    case.when(RepackageModel(model_id=SMOL.id, tag="big", context_size=9)).then()
    assert case.reply == Later(f"repackage/{SMOL.id}/big")
    assert case.of(StoreAgain) == [StoreAgain(model_id=SMOL.id, tag="big", context_size=9)]
    big = Model(id="sha256:big", tags=("big",), size=98, context_size=9)
    report = repackaged(SMOL.id, "big", model=big)
    case.when(report).then(ModelCommitted(job="", model=big))
    assert case.answers == {f"repackage/{SMOL.id}/big": ModelNoted(model=big)}


def test_a_configuration_that_cannot_be_stored_says_why() -> None:
    case = new_life(store=(SMOL,))
    assert case.when(RepackageModel(model_id="x", tag="big")).refusal.kind == "not_found"
    case.when(RepackageModel(model_id=SMOL.id, tag="big"))
    case.when(repackaged(SMOL.id, "big", failure=NO_SPACE)).then()
    assert case.answers[f"repackage/{SMOL.id}/big"].code == "no_space"


def test_damage_found_takes_a_model_out_again() -> None:
    case = new_life(store=(SMOL,))
    case.when(NoteDamage(model_id=SMOL.id, reason="a byte has changed")).then(
        ModelRemoved(model_id=SMOL.id, reason="a byte has changed")
    )
    case.when(NoteDamage(model_id=SMOL.id, reason="again")).then()


def test_pruning_is_answered_when_it_is_done() -> None:
    case = new_life().when(Prune())
    assert case.of(SweepStore)
    case.when(EffectEnded(effect=SweepStore(), answer=Pruned(freed=7))).then()
    assert case.answers == {"prune": Pruned(freed=7)}
    case.when(Prune()).when(EffectEnded(effect=SweepStore(), failure=NO_SPACE))
    assert case.answers["prune"].code == "no_space"


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


NOT_FOUND = Failure(kind="permanent", code="not_found", message="There is no such model.", advice="Look.")


def failing(case: Case[Any, Any], times: int, reference: str = REF) -> None:
    for _ in range(times):
        assert pull(case, reference=reference) == Later(f"pull/{reference}")
        case.when(pull_failed(f"pull.{case.state.jobs}", NOT_FOUND)).rest()


def test_a_pull_that_keeps_failing_is_answered_from_memory_before_it_asks_its_source_again() -> None:
    case = new_life()
    failing(case, 3)
    stored = len(case.history)
    for _ in range(100):
        refusal = pull(case)
        assert (refusal.code, refusal.kind) == ("not_found", "not_found")
        assert "It has failed 3 times in a row" in refusal.advice
        assert 0 < refusal.retry_after <= 1
    assert len(case.history) == stored
    case.advance(1.0)
    failing(case, 1)
    assert 1 < pull(case).retry_after <= 2


def test_a_pull_that_keeps_failing_is_asked_of_its_source_once_a_minute_at_last() -> None:
    case = new_life()
    begun = 0
    for _ in range(3_600):
        if pull(case) == Later(KEY):
            begun += 1
            case.when(pull_failed(f"pull.{case.state.jobs}", NOT_FOUND)).rest()
        case.advance(1.0)
    assert begun < 75
    assert len(case.history) == 2 * begun


def test_a_pull_that_keeps_failing_is_asked_anew_with_a_token_or_by_force() -> None:
    case = new_life()
    failing(case, 3)
    assert pull(case).code == "not_found"
    assert pull(case, token="new") == Later(KEY)


def test_failures_of_a_pull_are_forgotten_with_a_success() -> None:
    case = new_life()
    failing(case, 3)
    case.advance(1.0)
    assert pull(case) == Later(KEY)
    case.when(pulled(f"pull.{case.state.jobs}", SMOL)).rest()
    failing(case, 1)
    assert pull(case) == Later(KEY)


def test_many_pulls_that_keep_failing_are_limited_to_so_many_a_minute() -> None:
    case = new_life()
    for number in range(30):
        failing(case, 1, f"r/x{number}:1")
    other = Caller(kind="process", id="4711")
    assert pull(case, reference="r/other:1", caller=other) == Later("pull/r/other:1"), "not their doing"
    refusal = pull(case, reference="r/new:1")
    assert (refusal.code, refusal.kind) == ("too_many_failures", "exhausted")
    assert pull(case, reference="r/new:1", force=True).code == "too_many_failures"
    case.advance(61.0)
    assert pull(case, reference="r/new:1") == Later("pull/r/new:1")


def test_cancelled_pulls_count_towards_the_limit_too() -> None:
    case = new_life()
    for _ in range(30):
        assert pull(case) == Later(KEY)
        case.when(CancelPull(reference=REF)).rest()
    assert pull(case).code == "too_many_failures"


def test_the_memory_of_pulls_that_keep_failing_is_bounded() -> None:
    case = new_life()
    for number in range(400):
        failing(case, 1, f"r/x{number}:1")
        case.advance(2.0)
    assert len(case.volatile.failures.by_reference) == 256


def test_the_list_is_sent_on_each_change_when_asked_for_and_every_few_seconds() -> None:
    case = new_life(store=(SMOL,))
    (told,) = case.told("scheduler")
    assert isinstance(told, ModelList)
    assert told.models == (SMOL,)
    assert not case.advance(4).rest().told("scheduler")
    assert case.advance(1).rest().told("scheduler")
    assert case.when(RequestSnapshot()).rest().told("scheduler")


@pytest.mark.parametrize("tag", ["", "../../x y", "a//b", "a/./b", "/etc/passwd", "x y", "..", " smol"])
def test_what_cannot_be_a_tag_is_refused_and_nothing_is_written(tag: str) -> None:
    case = new_life(ModelCommitted(job="", model=SMOL), store=(SMOL,))
    for ask in (TagModel(model_id=SMOL.id, tag=tag), RepackageModel(model_id=SMOL.id, tag=tag)):
        refusal = case.when(ask).refusal
        assert (refusal.code, refusal.kind) == ("bad_reference", "invalid")
        assert case.effects == []
