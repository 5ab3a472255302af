"""The client for asyncio: the same calls, awaited."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack, overload

from greenroom.actors.kernel.system import start_in_thread, stop_in_thread
from greenroom.runner.client import async_http, calls
from greenroom.runner.client.access import Access
from greenroom.runner.client.calls import Call, JobCall, JsonCall, ModelSettings, TextCall
from greenroom.runner.client.client_requests import ClientRequests
from greenroom.runner.client.errors import NotAvailable, Unreachable
from greenroom.runner.client.http_client import HttpClient
from greenroom.runner.client.results import (
    InstalledBackend,
    JobProgress,
    RunningEngine,
    StoredModel,
    TextResult,
    UnloadResult,
    WhyResult,
)

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from ollama import AsyncClient as AsyncOllama
    from openai import AsyncOpenAI

    from greenroom.runner.client.client import Client
    from greenroom.runner.client.events import AsyncJournalStream
    from greenroom.runner.daemon import Greenroom
    from greenroom.runner.diagnosis.stored_events import Since, Types

S = TypeVar("S")
R = TypeVar("R")


class AsyncStepStream(AsyncIterator[S], Generic[S, R]):
    """The steps of one call, in the order in which they come.

    The request is sent with the first step that is asked for. `aclose`, leaving an `async with` block, or a
    cancelled task ends it. Iterating raises GreenroomError.
    """

    def __init__(self, access: Access, call: Call[S, R]) -> None:
        self._call = call
        self._steps = _steps(access, call)
        self._begun: list[S] = []

    async def __anext__(self) -> S:
        return self._begun.pop() if self._begun else await anext(self._steps)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def begin(self) -> Self:
        """Send the request, wait for the first step, and return this iterator, which still yields that step.

        For a service that passes the steps on: an error before the first step is raised here, before the
        service begins its own response. Raises GreenroomError.
        """
        if not self._begun:
            async for step in self._steps:
                self._begun.append(step)
                break
        return self

    async def aclose(self) -> None:
        """End the request. Idempotent."""
        self._begun.clear()
        await self._steps.aclose()

    async def result(self) -> R:
        """Take the steps that are left, and return what came of it all. Raises GreenroomError."""
        async for _ in self._steps:
            pass
        return self._call.finish()


class AsyncTextStream(AsyncStepStream[str, TextResult]):
    """A text as the model generates it, piece by piece, without the reasoning.

    For one task at a time. Asking for the first piece sends the request; closing the stream ends it.
    Iterating may raise GreenroomError; `so_far` then has the text received until then.
    """

    def __init__(self, access: Access, call: TextCall) -> None:
        super().__init__(access, call)
        self._text = call

    @property
    def so_far(self) -> TextResult:
        """What has come until now, with the reasoning."""
        return self._text.so_far()


class AsyncProgressStream(AsyncStepStream[JobProgress, R]):
    """The progress of a job, step by step. For one task at a time.

    Asking for the first step starts the job. Closing the stream cancels it, unless others wait for the same
    job.
    """


async def _steps(access: Access, call: Call[S, R]) -> AsyncGenerator[S]:
    for last in (False, True):
        try:
            async with contextlib.aclosing(async_http.steps(await _opened(access), call)) as steps:
                async for step in steps:
                    yield step
        except Unreachable as gone:
            access.lost()
            if gone.sent or last:
                raise
            # The daemon has moved, or ended: it is looked for again, or started.
        else:
            return


async def _opened(access: Access) -> HttpClient:
    opened = access.opened
    return await asyncio.to_thread(access.http) if opened is None else opened


class AsyncClient(
    ClientRequests[
        Coroutine[Any, Any, StoredModel],
        AsyncProgressStream[str],
        Coroutine[Any, Any, TextResult],
        AsyncTextStream,
        Coroutine[Any, Any, InstalledBackend],
        AsyncProgressStream[InstalledBackend],
    ]
):
    """A client for asyncio: `async with greenroom.connect() as client`.

    It has the methods of `Client`, whose docstrings describe the arguments and errors; here they are awaited,
    and with `stream=True` they return asynchronous iterators. Nothing blocks the event loop. Cancelling a
    task ends its request. Any number of tasks may use it, in any loop; each call has its own connection.
    """

    def __init__(self, client: Client, access: Access) -> None:
        self._client = client
        self._access = access

    # life

    async def __aenter__(self) -> Self:
        await start_in_thread(self._open, self._client.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _open(self) -> None:
        self._access.http()

    async def aclose(self) -> None:
        """Close it, as `Client.close` does, in a thread; it completes even if the task is cancelled."""
        await stop_in_thread(self._client.close)

    @property
    def url(self) -> str:
        """Where the Greenroom listens, once it is open: see `Client.url`. Raises NotAvailable before."""
        if (opened := self._access.opened) is None:
            raise NotAvailable("This client is not open yet.", "Use it in `async with`.", code="closed")
        return opened.url

    # models

    async def models(self) -> list[StoredModel]:
        """See `Client.models`."""
        return await self._do(calls.models())

    @overload
    async def embed(
        self, model: str, text: str, *, dimensions: int | None = None, backend: str = ""
    ) -> list[float]: ...
    @overload
    async def embed(
        self,
        model: str,
        text: list[str] | tuple[str, ...],
        *,
        dimensions: int | None = None,
        backend: str = "",
    ) -> list[list[float]]: ...
    async def embed(
        self, model: str, text: str | Sequence[str], *, dimensions: int | None = None, backend: str = ""
    ) -> list[float] | list[list[float]]:
        """The embedding of a text, or a list of embeddings for several: see `Client.embed`."""
        found = await self._do(calls.embed(model, text, backend, dimensions))
        return found[0] if isinstance(text, str) else found

    # backends and engines

    async def ps(self) -> list[RunningEngine]:
        """See `Client.ps`."""
        return await self._do(calls.ps())

    async def unload(self, *models: str, force: bool = False) -> UnloadResult:
        """Unload these models, or all idle models if none is given: see `Client.unload`."""
        return await self._do(calls.unload(models, force=force))

    async def configure(self, model: str, **settings: Unpack[ModelSettings]) -> None:
        """Change how a model is loaded from now on: see `Client.configure`."""
        await self._do(calls.configure(model, settings))

    async def why(self, name: str) -> WhyResult:
        """See `Client.why`."""
        return await self._do(calls.why(name))

    # events

    def progress(self, name: str) -> AsyncIterator[JobProgress]:
        """The progress of a model's pull or a backend's installation: see `Client.progress`."""
        return self._progress(name, calls.progress(name))

    async def _progress(self, name: str, call: JsonCall[JobProgress | None]) -> AsyncIterator[JobProgress]:
        last = None
        while (step := await self._do(call)) is not None:
            if step != last:
                yield step
            last, call = step, calls.progress(name)
            await asyncio.sleep(calls.LOOK_EVERY)

    def events(self, *, since: Since | None = None, types: Types | None = None) -> AsyncJournalStream:
        """Follow the journal: see `Client.events`.

        It starts on entering `async with`, or when the first event is asked for.
        """
        from greenroom.runner.client.events import AsyncJournalStream, EventCall

        stream = AsyncJournalStream(self._access, EventCall(since, types))
        self._client.follows(stream)
        return stream

    # other clients

    async def openai(self, **options: Any) -> AsyncOpenAI:
        """OpenAI's official client for this Greenroom, an `AsyncOpenAI`: see `Client.openai`."""
        from greenroom.runner.embedded.official import async_openai

        return async_openai(await self._place(), **options)

    async def anthropic(self, **options: Any) -> AsyncAnthropic:
        """Anthropic's official client for this Greenroom, an `AsyncAnthropic`: see `Client.anthropic`."""
        from greenroom.runner.embedded.official import async_anthropic

        return async_anthropic(await self._place(), **options)

    async def ollama(self, **options: Any) -> AsyncOllama:
        """Ollama's official client for this Greenroom, an `AsyncClient`: see `Client.ollama`."""
        from greenroom.runner.embedded.official import async_ollama

        return async_ollama(await self._place(), **options)

    # inside

    async def _place(self) -> Greenroom | str:
        http = await _opened(self._access)
        return self._access.runner or http.url

    def _pulled(
        self, model: str, call: JobCall[str], stream: bool
    ) -> Coroutine[Any, Any, StoredModel] | AsyncProgressStream[str]:
        async def stored() -> StoredModel:
            await self._do(call)
            return await self._do(calls.model(model))

        return AsyncProgressStream(self._access, call) if stream else stored()

    def _written(self, call: TextCall, stream: bool) -> Coroutine[Any, Any, TextResult] | AsyncTextStream:
        return AsyncTextStream(self._access, call) if stream else self._do(call)

    def _installed(
        self, call: JobCall[InstalledBackend], stream: bool
    ) -> Coroutine[Any, Any, InstalledBackend] | AsyncProgressStream[InstalledBackend]:
        return AsyncProgressStream(self._access, call) if stream else self._do(call)

    async def _do(self, call: Call[S, R]) -> R:
        async with AsyncStepStream(self._access, call) as steps:
            return await steps.result()

    def __repr__(self) -> str:
        return f"{self._client!r} for asyncio"
