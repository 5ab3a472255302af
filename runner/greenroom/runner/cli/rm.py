"""`greenroom rm`: remove models."""

from __future__ import annotations

import click

from greenroom.runner.cli import exit_codes
from greenroom.runner.cli.client import Client, Refused, path_of
from greenroom.runner.cli.identity import client_for
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.names import ModelName
from greenroom.runner.cli.output import style


@click.command("rm")
@click.argument("models", nargs=-1, type=ModelName())
@click.option("-f", "--force", is_flag=True, help="Also those that are in use, or have several names.")
@click.option("--all", "everything", is_flag=True, help="All models.")
@click.pass_context
def command(ctx: click.Context, models: tuple[str, ...], force: bool, everything: bool) -> int:
    """Remove MODELS: by name a name, and with its last one the model; by id the model.

    Idle engines of a model end. One that is in use is refused; with --force it goes, and the requests that
    are being served are served to the end. Of several the others are removed when one cannot be; exits 1.
    """
    if bool(models) == everything:
        raise click.UsageError("Name models, or use --all." if not models else "Name models or use --all.")
    client = client_for(settings_of(ctx))
    query = f"?force={'true' if force else 'false'}"
    if everything:
        client.delete(f"/models/purge{query}", timeout=None)
        click.echo("All models are removed.")
        return exit_codes.OK
    outcomes = [_remove(client, model, query) for model in models]
    return exit_codes.OK if all(outcomes) else exit_codes.FAILED


def _remove(client: Client, model: str, query: str) -> bool:
    try:
        gone = client.delete(path_of("models", model) + query, timeout=None) or []
    except Refused as refused:
        sentence = f"There is no model {model} here." if refused.status == 404 else str(refused)
        click.echo(f"{style('Error:', fg='red')} {sentence}", err=True)
        return False
    for step in gone:
        for what, name in step.items():
            click.echo(f"{what}: {name}")
    return True
