"""`greenroom version`: of this program and of the daemon."""

from __future__ import annotations

from importlib.metadata import version

import click

from greenroom.runner.cli.identity import find
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.problem import Problem


@click.command("version")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Show the versions of this program and of the daemon. Never fails."""
    import platform

    click.echo(f"Client:\n Version:  {version('greenroom')}")
    click.echo(f" Python:   {platform.python_version()}")
    click.echo(f" Platform: {platform.system().lower()}/{platform.machine()}")
    try:
        daemon = find(settings_of(ctx))
    except Problem as problem:
        click.echo(f"Server:\n {problem.message}")
        return
    if daemon is None:
        click.echo("Server:\n not running")
    else:
        click.echo(f"Server:\n Version:  {daemon.version}\n Address:  {daemon.url}\n Pid:      {daemon.pid}")
