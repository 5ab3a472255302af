"""`greenroom models`: the models that are here, and whether they are whole."""

from __future__ import annotations

import click

from greenroom.runner.cli import exit_codes
from greenroom.runner.cli.client import Refused
from greenroom.runner.cli.identity import client_for
from greenroom.runner.cli.jobs import verify as verify_one
from greenroom.runner.cli.main import settings_of
from greenroom.runner.cli.names import ModelName
from greenroom.runner.cli.output import style
from greenroom.runner.cli.problem import Problem


@click.group("models", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> int:
    """List the models that are here."""
    if ctx.invoked_subcommand is None:
        from greenroom.runner.cli.list import command as listing

        ctx.invoke(listing, model=None, as_json=False, quiet=False)
    return exit_codes.OK


@command.command("verify")
@click.argument("models", nargs=-1, type=ModelName())
@click.pass_context
def verify(ctx: click.Context, models: tuple[str, ...]) -> int:
    """Read every byte of MODELS (of all, if none is named) and compare it with what arrived, by hash.

    One that is damaged counts as gone from then on, and the next pull fetches what is missing. Exits 1 then.
    """
    client = client_for(settings_of(ctx))
    names = models or tuple((model.get("tags") or [model["id"]])[0] for model in client.get("/models") or ())
    whole = True
    for name in names:
        try:
            click.echo(verify_one(client, name))
        except Problem as problem:
            if isinstance(problem, Refused) and problem.status >= 500:
                raise
            whole = False
            click.echo(f"{style('Error:', fg='red')} {problem}", err=True)
    return exit_codes.OK if whole else exit_codes.FAILED
