"""`greenroom start-runner`: the daemon and a backend, ready to serve."""

from __future__ import annotations

import click

from greenroom.runner.cli.conversation import announce
from greenroom.runner.cli.install_runner import backend_option, report
from greenroom.runner.cli.jobs import install
from greenroom.runner.cli.launch import ensure_daemon
from greenroom.runner.cli.main import settings_of


@click.command("start-runner")
@backend_option
@click.pass_context
def command(ctx: click.Context, backend: str) -> None:
    """Start the daemon, unless it runs, and install the backend, unless it is there.

    Its engines start when a model is asked for.
    """
    client = ensure_daemon(settings_of(ctx), announce)
    report(backend, install(client, backend, announce=click.echo))
    click.echo(f"Greenroom is running at {client.url}")
