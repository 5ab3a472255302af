"""`greenroom rollback-runner`: go back to a version of a backend that is still here."""

from __future__ import annotations

import click

from greenroom.runner.cli.conversation import announce
from greenroom.runner.cli.install_runner import backend_option
from greenroom.runner.cli.launch import ensure_daemon
from greenroom.runner.cli.main import settings_of


@click.command("rollback-runner")
@backend_option
@click.option("--version", default="", metavar="VERSION", help="Not the one before, but this one.")
@click.pass_context
def command(ctx: click.Context, backend: str, version: str) -> None:
    """Bring the version that was in use before back into use. Nothing is fetched or built.

    Engines that run go on with what they have; `greenroom unload` ends the idle ones.
    """
    client = ensure_daemon(settings_of(ctx), announce)
    answer = client.post("/engines/activate-backend", {"backend": backend, "version": version}) or {}
    click.echo(f"{backend} {answer['installation']['version']} is in use")
