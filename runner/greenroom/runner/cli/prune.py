"""`greenroom prune`: remove what no model and no backend needs."""

from __future__ import annotations

import json

import click

from greenroom.runner.cli.identity import client_for
from greenroom.runner.cli.main import settings_of
from greenroom.runner.units import format_size


@click.command("prune")
@click.option("--untagged", is_flag=True, help="Also models that have no name any more.")
@click.option("--json", "as_json", is_flag=True, help="Print what the daemon says, as JSON.")
@click.pass_context
def command(ctx: click.Context, untagged: bool, as_json: bool) -> None:
    """Remove downloads that broke off, and what no model or backend needs. Downloads under way go on."""
    pruned = client_for(settings_of(ctx)).post("/models/prune", {"untagged": untagged}, timeout=None) or {}
    if as_json:
        click.echo(json.dumps(pruned, indent=4))
        return
    for model_id in pruned.get("deleted") or ():
        click.echo(f"Deleted: {model_id}")
    freed = float(pruned.get("freed") or 0)
    click.echo(f"{format_size(freed)} are free again." if freed else "There was nothing to remove.")
    if kept_for := pruned.get("kept_for"):
        names = ", ".join(kept_for)
        click.echo(f"What was fetched for backends stays while one is being installed: {names}.")
