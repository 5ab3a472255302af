"""`greenroom uninstall-runner`: remove a backend."""

from __future__ import annotations

import click

from greenroom.runner.cli.conversation import announce
from greenroom.runner.cli.launch import ensure_daemon
from greenroom.runner.cli.main import settings_of
from greenroom.runner.units import format_size


@click.command("uninstall-runner")
@click.option("--backend", required=True, metavar="NAME", help="Which backend.")
@click.option("--version", metavar="VERSION", help="Only this one, of several.")
@click.option("--force", is_flag=True, help="End its engines even while they answer requests.")
@click.pass_context
def command(ctx: click.Context, backend: str, version: str | None, force: bool) -> None:
    """Remove a backend, all versions or one, once its engines have answered what they were asked.

    It stays removed until it is requested. When the version in use goes, another that is here comes into
    use.
    """
    client = ensure_daemon(settings_of(ctx), announce)
    body: dict[str, object] = {"backend": backend}
    body |= ({"version": version} if version is not None else {}) | ({"force": True} if force else {})
    answer = client.post("/engines/uninstall-backend", body, timeout=None) or {}
    what = f"{backend} {version}" if version else f"{backend} backend"
    if answer.get("was_installed") is False:
        click.echo(f"{what} is not installed")
        return
    freed = float(answer.get("freed") or 0)
    click.echo(f"Uninstalled {what}{f', {format_size(freed)} freed' if freed else ''}")
