"""Decisions on pulls: begin, join, cancel, and what the end of an attempt leads to."""

from __future__ import annotations

from msgspec.structs import replace

from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import Answer, Decision, Event, Later, refuse
from greenroom.actors.kernel.errors import ErrorKind, Refusal
from greenroom.actors.library.effects import CancelFetch, PublishPullProgress
from greenroom.actors.library.events import (
    ModelCommitted,
    PullAttemptFailed,
    PullCancelled,
    PullFailed,
    PullRequested,
)
from greenroom.actors.library.messages import CancelPull, LeavePull, Pull, Pulled
from greenroom.actors.library.state import LibraryState, LibraryVolatile, PullState
from greenroom.actors.retry import RetryPolicy
from greenroom.actors.values import Cancelled, Failure
from greenroom.actors.waiters import count, joined, left

_KINDS: dict[str, ErrorKind] = {
    "not_found": "not_found",
    "no_such_model": "not_found",
    "no_such_quantisation": "not_found",
    "unauthorized": "invalid",
    "bad_reference": "invalid",
    "not_absolute": "invalid",
    "not_allowed": "invalid",
    "not_a_model": "invalid",
    "unsupported_artifact": "invalid",
    "unsupported_source": "invalid",
    "cannot_run_here": "invalid",
    "conflict": "conflict",
    "name_taken": "conflict",
    "needs_copy": "conflict",
    "does_not_fit": "exhausted",
    "no_space": "exhausted",
    "read_only": "exhausted",
    "not_a_folder": "exhausted",
    "hash_mismatch": "unavailable",
    "refused": "unavailable",
    "unreachable": "unavailable",
}


def seconds_left(pull: PullState, now: Moment, policy: RetryPolicy) -> float:
    """Seconds until the next attempt may begin."""
    return max(0.0, policy.clamp(pull.retry_at, now.wall) - now.wall) if pull.retry_at else 0.0


def pull_key(reference: str) -> str:
    return f"pull/{reference}"


def refusal_of(failure: Failure) -> Refusal:
    transient = failure.kind == "transient"
    return Refusal(
        code=failure.code,
        message=failure.message,
        advice=failure.advice,
        kind=_KINDS.get(failure.code, "unavailable" if transient else "internal"),
        retry_after=30.0 if transient else 0.0,
    )


def pull(state: LibraryState, ask: Pull, now: Moment, volatile: LibraryVolatile) -> Decision[LibraryVolatile]:
    """Decide on a request for a model.

    1. The store has not been inspected in this life: the pull waits for that, a matter of milliseconds.
    2. It is to be adopted, and a pull of that name brings it from elsewhere: refused.
    3. It is in the store and only an inference request needs it: answered at once. A user's explicit pull
       also asks the source whether the model has changed; if the source does not answer, the stored one does.
    4. A pull of the same reference is under way: join it. A user's explicit pull keeps it going even if the
       request that began it is gone.
    5. It has failed repeatedly: for a while, the last failure is the answer.
    6. Otherwise a pull begins; `settle` starts its first attempt.
    """
    key = pull_key(ask.reference)
    if not volatile.looked:  # 1
        first = volatile.pending.get(ask.reference, ask)
        typed = ask if ask.wanted_by == "explicit" else first
        volatile = replace(volatile, pending={**volatile.pending, ask.reference: typed})
        return Decision(reply=Later(key), volatile=_one_more(volatile, ask))
    under_way = state.pulls.get(ask.reference)
    if under_way is not None and ask.origin not in ("", under_way.origin):  # 2
        return Decision(reply=_comes_from_elsewhere(ask, under_way))
    here = state.tagged(ask.reference)
    if ask.wanted_by == "request" and here is not None and here.id not in volatile.removing:  # 3
        return Decision(reply=ask.replied(Pulled(model=here, fresh=False)))
    events: tuple[Event, ...] = ()
    if under_way is None:
        refusal = volatile.failures.answer(
            ask.reference, ask.caller.key, now, has_changed=bool(ask.token or ask.origin) or ask.force
        )
        if refusal is not None:  # 5
            return Decision(reply=refusal)
        # 6
        job = f"pull.{state.jobs + 1}"
        volatile = replace(
            volatile,
            tokens={**volatile.tokens, job: ask.token},
            asked_by={**volatile.asked_by, job: ask.caller.key},
        )
        events = (
            PullRequested(
                job=job,
                reference=ask.reference,
                wanted_by=ask.wanted_by,
                force=ask.force,
                caller=ask.caller,
                origin=ask.origin,
                copy=ask.copy,
            ),
        )
    elif ask.wanted_by == "explicit" and (
        under_way.wanted_by == "request" or (ask.force and not under_way.force)
    ):  # 4
        force = ask.force or under_way.force
        events = (
            PullRequested(
                job=under_way.job,
                reference=ask.reference,
                wanted_by=ask.wanted_by,
                force=force,
                caller=ask.caller,
                origin=under_way.origin,
                copy=under_way.copy,
            ),
        )
    return Decision(events=events, reply=Later(key), volatile=_one_more(volatile, ask))


def cancel(
    state: LibraryState, ask: CancelPull, now: Moment, volatile: LibraryVolatile
) -> Decision[LibraryVolatile]:
    """Cancel a pull; with `leave`, only if no one else waits for it."""
    under_way = state.pulls.get(ask.reference)
    if under_way is None and ask.reference not in volatile.pending:
        return Decision(reply=ask.replied(Cancelled(ended=False)))
    if ask.leave:
        volatile = leave(LeavePull(reference=ask.reference, waiter=ask.waiter), volatile)
        if count(volatile.waiting, ask.reference):
            return Decision(reply=ask.replied(Cancelled(ended=False)), volatile=volatile)
    pending = {k: v for k, v in volatile.pending.items() if k != ask.reference}
    volatile = replace(volatile, pending=pending)
    answer = Answer(key=pull_key(ask.reference), outcome=_cancelled(ask.reason))
    if under_way is None:
        return Decision(effects=(answer,), reply=ask.replied(Cancelled(ended=True)), volatile=volatile)
    volatile = replace(
        volatile, failures=volatile.failures.came_to_nothing(_caller(under_way, volatile), now)
    )
    return Decision(
        events=(PullCancelled(job=under_way.job, reason=ask.reason),),
        effects=(CancelFetch(job=under_way.job), PublishPullProgress(reference=ask.reference), answer),
        reply=ask.replied(Cancelled(ended=True)),
        volatile=volatile,
    )


def committed(
    state: LibraryState, report: ModelCommitted, now: Moment, volatile: LibraryVolatile
) -> Decision[LibraryVolatile]:
    under_way = state.pull_of(report.job)
    if under_way is None:
        # A pull cancelled just before its last step has stored the model all the same.
        return Decision() if report.model.id in state.models else Decision(events=(report,))
    outcome = Pulled(model=report.model, fresh=report.fresh)
    failures = volatile.failures.succeeded(under_way.reference)
    seconds = max(0.0, now.wall - under_way.requested_at)
    return Decision(
        events=(replace(report, seconds=seconds),),
        effects=(Answer(key=pull_key(under_way.reference), outcome=outcome),),
        cause=under_way.cause,
        volatile=replace(volatile, failures=failures),
    )


def cancelled(state: LibraryState, report: PullCancelled) -> Decision[LibraryVolatile]:
    """The puller has ended an attempt, for example because it closes."""
    under_way = state.pull_of(report.job)
    if under_way is None:
        return Decision()
    answer = Answer(key=pull_key(under_way.reference), outcome=_cancelled(report.reason))
    inform = PublishPullProgress(reference=under_way.reference)
    return Decision(events=(report,), effects=(inform, answer), cause=under_way.cause)


def attempt_failed(
    state: LibraryState,
    report: PullAttemptFailed,
    now: Moment,
    volatile: LibraryVolatile,
    policies: tuple[RetryPolicy, RetryPolicy],
) -> Decision[LibraryVolatile]:
    """An attempt has failed. The report's `streak` is 0 if it fetched something, else 1.

    Attempts that fetch something are retried without limit, so a bad line does not end a large download. If a
    client waits, a source that has never answered is given up within seconds, by the second policy.
    """
    under_way = state.pull_of(report.job)
    if under_way is None:
        return Decision()
    failure, reference = report.failure, under_way.reference
    streak = under_way.streak + 1 if report.streak else 0
    reached = report.reached or under_way.reached
    patient = reached or not count(volatile.waiting, reference)
    policy = policies[0] if patient else policies[1]
    elapsed = now.wall - under_way.requested_at
    retry_at = policy.retry_at(failure, attempt=max(streak, 1), now=now.wall, draw=now.draw, elapsed=elapsed)
    if retry_at is not None:
        failed = replace(report, attempt=under_way.attempt, retry_at=retry_at, streak=streak, reached=reached)
        inform = PublishPullProgress(reference=reference, phase="waiting_to_retry", message=failure.message)
        return Decision(events=(failed,), effects=(inform,), cause=under_way.cause)
    refusal = refusal_of(failure)
    failures = volatile.failures.failed(reference, refusal, _caller(under_way, volatile), now)
    return Decision(
        events=(PullFailed(job=under_way.job, failure=failure),),
        effects=(PublishPullProgress(reference=reference), Answer(key=pull_key(reference), outcome=refusal)),
        cause=under_way.cause,
        volatile=replace(volatile, failures=failures),
    )


def leave(ask: LeavePull, volatile: LibraryVolatile) -> LibraryVolatile:
    return replace(volatile, waiting=left(volatile.waiting, ask.reference, ask.waiter))


def _comes_from_elsewhere(ask: Pull, under_way: PullState) -> Refusal:
    return refuse(
        "conflict",
        f"{ask.reference} is being pulled from {under_way.origin or 'its source'}.",
        advice="Wait for that or cancel it, or adopt the model under another name.",
        kind="conflict",
    )


def _caller(pull: PullState, volatile: LibraryVolatile) -> str:
    return volatile.asked_by.get(pull.job, "")


def _one_more(volatile: LibraryVolatile, ask: Pull) -> LibraryVolatile:
    return replace(volatile, waiting=joined(volatile.waiting, ask.reference, ask.waiter))


def _cancelled(reason: str) -> Refusal:
    return refuse(
        "cancelled",
        f"The pull was cancelled: {reason}.",
        advice="Downloaded data is kept. Pull it again to continue; to delete the data: greenroom prune",
        kind="conflict",
    )
