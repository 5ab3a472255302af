"""How a model was configured: what each change set, what was set before, and which request it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from greenroom.actors.scheduler.events import ConfigChanged
from greenroom.actors.scheduler.messages import CONFIG_FIELDS
from greenroom.actors.values import Mode
from greenroom.runner.diagnosis.changes import config_parts
from greenroom.runner.diagnosis.explanation import listed
from greenroom.runner.diagnosis.history import Happening, History, of_type


class ConfigChange(NamedTuple):
    """One change of a model's configuration."""

    happening: Happening
    event: ConfigChanged
    before: Mapping[str, Any]
    """What was set before, by field."""

    def sets(self, field: str) -> bool:
        return getattr(self.event, field) is not None or field in self.event.reset

    def told(self) -> str:
        """`a context of 8192 tokens instead of a context of 4096 tokens`."""
        return listed(config_parts(msgspec.structs.asdict(self.event), self.before) or ["the defaults"])

    def who(self, history: History) -> str:
        """The request behind it."""
        return history.who(self.happening.record.cause, self.event.caller) or "the user"


def changes(history: History, model_id: str, mode: Mode) -> list[ConfigChange]:
    """The oldest first."""
    found: list[ConfigChange] = []
    held: dict[str, Any] = {}
    for one, event in of_type(history.events_of(model_id), ConfigChanged):
        if event.model_id != model_id or event.mode != mode:
            continue
        found.append(ConfigChange(one, event, dict(held)))
        for name in CONFIG_FIELDS:
            if (value := getattr(event, name)) is not None:
                held[name] = value
            elif name in event.reset:
                held.pop(name, None)
    return found


def last_change(
    history: History, model_id: str, mode: Mode, field: str, *, before: int = 0
) -> ConfigChange | None:
    """The last change of one field, of those stored before an event."""
    return next(
        (
            one
            for one in reversed(changes(history, model_id, mode))
            if one.sets(field) and (not before or one.happening.record.seq < before)
        ),
        None,
    )
