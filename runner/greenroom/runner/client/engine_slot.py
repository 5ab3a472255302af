"""A slot in an engine, for programs that talk to the engine themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from greenroom.runner.client.access import Access
from greenroom.runner.client.async_client import AsyncStepStream
from greenroom.runner.client.calls import Mode, SlotCall
from greenroom.runner.client.errors import NotAvailable
from greenroom.runner.client.results import GrantedSlot
from greenroom.runner.client.streams import StepStream


class EngineSlot:
    """A slot in an engine, held for the length of a `with` or `async with` block.

    Entering loads the model if necessary and waits in the queue, like any request. While the block runs, the
    engine is not unloaded and the slot belongs to this program. Inside the block, `socket` is the unix socket
    on which the engine serves HTTP. The slot is released when the block ends, even by an error, when the wait
    is interrupted or cancelled, and when the program ends or is killed. Entering raises GreenroomError:
    `not_in_time` if no slot came free in time. It can be entered again. For one thread or task at a time.
    """

    def __init__(self, access: Access, model: str, mode: Mode, backend: str, wait: float | None) -> None:
        self._access = access
        self._call = SlotCall(model, mode, backend, wait)
        self._held: StepStream[GrantedSlot, None] | AsyncStepStream[GrantedSlot, None] | None = None
        """The response that stays open for as long as the slot is held."""
        self._granted: GrantedSlot | None = None

    @property
    def socket(self) -> Path:
        """The unix socket at which the engine speaks HTTP, with an OpenAI API at its root."""
        return Path(self._inside.socket)

    @property
    def engine_id(self) -> str:
        return self._inside.engine_id

    @property
    def backend(self) -> str:
        """The backend whose engine it is."""
        return self._inside.backend

    @property
    def _inside(self) -> GrantedSlot:
        if self._granted is None:
            raise RuntimeError("use the slot inside its with block")
        return self._granted

    def __enter__(self) -> Self:
        self._check()
        self._held = held = StepStream(self._access, self._call)
        try:
            self._granted = _here(next(held, None))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        held, self._held, self._granted = self._held, None, None
        if isinstance(held, StepStream):
            held.close()

    async def __aenter__(self) -> Self:
        self._check()
        self._held = held = AsyncStepStream(self._access, self._call)
        try:
            self._granted = _here(await anext(held, None))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        held, self._held, self._granted = self._held, None, None
        if isinstance(held, AsyncStepStream):
            await held.aclose()

    def _check(self) -> None:
        if self._held is not None:
            raise RuntimeError("this slot is used in a with block already; call engine() again for another")


def _here(granted: GrantedSlot | None) -> GrantedSlot:
    """Raises NotAvailable if the engine cannot be reached from this process."""
    if granted is None:
        raise NotAvailable("Greenroom ended before a slot came free.", "Try again.", code="stopping")
    try:
        is_here = Path(granted.socket).is_socket()
    except OSError:
        is_here = False
    if not is_here:
        raise NotAvailable(
            f"The engine's socket, {granted.socket[:200]}, is not on this machine.",
            "Use chat, complete and embed, which work from anywhere.",
            code="not_on_this_machine",
            kind="invalid",
        )
    return granted
