"""The one pair of exceptions effects raise; each carries what the user is told.

Exception
├── JobFailed      a step did not work: `failure` says whether to retry and what to do
└── JobCancelled   somebody asked the job to end
"""

from __future__ import annotations

from typing import Literal

from greenroom.actors.facts import Failure

_DETAIL_LIMIT = 4_000


class JobFailed(Exception):
    """A step of an install, pull or load did not work."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.reached = True
        """False when no server has answered at all: there may be no network."""

    @classmethod
    def transient(cls, code: str, message: str, *, advice: str = "", detail: str = "") -> JobFailed:
        """Worth another attempt: network, index, a lock held by somebody else."""
        return cls(_failure("transient", code, message, advice, detail))

    @classmethod
    def permanent(cls, code: str, message: str, *, advice: str = "", detail: str = "") -> JobFailed:
        """Another attempt would end the same way: platform, hash, space, no such version."""
        return cls(_failure("permanent", code, message, advice, detail))


class JobCancelled(Exception):
    """The job was asked to end; what it had built so far is removed."""


def _failure(
    kind: Literal["transient", "permanent"], code: str, message: str, advice: str, detail: str
) -> Failure:
    detail = _text(detail[-_DETAIL_LIMIT:])
    return Failure(kind=kind, code=code, message=_text(message), advice=_text(advice), detail=detail)


def _text(text: str) -> str:
    """File names, arguments and output may hold bytes that are no text; what is stored may not."""
    return text.encode("utf-8", "backslashreplace").decode()
