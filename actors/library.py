"""The library: which models lie in the store, under which names, and the pulls that bring them.

Pulls are jobs: single flight for each reference, they outlive whoever asked first, and are tried again by
tenacity's policies. Only the daemon writes the store; what lies in it is looked at in every new life.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from greenroom.actors import events as ev
from greenroom.actors import messages as msg
from greenroom.actors.effects import AddTag, CancelFetch, DeleteModel, FetchModel, LookAtModels, RemoveTag
from greenroom.actors.facts import Failure
from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import (
    Address,
    Answer,
    Command,
    Decision,
    Effect,
    Event,
    Later,
    Recovered,
    Stored,
    Tell,
    refuse,
)
from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.library_state import LibrarySeen, LibraryState, apply
from greenroom.actors.retry import PULL_RETRIES, RetryPolicy

_TELL_EVERY = 5.0
_LOOK_AGAIN_AFTER = 30.0
_STATUS = {
    "not_found": 404,
    "unauthorized": 401,
    "bad_reference": 400,
    "not_a_model": 422,
    "unsupported_source": 422,
    "no_space": 507,
    "unreachable": 503,
}


class Library:
    """The pure core; see the module's text."""

    address: Address = msg.LIBRARY
    event_types: Sequence[type[Event]] = (
        ev.PullRequested,
        ev.PullAttemptFailed,
        ev.ModelCommitted,
        ev.PullFailed,
        ev.PullCancelled,
        ev.ModelTagged,
        ev.ModelRemoved,
    )

    def __init__(self, retries: RetryPolicy = PULL_RETRIES) -> None:
        """`retries` says how often a pull is tried again."""
        self._retries = retries

    def claims(self, stream: str) -> bool:
        """`library`."""
        return stream == "library"

    def stream_of(self, _event: Event) -> str:
        """`library`."""
        return "library"

    def initial(self) -> LibraryState:
        """No models."""
        return LibraryState()

    def unseen(self) -> LibrarySeen:
        """Nothing seen."""
        return LibrarySeen()

    def apply(self, state: LibraryState, stored: Stored[Any]) -> LibraryState:
        """Fold one event."""
        return apply(state, stored)

    # decide

    def decide(
        self, state: LibraryState, command: Command, now: Moment, seen: LibrarySeen
    ) -> Decision[LibrarySeen]:
        """One command."""
        match command:
            case msg.Pull():
                return self._pull(state, command, seen)
            case msg.CancelPull():
                return self._cancel(state, command, seen)
            case msg.RemoveModel():
                return self._remove(state, command, seen)
            case msg.TagModel():
                return self._tag(state, command)
            case msg.PullCommitted():
                return self._committed(state, command, now)
            case msg.PullAttemptEnded():
                return self._attempt_ended(state, command, now)
            case msg.ModelsSeen():
                return self._seen_in_store(state, command, now, seen)
            case msg.ModelGone():
                return self._gone(state, command, seen)
            case msg.TagsWritten():
                outcome: msg.Tagged | Refusal
                if command.failure is not None:
                    outcome = _refusal(command.failure)
                    events: tuple[Event, ...] = ()
                else:
                    outcome = msg.Tagged(tags=command.tags)
                    events = (ev.ModelTagged(model_id=command.model_id, tags=command.tags),)
                return Decision(
                    events=events, effects=(Answer(key=_tag_key(command.model_id), outcome=outcome),)
                )
            case msg.RollCall():
                return Decision(seen=msgspec.structs.replace(seen, told=-1))
            case Recovered():
                seen = msgspec.structs.replace(seen, looking_since=now.monotonic)
                return Decision(effects=(LookAtModels(),), seen=seen)
            case _:
                raise TypeError(f"the library does not know {type(command).__name__}")

    def _pull(self, state: LibraryState, ask: msg.Pull, seen: LibrarySeen) -> Decision[LibrarySeen]:
        """Decide on a wish for a model.

        1. The store has not been looked at in this life: the look comes first, it is a matter of ms.
        2. It is here: answered at once.
        3. A pull of the same reference is under way: join it; what a person typed goes on even when the
           request that began it is gone.
        4. Otherwise a pull begins; `settle` starts its first attempt.
        """
        key = _pull_key(ask.reference)
        if not seen.looked:  # 1
            first = seen.pending.get(ask.reference, ask)
            typed = ask if ask.wanted_by == "explicit" else first
            seen = msgspec.structs.replace(seen, pending={**seen.pending, ask.reference: typed})
            return Decision(reply=Later(key), seen=_one_more(seen, ask.reference))
        here = state.tagged(ask.reference)
        if here is not None and here.id not in seen.removing:  # 2
            return Decision(reply=msg.Pulled(model=here, fresh=False))
        events: tuple[Event, ...] = ()
        under_way = state.pulls.get(ask.reference)
        if under_way is None:  # 4
            job = f"pull.{state.jobs + 1}"
            seen = msgspec.structs.replace(seen, tokens={**seen.tokens, job: ask.token})
            events = (ev.PullRequested(job=job, reference=ask.reference, wanted_by=ask.wanted_by),)
        elif under_way.wanted_by == "request" and ask.wanted_by == "explicit":  # 3
            again = ev.PullRequested(job=under_way.job, reference=ask.reference, wanted_by=ask.wanted_by)
            events = (again,)
        return Decision(events=events, reply=Later(key), seen=_one_more(seen, ask.reference))

    def _cancel(self, state: LibraryState, ask: msg.CancelPull, seen: LibrarySeen) -> Decision[LibrarySeen]:
        """End a pull; with `leave`, only when nobody else wants it."""
        pull = state.pulls.get(ask.reference)
        if pull is None and ask.reference not in seen.pending:
            return Decision(reply=msg.Cancelled(ended=False))
        if ask.leave:
            others = max(seen.waiting.get(ask.reference, 0) - 1, 0)
            seen = msgspec.structs.replace(seen, waiting={**seen.waiting, ask.reference: others})
            if others:
                return Decision(reply=msg.Cancelled(ended=False), seen=seen)
        pending = {k: v for k, v in seen.pending.items() if k != ask.reference}
        seen = msgspec.structs.replace(seen, pending=pending)
        answer = Answer(key=_pull_key(ask.reference), outcome=_cancelled(ask.reason))
        if pull is None:
            return Decision(effects=(answer,), reply=msg.Cancelled(ended=True), seen=seen)
        return Decision(
            events=(ev.PullCancelled(job=pull.job, reason=ask.reason),),
            effects=(CancelFetch(job=pull.job), answer),
            reply=msg.Cancelled(ended=True),
            seen=seen,
        )

    def _remove(self, state: LibraryState, ask: msg.RemoveModel, seen: LibrarySeen) -> Decision[LibrarySeen]:
        """Remove a tag (answered with `Tagged`), and with the last one the model (`Removed`)."""
        model = state.models.get(ask.model_id)
        if model is None:
            return Decision(reply=refuse("not_found", f"There is no model {ask.model_id}.", status=404))
        if ask.tag and ask.tag not in model.tags:
            message = f"{model.id[7:19]} has no tag {ask.tag}."
            return Decision(reply=refuse("not_found", message, status=404))
        if model.id in seen.removing:
            return Decision(reply=Later(_remove_key(model.id)))
        if ask.tag and len(model.tags) > 1:
            return Decision(
                effects=(RemoveTag(model_id=model.id, tag=ask.tag),),
                reply=Later(_tag_key(model.id)),
            )
        if len(model.tags) > 1 and not ask.force:
            return Decision(
                reply=refuse(
                    "conflict",
                    f"{model.id[7:19]} has {len(model.tags)} tags: {', '.join(model.tags)}.",
                    advice="Remove one tag, or all of them with --force.",
                    status=409,
                )
            )
        return Decision(
            effects=(DeleteModel(model_id=model.id),),
            reply=Later(_remove_key(model.id)),
            seen=msgspec.structs.replace(seen, removing=seen.removing | {model.id}),
        )

    def _tag(self, state: LibraryState, ask: msg.TagModel) -> Decision[LibrarySeen]:
        model = state.models.get(ask.model_id)
        if model is None:
            return Decision(reply=refuse("not_found", f"There is no model {ask.model_id}.", status=404))
        if ask.tag in model.tags:
            return Decision(reply=msg.Tagged(tags=model.tags))
        return Decision(
            effects=(AddTag(model_id=model.id, tag=ask.tag),),
            reply=Later(_tag_key(model.id)),
        )

    def _committed(
        self, state: LibraryState, report: msg.PullCommitted, now: Moment
    ) -> Decision[LibrarySeen]:
        pull = state.pull_of(report.job)
        if pull is None and report.model.id in state.models:
            return Decision()
        # Of a pull that was cancelled a moment before its last step, the model is there all the same.
        effects: tuple[Effect, ...] = ()
        if pull is not None:
            effects = (
                Answer(key=_pull_key(pull.reference), outcome=msg.Pulled(model=report.model, fresh=True)),
            )
        return Decision(
            effects=effects,
            events=(
                ev.ModelCommitted(
                    job=report.job,
                    model=report.model,
                    seconds=max(0.0, now.wall - pull.requested_at) if pull is not None else 0.0,
                ),
            ),
            cause=pull.cause if pull is not None else "",
        )

    def _attempt_ended(
        self, state: LibraryState, report: msg.PullAttemptEnded, now: Moment
    ) -> Decision[LibrarySeen]:
        pull = state.pull_of(report.job)
        if pull is None:
            return Decision()
        failure = report.failure
        event: Event
        retry_at = (
            self._retries.retry_at(pull.attempt, now.wall, now.draw) if failure.kind == "transient" else None
        )
        outcome: Refusal | None = None
        if failure.kind == "cancelled":
            event = ev.PullCancelled(job=pull.job, reason=failure.message)
            outcome = _cancelled(failure.message)
        elif retry_at is not None:
            event = ev.PullAttemptFailed(
                job=pull.job, attempt=pull.attempt, failure=failure, retry_at=retry_at
            )
        else:
            event = ev.PullFailed(job=pull.job, failure=failure)
            outcome = _refusal(failure)
        effects: tuple[Effect, ...] = ()
        if outcome is not None:
            effects = (Answer(key=_pull_key(pull.reference), outcome=outcome),)
        return Decision(events=(event,), effects=effects, cause=pull.cause)

    def _seen_in_store(
        self, state: LibraryState, report: msg.ModelsSeen, now: Moment, seen: LibrarySeen
    ) -> Decision[LibrarySeen]:
        """Settle what the journal says with what lies in the store.

        1. There and not known, or known under other tags: recorded as it is.
        2. Known and not there: removed.
        3. A pull of an earlier life: it goes on if somebody typed it, and ends if a request wanted it.
        """
        if seen.looked:
            # This look may have begun before what has been committed since.
            return Decision()
        if report.failure is not None:
            # Not being able to look is no reason to believe that everything is gone.
            return Decision(seen=msgspec.structs.replace(seen, looked=True))
        there = {model.id: model for model in report.models}
        events: list[Event] = []
        fetched = {begun for begun, _ in seen.fetching}
        for model in report.models:  # 1
            known = state.models.get(model.id)
            if known is None:
                pull = next((state.pulls[tag] for tag in model.tags if tag in state.pulls), None)
                job = pull.job if pull is not None and pull.job not in fetched else ""
                events.append(ev.ModelCommitted(job=job, model=model))
            elif known.tags != model.tags:
                events.append(ev.ModelTagged(model_id=model.id, tags=model.tags))
        events += [
            ev.ModelRemoved(model_id=one, reason="it is not in the store any more")
            for one in state.models
            if one not in there
        ]  # 2
        done = {event.job for event in events if isinstance(event, ev.ModelCommitted)}
        for pull in state.pulls.values():  # 3
            if pull.job in fetched or pull.job in done:
                continue
            if pull.wanted_by == "request":
                reason = "the daemon restarted and the request that wanted it is gone"
                events.append(ev.PullCancelled(job=pull.job, reason=reason))
            elif pull.retry_at <= now.wall:
                failure = Failure(
                    kind="transient",
                    code="daemon_restarted",
                    message="The daemon ended in the middle of the pull.",
                )
                events.append(
                    ev.PullAttemptFailed(
                        job=pull.job, attempt=pull.attempt, failure=failure, retry_at=now.wall
                    )
                )
        return Decision(events=tuple(events), seen=msgspec.structs.replace(seen, looked=True))

    def _gone(self, state: LibraryState, report: msg.ModelGone, seen: LibrarySeen) -> Decision[LibrarySeen]:
        seen = msgspec.structs.replace(seen, removing=seen.removing - {report.model_id})
        key = _remove_key(report.model_id)
        if report.failure is not None:
            return Decision(effects=(Answer(key=key, outcome=_refusal(report.failure)),), seen=seen)
        model = state.models.get(report.model_id)
        if model is None:
            return Decision(seen=seen)
        outcome = msg.Removed(untagged=model.tags, deleted=(model.id,), freed=report.freed)
        event = ev.ModelRemoved(model_id=model.id, reason="removed by the user", freed=report.freed)
        return Decision(events=(event,), effects=(Answer(key=key, outcome=outcome),), seen=seen)

    def react(self, _state: LibraryState, _stored: Stored[Any]) -> Sequence[Effect]:
        """Nothing: who waits for a pull is answered by what decides on its end."""
        return ()

    # settle

    def settle(self, state: LibraryState, now: Moment, seen: LibrarySeen) -> Decision[LibrarySeen]:
        """What follows.

        1. The store has not been looked at: nothing yet; if that takes too long, another look.
        2. A wish that waited for the look is decided on.
        3. A pull whose attempt is due and not begun in this life: begin it.
        4. Whatever changed, or every few seconds: tell the scheduler the whole list.
        """
        seen = self._pruned(state, seen)
        if not seen.looked:  # 1
            if now.monotonic - seen.looking_since < _LOOK_AGAIN_AFTER:
                return Decision(seen=seen)
            seen = msgspec.structs.replace(seen, looking_since=now.monotonic)
            return Decision(effects=(LookAtModels(),), seen=seen)
        effects: list[Effect] = []
        for ask in seen.pending.values():  # 2
            waiting = seen.waiting
            pending = {k: v for k, v in seen.pending.items() if k != ask.reference}
            decision = self._pull(state, ask, msgspec.structs.replace(seen, pending=pending))
            # It has been counted already, when it came.
            seen = msgspec.structs.replace(decision.seen or seen, pending=pending, waiting=waiting)
            if decision.events:
                return msgspec.structs.replace(decision, seen=seen, effects=tuple(effects), reply=None)
            if not isinstance(decision.reply, Later):
                effects.append(Answer(key=_pull_key(ask.reference), outcome=decision.reply))
        wakes: list[float] = []
        fetching, due = set(seen.fetching), dict(seen.due)
        for pull in state.pulls.values():  # 3
            if (pull.job, pull.attempt) in fetching:
                continue
            key = f"{pull.job}/{pull.attempt}"
            if key not in due:
                wait = self._retries.clamp(pull.retry_at, now.wall) - now.wall if pull.retry_at else 0.0
                due[key] = now.monotonic + max(0.0, wait)
            if due[key] <= now.monotonic:
                fetching.add((pull.job, pull.attempt))
                effects.append(
                    FetchModel(job=pull.job, reference=pull.reference, token=seen.tokens.get(pull.job, ""))
                )
            else:
                wakes.append(due[key])
        seen = msgspec.structs.replace(seen, fetching=frozenset(fetching), due=due)
        if seen.told != state.version or now.monotonic - seen.told_at >= _TELL_EVERY:  # 4
            effects.append(Tell(to=msg.SCHEDULER, command=self.list_of(state)))
            seen = msgspec.structs.replace(seen, told=state.version, told_at=now.monotonic)
        return Decision(effects=tuple(effects), seen=seen, wake_at=min(wakes, default=None))

    def _pruned(self, state: LibraryState, seen: LibrarySeen) -> LibrarySeen:
        """Forget what belongs to pulls that are over, their tokens above all."""
        jobs = {pull.job for pull in state.pulls.values()}
        wanted = state.pulls.keys() | seen.pending.keys()
        return msgspec.structs.replace(
            seen,
            fetching=frozenset(one for one in seen.fetching if one[0] in jobs),
            due={key: at for key, at in seen.due.items() if key.rpartition("/")[0] in jobs},
            waiting={one: count for one, count in seen.waiting.items() if one in wanted},
            tokens={job: token for job, token in seen.tokens.items() if job in jobs},
        )

    def list_of(self, state: LibraryState) -> msg.ModelList:
        """All models."""
        return msg.ModelList(models=tuple(state.models.values()), version=state.version)


def _one_more(seen: LibrarySeen, reference: str) -> LibrarySeen:
    count = seen.waiting.get(reference, 0) + 1
    return msgspec.structs.replace(seen, waiting={**seen.waiting, reference: count})


def _pull_key(reference: str) -> str:
    return f"pull/{reference}"


def _cancelled(reason: str) -> Refusal:
    return refuse("cancelled", f"The pull was cancelled: {reason}.", status=409)


def _remove_key(model_id: str) -> str:
    return f"remove/{model_id}"


def _tag_key(model_id: str) -> str:
    return f"tag/{model_id}"


def _refusal(failure: Failure) -> Refusal:
    transient = failure.kind == "transient"
    return Refusal(
        code=failure.code,
        message=failure.message,
        advice=failure.advice,
        status=_STATUS.get(failure.code, 503 if transient else 500),
        retry_after=30.0 if transient else 0.0,
    )


__all__ = ["Library", "LibraryState"]
