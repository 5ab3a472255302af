"""`greenroom config`: every setting and where its value comes from."""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from typing import Any

import click

from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.output import announce, table, terminal_width
from greenroom.runner.config import NAMES, Settings
from greenroom.runner.installations.sources import redact
from greenroom.runner.units import format_duration, format_size

_DURATIONS = frozenset(
    "keep_alive max_wait max_queued progress_after unread_for record_for engine_grace stall_after".split()
)
_SIZES = frozenset(("memory_budget", "headroom", "gpu_headroom", "prompt_cache", "max_body"))
_UNSET = {
    "memory_budget": "auto (90% of memory, minus the headroom)",
    "slots": "auto (the backend's default, fewer if memory is short)",
    "prompt_cache": "auto (two contexts, at most 1 GB, less if memory is short)",
}


@click.command("config")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with seconds and bytes.")
@click.pass_context
def config_command(ctx: click.Context, as_json: bool) -> None:
    """Show every setting and the source of its value.

    A running daemon keeps the settings it was started with.
    """
    settings = settings_of(ctx)
    if as_json:
        values = {
            name: {"value": _plain(getattr(settings, name)), "origin": settings.origin(name)}
            for name in NAMES
        }
        click.echo(json.dumps(values, indent=4, ensure_ascii=False))
        return
    click.echo(
        table(
            ("SETTING", "VALUE", "FROM"),
            [row for name in NAMES for row in _rows(settings, name)],
            width=terminal_width(),
        )
    )
    if settings.config_file is None:
        announce(f"\nThere is no config file. Its place is {settings.home / 'config.toml'}.")


def _listed(indexes: tuple[str, ...] | None) -> str:
    return "" if indexes is None else redact(", ".join(indexes)) or "none"


def _rows(settings: Settings, name: str) -> list[tuple[str, str, str]]:
    value, origin = getattr(settings, name), settings.origin(name)
    if name == "models":
        return [(f"models.{key}", _source(entry), origin) for key, entry in value.items()]
    if name == "backends":
        return [
            (f"backends.{key}.{kind}", str(path), origin)
            for key, external in value.items()
            for kind, path in (
                ("binary", external.binary),
                ("python", external.python),
                ("image", external.image),
                ("gpu", "true" if external.gpu else ""),
                ("indexes", _listed(external.indexes)),
            )
            if path
        ]
    if name == "registries":
        return [
            (f"registries.{key}.{kind}", text, origin)
            for key, registry in value.items()
            for kind, text in (
                ("mirrors", ", ".join(registry.mirrors)),
                ("insecure", "true" if registry.insecure else ""),
            )
            if text
        ]
    if name == "host" and not value:
        return [(name, f"{settings.url} (this data directory's daemon)", origin)]
    if name == "instance" and not value:
        return [(name, "(this data directory's)", origin)]
    return [(name, _readable(name, value), origin)]


def _source(entry: Any) -> str:
    return str(entry.get("source", "")) if isinstance(entry, dict) else str(entry)


def _readable(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "(none)"
    if value is None:
        return _UNSET[name]
    if name in _DURATIONS:
        return format_duration(value)
    if name in _SIZES:
        return _size(value)
    return str(value)


def _size(value: int) -> str:
    """As it was most likely written."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3), ("GiB", 2**30), ("MiB", 2**20)):
        if value >= step and value % step == 0:
            return f"{value // step} {unit}"
    return format_size(value)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, (int, float)) or value is None:
        return value
    if hasattr(value, "items"):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    if is_dataclass(value):
        return {kind: _plain(inner) for kind, inner in vars(value).items() if inner}
    return str(value)
