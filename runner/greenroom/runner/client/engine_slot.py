"""A slot in an engine, for programs that talk to the engine themselves."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from greenroom.runner.client.access import Access
from greenroom.runner.client.errors import NotAvailable, RequestRefused

if TYPE_CHECKING:
    from greenroom.actors.scheduler.messages import Granted, Serve
    from greenroom.runner.daemon import Greenroom

Mode = Literal["completion", "embedding", "reranking"]


class EngineSlot:
    """A slot in an engine while a `with` or an `async with` block runs; its exit gives it back.

    Entering loads the model if need be and waits for its turn, like any request. While the block runs, the
    engine is neither unloaded nor given to more requests than it has slots. Once inside, `socket` is where
    the engine speaks HTTP. The slot is given back too when the block ends with an error, when the waiting is
    interrupted or cancelled, and when the program ends. Entering raises GreenroomError: `not_in_time` if the
    slot did not come in time.
    """

    def __init__(self, access: Access, model: str, mode: Mode, backend: str, wait: float | None) -> None:
        if not isinstance(model, str):
            raise TypeError(f"model must be text, not {type(model).__name__}")
        if wait is not None and not wait > 0:
            raise ValueError(f"wait must be a number of seconds above 0, or None, not {wait}")
        self._access = access
        self._model, self._backend, self._wait = model, backend, wait
        self._mode: Mode = mode
        self._request_id = ""
        self._granted: Granted | None = None

    @property
    def socket(self) -> Path:
        """The unix socket at which the engine speaks HTTP, with an OpenAI API at its root."""
        return Path(self._inside.endpoint)

    @property
    def engine_id(self) -> str:
        return self._inside.engine_id

    @property
    def backend(self) -> str:
        """The backend whose engine it is."""
        return self._inside.backend

    @property
    def _inside(self) -> Granted:
        if self._granted is None:
            raise RuntimeError("use the slot inside its with block")
        return self._granted

    def __enter__(self) -> Self:
        self._check()
        runner = self._runner()
        with _Named():
            try:
                self._granted = runner.system.ask(self._serve(runner), timeout=self._wait).get()
            except BaseException:
                self._leave(runner)
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._leave(self._access.runner)

    async def __aenter__(self) -> Self:
        self._check()
        runner = self._access.runner
        if runner is None or self._access.opened is None:
            runner = await asyncio.to_thread(self._runner)
        with _Named():
            try:
                self._granted = await runner.system.ask(self._serve(runner), timeout=self._wait)
            except BaseException:
                self._leave(runner)
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leave(self._access.runner)

    def _check(self) -> None:
        if self._request_id:
            raise RuntimeError("this slot is used in a with block already; call engine() again for another")

    def _runner(self) -> Greenroom:
        self._access.http()
        runner = self._access.runner
        if runner is None:
            raise NotAvailable(
                "A slot in an engine cannot be had from a daemon.",
                "Open a Greenroom in this program, Greenroom.open(), or use chat, complete and embed.",
                code="not_in_this_program",
                kind="invalid",
            )
        return runner

    def _serve(self, runner: Greenroom) -> Serve:
        from greenroom.actors.scheduler.messages import Serve

        model = runner.model(self._model)
        self._request_id = f"slot-{uuid.uuid4().hex[:12]}"
        return Serve(
            request_id=self._request_id,
            model_id=model.id,
            model_ref=self._model,
            mode=self._mode,
            backend=self._backend,
        )

    def _leave(self, runner: Greenroom | None) -> None:
        """Give it back. Without a word if the Greenroom has been stopped, which has taken it."""
        from greenroom.actors.scheduler.messages import Abandon

        request_id, self._request_id, self._granted = self._request_id, "", None
        if request_id and runner is not None and runner.is_running:
            runner.system.tell(Abandon(request_id=request_id))


class _Named:
    """Turns what actors raise into errors of the client."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from greenroom.actors.kernel.errors import KernelError
        from greenroom.runner.actor_states import NotRunning

        if isinstance(error, KernelError | NotRunning):
            raise as_client_error(error) from error


def as_client_error(error: Exception) -> RequestRefused:
    """What an actor has raised, as the front door would have told it."""
    from greenroom.runner.http.errors import refusal_of, status_of

    refusal = refusal_of(error)
    fields = {"code": refusal.code, "retry_after": refusal.retry_after, **refusal.numbers}
    return RequestRefused(status_of(refusal), fields, refusal.message, refusal.advice)
