"""Hands that cannot even begin: what they were asked for has failed, and nothing else."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from greenroom.actors.library.effects import (
    AddTag,
    DeleteModel,
    FetchModel,
    RemoveTag,
    SendModel,
    StoreAgain,
    SweepStore,
)
from greenroom.actors.library.messages import (
    ModelGone,
    ModelRepackaged,
    PullAttemptEnded,
    PushEnded,
    StoreSwept,
    TagsWritten,
)
from greenroom.actors.progress import ProgressBoard
from greenroom.runner.hands import LibraryHands


class Broken:
    """A builder, host or puller of which nothing can be had."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("effect", "report"),
    [
        (FetchModel(job="p1", reference="r"), PullAttemptEnded),
        (DeleteModel(model_id="m"), ModelGone),
        (AddTag(model_id="m", tag="t"), TagsWritten),
        (RemoveTag(model_id="m", tag="t"), TagsWritten),
        (StoreAgain(model_id="m", tag="t", context_size=1), ModelRepackaged),
        (SweepStore(), StoreSwept),
        (SendModel(model_id="m", reference="r"), PushEnded),
    ],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.parametrize(
    ("error", "code", "blame"),
    [
        (RuntimeError("can't start new thread"), "no_process", "machine"),
        (OSError(errno.EMFILE, "Too many open files"), "too_many_files", "machine"),
        (ZeroDivisionError("a bug"), "internal", "ours"),
    ],
    ids=["thread", "files", "bug"],
)
def test_what_cannot_be_begun_is_reported_as_failed(
    effect: Any, report: type[Any], error: Exception, code: str, blame: str
) -> None:
    told: list[Any] = []
    board = ProgressBoard()
    tell = lambda _to, command: told.append(command)  # noqa: E731
    library = LibraryHands(tell, board)
    library.puller = Broken(error)  # type: ignore[assignment]
    library.perform(effect, "cause")
    (sent,) = told
    assert type(sent) is report
    assert (sent.failure.code, sent.failure.blame) == (code, blame)
