"""What the library asks the puller to do."""

from __future__ import annotations

from greenroom.actors.kernel.core import Effect


class FetchModel(Effect, frozen=True, kw_only=True):
    """Begin an attempt at a pull. Reports PullCommitted or PullAttemptEnded."""

    job: str
    reference: str
    token: str = ""
    force: bool = False


class CancelFetch(Effect, frozen=True, kw_only=True):
    """End an attempt; what has arrived is kept for the next one."""

    job: str


class PublishPullProgress(Effect, frozen=True, kw_only=True):
    """Say on the progress board what a pull waits for; without a phase, that it is over."""

    reference: str
    phase: str = ""
    message: str = ""


class InspectModels(Effect, frozen=True, kw_only=True):
    """Reports ModelsSeen."""


class DeleteModel(Effect, frozen=True, kw_only=True):
    """Delete a model's files. Reports ModelGone."""

    model_id: str


class AddTag(Effect, frozen=True, kw_only=True):
    """Put a tag on a model, taken from whichever had it. Reports TagsWritten for both."""

    model_id: str
    tag: str


class RemoveTag(Effect, frozen=True, kw_only=True):
    """Take a tag off a model, which stays. Reports TagsWritten."""

    model_id: str
    tag: str


class StoreAgain(Effect, frozen=True, kw_only=True):
    """Store a model with another configuration. Reports ModelRepackaged."""

    model_id: str
    tag: str
    context_size: int | None


class SweepStore(Effect, frozen=True, kw_only=True):
    """Remove what no model needs. Reports StoreSwept."""


class SendModel(Effect, frozen=True, kw_only=True):
    """Begin to publish a model. Reports PushEnded."""

    model_id: str
    reference: str
    token: str = ""


class CancelSend(Effect, frozen=True, kw_only=True):
    """End a push."""

    reference: str
