"""What would serve a model: the scheduler's own choice, asked for without loading anything."""

from __future__ import annotations

from typing import Any

from greenroom.actors.kernel.errors import Refusal
from greenroom.actors.scheduler.backend_choice import Install, Use, choose
from greenroom.actors.scheduler.ledger import Capacity, reservation_for
from greenroom.actors.scheduler.state import ModelConfigState, config_key
from greenroom.actors.values import Mode, Model
from greenroom.runner.http.door import Door

_MODES: tuple[Mode, ...] = ("completion", "embedding", "reranking")


def prospects(door: Door, model: Model) -> list[dict[str, Any]]:
    """For each mode that any backend could serve it in: which one would, and the memory that needs."""
    backstage = door.backstage
    statuses = {one.name: one for one in backstage.statuses()}
    configs = door.configs()
    found = []
    for mode in _MODES:
        if not any(model.format in one.formats and mode in one.modes for one in backstage.facts):
            continue
        choice = choose(model, mode, "", backstage.settings.install_policy, backstage.facts, statuses)
        config = configs.get(config_key(model.id, mode), ModelConfigState())
        context = model.context_size if config.context_size is None else config.context_size
        found.append({"mode": mode, **_told(choice), **_memory(door, model, choice, context)})
    return found


def _told(choice: Use | Install | Refusal) -> dict[str, Any]:
    if isinstance(choice, Use):
        return {"backend": choice.backend, "installed": True, "reasons": list(choice.reasons)}
    if isinstance(choice, Install):
        return {"backend": choice.backend, "installed": False, "reasons": [choice.reason]}
    backend = choice.subject or None
    return {"backend": backend, "installed": False, "reasons": [choice.sentence()]}


def _memory(door: Door, model: Model, choice: Use | Install | Refusal, context: int) -> dict[str, Any]:
    name = choice.subject if isinstance(choice, Refusal) else choice.backend
    overheads = [one.overhead for one in door.backstage.facts if one.name == name]
    if not overheads:
        return {}
    # One slot is the least that it is loaded with.
    needed = reservation_for(model, context, overheads[0], Capacity()).total
    budget = door.backstage.budget_for(name)
    told: dict[str, Any] = {"memory": needed, "memory_budget": budget, "fits": needed <= budget}
    return told | ({"context_size": context} if context > 0 else {})
