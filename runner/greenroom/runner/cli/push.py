"""`greenroom push`: publish a model on a registry."""

from __future__ import annotations

import click

from greenroom.runner.cli.identity import client_for
from greenroom.runner.cli.jobs import push
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.names import ModelName


@click.command("push")
@click.argument("model", type=ModelName())
@click.pass_context
def command(ctx: click.Context, model: str) -> None:
    """Publish MODEL under its name: greenroom tag smollm2 REGISTRY/YOU/MODEL, then push that.

    Who you are to the registry is what `docker login` has stored. What it has already is not sent again.
    """
    click.echo(push(client_for(settings_of(ctx)), model))
