"""`greenroom uninstall-runner`: remove a backend."""

from __future__ import annotations

import click
from greenroom.runner.cli.conversation import announce
from greenroom.runner.cli.launch import ensure_daemon
from greenroom.runner.cli.main import settings_of
from greenroom.runner.quantities import format_size


@click.command("uninstall-runner")
@click.option("--backend", required=True, metavar="NAME", help="Which backend.")
@click.option("--force", is_flag=True, help="End its engines also when they answer somebody.")
@click.pass_context
def command(ctx: click.Context, backend: str, force: bool) -> None:
    """Remove a backend, all versions, once its engines have answered what they were asked.

    It stays removed until somebody asks for it.
    """
    client = ensure_daemon(settings_of(ctx), announce)
    body = {"backend": backend} | ({"force": True} if force else {})
    answer = client.post("/engines/uninstall-backend", body, timeout=None) or {}
    if answer.get("was_installed") is False:
        click.echo(f"{backend} backend is not installed")
        return
    freed = float(answer.get("freed") or 0)
    click.echo(f"Uninstalled {backend} backend{f', {format_size(freed)} freed' if freed else ''}")
