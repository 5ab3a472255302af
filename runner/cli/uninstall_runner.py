"""`greenroom uninstall-runner`: remove a backend."""

from __future__ import annotations

import json

import click
from greenroom.runner.cli.conversation import announce
from greenroom.runner.cli.launch import ensure_daemon
from greenroom.runner.cli.main import settings_of
from greenroom.runner.quantities import format_size


@click.command("uninstall-runner")
@click.option("--backend", required=True, metavar="NAME", help="Which backend.")
@click.pass_context
def command(ctx: click.Context, backend: str) -> None:
    """Remove a backend once its engines have answered what they were asked; it stays removed."""
    client = ensure_daemon(settings_of(ctx), announce)
    with client.open("POST", "/engines/uninstall-backend", {"backend": backend}) as answer:
        content = answer.read()
    try:
        freed = float(json.loads(content)["freed"])
    except (ValueError, TypeError, KeyError):
        # The contract's answer is empty.
        freed = 0.0
    click.echo(f"Uninstalled {backend} backend{f', {format_size(freed)} freed' if freed else ''}")
