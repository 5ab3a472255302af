"""The requests with many arguments, which the clients for threads and for asyncio share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, Unpack, overload

from greenroom.runner.client import calls
from greenroom.runner.client.access import Access
from greenroom.runner.client.calls import (
    ChatOptions,
    JobCall,
    Message,
    Mode,
    OnProgress,
    TextCall,
    TextOptions,
)
from greenroom.runner.client.results import InstalledBackend

if TYPE_CHECKING:
    from greenroom.runner.client.engine_slot import EngineSlot
    from greenroom.runner.daemon import Greenroom

Pulled = TypeVar("Pulled")
Pulling = TypeVar("Pulling")
Text = TypeVar("Text")
Texts = TypeVar("Texts")
Installed = TypeVar("Installed")
Installing = TypeVar("Installing")


class ClientRequests(ABC, Generic[Pulled, Pulling, Text, Texts, Installed, Installing]):
    """The types are those of a result and of a stream: of a pull, of a text, of an installation."""

    _access: Access

    @property
    def runner(self) -> Greenroom | None:
        """The `Greenroom` inside this program, with its actors and states; None for a daemon."""
        return self._access.runner

    @overload
    def pull(
        self,
        model: str,
        *,
        stream: Literal[False] = False,
        progress: OnProgress | None = None,
        force: bool = False,
        token: str = "",
    ) -> Pulled: ...
    @overload
    def pull(self, model: str, *, stream: Literal[True], force: bool = False, token: str = "") -> Pulling: ...
    def pull(
        self,
        model: str,
        *,
        stream: bool = False,
        progress: OnProgress | None = None,
        force: bool = False,
        token: str = "",
    ) -> Pulled | Pulling:
        """Pull a model into the store. If it is there, it is fetched again only if its source has changed.

        Args:
            model: a short name (`smollm2`), one of a registry, `hf.co/…`, a URL, or the path of a file.
            stream: return an iterator over the progress; its `result()` is a sentence.
            progress: called with each step, in this thread or on the event loop; `print` works.
            force: pull it even if it does not fit on the disk or cannot run on this machine.
            token: for a source that requires one.

        Raises:
            RequestRefused: `bad_model_name`, `not_found`, or why it could not be fetched. Downloaded data is
                kept, and the next attempt resumes from there.
        """
        call = calls.pull(model, progress, force=force, token=token)
        return self._pulled(model, call, calls.truth(stream, "stream"))

    @overload
    def chat(
        self,
        model: str,
        messages: str | Sequence[Message],
        *,
        stream: Literal[False] = False,
        backend: str = "",
        progress: OnProgress | None = None,
        **options: Unpack[ChatOptions],
    ) -> Text: ...
    @overload
    def chat(
        self,
        model: str,
        messages: str | Sequence[Message],
        *,
        stream: Literal[True],
        backend: str = "",
        progress: OnProgress | None = None,
        **options: Unpack[ChatOptions],
    ) -> Texts: ...
    def chat(
        self,
        model: str,
        messages: str | Sequence[Message],
        *,
        stream: bool = False,
        backend: str = "",
        progress: OnProgress | None = None,
        **options: Unpack[ChatOptions],
    ) -> Text | Texts:
        """Answer a chat. The model is loaded if necessary, and its backend installed if that is allowed.

        Args:
            model: its name in the store.
            messages: the user's message, or the whole chat as a list of `{"role": …, "content": …}`.
            stream: return an iterator over the pieces of the text.
            backend: the only one that may serve it; by default the best one that is installed.
            progress: called with what the request waits for, such as a model being loaded, as for `pull`.
            **options: `system`, `temperature`, `max_tokens`, `tools`, …: see `ChatOptions`.

        Raises:
            RequestRefused: `model_not_found`, `backend_not_installed` (no suitable backend is installed, and
                `install_policy` does not allow installing one), `context_length_exceeded`, a busy or failed
                engine, too little memory. A stream raises it while it is iterated. A request waits in the
                queue for at most `max_wait` seconds.
        """
        call = calls.chat(model, messages, backend, progress, options)
        return self._written(call, calls.truth(stream, "stream"))

    @overload
    def complete(
        self,
        model: str,
        prompt: str,
        *,
        stream: Literal[False] = False,
        backend: str = "",
        progress: OnProgress | None = None,
        **options: Unpack[TextOptions],
    ) -> Text: ...
    @overload
    def complete(
        self,
        model: str,
        prompt: str,
        *,
        stream: Literal[True],
        backend: str = "",
        progress: OnProgress | None = None,
        **options: Unpack[TextOptions],
    ) -> Texts: ...
    def complete(
        self,
        model: str,
        prompt: str,
        *,
        stream: bool = False,
        backend: str = "",
        progress: OnProgress | None = None,
        **options: Unpack[TextOptions],
    ) -> Text | Texts:
        """Continue a text, without the model's chat template. Arguments and errors are those of `chat`."""
        call = calls.complete(model, prompt, backend, progress, options)
        return self._written(call, calls.truth(stream, "stream"))

    @overload
    def install(
        self,
        backend: str,
        *,
        stream: Literal[False] = False,
        progress: OnProgress | None = None,
        version: str = "",
        variant: str = "",
    ) -> Installed: ...
    @overload
    def install(
        self, backend: str, *, stream: Literal[True], version: str = "", variant: str = ""
    ) -> Installing: ...
    def install(
        self,
        backend: str,
        *,
        stream: bool = False,
        progress: OnProgress | None = None,
        version: str = "",
        variant: str = "",
    ) -> Installed | Installing:
        """Install a backend, and wait until it is installed. Callers that want the same one share the work.

        Args:
            backend: its name, such as `mlx`.
            stream: return an iterator over the progress; its `result()` is what is installed.
            progress: called with each step, as for `pull`.
            version: one other than the default.
            variant: its build for particular devices; `best` selects the best one for this machine.

        Raises:
            RequestRefused: `backend_not_found`, `not_managed` (it is the user's own), or why it failed.
                Without a network it is retried for minutes before it fails.
        """
        call = calls.install(backend, progress, version=version, variant=variant)
        return self._installed(call, calls.truth(stream, "stream"))

    def engine(
        self, model: str, *, mode: Mode = "completion", backend: str = "", wait: float | None = None
    ) -> EngineSlot:
        """A slot in an engine that has this model loaded, for as long as a `with` or `async with` block runs.

        See `EngineSlot`. Only on Greenroom's own machine: from another, entering raises a GreenroomError.

        Args:
            model: its name in the store.
            mode: `completion`, `embedding` or `reranking`.
            backend: the only one that may serve it.
            wait: seconds to wait for the slot; None is the setting `max_wait`.
        """
        from greenroom.runner.client.engine_slot import EngineSlot

        return EngineSlot(self._access, model, mode, backend, wait)

    # how the client answers

    @abstractmethod
    def _pulled(self, model: str, call: JobCall[str], stream: bool) -> Pulled | Pulling: ...
    @abstractmethod
    def _written(self, call: TextCall, stream: bool) -> Text | Texts: ...
    @abstractmethod
    def _installed(self, call: JobCall[InstalledBackend], stream: bool) -> Installed | Installing: ...
