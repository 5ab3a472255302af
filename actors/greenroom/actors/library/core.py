"""The library: the models in the store, their names, and the pulls that fetch them.

Pulls are jobs: one at a time for each reference, independent of the client that asked first, and retried by
tenacity's policies. Only the daemon writes to the store, and inspects it at every start.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Answer,
    Command,
    Decision,
    Effect,
    Event,
    Fault,
    Later,
    NotUnderstood,
    Recovered,
    SingleStream,
    Stored,
    Tell,
    events_of,
    fault,
    not_storable,
)
from greenroom.actors.library import events as library_events
from greenroom.actors.library import pulls
from greenroom.actors.library import store_changes as changes
from greenroom.actors.library.effects import FetchModel, InspectModels
from greenroom.actors.library.events import (
    ModelCommitted,
    ModelPushed,
    ModelRemoved,
    ModelTagged,
    PullAttemptFailed,
    PullCancelled,
    PullFailed,
    PushFailed,
)
from greenroom.actors.library.messages import (
    LIBRARY,
    CancelPull,
    CancelPush,
    LeavePull,
    ModelList,
    ModelsSeen,
    NoteDamage,
    NoteModel,
    Prune,
    Pull,
    Push,
    Released,
    RemoveModel,
    RepackageModel,
    TagModel,
)
from greenroom.actors.library.state import LibraryState, LibraryVolatile, apply
from greenroom.actors.reports import EffectEnded, Happened
from greenroom.actors.retry import CONTACT_RETRIES, PULL_RETRIES, RetryPolicy
from greenroom.actors.values import Failure, RequestSnapshot

_TELL_EVERY = 5.0
_LOOK_AGAIN_AFTER = 30.0

_OURS = Failure(
    kind="permanent",
    code="internal",
    message="Greenroom failed while pulling this model.",
    advice="Please report it; see: greenroom log --kind command_parked",
    blame="ours",
)


class Library(SingleStream[LibraryState]):
    address = LIBRARY
    event_types = events_of(library_events)

    def __init__(self, retries: RetryPolicy = PULL_RETRIES, contact: RetryPolicy = CONTACT_RETRIES) -> None:
        """`retries` is the policy for pulls; `contact` for sources that have never answered."""
        self._policies = (retries, contact)

    def initial(self) -> LibraryState:
        return LibraryState()

    def initial_volatile(self) -> LibraryVolatile:
        return LibraryVolatile()

    def apply(self, state: LibraryState, stored: Stored[Any]) -> LibraryState:
        return apply(state, stored)

    def decide(
        self, state: LibraryState, command: Command[Any], now: Moment, volatile: LibraryVolatile
    ) -> Decision[LibraryVolatile]:
        match command:
            case Pull():
                return pulls.pull(state, command, now, volatile)
            case LeavePull():
                return Decision(volatile=pulls.leave(command, volatile))
            case CancelPull():
                return pulls.cancel(state, command, now, volatile)
            case RemoveModel():
                return changes.remove(state, command, now, volatile)
            case Released():
                return changes.released(state, command, volatile)
            case TagModel():
                return changes.tag(state, command)
            case RepackageModel():
                return changes.repackage(state, command)
            case NoteModel():
                return changes.note(state, command)
            case NoteDamage():
                return changes.note_damage(state, command)
            case Prune():
                return changes.prune()
            case Push():
                return changes.push(state, command, volatile)
            case CancelPush():
                return changes.cancel_push(command, volatile)
            case RequestSnapshot():
                return Decision(volatile=replace(volatile, told=-1))
            case Recovered():
                volatile = replace(volatile, looking_since=now.monotonic)
                return Decision(effects=(InspectModels(),), volatile=volatile)
            case ModelsSeen():
                return self._seen_in_store(state, command, now, volatile)
            case Happened(event=event):
                return self._happened(state, command, event, now, volatile)
            case EffectEnded(effect=InspectModels()):
                # A failed look is no reason to believe that everything is gone.
                return Decision(volatile=replace(volatile, looked=True))
            case EffectEnded():
                return changes.ended(state, command, volatile)
            case _:
                raise NotUnderstood(self.address, command)

    def _happened(
        self, state: LibraryState, command: Command[Any], event: Event, now: Moment, volatile: LibraryVolatile
    ) -> Decision[LibraryVolatile]:
        match event:
            case ModelCommitted():
                return pulls.committed(state, event, now, volatile)
            case PullAttemptFailed():
                return pulls.attempt_failed(state, event, now, volatile, self._policies)
            case PullCancelled():
                return pulls.cancelled(state, event)
            case ModelTagged():
                cause = command.cause if isinstance(command, Happened) else ""
                return Decision(events=(event,), cause=cause)
            case ModelPushed() | PushFailed():
                return changes.push_ended(event, volatile)
            case _:
                raise NotUnderstood(self.address, command)

    def _seen_in_store(
        self, state: LibraryState, report: ModelsSeen, now: Moment, volatile: LibraryVolatile
    ) -> Decision[LibraryVolatile]:
        """Reconcile the journal with the contents of the store.

        1. In the store but unknown, known with other tags, or with layers that an older version did not read:
           recorded as it is. If the store's index was lost, tags that the journal knows and no model in the
           store has are put back instead.
        2. Known but not in the store: removed.
        3. A pull from an earlier life goes on if a user requested it, and ends if only a request needed it.
           A pull that is running is left alone: this actor was rebuilt, and the puller will report its end.
        """
        if volatile.looked:
            # Models may have been committed since this look began.
            return Decision()
        there = {model.id: model for model in report.models}
        events: list[Event] = []
        fetched = {begun for begun, _ in volatile.fetching} | set(report.running)
        lost = changes.lost_tags(state, report)
        for model in report.models:  # 1
            known = state.models.get(model.id)
            if known is None:
                pull = next((state.pulls[tag] for tag in model.tags if tag in state.pulls), None)
                job = pull.job if pull is not None and pull.job not in fetched else ""
                events.append(ModelCommitted(job=job, model=model))
            elif known.layers is None and model.layers is not None:
                events.append(ModelCommitted(job="", model=model))
            elif known.tags != model.tags and not any(tag.model_id == model.id for tag in lost):
                events.append(ModelTagged(model_id=model.id, tags=model.tags))
        events += [
            ModelRemoved(model_id=one, reason="it is no longer in the store")
            for one in state.models
            if one not in there
        ]  # 2
        done = {event.job for event in events if isinstance(event, ModelCommitted)}
        for pull in state.pulls.values():  # 3
            if pull.job in fetched or pull.job in done:
                continue
            if pull.wanted_by == "request":
                reason = "the daemon restarted, which ended the request that needed it"
                events.append(PullCancelled(job=pull.job, reason=reason))
            elif pull.retry_at <= now.wall:
                failure = Failure(
                    kind="transient", code="daemon_restarted", message="The daemon stopped during the pull."
                )
                events.append(
                    PullAttemptFailed(
                        job=pull.job,
                        attempt=pull.attempt,
                        failure=failure,
                        retry_at=now.wall,
                        streak=pull.streak,
                        reached=pull.reached,
                    )
                )
        volatile = replace(volatile, looked=True)
        return Decision(events=tuple(events), effects=lost, volatile=volatile)

    def settle(
        self, state: LibraryState, now: Moment, volatile: LibraryVolatile
    ) -> Decision[LibraryVolatile]:
        """What follows from the state as it stands.

        1. The store has not been inspected: nothing yet; if that takes too long, inspect it again.
        2. Decide on pulls that waited for the inspection.
        3. Begin attempts that are due and have not begun in this life.
        4. Repeat the request to release a model that is being removed, if the scheduler has not answered.
        5. After a change, and every few seconds, send the scheduler the whole list.
        """
        volatile = self._pruned(state, volatile)
        if not volatile.looked:  # 1
            if now.monotonic - volatile.looking_since < _LOOK_AGAIN_AFTER:
                return Decision(volatile=volatile)
            volatile = replace(volatile, looking_since=now.monotonic)
            return Decision(effects=(InspectModels(),), volatile=volatile)
        effects: list[Effect] = []
        faults: list[Fault] = []
        for ask in volatile.pending.values():  # 2
            waiting = volatile.waiting
            pending = {k: v for k, v in volatile.pending.items() if k != ask.reference}
            try:
                decision = pulls.pull(state, ask, now, replace(volatile, pending=pending))
            except Exception as error:  # noqa: BLE001 - it costs only this pull
                faults.append(fault(error, doing="begin a pull", about=ask.reference))
                decision = Decision(reply=pulls.refusal_of(_OURS))
            # The waiter was counted when it arrived.
            volatile = replace(decision.volatile or volatile, pending=pending, waiting=waiting)
            if decision.events:
                full = Answer(key=pulls.pull_key(ask.reference), outcome=not_storable())
                return replace(
                    decision,
                    volatile=volatile,
                    effects=tuple(effects),
                    faults=tuple(faults),
                    reply=None,
                    if_not_stored=Decision(effects=(*effects, full), volatile=volatile),
                )
            if not isinstance(decision.reply, Later):
                effects.append(Answer(key=pulls.pull_key(ask.reference), outcome=decision.reply))
        wakes: list[float] = []
        fetching, due = set(volatile.fetching), dict(volatile.due)
        for pull in state.pulls.values():  # 3
            if (pull.job, pull.attempt) in fetching:
                continue
            key = f"{pull.job}/{pull.attempt}"
            try:
                due.setdefault(key, now.monotonic + pulls.seconds_left(pull, now, self._policies[0]))
            except Exception as error:  # noqa: BLE001 - it costs only this pull
                faults.append(fault(error, doing="go on with a pull", about=pull.job))
                ended = Answer(key=pulls.pull_key(pull.reference), outcome=pulls.refusal_of(_OURS))
                unstored = Decision(
                    effects=(*effects, ended),
                    volatile=replace(volatile, fetching=frozenset(fetching), due=due),
                    faults=tuple(faults),
                )
                failed = (PullFailed(job=pull.job, failure=_OURS),)
                return replace(unstored, events=failed, cause=pull.cause, if_not_stored=unstored)
            if due[key] <= now.monotonic:
                fetching.add((pull.job, pull.attempt))
                effects.append(
                    FetchModel(
                        job=pull.job,
                        reference=pull.reference,
                        attempt=pull.attempt,
                        token=volatile.tokens.get(pull.job, ""),
                        force=pull.force,
                        origin=pull.origin,
                        copy=pull.copy,
                    )
                )
            else:
                wakes.append(due[key])
        volatile = replace(volatile, fetching=frozenset(fetching), due=due)
        volatile, again, later = changes.ask_again(now, volatile)  # 4
        effects += again
        wakes += later
        if volatile.told != state.version or now.monotonic - volatile.told_at >= _TELL_EVERY:  # 5
            effects.append(Tell(command=self.list_of(state, volatile)))
            volatile = replace(volatile, told=state.version, told_at=now.monotonic)
        return Decision(
            effects=tuple(effects), volatile=volatile, wake_at=min(wakes, default=None), faults=tuple(faults)
        )

    def _pruned(self, state: LibraryState, volatile: LibraryVolatile) -> LibraryVolatile:
        """Drop what belongs to finished pulls, above all their tokens."""
        jobs = {pull.job for pull in state.pulls.values()}
        wanted = state.pulls.keys() | volatile.pending.keys()
        return replace(
            volatile,
            fetching=frozenset(one for one in volatile.fetching if one[0] in jobs),
            due={key: at for key, at in volatile.due.items() if key.rpartition("/")[0] in jobs},
            waiting={one: names for one, names in volatile.waiting.items() if one in wanted},
            tokens={job: token for job, token in volatile.tokens.items() if job in jobs},
            asked_by={job: caller for job, caller in volatile.asked_by.items() if job in jobs},
        )

    def list_of(self, state: LibraryState, volatile: LibraryVolatile) -> ModelList:
        """All models except those whose files are being deleted."""
        leaving = {model_id for model_id, removal in volatile.removing.items() if removal.released}
        models = tuple(model for model in state.models.values() if model.id not in leaving)
        return ModelList(models=models, version=state.version)
