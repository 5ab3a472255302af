"""Models that are loaded without a client: at the start those configured as warm, and those loaded before;
later those whose engines were ended for a better place.

Engines that outlived the last daemon have been adopted by now, so requesting them costs nothing.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal, NamedTuple

from greenroom.actors.daemon_log import DAEMON, DaemonState
from greenroom.actors.kernel.errors import KernelError
from greenroom.actors.kernel.system import ActorSystem
from greenroom.actors.scheduler.effects import LoadAgain
from greenroom.actors.scheduler.messages import SCHEDULER, Abandon, Serve
from greenroom.actors.scheduler.state import ModelConfigState, SchedulerState, config_key
from greenroom.actors.values import Caller, Mode
from greenroom.runner.actor_states import ActorStates
from greenroom.runner.config import Settings
from greenroom.runner.models.references import AmbiguousName, BadReference
from greenroom.runner.threads import start_thread

_log = logging.getLogger(__name__)

_GRACE = 15.0
"""Seconds beyond the longest wait after which to stop waiting for the scheduler."""


class Wanted(NamedTuple):
    model_id: str
    model_ref: str
    mode: Mode = "completion"
    backend: str = ""
    keep_alive: float | None = None
    why: str = "warm"


def interrupted(
    state: SchedulerState, policy: Literal["pinned", "all", "never"], *, since: float, keep_alive: float
) -> Iterable[Wanted]:
    """The models that the policy restores, of those loaded when a daemon ended that started at `since` or
    later.

    `keep_alive` is the default, in seconds.
    """
    for one in state.interrupted.values() if policy != "never" else ():
        spec = one.spec
        configured = state.configs.get(config_key(spec.model_id, spec.mode), ModelConfigState()).keep_alive
        stays = one.kept or (keep_alive if configured is None else configured) < 0
        if one.at >= since and (stays or policy == "all"):
            wish = -1.0 if one.kept else None
            yield Wanted(spec.model_id, spec.model_ref, spec.mode, spec.backend, wish, "restore")


def wanted(states: ActorStates, settings: Settings) -> Iterator[Wanted]:
    """The models that are loaded at the start: those that are restored, and those configured as warm."""
    daemon: DaemonState = states.system.state(DAEMON)
    state: SchedulerState = states.system.state(SCHEDULER)
    yield from interrupted(
        state, settings.restore, since=daemon.started_before, keep_alive=settings.keep_alive
    )
    for name in settings.warm:
        if (there := states.remotes.named(name)) is not None:
            _log.warning(
                "%s is configured as warm, but not loaded: %s is a remote backend", name, there[0].name
            )
            continue
        try:
            model = states.find_model(name)
        except (BadReference, AmbiguousName) as problem:
            _log.warning("a model configured as warm has no usable name: %s", problem)
            continue
        if model is None:
            _log.warning("%s should be warm but is not in the store; run: greenroom pull %s", name, name)
        else:
            yield Wanted(model.id, name)


def load_again(system: ActorSystem, one: LoadAgain, max_wait: float) -> None:
    """A model whose engine was ended for a better place."""
    wanted = Wanted(one.model_id, one.model_ref, one.mode, one.backend, one.keep_alive, "moved")
    preload(system, [wanted], max_wait)


def preload(system: ActorSystem, wanted: Iterable[Wanted], max_wait: float) -> None:
    """Request all of them at once, on a thread that ends when they are loaded or refused.

    The outcome is in the journal, refusals also in the log. `max_wait`: seconds the scheduler lets a request
    wait.
    """
    distinct = list({(one.model_id, one.mode): one for one in wanted}.values())
    if distinct:
        start_thread(partial(_load, system, distinct, max_wait + _GRACE), "preload")


def _load(system: ActorSystem, wanted: list[Wanted], timeout: float) -> None:
    asked = []
    for one in wanted:
        request_id = f"{one.why}-{secrets.token_hex(6)}"
        serve = Serve(
            request_id=request_id,
            model_id=one.model_id,
            model_ref=one.model_ref,
            mode=one.mode,
            backend=one.backend,
            keep_alive=one.keep_alive,
            caller=Caller(kind="greenroom", id=one.why, name=one.why),
            held=True,
        )
        reply = system.ask(serve, cause=request_id, timeout=timeout)
        # At once, not in turn: a model with its slot must not keep it while another loads, since that
        # one may need the memory, and clients the slot.
        reply.on_done(partial(_leave, system, request_id))
        asked.append((one, reply))
    for one, reply in asked:
        try:
            reply.get()
        except KernelError as error:
            _log.warning("%s is not loaded (%s): %s", one.model_ref, one.why, error)


def _leave(system: ActorSystem, request_id: str) -> None:
    try:
        # Gives back a granted slot, or withdraws the request.
        system.tell(Abandon(request_id=request_id), cause=request_id)
    except KernelError as error:
        _log.debug("%s needs no abandoning any more: %s", request_id, error)
