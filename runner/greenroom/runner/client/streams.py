"""Answers that come bit by bit, as iterators."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import islice
from typing import Generic, Self, TypeVar

from greenroom.runner.client.access import Access
from greenroom.runner.client.calls import Call, TextCall
from greenroom.runner.client.errors import Unreachable
from greenroom.runner.client.http_client import HttpClient
from greenroom.runner.client.results import JobProgress, TextResult

S = TypeVar("S")
R = TypeVar("R")
AGENT = {"User-Agent": "greenroom-python"}


class StepStream(Iterator[S], Generic[S, R]):
    """The steps of one call, in the order in which they come.

    The request is sent with the first step that is asked for. `close`, leaving a `with` block, or dropping
    the iterator ends it: a text is written no further; a job goes on if others wait for it. For one thread
    at a time. Iterating raises GreenroomError.
    """

    def __init__(self, access: Access, call: Call[S, R]) -> None:
        self._call = call
        self._steps = _steps(access, call)
        self._begun: list[S] = []

    def __next__(self) -> S:
        return self._begun.pop() if self._begun else next(self._steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self) -> Self:
        """Send the request, wait for the first step, and return this iterator, which still yields that step.

        For a service that passes the steps on: an error before the first step is raised here, before the
        service begins its own response. Raises GreenroomError.
        """
        if not self._begun:
            self._begun = list(islice(self._steps, 1))
        return self

    def close(self) -> None:
        """End the request. Idempotent."""
        self._begun.clear()
        self._steps.close()

    def result(self) -> R:
        """Take the steps that are left, and return what came of it all. Raises GreenroomError."""
        for _ in self._steps:
            pass
        return self._call.finish()


class TextStream(StepStream[str, TextResult]):
    """A text as the model generates it, piece by piece, without the reasoning.

    For one thread at a time. Asking for the first piece sends the request; closing the stream ends it.
    Iterating may raise GreenroomError; `so_far` then has the text received until then.
    """

    def __init__(self, access: Access, call: TextCall) -> None:
        super().__init__(access, call)
        self._text = call

    @property
    def so_far(self) -> TextResult:
        """What has come until now, with the reasoning."""
        return self._text.so_far()


class ProgressStream(StepStream[JobProgress, R]):
    """The progress of a job, step by step. For one thread at a time.

    Asking for the first step starts the job. Closing the stream cancels it, unless others wait for the same
    job.
    """


def _steps(access: Access, call: Call[S, R]) -> Generator[S]:
    try:
        yield from _from(access.http(), call)
    except Unreachable as gone:
        access.lost()
        if gone.sent:
            raise
        # The daemon has moved, or ended: it is looked for again, or started.
        yield from _from(access.http(), call)


def _from(http: HttpClient, call: Call[S, R]) -> Generator[S]:
    call.url = http.url
    with http.open(
        call.method, call.path, call.body, accept=call.accept, headers=AGENT, timeout=call.timeout
    ) as answer:
        for line in answer.lines():
            yield from call.take(line)
