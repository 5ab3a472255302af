"""Finds the models of remote backends by the names that clients know them by."""

from __future__ import annotations

import asyncio
import contextlib

from greenroom.actors.limits import escaped
from greenroom.runner.http.errors import HttpRefusal
from greenroom.runner.remotes.model import RemoteModel
from greenroom.runner.remotes.reading import clause
from greenroom.runner.remotes.watch import Remote

_ASKED_WITHIN = 5.0
"""Seconds that a request waits for a check of its backend."""


async def find_remote_model(remote: Remote, own: str, asked: str) -> RemoteModel:
    """A model of a backend that answers. Raises HttpRefusal: 503 if it does not, 404 if it has no such model.

    If the backend did not answer the last check, or did not list the model, it is checked again first.
    """
    model = remote.find(own)
    if remote.now.state != "answers" or model is None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ASKED_WITHIN):
                await asyncio.wrap_future(remote.ask_again())
        model = remote.find(own)
    now = remote.now
    if now.state != "answers":
        failure, message = now.failure, f"{remote.name} has not answered yet at {now.url}."
        if failure is not None:
            message = f"{remote.name} cannot be used at {now.url}: {clause(failure)}."
        more = f"greenroom why {remote.name} says more."
        raise HttpRefusal(
            503,
            f"backend_{failure.code}" if failure is not None else "backend_unreachable",
            message,
            advice=f"{failure.advice} {more}".strip() if failure is not None else more,
            retry_after=max(1.0, now.next_in),
            subject=remote.name,
        )
    if model is None:
        some = ", ".join(f"{remote.name}/{one}" for one in now.models[:5])
        more = ", …" if len(now.models) > 5 else ""
        raise HttpRefusal(
            404,
            "model_not_listed",
            f'{remote.name} lists no model "{escaped(own)}".',
            advice=f"It lists {some}{more}." if some else "It lists no models.",
            param="model",
            subject=asked,
        )
    return model
