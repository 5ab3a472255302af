"""`greenroom config`: every setting and where its value comes from."""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from typing import Any

import click

from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.output import announce, table, terminal_width
from greenroom.runner.config import NAMES
from greenroom.runner.installations.sources import redact
from greenroom.runner.settings_text import rows


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
            [row for name in NAMES for row in rows(settings, name)],
            width=terminal_width(),
        )
    )
    if settings.config_file is None:
        announce(f"\nThere is no config file. Its place is {settings.home / 'config.toml'}.")


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
