"""The client: everything a program asks of a Greenroom, over HTTP or inside the program itself."""

from __future__ import annotations

import os
import re
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

from greenroom.runner.client import calls
from greenroom.runner.client.access import Access, DaemonAccess
from greenroom.runner.client.calls import Call, JobCall, JsonCall, ModelSettings, TextCall
from greenroom.runner.client.client_requests import ClientRequests
from greenroom.runner.client.errors import NotAvailable
from greenroom.runner.client.results import (
    InstalledBackend,
    JobProgress,
    RunningEngine,
    StoredModel,
    TextResult,
    UnloadResult,
    WhyResult,
)
from greenroom.runner.client.streams import ProgressStream, StepStream, TextStream

if TYPE_CHECKING:
    from anthropic import Anthropic
    from ollama import Client as Ollama
    from openai import OpenAI

    from greenroom.runner.client.async_client import AsyncClient
    from greenroom.runner.client.events import AsyncJournalStream, JournalStream
    from greenroom.runner.daemon import Greenroom
    from greenroom.runner.diagnosis.host_actors import HostActor
    from greenroom.runner.diagnosis.stored_events import Since, Types
    from greenroom.runner.embedded.unix_door import UnixDoor
    from greenroom.runner.http.asgi_adapter import AsgiApplication

S = TypeVar("S")
R = TypeVar("R")
_HOST_AND_PORT = re.compile(r"(?:localhost|[\w-]+(?:\.[\w-]+)+|\[[0-9a-fA-F:.]+\]):\d{1,5}")


def connect(
    target: str | os.PathLike[str] | None = None, *, start: bool = True, port: int | None = None
) -> Client:
    """A client of a daemon, which any number of programs share. Nothing is sent before the first call.

    Args:
        target: the daemon's data directory (`~` is expanded, a relative one is resolved now), or its URL
            (`http://…`, `unix:/path/of/socket`). None is the user's own daemon, as of the command line.
        start: start the daemon if it does not run. Of several programs that do this at once, one starts it.
            It goes on when they end. A URL is never started.
        port: where a daemon that is started listens; by default any free port, for the user's own 12400.

    Raises:
        BadSetting: a value cannot be used; it is a ValueError.
        TypeError: `target` is neither text nor a path.
        ValueError: `target` is a host and a port without `http://`.
    """
    if target is not None and not isinstance(target, str | os.PathLike):
        raise TypeError(f"target must be a path or a URL, not {type(target).__name__}")
    calls.truth(start, "start")
    if isinstance(target, str) and _HOST_AND_PORT.fullmatch(target):
        raise ValueError(f"{target} is not a URL: write http://{target}, or ./{target} for a data directory")
    return Client(DaemonAccess(target, start, port))


class Client(
    ClientRequests[
        StoredModel,
        ProgressStream[str],
        TextResult,
        TextStream,
        InstalledBackend,
        ProgressStream[InstalledBackend],
    ]
):
    """Asks a Greenroom: models, chats, backends.

    Made by `greenroom.connect` and `Greenroom.open`. Any number of threads may use it; each call has a
    connection of its own. It is opened by the first call, or by `with`; `async with` gives an `AsyncClient`.
    Calls raise `GreenroomError`: `RequestRefused` when Greenroom says no, `NotAvailable` and `Unreachable`
    when there is none to ask. Wrong arguments raise TypeError or ValueError before anything is sent. Ctrl-C
    and closing a stream end the request.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        access.add(self)
        self._following: weakref.WeakSet[JournalStream | AsyncJournalStream] = weakref.WeakSet()

    @classmethod
    def opened(
        cls,
        home: str | os.PathLike[str] | None,
        settings: dict[str, Any],
        on_failure: Callable[[BaseException], None] | None,
        actors: tuple[HostActor, ...],
    ) -> Client:
        """See `Greenroom.open`."""
        from greenroom.runner.client.local import open_home

        return open_home(home, settings, cls, on_failure, actors)

    @classmethod
    def inside(cls, runner: Greenroom) -> Client:
        """See `Greenroom.client`."""
        from greenroom.runner.client.local import LocalAccess

        return cls(LocalAccess(runner))

    # life

    def __enter__(self) -> Self:
        self._access.http()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> AsyncClient:
        return await self.in_asyncio().__aenter__()

    async def __aexit__(self, *_: object) -> None:
        await self.in_asyncio().aclose()

    def in_asyncio(self) -> AsyncClient:
        """This client for asyncio. Closing either one closes both. This call opens nothing yet."""
        from greenroom.runner.client.async_client import AsyncClient

        return AsyncClient(self, self._access)

    def close(self) -> None:
        """Close it. A Greenroom inside this program is stopped, with its engines, unless another client has
        it open; a daemon keeps running. Idempotent, on any thread; takes at most 60 seconds.
        """
        for stream in tuple(self._following):
            stream.close()
        self._access.close(self)

    @property
    def url(self) -> str:
        """Where the Greenroom listens; `unix:` for one inside this program. Raises NotAvailable."""
        return self._access.http().url

    # models

    def models(self) -> list[StoredModel]:
        """The models in the store, in no particular order. Raises GreenroomError.

        Those of backends that are only a URL are not stored: `openai().models.list()` has them too.
        """
        return self._do(calls.models())

    @overload
    def embed(
        self, model: str, text: str, *, dimensions: int | None = None, backend: str = ""
    ) -> list[float]: ...
    @overload
    def embed(
        self,
        model: str,
        text: list[str] | tuple[str, ...],
        *,
        dimensions: int | None = None,
        backend: str = "",
    ) -> list[list[float]]: ...
    def embed(
        self, model: str, text: str | Sequence[str], *, dimensions: int | None = None, backend: str = ""
    ) -> list[float] | list[list[float]]:
        """The embedding of a text, or those of several (2,048 at most) in their order.

        Args:
            model: its name in the store. It is loaded if necessary, as for `chat`.
            text: one or several; a text that is longer than the model's context is refused.
            dimensions: the length of an embedding, for models that support shorter ones.
            backend: the only one that may serve it.

        Raises:
            RequestRefused: as for `chat`; `not_an_embedding_model`.
        """
        found = self._do(calls.embed(model, text, backend, dimensions))
        return found[0] if isinstance(text, str) else found

    # backends and engines

    def ps(self) -> list[RunningEngine]:
        """The running engines, with their memory in bytes. Raises GreenroomError."""
        return self._do(calls.ps())

    def unload(self, *models: str, force: bool = False) -> UnloadResult:
        """Unload these models, or all idle models if none is given.

        With `force`, models in use are unloaded, too, once their requests are done. It does not wait for the
        engines to stop. The result lists the engines that were left running because they are in use. Raises
        GreenroomError: `model_not_found` for an unknown name, after the others have been unloaded.
        """
        return self._do(calls.unload(models, force=force))

    def configure(self, model: str, **settings: Unpack[ModelSettings]) -> None:
        """Change how a model is loaded from now on: see `ModelSettings`.

        The change survives restarts; settings that are absent or None stay as they are. It is refused while
        requests use the model.

        Raises:
            RequestRefused: `model_not_found`, `in_use`, or an invalid value.
        """
        self._do(calls.configure(model, settings))

    def why(self, name: str) -> WhyResult:
        """Explain the state of a model, a backend, an engine or a request: `print` shows the text.

        Raises RequestRefused with `unknown_name` for an unknown name.
        """
        return self._do(calls.why(name))

    # events

    def progress(self, name: str) -> Iterator[JobProgress]:
        """The progress of a model's pull or a backend's installation, whichever client requested it.

        It ends with the job, or at once if there is none. For the outcome, see `models`, `why` and `events`.
        """
        return self._progress(name, calls.progress(name))

    def _progress(self, name: str, call: JsonCall[JobProgress | None]) -> Iterator[JobProgress]:
        last = None
        while (step := self._do(call)) is not None:
            if step != last:
                yield step
            last, call = step, calls.progress(name)
            time.sleep(calls.LOOK_EVERY)

    def events(self, *, since: Since | None = None, types: Types | None = None) -> JournalStream:
        """Follow the journal: an iterator over each `StoredEvent`, which waits for the next one.

        If the connection is lost or the daemon ends, it resumes after the last event as soon as a daemon runs
        again (it does not start one). No event is lost or repeated. It ends only when it or this client is
        closed. Events of unknown classes are included, undecoded. A slow reader delays nothing: its events
        wait in the journal.

        Args:
            since: where to begin: after a position (an int; 0 is the beginning), after an event
                (`"scheduler/8"`), or at a time (a float: seconds since 1970, a `datetime`, or text such as
                `"2h"` ago). None is now; if the Greenroom is inside this program and has not been started,
                the events of its start are included.
            types: only events of these classes or tags (`"load_*"`). Your own classes are decoded, too.
        """
        from greenroom.runner.client.events import EventCall, JournalStream

        stream = JournalStream(self._access, EventCall(since, types))
        self._following.add(stream)
        return stream

    def follows(self, stream: AsyncJournalStream) -> None:
        """This stream, of a client for asyncio, ends with this client."""
        self._following.add(stream)

    # for other programs, and other clients

    def openai(self, **options: Any) -> OpenAI:
        """OpenAI's official client for this Greenroom; it needs no port if Greenroom is inside this program.

        `options` go to its constructor, such as `timeout`. Any thread may use it until this client is closed.
        Raises ModuleNotFoundError if the package is not installed, and NotAvailable.
        """
        from greenroom.runner.embedded.official import openai

        return openai(self._place(), **options)

    def anthropic(self, **options: Any) -> Anthropic:
        """Anthropic's official client for this Greenroom: see `openai`."""
        from greenroom.runner.embedded.official import anthropic

        return anthropic(self._place(), **options)

    def ollama(self, **options: Any) -> Ollama:
        """Ollama's official client for this Greenroom: see `openai`."""
        from greenroom.runner.embedded.official import ollama

        return ollama(self._place(), **options)

    def asgi(self, *, allowed_hosts: Collection[str] = ()) -> AsgiApplication:
        """The front door as an ASGI application: see `greenroom.runner.asgi`.

        Its lifespan opens this client and closes it. Raises NotAvailable for a daemon.
        """
        from greenroom.runner.http.app import asgi

        return asgi(self._inside("asgi"), allowed_hosts=allowed_hosts, runs=self.in_asyncio)

    def serve(self, *, uds: str | os.PathLike[str]) -> UnixDoor:
        """Open the front door on a unix socket, for other processes: see `greenroom.runner.serve`.

        Raises NotAvailable for a daemon, which is started with `greenroom serve --uds` for that.
        """
        from greenroom.runner.embedded.unix_door import serve

        runner = self._inside("serve")
        self._access.http()
        return serve(runner, uds=uds)

    # inside

    def _place(self) -> Greenroom | str:
        """What official clients ask. It is opened for that."""
        http = self._access.http()
        return self._access.runner or http.url

    def _inside(self, what: str) -> Greenroom:
        runner = self._access.runner
        if runner is None:
            raise NotAvailable(
                f"{what} is only for a Greenroom inside this program, and this one is a daemon.",
                "Open one with Greenroom.open(), or give the daemon's address to the other programs.",
                code="not_in_this_program",
                kind="invalid",
            )
        return runner

    def _pulled(self, model: str, call: JobCall[str], stream: bool) -> StoredModel | ProgressStream[str]:
        if stream:
            return ProgressStream(self._access, call)
        self._do(call)
        return self._do(calls.model(model))

    def _written(self, call: TextCall, stream: bool) -> TextResult | TextStream:
        return TextStream(self._access, call) if stream else self._do(call)

    def _installed(
        self, call: JobCall[InstalledBackend], stream: bool
    ) -> InstalledBackend | ProgressStream[InstalledBackend]:
        return ProgressStream(self._access, call) if stream else self._do(call)

    def _do(self, call: Call[S, R]) -> R:
        try:
            with StepStream(self._access, call) as steps:
                return steps.result()
        except KeyboardInterrupt as stopped:
            # The traceback ends at the program's own call, not at the line of ours that waited.
            raise stopped.with_traceback(None) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Client, (self._access,)

    def __repr__(self) -> str:
        opened = self._access.opened
        where: Any = self._access.runner.home if self._access.runner is not None else opened and opened.url
        return f"<greenroom.Client of {where or 'a daemon that was not needed yet'}>"
