"""`greenroom unload`: end idle engines."""

from __future__ import annotations

import click

from greenroom.runner.cli.identity import client_for
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.names import ModelName


@click.command("unload")
@click.argument("models", nargs=-1, type=ModelName())
@click.option("--all", "everything", is_flag=True, help="All engines that are not in use.")
@click.option("--backend", default="", metavar="NAME", help="Only engines of this backend.")
@click.pass_context
def command(ctx: click.Context, models: tuple[str, ...], everything: bool, backend: str) -> None:
    """End the engines of MODELS that nobody uses at the moment."""
    if not models and not everything:
        raise click.UsageError("Name a model, or use --all.")
    if models and everything:
        raise click.UsageError("Name models or use --all, not both.")
    answer = client_for(settings_of(ctx)).post(
        "/engines/unload", {"all": everything, "backend": backend, "models": list(models)}
    )
    count = int((answer or {}).get("unloaded_runners") or 0)
    if count:
        click.echo(f"Unloaded {count} model(s).")
    else:
        # The daemon counts what it ended; what is in use is left alone and counts as nothing too.
        what = "no model" if everything else "no such model"
        click.echo(f"Nothing was unloaded: {what} is loaded, or it is in use. See greenroom ps.")
