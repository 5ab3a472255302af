"""`greenroom config`: every setting and where its value comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.output import announce, table, terminal_width
from greenroom.runner.client.daemons import note
from greenroom.runner.config import NAMES, Settings
from greenroom.runner.plain_settings import plain, values_of
from greenroom.runner.settings_text import readable, rows


@click.command("config")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with seconds and bytes.")
@click.pass_context
def config_command(ctx: click.Context, as_json: bool) -> None:
    """Show every setting and the source of its value.

    A running daemon keeps the settings it was started with: those that differ are marked.
    """
    settings = settings_of(ctx)
    kept = _kept_by_daemon(settings)
    if as_json:
        values = {
            name: {"value": plain(getattr(settings, name)), "origin": settings.origin(name)}
            | ({"in_force": kept[name]} if name in kept else {})
            for name in NAMES
        }
        click.echo(json.dumps(values, indent=4, ensure_ascii=False))
        return
    shown = [
        (f"{setting}{' *' if name in kept else ''}", value, origin)
        for name in NAMES
        for setting, value, origin in rows(settings, name) or [(name, "(none)", "")] * (name in kept)
    ]
    click.echo(table(("SETTING", "VALUE", "FROM"), shown, width=terminal_width()))
    if kept:
        told = ", ".join(f"{name} = {_as_kept(name, value)}" for name, value in kept.items())
        announce(f"\n* Not in effect: the running daemon still has {told}. To apply: greenroom restart")
    if settings.config_file is None:
        announce(f"\nThere is no config file. Its place is {settings.home / 'config.toml'}.")


def _kept_by_daemon(settings: Settings) -> Mapping[str, Any]:
    """The settings that the running daemon has other values of, with its values."""
    from greenroom.runner.daemon_lock import holding_pid

    if settings.host or holding_pid(settings.home) is None:
        return {}
    kept = note(settings.home).get("settings")
    if not isinstance(kept, dict):
        return {}
    wanted = values_of(settings)
    return {name: kept[name] for name in wanted if name in kept and kept[name] != wanted[name]}


def _as_kept(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(value) or "none"
    return readable(name, tuple(value) if isinstance(value, list) else value)
