"""`greenroom df`: what models and backends use of the disk."""

from __future__ import annotations

import json
from typing import Any

import click

from greenroom.runner.cli.identity import client_for
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.table import table
from greenroom.runner.units import format_size

_OTHERS = ("cache", "unfinished", "engines", "journal", "other", "total")


@click.command("df")
@click.option("--json", "as_json", is_flag=True, help="Print the bytes as JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Show what models and backends use of the disk. What several share is counted once."""
    used: dict[str, Any] = client_for(settings_of(ctx)).get("/engines/df", timeout=120.0) or {}
    if as_json:
        click.echo(json.dumps(used))
        return
    sizes = {"models": used.get("models_disk_usage", 0)}
    sizes |= {f"backend {name}": size for name, size in (used.get("backends_disk_usage") or {}).items()}
    sizes |= {word: used[f"{word}_disk_usage"] for word in _OTHERS if f"{word}_disk_usage" in used}
    rows = [(name.replace("_", " "), format_size(float(size))) for name, size in sizes.items()]
    click.echo(table(("WHAT", "SIZE"), rows))
