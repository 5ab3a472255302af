"""`greenroom reinstall-runner`: build a backend anew."""

from __future__ import annotations

import click

from greenroom.runner.cli.conversation import announce
from greenroom.runner.cli.install_runner import backend_option, report
from greenroom.runner.cli.jobs import install
from greenroom.runner.cli.launch import ensure_daemon
from greenroom.runner.cli.main import settings_of


@click.command("reinstall-runner")
@backend_option
@click.option("--version", default="", metavar="VERSION", help="Another version than the pinned one.")
@click.pass_context
def command(ctx: click.Context, backend: str, version: str) -> None:
    """Build a backend's installation anew, beside the old one, which goes once nobody uses it."""
    client = ensure_daemon(settings_of(ctx), announce)
    report(backend, install(client, backend, version=version, reinstall=True, announce=click.echo))
