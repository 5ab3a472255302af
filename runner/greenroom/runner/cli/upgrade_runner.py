"""`greenroom upgrade-runner`: another version of a backend, built beside the one in use."""

from __future__ import annotations

import click

from greenroom.runner.cli.conversation import announce
from greenroom.runner.cli.install_runner import backend_option
from greenroom.runner.cli.jobs import install
from greenroom.runner.cli.launch import ensure_daemon
from greenroom.runner.cli.main import settings_of


@click.command("upgrade-runner")
@backend_option
@click.option(
    "--version",
    default="pinned",
    metavar="VERSION",
    help="A version, or `latest`; otherwise the one this release was tested with.",
)
@click.pass_context
def command(ctx: click.Context, backend: str, version: str) -> None:
    """Build a version beside the one in use, start it once on a probe, then switch to it.

    Engines that run go on with what they have. The old version stays: rollback-runner goes back to it.
    """
    client = ensure_daemon(settings_of(ctx), announce)
    done = install(client, backend, version=version, announce=click.echo)
    # Whether another one was in use until now is not told.
    word = "is installed and in use"
    if done.already:
        word = "is in use; it was already installed"
        if version == "latest":
            word = "is the newest version; it was already installed and is in use"
    click.echo(f"{backend} {done.version} {word}")
