"""How a model is loaded: the values in force, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import msgspec

from greenroom.actors.scheduler.ledger import context_reckoned
from greenroom.actors.scheduler.state import ModelConfigState, config_key
from greenroom.actors.values import Engine, Mode, Model
from greenroom.runner.config import Settings
from greenroom.runner.http.go_duration import go_duration


class EffectiveRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One setting of a model, in one mode."""

    mode: Mode
    setting: str
    """As `/engines/_configure` names it."""
    value: int | bool | str | list[str] | None
    """Tokens, requests, bytes, a duration, or flags; null where it is decided when the model is loaded."""
    source: str
    """`configured`, `package`, `trained`, `automatic`, or where the daemon's setting comes from."""
    trained: int = 0
    """Of a context: the tokens that the model was trained for; left out if unknown."""


def effective(
    model: Model, configs: Mapping[str, ModelConfigState], engines: Sequence[Engine], settings: Settings
) -> list[EffectiveRow]:
    """What holds for a model in the mode it is made for, and in others that are configured."""
    usual: Mode = model.made_for or "completion"
    configured = [one for one in get_args(Mode) if config_key(model.id, one) in configs and one != usual]
    rows: list[EffectiveRow] = []
    for mode in (usual, *configured):
        config = configs.get(config_key(model.id, mode), ModelConfigState())
        live = [
            one
            for one in engines
            if (one.spec.model_id, one.spec.mode) == (model.id, mode) and one.state in ("starting", "ready")
        ]
        rows += _rows(mode, model, config, live[-1] if live else None, settings)
    return rows


def _rows(
    mode: Mode, model: Model, config: ModelConfigState, engine: Engine | None, settings: Settings
) -> list[EffectiveRow]:
    def row(setting: str, value: Any, source: str, **more: Any) -> EffectiveRow:
        return EffectiveRow(mode=mode, setting=setting, value=value, source=source, **more)

    size = model.context_size if config.context_size is None else config.context_size
    context = context_reckoned(size, model.context_length)
    if config.context_size is not None:
        source = "configured"
    elif model.context_size:
        source = "package"
    else:
        source = "trained" if context == model.context_length else "default"
    rows = [row("context-size", context, source, trained=model.context_length)]
    spec = engine.spec if engine is not None else None
    for setting, own, general, actual in (
        ("slots", config.slots or None, settings.slots, spec.slots if spec else None),
        (
            "prompt-cache",
            config.prompt_cache if (config.prompt_cache or 0) >= 0 else None,
            settings.prompt_cache,
            spec.prompt_cache if spec else None,
        ),
    ):
        if own is not None:
            rows.append(row(setting, own, "configured"))
        elif general is not None:
            rows.append(row(setting, general, settings.origin(setting.replace("-", "_"))))
        else:
            rows.append(row(setting, actual, "automatic"))
    if config.keep_alive is not None:
        rows.append(row("keep_alive", go_duration(config.keep_alive), "configured"))
    else:
        rows.append(row("keep_alive", go_duration(settings.keep_alive), settings.origin("keep_alive")))
    if config.require_device is not None:
        rows.append(row("require-device", config.require_device, "configured"))
    if config.flags:
        rows.append(row("runtime-flags", list(config.flags), "configured"))
    return rows
