"""What lies in the store: looks, tags, removals, imports, and the list that others are sent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from greenroom.actors.kernel.core import Later, refuse
from greenroom.actors.library.effects import (
    AddTag,
    DeleteModel,
    FetchModel,
    InspectModels,
    RemoveTag,
    StoreAgain,
    SweepStore,
)
from greenroom.actors.library.events import (
    ModelCommitted,
    ModelRemoved,
    ModelTagged,
)
from greenroom.actors.library.messages import (
    ModelList,
    ModelNoted,
    ModelsSeen,
    NoteDamage,
    NoteModel,
    Prune,
    Pruned,
    Pulled,
    Release,
    Released,
    Removed,
    RemoveModel,
    RepackageModel,
    Tagged,
    TagModel,
)
from greenroom.actors.reports import EffectEnded
from greenroom.actors.scheduler.messages import ForgetModel
from greenroom.actors.testing import Case
from greenroom.actors.values import Model, ModelLayers, RequestSnapshot
from library_life import KEY, REF, SMOL, listed, new_life, pull
from reports import deleted, pulled, repackaged, tags_written
from scheduler_stage import NO_SPACE, OFFLINE


def test_the_store_is_looked_at_again_when_no_report_comes() -> None:
    case = new_life(looked=False)
    assert not case.told("scheduler")
    assert case.advance(30).rest().of(InspectModels)


def test_a_model_found_in_the_store_counts_although_the_journal_does_not_know_it() -> None:
    new_life(store=(SMOL,)).then(ModelCommitted(job="", model=SMOL))


def test_layers_that_an_older_version_did_not_read_are_recorded() -> None:
    divided = msgspec.structs.replace(SMOL, layers=ModelLayers(weights=(1, 2)))
    case = new_life(ModelCommitted(job="", model=SMOL), store=(divided,))
    case.then(ModelCommitted(job="", model=divided))
    assert case.state.models == {SMOL.id: divided}


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


def test_a_scan_of_the_store_before_a_commit_does_not_undo_it() -> None:
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
    assert listed(case.when(RequestSnapshot()).rest()) == (SMOL,)
    case.when(Released(model_id=SMOL.id))
    assert listed(case.when(RequestSnapshot()).rest()) == ()


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
    assert listed(case) == (SMOL,)


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
        ModelRemoved(model_id=SMOL.id, reason="a byte has changed", damaged=True)
    )
    case.when(NoteDamage(model_id=SMOL.id, reason="again")).then()


def test_pruning_is_answered_when_it_is_done() -> None:
    case = new_life().when(Prune())
    assert case.of(SweepStore)
    case.when(EffectEnded(effect=SweepStore(), answer=Pruned(freed=7))).then()
    assert case.answers == {"prune": Pruned(freed=7)}
    case.when(Prune()).when(EffectEnded(effect=SweepStore(), failure=NO_SPACE))
    assert case.answers["prune"].code == "no_space"


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
