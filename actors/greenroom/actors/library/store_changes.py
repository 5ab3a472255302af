"""Changes of the store: tags, removal, other configurations, pushes.

A removal has three steps: the scheduler releases the model, or says what is using it; the files are deleted;
the removal is recorded. Once the scheduler has released a model, nothing is loaded from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from msgspec.structs import replace

from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Answer, Decision, Effect, Event, Later, NotUnderstood, Tell, refuse
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.library.effects import (
    AddTag,
    CancelSend,
    DeleteModel,
    RemoveTag,
    SendModel,
    StoreAgain,
    SweepStore,
)
from greenroom.actors.library.events import ModelCommitted, ModelPushed, ModelRemoved, ModelTagged, PushFailed
from greenroom.actors.library.messages import (
    LIBRARY,
    CancelPush,
    ModelNoted,
    ModelsSeen,
    NoteDamage,
    NoteModel,
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
from greenroom.actors.library.pulls import refusal_of
from greenroom.actors.library.state import LibraryState, LibraryVolatile, Removal, Sending
from greenroom.actors.reports import EffectEnded
from greenroom.actors.scheduler.messages import ForgetModel
from greenroom.actors.values import Cancelled, Model

_ASK_AGAIN = 5.0
"""Seconds after which the scheduler is asked again, in case the request was lost; that is harmless."""
_SWEPT = "prune"
_UNPUBLISHED = 256
"""Failed pushes to remember."""

V = TypeVar("V")


def tag(state: LibraryState, ask: TagModel) -> Decision[LibraryVolatile]:
    model = state.models.get(ask.model_id)
    if model is None:
        return _unknown(ask.model_id)
    if not _is_tag(ask.tag):
        return _no_tag(ask.tag)
    if ask.tag in model.tags:
        return Decision(reply=ask.replied(Tagged(tags=model.tags)))
    return Decision(
        effects=(AddTag(model_id=model.id, tag=ask.tag),), reply=Later(_tag_key(model.id, ask.tag))
    )


def lost_tags(state: LibraryState, report: ModelsSeen) -> tuple[AddTag, ...]:
    """Tags that models lost together with the store's index."""
    if not report.recovered:
        return ()
    there = {model.id for model in report.models}
    taken = {tag for model in report.models for tag in model.tags}
    return tuple(
        AddTag(model_id=model.id, tag=tag)
        for model in state.models.values()
        for tag in model.tags
        if model.id in there and tag not in taken
    )


def _is_tag(tag: str) -> bool:
    """Whether it can be a canonical tag: a path of names as in a registry, or a source with its prefix."""
    if tag.startswith(("file:", "pypi:")):
        return True
    return not any(part in ("", ".", "..") or part.split() != [part] for part in tag.split("/"))


def _no_tag(tag: str) -> Decision[LibraryVolatile]:
    message = f'"{tag}" cannot be a model\'s tag: that is a name such as docker.io/ai/smollm2:latest.'
    return Decision(reply=refuse("bad_reference", message, kind="invalid"))


def ended(state: LibraryState, report: EffectEnded, volatile: LibraryVolatile) -> Decision[LibraryVolatile]:
    """A change of the store has succeeded or failed."""
    match report.effect:
        case DeleteModel(model_id=one):
            return _gone(state, one, report, volatile)
        case AddTag(model_id=one, tag=name) | RemoveTag(model_id=one, tag=name):
            key = _tag_key(one, name)
        case StoreAgain(model_id=one, tag=name):
            key = _repackage_key(one, name)
        case SweepStore():
            key = _SWEPT
        case _:
            raise NotUnderstood(LIBRARY, report)
    events: tuple[Event, ...] = ()
    outcome: Any = report.answer
    match report.event:
        case ModelTagged(tags=tags) as event:
            events, outcome = (event,), Tagged(tags=tags)
        case ModelCommitted(model=model):
            events, outcome = _noted(state, model), ModelNoted(model=model)
    if report.failure is not None:
        outcome = refusal_of(report.failure)
    return Decision(events=events, effects=(Answer(key=key, outcome=outcome),), cause=report.cause)


def remove(
    state: LibraryState, ask: RemoveModel, now: Moment, volatile: LibraryVolatile
) -> Decision[LibraryVolatile]:
    """Remove a tag (answered with `Tagged`), and with the last one the model (`Removed`)."""
    model = state.models.get(ask.model_id)
    if model is None:
        return _unknown(ask.model_id)
    if ask.tag and ask.tag not in model.tags:
        message = f"{model.id[7:19]} has no tag {ask.tag}."
        return Decision(reply=refuse("not_found", message, kind="not_found"))
    if model.id in volatile.removing:
        return Decision(reply=Later(_remove_key(model.id)))
    if ask.tag and len(model.tags) > 1:
        return Decision(
            effects=(RemoveTag(model_id=model.id, tag=ask.tag),), reply=Later(_tag_key(model.id, ask.tag))
        )
    if len(model.tags) > 1 and not (ask.force or ask.all_tags):
        return Decision(
            reply=refuse(
                "conflict",
                f'unable to delete "{model.id[7:19]}" (must be forced) due to multiple tag references: '
                f"{', '.join(model.tags)}.",
                advice="Remove one tag, or all of them with --force.",
                kind="conflict",
            )
        )
    removal = Removal(force=ask.force, asked_at=now.monotonic)
    return Decision(
        effects=(_release(model.id, ask.force),),
        reply=Later(_remove_key(model.id)),
        volatile=replace(volatile, removing={**volatile.removing, model.id: removal}),
    )


def released(state: LibraryState, report: Released, volatile: LibraryVolatile) -> Decision[LibraryVolatile]:
    """The scheduler has released a model, or refused to."""
    removal = volatile.removing.get(report.model_id)
    if removal is None or removal.released or report.model_id not in state.models:
        return Decision()
    if report.refusal is not None:
        volatile = replace(volatile, removing=_without(volatile.removing, report.model_id))
        answer = Answer(key=_remove_key(report.model_id), outcome=report.refusal)
        return Decision(effects=(answer,), volatile=volatile)
    done = replace(removal, released=True)
    return Decision(
        effects=(DeleteModel(model_id=report.model_id),),
        volatile=replace(volatile, removing={**volatile.removing, report.model_id: done}),
    )


def ask_again(
    now: Moment, volatile: LibraryVolatile
) -> tuple[LibraryVolatile, tuple[Effect, ...], list[float]]:
    """Repeat unanswered requests to release a model; also returns when to do so next."""
    effects: list[Effect] = []
    wakes: list[float] = []
    removing = dict(volatile.removing)
    for model_id, removal in volatile.removing.items():
        if removal.released:
            continue
        if now.monotonic - removal.asked_at >= _ASK_AGAIN:
            removing[model_id] = replace(removal, asked_at=now.monotonic)
            effects.append(_release(model_id, removal.force))
        wakes.append(removing[model_id].asked_at + _ASK_AGAIN)
    return replace(volatile, removing=removing), tuple(effects), wakes


def _gone(
    state: LibraryState, model_id: str, report: EffectEnded, volatile: LibraryVolatile
) -> Decision[LibraryVolatile]:
    volatile = replace(volatile, removing=_without(volatile.removing, model_id), told=-1)
    key = _remove_key(model_id)
    if not isinstance(report.event, ModelRemoved):
        assert report.failure is not None
        return Decision(effects=(Answer(key=key, outcome=refusal_of(report.failure)),), volatile=volatile)
    model = state.models.get(model_id)
    if model is None:
        return Decision(volatile=volatile)
    outcome = Removed(untagged=model.tags, deleted=(model.id,), freed=report.event.freed)
    name = model.tags[0] if model.tags else model.id
    forget = Tell(command=ForgetModel(model_id=model.id, model_ref=name))
    answer = Answer(key=key, outcome=outcome)
    return Decision(events=(report.event,), effects=(forget, answer), volatile=volatile, cause=report.cause)


def repackage(state: LibraryState, ask: RepackageModel) -> Decision[LibraryVolatile]:
    """Store a model again with another configuration."""
    if ask.model_id not in state.models:
        return _unknown(ask.model_id)
    if not _is_tag(ask.tag):
        return _no_tag(ask.tag)
    again = StoreAgain(model_id=ask.model_id, tag=ask.tag, context_size=ask.context_size)
    return Decision(effects=(again,), reply=Later(_repackage_key(ask.model_id, ask.tag)))


def note(state: LibraryState, report: NoteModel) -> Decision[LibraryVolatile]:
    """A model was added by other means than a pull."""
    model = report.model
    return Decision(events=_noted(state, model), reply=report.replied(ModelNoted(model=model)))


def _noted(state: LibraryState, model: Model) -> tuple[Event, ...]:
    """No event if it is known as it is."""
    return () if state.models.get(model.id) == model else (ModelCommitted(job="", model=model),)


def note_damage(state: LibraryState, report: NoteDamage) -> Decision[LibraryVolatile]:
    """A model is damaged: nothing may be loaded from it, and the next pull repairs it."""
    if report.model_id not in state.models:
        return Decision(reply=report.replied(ModelNoted()))
    return Decision(
        events=(ModelRemoved(model_id=report.model_id, reason=report.reason, damaged=True),),
        reply=report.replied(ModelNoted()),
    )


def prune() -> Decision[LibraryVolatile]:
    return Decision(effects=(SweepStore(),), reply=Later(_SWEPT))


def push(state: LibraryState, ask: Push, volatile: LibraryVolatile) -> Decision[LibraryVolatile]:
    """Publish a model; requests for the same model and reference join the push under way."""
    if ask.model_id not in state.models:
        return _unknown(ask.model_id)
    under_way = volatile.sending.get(ask.reference)
    if under_way is not None and (under_way.model_id != ask.model_id or under_way.ending):
        other = "is being cancelled" if under_way.ending else "of another model is under way"
        busy = refuse(
            "conflict",
            f"A push to {ask.reference} {other}.",
            advice="Push again when it has finished.",
            kind="conflict",
        )
        return Decision(reply=busy)
    waiting = under_way.waiting + 1 if under_way is not None else 1
    send = SendModel(model_id=ask.model_id, reference=ask.reference, token=ask.token)
    sending = Sending(model_id=ask.model_id, waiting=waiting)
    return Decision(
        effects=() if under_way is not None else (send,),
        reply=Later(_push_key(ask.reference, ask.model_id)),
        volatile=replace(volatile, sending={**volatile.sending, ask.reference: sending}),
    )


def cancel_push(ask: CancelPush, volatile: LibraryVolatile) -> Decision[LibraryVolatile]:
    """A client no longer waits; the push ends with the last one."""
    under_way = volatile.sending.get(ask.reference)
    if under_way is None or ask.model_id not in ("", under_way.model_id):
        return Decision(reply=ask.replied(Cancelled(ended=False)))
    if under_way.waiting > 1:
        change: dict[str, object] = {"waiting": under_way.waiting - 1}
    else:
        # Kept until it has actually ended, so that no other push begins beside it.
        change = {"ending": True}
    changed = replace(under_way, **change)
    volatile = replace(volatile, sending={**volatile.sending, ask.reference: changed})
    if not changed.ending:
        return Decision(reply=ask.replied(Cancelled(ended=False)), volatile=volatile)
    cancel = CancelSend(reference=ask.reference)
    return Decision(effects=(cancel,), reply=ask.replied(Cancelled(ended=True)), volatile=volatile)


def push_ended(report: ModelPushed | PushFailed, volatile: LibraryVolatile) -> Decision[LibraryVolatile]:
    """A push has succeeded or failed. A failure that repeats the last one is not stored again."""
    reference, model_id = report.reference, report.model_id
    under_way = volatile.sending.get(reference)
    if under_way is not None and under_way.model_id == model_id:
        volatile = replace(volatile, sending=_without(volatile.sending, reference))
    key = _push_key(reference, model_id)
    known = _without(volatile.unpublished, key)
    events: tuple[Event, ...] = (report,)
    outcome: Pushed | Refusal
    if isinstance(report, ModelPushed):
        outcome = Pushed(reference=reference, model_id=model_id, sent=report.sent)
    else:
        failure = report.failure
        outcome = refusal_of(failure)
        if failure.kind == "cancelled":
            outcome = refuse("cancelled", "The push was cancelled.", kind="conflict")
        if volatile.unpublished.get(key) == failure.code:
            events = ()
        known = dict([*known.items(), (key, failure.code)][-_UNPUBLISHED:])
    return Decision(
        events=events,
        effects=(Answer(key=key, outcome=outcome),),
        volatile=replace(volatile, unpublished=known),
    )


def _release(model_id: str, force: bool) -> Tell:
    return Tell(command=Release(model_id=model_id, force=force))


def _unknown(model_id: str) -> Decision[LibraryVolatile]:
    return Decision(reply=refuse("not_found", f"There is no model {model_id}.", kind="not_found"))


def _without(mapping: Mapping[str, V], key: str) -> dict[str, V]:
    return {one: value for one, value in mapping.items() if one != key}


def _remove_key(model_id: str) -> str:
    return f"remove/{model_id}"


def _tag_key(model_id: str, tag: str) -> str:
    return f"tag/{model_id}/{tag}"


def _repackage_key(model_id: str, tag: str) -> str:
    return f"repackage/{model_id}/{tag}"


def _push_key(reference: str, model_id: str) -> str:
    return f"push/{reference}@{model_id}"
