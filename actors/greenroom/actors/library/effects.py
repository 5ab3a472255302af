"""Effects of the library, performed by the puller."""

from __future__ import annotations

from greenroom.actors.kernel.core import Effect


class FetchModel(Effect, frozen=True, kw_only=True):
    """Begin an attempt at a pull. Reports ModelCommitted, PullAttemptFailed or PullCancelled."""

    job: str
    reference: str
    attempt: int = 1
    token: str = ""
    force: bool = False
    origin: str = ""
    copy: bool = False


class CancelFetch(Effect, frozen=True, kw_only=True):
    """Cancel an attempt; what has arrived is kept for the next one."""

    job: str


class PublishPullProgress(Effect, frozen=True, kw_only=True):
    """Publish what a pull waits for; without a phase, that it has ended."""

    reference: str
    phase: str = ""
    message: str = ""


class InspectModels(Effect, frozen=True, kw_only=True):
    """Inspect the store. Reports ModelsSeen, or ends with a failure."""


class DeleteModel(Effect, frozen=True, kw_only=True):
    """Delete a model's files. Ends with ModelRemoved."""

    model_id: str


class AddTag(Effect, frozen=True, kw_only=True):
    """Add a tag to a model. Ends with ModelTagged; reports another for the model it is taken from."""

    model_id: str
    tag: str


class RemoveTag(Effect, frozen=True, kw_only=True):
    """Remove one of several tags. Ends with ModelTagged."""

    model_id: str
    tag: str


class StoreAgain(Effect, frozen=True, kw_only=True):
    """Store a model with another configuration. Ends with ModelCommitted; reports ModelTagged for the model
    that the tag is taken from."""

    model_id: str
    tag: str
    context_size: int | None


class SweepStore(Effect, frozen=True, kw_only=True):
    """Remove what no model needs. Ends with Pruned."""


class SendModel(Effect, frozen=True, kw_only=True):
    """Begin to publish a model. Reports ModelPushed or PushFailed."""

    model_id: str
    reference: str
    token: str = ""


class CancelSend(Effect, frozen=True, kw_only=True):
    """End a push."""

    reference: str
